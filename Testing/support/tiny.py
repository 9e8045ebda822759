"""Networks of a few layers, in FP32 and with Q/DQ pairs, made without ModelOpt: for tests of what is done to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.engines.base import BuildOptions
from MedQuantINT8Lib.engines.onnxruntime import OnnxRuntimeBackend
from MedQuantINT8Lib.models import qdq
from MedQuantINT8Lib.models.package import FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Output, Window
from MedQuantINT8Lib.quantization import qdq_placement as placement


def convolutions(
    weights: dict[str, np.ndarray],
    biases: dict[str, np.ndarray],
    size: int = 8,
    names: dict[str, str] | None = None,
    opset: int = 19,
) -> Any:
    """3D convolutions of one voxel or three after each other, ReLU between them; nodes are named by ``weights``.

    Args:
        names: other names for tensors: "x", "y", and for a layer a "a", "a weight", "a bias" and "a relu".
    """
    given = names or {}

    def name(of: str) -> str:
        return given.get(of, of.replace(" ", "_"))

    nodes, constants, before = [], [], "x"
    for number, (layer, weight) in enumerate(weights.items()):
        last = number == len(weights) - 1
        inputs = [name(before), name(f"{layer} weight")]
        constants.append(numpy_helper.from_array(weight.astype(np.float32), inputs[1]))
        if layer in biases:
            inputs.append(name(f"{layer} bias"))
            constants.append(numpy_helper.from_array(biases[layer].astype(np.float32), inputs[2]))
        side = weight.shape[2]
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [name("y" if last else f"{layer} out")],
                name=layer,
                kernel_shape=[side] * 3,
                pads=[side // 2] * 6,
            )
        )
        if not last:
            nodes.append(
                helper.make_node("Relu", [name(f"{layer} out")], [name(f"{layer} relu")], name=f"{layer}_relu")
            )
            before = f"{layer} relu"
    first, end = next(iter(weights.values())), list(weights.values())[-1]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name("x"), TensorProto.FLOAT, [1, first.shape[1], size, size, size])],
        [helper.make_tensor_value_info(name("y"), TensorProto.FLOAT, [1, end.shape[0], size, size, size])],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def random_weights(
    widths: tuple[int, ...] = (1, 4, 4, 2), side: int = 1, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and biases of layers "a", "b", ... of these widths."""
    rng = np.random.default_rng(seed)
    layers = "abcdefgh"[: len(widths) - 1]
    weights = {
        n: rng.normal(size=(w, v, side, side, side)) for n, v, w in zip(layers, widths, widths[1:], strict=False)
    }
    return weights, {n: rng.normal(size=w.shape[0]) for n, w in weights.items()}


def quantized(model: Any, scales: dict[str, float] | float = 0.05, layers: set[str] | None = None) -> Any:
    """The network with Q/DQ pairs before its convolutions, one scale for all tensors or one each."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted = layers if layers is not None else {node.name for node in copy.graph.node if node.op_type == "Conv"}
    placement._quantize_convolutions(copy, wanted)
    tensors = qdq.activation_tensors(copy)
    qdq.set_activation_scales(copy, dict.fromkeys(tensors, scales) if isinstance(scales, float) else scales)
    onnx.checker.check_model(copy)
    return copy


def run(model: Any, patch: np.ndarray) -> np.ndarray:
    """The network's answer to a patch (C, A0, A1, A2), computed as it is written."""
    from MedQuantINT8Lib.engines.onnxruntime import session

    loaded = session(model.SerializeToString(), "int8")
    return loaded.run(None, {loaded.get_inputs()[0].name: patch[None]})[0]


def package(folder: Path, fp32: Any = None, int8: Any = None, *, bright: float = 0.5, size: int = 8) -> ModelPackage:
    """A package of two networks of this file; by default one that finds voxels brighter than ``bright``, and its INT8 form."""
    if fp32 is None:
        weight = np.zeros((2, 1, 1, 1, 1))
        weight[1] = 1
        fp32 = convolutions({"a": weight}, {"a": np.array([0, -bright])}, size)
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in ((FP32, fp32), (INT8, quantized(fp32, 0.01) if int8 is None else int8)):
        onnx.save(model, str(folder / name))
    spec = ModelSpec(
        name="tiny",
        version="1",
        modality="MR",
        channels=(Channel("image"),),
        geometry=Geometry("KJI", "native"),
        window=Window((size, size, size), overlap=0.0),
        labels=(Label(1, "bright", 1, (255, 0, 0)),),
        output=Output(),
        normalization=(),
        license="made",
    )
    write_package(folder / "package", spec, {name: folder / name for name in (FP32, INT8)})
    return ModelPackage.load(folder / "package")


class TinyBackend(OnnxRuntimeBackend):
    """Stands for a real INT8 engine: computes as ONNX Runtime does, and can be told to fail or to be wrong.

    Attributes:
        wrong: whether INT8 networks give nonsense.
        failures: raised by the next builds or loads, one after the other.
    """

    name, title, real_int8 = "tiny", "Tiny", True
    wrong = False
    failures: ClassVar[list[tuple[str, Exception]]] = []
    built: ClassVar[list[str]] = []

    def _maybe_fail(self, where: str) -> None:
        if self.failures and self.failures[0][0] == where:
            raise self.failures.pop(0)[1]

    def version(self) -> str:
        return "1"

    def build(self, network: Path, folder: Path, options: BuildOptions) -> None:
        self._maybe_fail("build")
        self.built.append(options.precision)
        super().build(network, folder, options)

    def load(self, folder: Path, options: BuildOptions) -> Any:
        self._maybe_fail("load")
        engine = super().load(folder, options)
        real = engine.infer

        def infer(batch: np.ndarray) -> np.ndarray:
            self._maybe_fail("run")
            return -real(batch) if self.wrong and options.precision == "int8" else real(batch)

        engine.infer = infer
        return engine
