"""Building blocks that the networks written here share. Tensors are (N, C, A0, A1, A2)."""

from __future__ import annotations

from .lazy_classes import make_lazy_getattr


def _classes() -> tuple[type, ...]:
    import torch
    from torch import Tensor, nn

    class ResidualBlock(nn.Module):
        """Two 3x3x3 convolutions with instance normalization and a shortcut (1x1x1 where the channels change)."""

        def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
            super().__init__()
            self.first = nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False)
            self.first_norm = nn.InstanceNorm3d(channels_out, affine=True)
            self.second = nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False)
            self.second_norm = nn.InstanceNorm3d(channels_out, affine=True)
            changed = stride != 1 or channels_in != channels_out
            self.shortcut: nn.Module = nn.Identity()
            if changed:
                self.shortcut = nn.Sequential(
                    nn.Conv3d(channels_in, channels_out, 1, stride, bias=False),
                    nn.InstanceNorm3d(channels_out, affine=True),
                )
            self.activation = nn.LeakyReLU(0.01)

        def forward(self, x: Tensor) -> Tensor:
            y = self.activation(self.first_norm(self.first(x)))
            y = self.second_norm(self.second(y))
            return self.activation(y + self.shortcut(x))

    class UpBlock(nn.Module):
        """A step of a decoder: twice the size by a transposed convolution, the skip connection beside it, a residual block."""

        def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
            super().__init__()
            self.up = nn.ConvTranspose3d(channels_in, channels_out, 2, 2)
            self.block = ResidualBlock(channels_out + channels_skip, channels_out)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.block(torch.cat([self.up(x), skip], dim=1))

    class SelfAttention(nn.Module):
        """Multi-head self-attention over the second last axis: (..., tokens, channels) to the same."""

        def __init__(self, channels: int, heads: int) -> None:
            super().__init__()
            self.heads, self.scale = heads, (channels // heads) ** -0.5
            self.qkv = nn.Linear(channels, 3 * channels)
            self.out = nn.Linear(channels, channels)

        def forward(self, x: Tensor) -> Tensor:
            *outer, tokens, channels = x.shape
            # One product of three times the width, cut afterwards: one large INT8 layer instead of three small ones.
            q, k, v = (
                part.reshape(*outer, tokens, self.heads, channels // self.heads).transpose(-2, -3)
                for part in self.qkv(x).chunk(3, dim=-1)
            )
            weights = torch.softmax((q * self.scale) @ k.transpose(-1, -2), dim=-1)
            return self.out((weights @ v).transpose(-2, -3).reshape(*outer, tokens, channels))

    class TransformerLayer(nn.Module):
        """A pre-norm transformer layer (Vaswani et al. 2017, as in ViT, Dosovitskiy et al. 2021)."""

        def __init__(self, channels: int, heads: int, expansion: int = 4) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(channels)
            self.attention = SelfAttention(channels, heads)
            self.mlp_norm = nn.LayerNorm(channels)
            self.mlp = nn.Sequential(
                nn.Linear(channels, expansion * channels), nn.GELU(), nn.Linear(expansion * channels, channels)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))

    return (ResidualBlock, UpBlock, SelfAttention, TransformerLayer)


__getattr__ = make_lazy_getattr(__name__, _classes)
