"""Reading what goes over a volume in windows: convolutions, pooling, resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import rewrites
from .nodes import Node, unsupported
from .patterns import reduced_axes, word
from .transformer import TransformerReader

#: Voxels along an axis that one averaging takes at once, where they can be divided so.
_AVERAGED = 8


class WindowReader(TransformerReader):
    def _conv(self, node: Any) -> None:
        self._convolution(node, "conv")

    def _convtranspose(self, node: Any) -> None:
        self._convolution(node, "deconv")

    def _convolution(self, node: Any, op: str) -> None:
        attributes, constant = rewrites.attributes(node), self.weight(node)
        if constant is None:
            raise unsupported(node, "its weight is no constant")
        weight, scales = constant
        if weight.ndim != 5:
            raise unsupported(node, "it is not in three dimensions")
        group = int(attributes.get("group", 1))
        if op == "deconv":
            weight = np.concatenate([np.swapaxes(part, 0, 1) for part in np.split(weight, group)])
        channels = self.shape(node.input[0])[1]
        kernel = weight.shape[2:]
        values = {
            "weight": _dense(weight, group, channels),
            "scales": None if scales is None else np.broadcast_to(scales, (weight.shape[0],)),
            "bias": self.array(node.input[2])
            if len(node.input) > 2 and node.input[2]
            else np.zeros(weight.shape[0], np.float32),
            **self._window(node, attributes, kernel),
        }
        self.emit(node, op, (node.input[0],), **values)

    def _window(self, node: Any, attributes: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return how a kernel goes over its input."""
        return {
            "stride": tuple(attributes.get("strides", (1, 1, 1))),
            "dilation": tuple(attributes.get("dilations", (1, 1, 1))),
            "before": self._before(node, attributes, kernel),
        }

    def _before(self, node: Any, attributes: dict[str, Any], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Padding before each axis; what lies behind follows from the output's size."""
        mode = word(attributes, "auto_pad", "NOTSET")
        if mode in ("NOTSET", ""):
            return tuple(attributes.get("pads", (0,) * 6))[:3]
        if mode == "VALID":
            return 0, 0, 0
        if node.op_type == "ConvTranspose":
            raise unsupported(node, f"auto_pad {mode}")
        sizes, strides = self.shape(node.input[0])[2:], attributes.get("strides", (1, 1, 1))
        dilations = attributes.get("dilations", (1, 1, 1))
        total = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)

    def _maxpool(self, node: Any) -> None:
        self._pool(node, "maxpool")

    def _averagepool(self, node: Any) -> None:
        self._pool(node, "avgpool")

    def _pool(self, node: Any, op: str) -> None:
        attributes = rewrites.attributes(node)
        kernel = tuple(attributes["kernel_shape"])
        values = {
            "kernel": kernel,
            **self._window(node, attributes, kernel),
            "whole": bool(attributes.get("count_include_pad", 0)),
        }
        self.emit(node, op, (node.input[0],), **values)

    def _resize(self, node: Any) -> None:
        attributes = rewrites.attributes(node)
        mode, where = (
            word(attributes, "mode", "nearest"),
            word(attributes, "coordinate_transformation_mode", "half_pixel"),
        )
        if mode not in ("nearest", "linear") or where not in (
            "half_pixel",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
        ):
            raise unsupported(node, f"mode {mode}, {where}")
        rounding = word(attributes, "nearest_mode", "round_prefer_floor")
        if mode == "nearest" and rounding not in ("floor", "round_prefer_floor"):
            raise unsupported(node, f"nearest, {rounding}")
        scales = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        self.emit(node, "resize", (node.input[0],), mode=mode, where=where, rounding=rounding, scales=scales)

    def _globalaveragepool(self, node: Any) -> None:
        """The mean of all voxels: averages of averages, so that no thread has to add up a whole volume."""
        source, sizes = self.plain(node, node.input[0]), self.shape(node.input[0])[2:]
        channels, number = self.shape(node.input[0])[1], 0
        while any(n > 1 for n in sizes):
            kernel = tuple(_factor(n) for n in sizes)
            sizes, number = tuple(n // k for n, k in zip(sizes, kernel, strict=True)), number + 1
            name = node.output[0] if max(sizes) == 1 else f"{node.output[0]}_of{number}"
            values = {"kernel": kernel, "stride": kernel, "dilation": (1, 1, 1), "before": (0, 0, 0), "whole": True}
            self.nodes.append(Node("avgpool", f"{node.name} {number}", (source,), name, values, (node.name,)))
            self.shapes[name] = (1, channels, *sizes)
            source = name
        if source != node.output[0]:
            self._alias[node.output[0]] = node.input[0]

    def _reducemean(self, node: Any) -> None:
        """Read a ReduceMean over all spatial axes that are kept as global average pooling."""
        if len(self.shape(node.input[0])) != 5 or reduced_axes(self.graph, node) != [2, 3, 4]:
            raise unsupported(node, "over other axes than those of space")
        self._globalaveragepool(node)


def _dense(weight: NDArray[Any], group: int, channels: int) -> NDArray[Any]:
    """(out, in of a group, ...) with zeros for the other groups: (out, in, ...)."""
    if group == 1:
        return weight
    full = np.zeros((weight.shape[0], channels, *weight.shape[2:]), weight.dtype)
    out, each = weight.shape[0] // group, channels // group
    for g in range(group):
        full[g * out : (g + 1) * out, g * each : (g + 1) * each] = weight[g * out : (g + 1) * out]
    return full


def _factor(size: int) -> int:
    """The largest part that an axis can be cut into evenly, of the few; all of it where there is none."""
    return next((n for n in range(min(size, _AVERAGED), 1, -1) if size % n == 0), size)
