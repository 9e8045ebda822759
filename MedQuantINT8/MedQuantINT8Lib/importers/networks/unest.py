"""UNesT: a hierarchical transformer whose attention stays inside blocks, with a convolutional decoder.

After X. Yu et al., "UNesT: Local Spatial Representation Learning with Hierarchical Transformer for Efficient Medical
Segmentation" (arXiv 2209.14378), whose encoder is the nested transformer of Z. Zhang et al. (arXiv 2105.12723): the
feature map is cut into blocks, attention runs inside each block, and between hierarchies the blocks are put together
again and merged by convolution and pooling, which is where neighboring blocks exchange information.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_classes import make_lazy_getattr

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int, int]


def to_blocks(x: Tensor, block: Size) -> Tensor:
    """Cut (N, C, D, H, W) into (N, blocks, tokens, C): ``block`` voxels a block, blocks and voxels in raster order."""
    n, c, d, h, w = x.shape
    a, b, e = block
    x = x.reshape(n, c, d // a, a, h // b, b, w // e, e).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return x.reshape(n, (d // a) * (h // b) * (w // e), a * b * e, c)


def from_blocks(x: Tensor, block: Size, grid: Size) -> Tensor:
    """Return the inverse of :func:`to_blocks`; ``grid`` is the number of blocks along each axis."""
    n, _, _, c = x.shape
    x = x.reshape(n, *grid, *block, c).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(n, c, *(g * b for g, b in zip(grid, block, strict=True)))


def _classes() -> tuple[type, ...]:
    import torch
    from torch import nn

    from .blocks import ResidualBlock, TransformerLayer, UpBlock

    class Merge(nn.Module):
        """Block aggregation: convolution, layer normalization over channels, max pooling to half the size."""

        def __init__(self, channels_in: int, channels_out: int) -> None:
            super().__init__()
            self.convolution = nn.Conv3d(channels_in, channels_out, 3, padding=1)
            self.norm = nn.LayerNorm(channels_out)
            self.pool = nn.MaxPool3d(3, 2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convolution(x)
            x = self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
            return self.pool(x)

    class Hierarchy(nn.Module):
        """Transformer layers inside blocks of one feature map, with learned positions for every voxel."""

        def __init__(self, channels: int, heads: int, layers: int, grid: Size, block: Size) -> None:
            super().__init__()
            self.grid, self.block = grid, block
            blocks, tokens = grid[0] * grid[1] * grid[2], block[0] * block[1] * block[2]
            self.positions = nn.Parameter(torch.zeros(1, blocks, tokens, channels))
            nn.init.trunc_normal_(self.positions, std=0.02)
            self.layers = nn.ModuleList(TransformerLayer(channels, heads) for _ in range(layers))

        def forward(self, x: Tensor) -> Tensor:
            tokens = to_blocks(x, self.block) + self.positions
            for layer in self.layers:
                tokens = layer(tokens)
            return from_blocks(tokens, self.block, self.grid)

    class UNesT(nn.Module):
        """UNesT, by default at the size of the paper's large model.

        Args:
            patch: spatial size of the input; each side a multiple of 32. Learned positions tie the network to it.
            widths, heads, layers: channels, heads and layers of the three hierarchies, finest first.
            features: channels of the two finest decoder levels, full size first.
        """

        def __init__(
            self,
            channels_in: int = 1,
            classes: int = 133,
            patch: Size = (96, 96, 96),
            widths: Size = (128, 256, 512),
            heads: Size = (4, 8, 16),
            layers: Size = (2, 2, 8),
            features: tuple[int, int] = (32, 64),
        ) -> None:
            super().__init__()
            if any(side % 32 for side in patch):
                raise ValueError(f"each side of the patch {patch} must be a multiple of 32")
            self.embedding = nn.Conv3d(channels_in, widths[0], 4, 4)
            # The coarsest hierarchy is one block; each finer one has twice as many along every axis.
            block = (patch[0] // 16, patch[1] // 16, patch[2] // 16)
            self.hierarchies = nn.ModuleList(
                Hierarchy(width, h, n, (2 ** (2 - level),) * 3, block)
                for level, (width, h, n) in enumerate(zip(widths, heads, layers, strict=True))
            )
            self.merges = nn.ModuleList(Merge(widths[level], widths[level + 1]) for level in range(2))
            self.skips = nn.ModuleList(
                [
                    ResidualBlock(channels_in, features[0]),
                    ResidualBlock(channels_in, features[1], stride=2),
                    *(ResidualBlock(width, width) for width in widths[:2]),
                    nn.Identity(),
                ]
            )
            self.bottleneck = nn.Sequential(
                nn.Conv3d(widths[-1], 2 * widths[-1], 3, 2, padding=1, bias=False),
                nn.InstanceNorm3d(2 * widths[-1], affine=True),
                nn.LeakyReLU(0.01),
            )
            levels = (*features, *widths)
            self.decoder = nn.ModuleList(
                UpBlock(before, after, after)
                for before, after in zip((2 * widths[-1], *reversed(levels)), reversed(levels), strict=False)
            )
            self.head = nn.Conv3d(features[0], classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            """Map (N, channels_in, *patch) to logits (N, classes, *patch)."""
            image, maps = x, []
            x = self.embedding(x)
            for level, hierarchy in enumerate(self.hierarchies):
                x = hierarchy(x)
                maps.append(x)
                if level < len(self.merges):
                    x = self.merges[level](x)
            skips = [skip(source) for skip, source in zip(self.skips, (image, image, *maps), strict=True)]
            x = self.bottleneck(x)
            for block, skip in zip(self.decoder, reversed(skips), strict=True):
                x = block(x, skip)
            return self.head(x)

    return (Merge, Hierarchy, UNesT)


__getattr__ = make_lazy_getattr(__name__, _classes)
