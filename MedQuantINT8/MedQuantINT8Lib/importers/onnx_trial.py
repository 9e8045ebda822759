"""The trial run of an ONNX network before it is accepted: the size of its output, whether that holds probabilities, and whether
the network still computes what the file computed that it came from.

ONNX Runtime runs both. Where it is not installed, nothing is run, and the notes say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import MedQuantError, PackageError
from ..models import onnx_graph as graph
from ..models.rewrites import attributes

Ending = Literal["logits", "log_softmax", "softmax", "sigmoid"]
Size = tuple[int, int, int]
Array = NDArray[Any]

#: Relative errors (norm of the difference over norm of the output) that the prepared network may have, by the data type that the file computed in.
_TOLERANCE = {"float": 1e-3, "double": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
#: Operators through which probabilities stay between 0 and 1.
_RANGE_KEEPING_OPS = {
    *(
        "Identity",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Transpose",
        "Dropout",
        "Slice",
        "Gather",
        "Split",
        "Flatten",
    ),
    *("AveragePool", "MaxPool", "Expand", "Tile"),
}
#: Voxels a side of the smallest windows in which two windows a call are tried.
_SMALLEST_TRIAL = 32
_JOINING_OPS = ("Concat", "Min", "Max", "Mul")
_ACTIVATION_OPS = ("Sigmoid", "HardSigmoid", "Softmax")


@dataclass
class Facts:
    """The facts that are known of a network after its trial.

    Attributes:
        channels, classes: the number of channels of input and output.
        spatial: sizes that the graph fixes, 0 where it leaves them open.
        ending: "softmax" are probabilities that sum to 1 over the channels, "sigmoid" others between 0 and 1.
        ends_in: the operator that makes them so, in words.
        ending_known: whether it was run, so that the ending is known.
        one_window: whether it takes one window a call, not several.
        notes: what was changed in it, in words.
        comparisons: what it was compared with, and how well it agreed, in words.
    """

    channels: int
    classes: int
    spatial: Size
    ending: Ending = "logits"
    ends_in: str = ""
    ending_known: bool = False
    one_window: bool = False
    notes: list[str] = field(default_factory=list)
    comparisons: list[str] = field(default_factory=list)

    @property
    def activated(self) -> bool:
        return self.ending in ("softmax", "sigmoid")


def random_patch(channels: int, patch: Size, batch: int = 1, amplitude: float = 1.0) -> NDArray[np.float32]:
    """Return a patch of normally distributed voxels (batch, channels, *patch): no air, no symmetry, the same ones each time."""
    rng = np.random.default_rng(20_26)
    return (amplitude * rng.standard_normal((batch, channels, *patch))).astype(np.float32)


def outputs_for(model: Any, image: Array) -> dict[str, Array]:
    """Return all outputs of a network, by name, as ONNX Runtime computes them.

    Raises:
        EngineError: it cannot be loaded.
        PackageError: it does not run on this input.
    """
    from ..engines.onnxruntime import session

    run = session(model.SerializeToString(), "fp32")
    try:
        outputs = run.run(None, {run.get_inputs()[0].name: np.ascontiguousarray(image)})
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        raise PackageError(
            f"The network does not run on an input of {image.shape}: {graph.reason_of(error)}.", "Check the patch size."
        ) from error
    return dict(zip([o.name for o in run.get_outputs()], outputs, strict=True))


def activation_before(model: Any) -> str:
    """Return the activation at the end of the graph that keeps its output between 0 and 1, in words; empty where there is none."""
    topology = graph.Graph(model)
    return _find_activation(topology, model.graph.output[0].name, 64) if model.graph.output else ""


def _find_activation(topology: graph.Graph, name: str, depth: int) -> str:
    node = topology.producer.get(name)
    if node is None or depth == 0:
        return ""
    if node.op_type in _ACTIVATION_OPS:
        return f"{node.op_type} ({node.name})" if node.name else node.op_type
    if node.op_type in _RANGE_KEEPING_OPS:
        return _find_activation(topology, node.input[0], depth - 1)
    if node.op_type == "Resize" and attributes(node).get("mode", b"nearest") in (b"nearest", b"linear"):
        return _find_activation(topology, node.input[0], depth - 1)
    if node.op_type in _JOINING_OPS:
        parts = [_find_activation(topology, i, depth // len(node.input)) for i in node.input]
        return parts[0] if all(parts) else ""
    if node.op_type == "Sub" and (minuend := topology.array(node.input[0])) is not None and np.all(minuend == 1):
        return _find_activation(topology, node.input[1], depth - 1)
    return "a softmax written out (Exp over its sum)" if _is_written_softmax(topology, node) else ""


def _is_written_softmax(topology: graph.Graph, node: Any) -> bool:
    """Return whether a node divides an Exp by its own ReduceSum, by Div or by Reciprocal and Mul."""
    if node.op_type not in ("Div", "Mul"):
        return False
    for exp, other in (node.input, reversed(node.input)):
        numerator = topology.producer.get(exp)
        denominator = topology.producer.get(other)
        if node.op_type == "Mul":
            denominator = (
                topology.producer.get(denominator.input[0])
                if denominator is not None and denominator.op_type == "Reciprocal"
                else None
            )
        if (
            numerator is not None
            and numerator.op_type == "Exp"
            and denominator is not None
            and denominator.op_type == "ReduceSum"
            and denominator.input[0] == exp
        ):
            return True
    return False


def ending_of(scores: Array, amplified_scores: Array | None, activation: str) -> Ending:
    """Return the ending of a network, judged by its output.

    Args:
        scores: (N, classes, A0, A1, A2) for one input.
        amplified_scores: the same for a much larger input, or None where that was not needed.
        activation: the result of :func:`activation_before`.
    """
    results = [scores] if amplified_scores is None else [scores, amplified_scores]
    if not activation and not (
        amplified_scores is not None and all(_is_bounded(s) for s in results) and _varies(results)
    ):
        total = np.log(np.exp(np.clip(scores.astype(np.float64), -700, 80)).sum(axis=1))
        logarithms = scores.shape[1] > 1 and float(scores.max()) <= 1e-4 and bool(np.abs(total).max() < 1e-3)
        return "log_softmax" if logarithms else "logits"
    sums = all(s.shape[1] > 1 and bool(np.abs(s.astype(np.float64).sum(axis=1) - 1).max() < 1e-3) for s in results)
    return "softmax" if sums else "sigmoid"


def _is_bounded(scores: Array) -> bool:
    return bool(scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6)


def _varies(results: list[Array]) -> bool:
    """Return whether the scores depend on the voxels at all: those of a network without weights are between 0 and 1 as well."""
    return any(float(np.ptp(s[:, c])) > 1e-3 for s in results for c in range(s.shape[1]))


def try_network(model: Any, patch: Size, name: str, *, batches: bool = True) -> tuple[Facts, Array]:
    """Run a network on a random patch; returns the facts that this shows, and its scores (1, classes, *patch) for :func:`random_patch`.

    Args:
        model: one float32 input (N, C, A0, A1, A2), one output; its output's shape is written into it.
        batches: also try whether two windows a call give the same as one.

    Raises:
        PackageError: it does not run, or its output is not (1, classes, *patch) of finite numbers.
    """
    shape = graph.dims_of(model.graph.input[0])
    spatial = (shape[2], shape[3], shape[4])
    if shape[1] < 1:
        raise PackageError(f"{name} leaves the number of its input's channels open.", "Export it with a fixed number.")
    activation = activation_before(model)
    image = random_patch(shape[1], patch)
    scores = _compute_scores(graph.fixed_shape(model, patch), image, name, patch)
    facts = Facts(shape[1], scores.shape[1], spatial)
    amplified_scores = None
    if not activation and _is_bounded(scores):
        amplified_scores = _compute_scores(
            graph.fixed_shape(model, patch), random_patch(shape[1], patch, amplitude=1e3), name, patch
        )
    facts.ending = ending_of(scores, amplified_scores, activation)
    facts.ending_known = True
    facts.ends_in = activation or ("numbers between 0 and 1 whatever the scan" if facts.activated else "")
    if batches:
        facts.one_window = not (_takes_two_small(model, patch, name) or _takes_two(model, image, scores, patch))
    _write_output_shape(model, facts)
    return facts, scores


def _compute_scores(model: Any, image: Array, name: str, patch: Size) -> Array:
    try:
        scores = next(iter(outputs_for(model, image).values()))
    except PackageError as error:
        reason = error.args[0].split(": ", 1)[-1]
        raise PackageError(
            f"{name} does not run on one window of {_format_sizes(patch)} voxels: {reason}",
            "Check the patch size and the batch.",
        ) from error
    if scores.dtype.kind != "f":
        raise PackageError(
            f"{name} gives {scores.dtype} numbers, which are labels and no scores: overlapping windows could not be blended.",
            "Export it with the class scores before they are compared.",
        )
    if scores.ndim != 5 or scores.shape[0] != 1 or scores.shape[1] < 1:
        raise PackageError(
            f"{name} gives an output of the shape {scores.shape} for one window; it must be (1, classes, A0, A1, A2).",
            "Export a 3D segmentation network.",
        )
    if scores.shape[2:] != patch:
        raise PackageError(
            f"{name} gives {_format_sizes(scores.shape[2:])} voxels of scores for a window of {_format_sizes(patch)}; it must give as many as it takes.",
            "Export it with padding (and upsampling), so that its output has the size of its input.",
        )
    if not np.isfinite(scores).all():
        raise PackageError(f"{name} gives scores that are no finite numbers on made voxels.", "Check its weights.")
    return scores


def _format_sizes(sizes: Any) -> str:
    return " x ".join(str(n) for n in sizes)


def _takes_two_small(model: Any, patch: Size, name: str) -> bool:
    """Return whether two windows a call give the same as one in windows that are smaller; False says nothing of larger ones.

    ONNX Runtime takes minutes for two large windows of a network with dilated convolutions. What ties a network to a number of
    windows is in its graph, whatever their size; a size that the network does not take shows only that it does not take it.
    """
    small = patch
    while all(size % 2 == 0 and size >= 2 * _SMALLEST_TRIAL for size in small):
        small = (small[0] // 2, small[1] // 2, small[2] // 2)
    if small == patch or any(graph.dims_of(model.graph.input[0])[2:]):
        return False
    try:
        image = random_patch(graph.dims_of(model.graph.input[0])[1], small)
        return _takes_two(model, image, _compute_scores(graph.fixed_shape(model, small), image, name, small), small)
    except MedQuantError:
        return False


def _takes_two(model: Any, image: Array, scores: Array, patch: Size) -> bool:
    pair = np.concatenate([image, image[..., ::-1]])
    try:
        pair_scores = next(iter(outputs_for(graph.fixed_shape(model, patch, batch=2), pair).values()))
    except MedQuantError:
        return False
    return pair_scores.shape[0] == 2 and relative_error(pair_scores[:1], scores) < _TOLERANCE["float"]


def _write_output_shape(model: Any, facts: Facts) -> None:
    """Say in the graph, in place, what the trial showed: inference cannot follow every graph."""
    onnx = graph.require_onnx()
    batch: Any = 1 if facts.one_window else "N"
    dims = [batch, facts.classes, *(size or f"out{axis}" for axis, size in enumerate(facts.spatial, start=2))]
    output = model.graph.output[0]
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, dims))
    if facts.one_window:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def relative_error(scores: Array, expected: Array) -> float:
    """Return the norm of the difference over the norm of the expected values."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(scores.astype(np.float64) - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def compare_with_original(original: Any, model: Any, scores: Array, name: str) -> str:
    """Run the file as it came, and compare it with the network that was prepared from it; returns what was compared, and how well it agreed, in words.

    Args:
        scores: (1, classes, *patch), those that :func:`try_network` returned for the network that was prepared.

    Raises:
        PackageError: the two compute something else.
    """
    onnx = graph.require_onnx()
    value, input_dims = graph.free_inputs(original)[0], graph.dims_of(model.graph.input[0])
    data_type = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    original_dims = graph.dims_of(value)
    channels_last = original_dims[1] != input_dims[1] and original_dims[4] == input_dims[1]
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_value <= 0 and not dim.dim_param:
            dim.Clear()  # some exporters write an open size as 0 or -1, which ONNX Runtime takes literally
    image = random_patch(input_dims[1], (scores.shape[2], scores.shape[3], scores.shape[4]))
    original_image = np.repeat(image, original_dims[0], axis=0) if original_dims[0] > 1 else image
    original_image = original_image.transpose(0, 2, 3, 4, 1) if channels_last else original_image
    try:
        outputs = outputs_for(
            original, original_image.astype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        )
    except MedQuantError as error:
        return f"not compared with the file as it came, which ONNX Runtime does not run ({error.args[0].split(': ', 1)[-1].rstrip('.')})"
    expected = outputs.get(model.graph.output[0].name, next(iter(outputs.values())))[:1]
    if expected.dtype.kind != "f" or expected.ndim != 5:
        agreement = (
            float(np.mean(np.argmax(scores, axis=1).ravel() == np.rint(expected).astype(np.int64).ravel()))
            if expected.size * scores.shape[1] == scores.size
            else 0.0
        )
        if agreement < 0.999:
            raise _difference_error(name, f"{100 * agreement:.1f} % of labels equal")
        return f"labels equal to those of the file as it came in {100 * agreement:.2f} % of a made patch (ONNX Runtime)"
    if expected.shape != scores.shape:
        expected = expected.transpose(0, 4, 1, 2, 3)
    difference = relative_error(scores, expected)
    if difference > _TOLERANCE.get(data_type, 1e-3):
        raise _difference_error(name, f"relative error {difference:.2g}")
    return f"scores equal to those of the file as it came up to {difference:.1g} (relative, a made patch, ONNX Runtime)"


def _difference_error(name: str, what: str) -> PackageError:
    return PackageError(
        f"{name} computes something else once it is in the form that engines take ({what}).",
        "Export it in float32 at opset 19; please report this with the network.",
    )
