"""ONNX networks run by PyTorch, with the interface of ONNX Runtime's sessions: simulated INT8 of many networks is quick on a GPU.

Q/DQ pairs are computed as they are written, in single precision without TF32. Not part of the product, whose sessions run on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class TorchSession:
    """A loaded network of fixed shapes.

    Args:
        model: as bytes, or the ModelProto itself.
        precision, threads: as those of ONNX Runtime's sessions; they change nothing.
    """

    def __init__(self, model: Any, precision: str = "fp32", threads: int = 0) -> None:
        import onnx
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        network = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
        self._torch, self._device = torch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._nodes = list(network.graph.node)
        self._attributes = [
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in self._nodes
        ]
        self._constants = {i.name: self._tensor(onnx.numpy_helper.to_array(i)) for i in network.graph.initializer}
        self._constants |= {
            node.output[0]: self._tensor(onnx.numpy_helper.to_array(attributes["value"]))
            for node, attributes in zip(self._nodes, self._attributes, strict=True)
            if node.op_type == "Constant"
        }
        self._inputs = [value.name for value in network.graph.input if value.name not in self._constants]
        self._outputs = [value.name for value in network.graph.output]

    def get_inputs(self) -> list[Any]:
        """Return the inputs, of which only the names are known."""
        from types import SimpleNamespace

        return [SimpleNamespace(name=name) for name in self._inputs]

    def _tensor(self, array: Array) -> Any:
        # What shapes are computed of stays where Python reads it.
        tensor = self._torch.from_numpy(np.array(array))
        return tensor if array.dtype == np.int64 else tensor.to(self._device)

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the named outputs, or all of them in their order; nodes that they do not need are left out."""
        wanted = list(names) if names is not None else self._outputs
        values = dict(self._constants)
        values |= {name: self._tensor(np.ascontiguousarray(array)) for name, array in inputs.items()}
        needed, order = set(wanted), []
        for number in reversed(range(len(self._nodes))):
            node = self._nodes[number]
            if any(name in needed and name not in values for name in node.output):
                order.append(number)
                needed |= {name for name in node.input if name}
        readers: dict[str, int] = dict.fromkeys(wanted, 1)
        for number in order:
            for name in self._nodes[number].input:
                readers[name] = readers.get(name, 0) + 1
        with self._torch.no_grad():
            for number in reversed(order):
                node = self._nodes[number]
                operands = [values[name] if name else None for name in node.input]
                values[node.output[0]] = self._computed(node.op_type, operands, self._attributes[number])
                for name in node.input:
                    readers[name] -= 1
                    if not readers[name] and name not in self._constants:
                        values.pop(name, None)
        return [values[name].cpu().numpy() for name in wanted]

    def _computed(self, kind: str, x: list[Any], a: Mapping[str, Any]) -> Any:
        torch = self._torch
        functional = torch.nn.functional
        spatial: tuple[int, ...] = tuple(range(2, x[0].dim())) if x and x[0] is not None else ()
        simple: dict[str, Callable[[], Any]] = {
            "Relu": lambda: x[0].relu(),
            "Elu": lambda: functional.elu(x[0], a.get("alpha", 1.0)),
            "LeakyRelu": lambda: functional.leaky_relu(x[0], a.get("alpha", 0.01)),
            "PRelu": lambda: torch.where(x[0] < 0, x[0] * x[1], x[0]),
            "Sigmoid": lambda: x[0].sigmoid(),
            "Erf": lambda: x[0].erf(),
            "Gelu": lambda: functional.gelu(x[0], approximate=a.get("approximate", b"none").decode()),
            "Round": lambda: x[0].round(),
            "Clip": lambda: x[0].clamp(x[1].item(), x[2].item()),
            "Neg": lambda: -x[0],
            "Abs": lambda: x[0].abs(),
            "Identity": lambda: x[0],
            "Add": lambda: x[0] + x[1],
            "Sub": lambda: x[0] - x[1],
            "Mul": lambda: x[0] * x[1],
            "Div": lambda: x[0] / x[1],
            "Concat": lambda: torch.cat(x, a["axis"]),
            "Shape": lambda: torch.tensor(x[0].shape),
            "Reshape": lambda: x[0].reshape([int(n) for n in x[1]]),
            "InstanceNormalization": lambda: functional.instance_norm(
                x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5)
            ),
            "GlobalMaxPool": lambda: x[0].amax(spatial, keepdim=True),
            "GlobalAveragePool": lambda: x[0].mean(spatial, keepdim=True),
            "MaxPool": lambda: functional.max_pool3d(x[0], a["kernel_shape"], a["strides"]),
            "AveragePool": lambda: functional.avg_pool3d(x[0], a["kernel_shape"], a["strides"]),
            "ReduceMax": lambda: x[0].amax(),
            "ReduceMean": lambda: x[0].mean(),
        }
        if kind in simple:
            return simple[kind]()
        return getattr(self, f"_{kind.lower()}")(x, a)

    def _quantizelinear(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        torch = self._torch
        low, high = (0, 255) if x[2].dtype == torch.uint8 else (-128, 127)
        return torch.clamp(torch.round(x[0] / x[1]) + x[2].float(), low, high).to(x[2].dtype)

    def _dequantizelinear(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        scale, zero = x[1], x[2].float()
        if scale.numel() > 1:
            shape = [1] * x[0].dim()
            shape[a.get("axis", 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return (x[0].float() - zero) * scale

    def _conv(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        pads = list(a.get("pads", [0] * 6))
        values = x[0]
        if pads[:3] != pads[3:]:
            values = self._torch.nn.functional.pad(values, [n for k in (2, 1, 0) for n in (pads[k], pads[k + 3])])
            pads = [0] * 6
        return self._torch.nn.functional.conv3d(
            values,
            x[1],
            x[2] if len(x) > 2 else None,
            list(a.get("strides", [1] * 3)),
            pads[:3],
            list(a.get("dilations", [1] * 3)),
            a.get("group", 1),
        )

    def _convtranspose(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        pads = list(a.get("pads", [0] * 6))
        return self._torch.nn.functional.conv_transpose3d(
            x[0],
            x[1],
            x[2] if len(x) > 2 else None,
            list(a.get("strides", [1] * 3)),
            pads[:3],
            list(a.get("output_padding", [0] * 3)),
            a.get("group", 1),
            list(a.get("dilations", [1] * 3)),
        )

    def _slice(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        values = x[0]
        axes = [int(n) for n in x[3]] if len(x) > 3 else range(len(x[1]))
        for axis, begin, end in zip(axes, x[1], x[2], strict=True):
            index = [slice(None)] * values.dim()
            index[axis] = slice(int(begin), int(end))
            values = values[tuple(index)]
        return values

    def _resize(self, x: list[Any], a: Mapping[str, Any]) -> Any:
        if len(x) > 3 and x[3] is not None:
            size = [int(n) for n in x[3]][2:]
        else:
            size = [int(n * float(f)) for n, f in zip(x[0].shape[2:], x[2][2:], strict=True)]
        if a.get("mode") == b"nearest":
            return self._torch.nn.functional.interpolate(x[0], size=size, mode="nearest")
        corners = a.get("coordinate_transformation_mode") == b"align_corners"
        return self._torch.nn.functional.interpolate(x[0], size=size, mode="trilinear", align_corners=corners)


def use_torch() -> None:
    """Let everything that runs networks to quantize them run them by PyTorch from now on."""
    from MedQuantINT8Lib.quantization import (
        activation_ranges,
        channel_scales,
        fp32_network,
        measurer,
        rounding,
        stepwise,
    )

    for module in (activation_ranges, channel_scales, fp32_network, measurer):
        module.float_session = TorchSession
    for other in (rounding, stepwise):
        other.session = TorchSession
