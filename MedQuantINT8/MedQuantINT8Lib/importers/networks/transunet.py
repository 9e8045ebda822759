"""TransUNet in 3D: a convolutional encoder, a vision transformer at its end, a convolutional decoder with skips.

After J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation" (arXiv 2102.04306) and
"3D TransUNet" (arXiv 2310.07781): the transformer sees the encoder's last feature map, one token a voxel, with learned
positions; its output is laid back as a feature map from which the decoder goes up.
"""

from __future__ import annotations

from .lazy_classes import make_lazy_getattr


def _classes() -> tuple[type, ...]:
    import torch
    from torch import Tensor, nn

    from .blocks import ResidualBlock, TransformerLayer, UpBlock

    class TransUNet(nn.Module):
        """The 3D TransUNet.

        Args:
            patch: spatial size of the input; each side a multiple of 2 to the number of ``features``. Learned positions tie
                the network to it.
            features: channels of the convolutional levels, full size first.
            hidden, layers, heads: channels, layers and heads of the transformer (ViT-B: 768, 12, 12).
        """

        def __init__(
            self,
            channels_in: int = 1,
            classes: int = 14,
            patch: tuple[int, int, int] = (96, 96, 96),
            features: tuple[int, ...] = (16, 32, 64, 128),
            hidden: int = 768,
            layers: int = 12,
            heads: int = 12,
        ) -> None:
            super().__init__()
            factor = 2 ** len(features)
            if any(side % factor for side in patch):
                raise ValueError(f"each side of the patch {patch} must be a multiple of {factor}")
            self.grid = tuple(side // factor for side in patch)
            self.encoder = nn.ModuleList(
                ResidualBlock(before, after, stride=1 if level == 0 else 2)
                for level, (before, after) in enumerate(zip((channels_in, *features), features, strict=False))
            )
            # One token is a 2x2x2 cube of the last level's voxels.
            self.embedding = nn.Conv3d(features[-1], hidden, 2, 2)
            self.positions = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] * self.grid[2], hidden))
            nn.init.trunc_normal_(self.positions, std=0.02)
            self.transformer = nn.ModuleList(TransformerLayer(hidden, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(hidden)
            self.bottleneck = nn.Sequential(
                nn.Conv3d(hidden, 2 * features[-1], 1, bias=False),
                nn.InstanceNorm3d(2 * features[-1], affine=True),
                nn.LeakyReLU(0.01),
            )
            widths = (2 * features[-1], *reversed(features))
            self.decoder = nn.ModuleList(
                UpBlock(before, skip, skip) for before, skip in zip(widths, reversed(features), strict=False)
            )
            self.head = nn.Conv3d(features[0], classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            """Map (N, channels_in, *patch) to logits (N, classes, *patch)."""
            skips = []
            for level in self.encoder:
                x = level(x)
                skips.append(x)
            tokens = self.embedding(x).flatten(2).transpose(1, 2) + self.positions
            for layer in self.transformer:
                tokens = layer(tokens)
            x = self.bottleneck(self.norm(tokens).transpose(1, 2).unflatten(2, self.grid))
            for block, skip in zip(self.decoder, reversed(skips), strict=True):
                x = block(x, skip)
            return self.head(x)

    return (TransUNet,)


__getattr__ = make_lazy_getattr(__name__, _classes)
