"""The small 3D U-Net of the demo and of the hippocampus experiment; plain PyTorch."""

from __future__ import annotations

import torch
from torch import nn


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(2):
        layers += [
            nn.Conv3d(channels_in if index == 0 else channels_out, channels_out, 3, stride if index == 0 else 1, 1, bias=False),
            nn.BatchNorm3d(channels_out),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Three levels, strided convolutions down, transposed convolutions up, skips by concatenation."""

    def __init__(self, classes: int, channels: tuple[int, int, int] = (16, 24, 32)) -> None:
        super().__init__()
        a, b, c = channels
        self.level0, self.level1, self.level2 = _block(1, a), _block(a, b, 2), _block(b, c, 2)
        self.up1, self.up0 = nn.ConvTranspose3d(c, b, 2, 2), nn.ConvTranspose3d(b, a, 2, 2)
        self.decode1, self.decode0 = _block(2 * b, b), _block(2 * a, a)
        self.head = nn.Conv3d(a, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip0 = self.level0(x)
        skip1 = self.level1(skip0)
        x = self.decode1(torch.cat([self.up1(self.level2(skip1)), skip1], 1))
        return self.head(self.decode0(torch.cat([self.up0(x), skip0], 1)))
