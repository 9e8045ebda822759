"""What one operator costs around INT8 convolutions, in each form that it can be written in, as the TensorRT-RTX 1.7 compiler places it.

    python benchmarks/tensorrt_forms.py

A block of two 3x3x3 convolutions in INT8 (32 channels, 48 x 48 x 48, FP16 around them) with the operator between or after them; the
table goes into docs/results/tensorrt.json and .md. No GPU is needed and nothing runs; see tensorrt_layers.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8")]
CHANNELS, SIZE = 32, 48


class Block:
    """Builds a graph node by node; every method gives the name of its result."""

    def __init__(self) -> None:
        from MedQuantINT8Lib.models.onnx_graph import require_onnx

        self._onnx = require_onnx()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._random = np.random.default_rng(0)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def quantized(self, name: str, scale: float = 0.05, axis: int | None = None, channels: int = 0) -> str:
        zero, size = self.constant(np.zeros(channels or ()), np.int8), self.constant(np.full(channels or (), scale))
        more = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", self.add("QuantizeLinear", name, size, zero, **more), size, zero, **more)

    def convolution(self, source: str, channels: int = CHANNELS, kernel: int = 3) -> str:
        weights = self.constant(self._random.normal(0, 0.1, (CHANNELS, channels, *[kernel] * 3)))
        bias = self.constant(self._random.normal(0, 0.1, CHANNELS))
        return self.add(
            "Conv",
            self.quantized(source),
            self.quantized(weights, 0.002, 0, CHANNELS),
            bias,
            kernel_shape=[kernel] * 3,
            pads=[kernel // 2] * 6,
        )

    def per_channel(self) -> tuple[str, str]:
        return self.constant(self._random.normal(1, 0.1, CHANNELS)), self.constant(
            self._random.normal(0, 0.1, CHANNELS)
        )

    def save(self, path: Path, output: str) -> None:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        shape = helper.make_tensor_value_info("x", kind, ["n", CHANNELS, SIZE, SIZE, SIZE])
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="out"))
        body = helper.make_graph(
            self.nodes,
            "block",
            [shape],
            [helper.make_tensor_value_info("y", kind, ["n", CHANNELS, "d", "h", "w"])],
            self.constants,
        )
        path.write_bytes(
            helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        )


def _written_out(block: Block, x: str) -> str:
    """Instance normalisation as means and a division."""
    axes = block.constant([2, 3, 4], np.int64)
    centred = block.add("Sub", x, block.add("ReduceMean", x, axes, keepdims=1))
    variance = block.add("ReduceMean", block.add("Mul", centred, centred), axes, keepdims=1)
    return block.add("Div", centred, block.add("Sqrt", block.add("Add", variance, block.constant([1e-5]))))


def _group(block: Block, x: str) -> str:
    """Group normalisation as exporters write it: instance normalisation of a reshaped tensor."""
    flat = block.add("Reshape", x, block.constant([0, 8, -1], np.int64))
    normal = block.add("InstanceNormalization", flat, block.constant(np.ones(8)), block.constant(np.zeros(8)))
    back = block.add("Reshape", normal, block.add("Shape", x))
    scale, shift = (block.constant(v) for v in (np.ones((CHANNELS, 1, 1, 1)), np.zeros((CHANNELS, 1, 1, 1))))
    return block.add("Add", block.add("Mul", back, scale), shift)


def _gelu(block: Block, x: str) -> str:
    error = block.add("Erf", block.add("Mul", x, block.constant(np.float32(0.7071068))))
    half = block.add("Mul", x, block.constant(np.float32(0.5)))
    return block.add("Mul", half, block.add("Add", error, block.constant(np.float32(1))))


def _deconvolution(block: Block, x: str) -> str:
    weights = block.constant(np.random.default_rng(1).normal(0, 0.1, (CHANNELS, CHANNELS, 2, 2, 2)))
    return block.add(
        "ConvTranspose",
        block.quantized(x),
        block.quantized(weights, 0.002, 1, CHANNELS),
        kernel_shape=[2] * 3,
        strides=[2] * 3,
    )


def _plain_deconvolution(block: Block, x: str) -> str:
    weights = block.constant(np.random.default_rng(1).normal(0, 0.1, (CHANNELS, CHANNELS, 2, 2, 2)))
    return block.add("ConvTranspose", x, weights, kernel_shape=[2] * 3, strides=[2] * 3)


def _up(block: Block, x: str, mode: str) -> str:
    more = {
        "coordinate_transformation_mode": "half_pixel" if mode == "linear" else "asymmetric",
        "nearest_mode": "floor",
    }
    return block.add("Resize", x, "", block.constant([1, 1, 2, 2, 2]), mode=mode, **more)


def _norm(kind: str) -> Callable[[Block, str], str]:
    return lambda block, x: block.add(kind, x, *block.per_channel())


BETWEEN: dict[str, Callable[[Block, str], str]] = {
    "nothing": lambda block, x: x,
    "ReLU": lambda block, x: block.add("Relu", x),
    "LeakyReLU": lambda block, x: block.add("LeakyRelu", x, alpha=0.01),
    "LeakyReLU as max(x, 0.01 x)": lambda block, x: block.add(
        "Max", x, block.add("Mul", x, block.constant(np.float32(0.01)))
    ),
    "LeakyReLU as PReLU": lambda block, x: block.add("PRelu", x, block.constant(np.full((CHANNELS, 1, 1, 1), 0.01))),
    "GELU": _gelu,
    "InstanceNorm": _norm("InstanceNormalization"),
    "InstanceNorm written out": _written_out,
    "InstanceNorm, LeakyReLU": lambda block, x: block.add(
        "LeakyRelu", _norm("InstanceNormalization")(block, x), alpha=0.01
    ),
    "InstanceNorm written out, LeakyReLU": lambda block, x: block.add("LeakyRelu", _written_out(block, x), alpha=0.01),
    "GroupNorm (8 groups)": _group,
    "MaxPool": lambda block, x: block.add("MaxPool", x, kernel_shape=[2] * 3, strides=[2] * 3),
    "MaxPool of an INT8 tensor": lambda block, x: block.add(
        "MaxPool", block.quantized(x), kernel_shape=[2] * 3, strides=[2] * 3
    ),
    "residual Add": lambda block, x: block.add("Add", x, "x"),
    "residual Add of INT8 tensors": lambda block, x: block.add("Add", block.quantized(x), block.quantized("x")),
    "transposed convolution in FP16": _plain_deconvolution,
    "transposed convolution, quantized": _deconvolution,
    "trilinear upsampling": lambda block, x: _up(block, x, "linear"),
    "nearest upsampling": lambda block, x: _up(block, x, "nearest"),
}


def _concat(block: Block, x: str) -> str:
    return block.convolution(block.add("Concat", x, "x", axis=1), 2 * CHANNELS)


def _concat_int8(block: Block, x: str) -> str:
    return block.convolution(block.add("Concat", block.quantized(x), block.quantized("x"), axis=1), 2 * CHANNELS)


WHOLE = {"concat of a skip": _concat, "concat of INT8 tensors": _concat_int8}


def main() -> None:
    import tensorrt_at_hand as at_hand
    import tensorrt_layers

    rows = []
    # The forms are to be compared as they are written.
    change = (
        "from MedQuantINT8Lib.engines.tensorrt import lowering\nlowering.with_norms_written_out = lambda model: model\n"
    )
    code = at_hand.COMPILE.replace("network, precision, *patch", f"{change}network, precision, *patch", 1)
    with tempfile.TemporaryDirectory() as scratch:
        libraries = at_hand.rtx_libraries(Path(scratch) / "libraries")
        for form in (*BETWEEN, *WHOLE):
            block = Block()
            first = block.convolution("x")
            last = WHOLE[form](block, first) if form in WHOLE else block.convolution(BETWEEN[form](block, first))
            path = Path(scratch) / "block.onnx"
            block.save(path, last)
            found = at_hand.run("11.4", libraries, code, str(path), "int8", *[str(SIZE)] * 3)
            rows.append({"form": form, **{k: found[k] for k in ("layers", "int8_layers", "share", "traffic", "kinds")}})
            print(form, found["layers"], found["share"], found["traffic"], flush=True)
    value = json.loads(tensorrt_layers.TARGET.read_text())
    value["blocks"] = rows
    tensorrt_layers.TARGET.write_text(json.dumps(value, indent=1) + "\n")
    tensorrt_layers.TARGET.with_suffix(".md").write_text(tensorrt_layers.page(value))


if __name__ == "__main__":
    main()
