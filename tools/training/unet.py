"""The small 3D U-Nets of the demo and of the hippocampus experiment; plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(2):
        layers += [
            nn.Conv3d(
                channels_in if index == 0 else channels_out, channels_out, 3, stride if index == 0 else 1, 1, bias=False
            ),
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


def rounded(values: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """Values in steps of their largest magnitude / 127, of all or of each index along ``axis``; the gradient passes unchanged."""
    size = values.detach().abs()
    others = [n for n in range(values.ndim) if n != axis]
    scale = (size.amax() if axis is None else size.amax(others, keepdim=True)).clamp(min=1e-6).float() / 127
    return values + ((values / scale).round() * scale - values).detach().to(values.dtype)


class _Rounded:
    """A convolution that can compute with inputs and weights of 8 bits, as INT8 engines do."""

    rounded = False
    weight_axis = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rounded:
            return super().forward(x)  # type: ignore[misc]
        weight = rounded(self.weight, self.weight_axis)  # type: ignore[attr-defined]
        return self.convolve(rounded(x), weight)  # type: ignore[attr-defined]


class _Conv(_Rounded, nn.Conv3d):
    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv3d(x, weight, self.bias, self.stride, self.padding)


class _UpConv(_Rounded, nn.ConvTranspose3d):
    weight_axis = 1

    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose3d(x, weight, self.bias, self.stride)


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _Conv(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm3d(channels_out), nn.ReLU(inplace=True)
    )


class AbdomenUNet(nn.Module):
    """The demo's network: as many levels as ``channels``, two convolutions a level down and one up.

    The coarsest of five levels sees the whole patch, which is what tells a left kidney from a right one. ReLU instead of
    LeakyReLU: what is never negative loses less in INT8. With ``rounded`` set it computes as INT8 engines do.
    """

    def __init__(self, classes: int, channels: Sequence[int] = (16, 32, 32, 48, 48)) -> None:
        super().__init__()
        before = [1, *channels[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(i, o, 1 if level == 0 else 2), _convolution(o, o))
            for level, (i, o) in enumerate(zip(before, channels, strict=True))
        )
        pairs = list(pairwise(channels))
        self.up = nn.ModuleList(_UpConv(coarse, fine, 2, 2) for fine, coarse in pairs)
        self.decode = nn.ModuleList(_convolution(2 * fine, fine) for fine, _ in pairs)
        self.head = _Conv(channels[0], classes, 1)

    @property
    def rounded(self) -> bool:
        return self.head.rounded

    @rounded.setter
    def rounded(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, _Rounded):
                module.rounded = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        for number in reversed(range(len(self.up))):
            x = self.decode[number](torch.cat([self.up[number](x), skips[number]], 1))
        return self.head(x)
