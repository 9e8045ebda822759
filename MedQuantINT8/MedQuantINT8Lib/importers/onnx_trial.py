"""An ONNX network is run before it is taken: what its output measures, whether it holds probabilities, and whether it still
computes what the file computed that it came from.

ONNX Runtime is the judge. Where it is not installed, nothing is run, and the notes say so.
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

#: Relative errors (norm of the difference over norm of the output) that the prepared network may have, by what the file computed in.
_TOLERANCE = {"float": 1e-3, "double": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
#: Operators through which probabilities stay between 0 and 1.
_KEEPING = {
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
_JOINING = ("Concat", "Min", "Max", "Mul")
_SQUASHING = ("Sigmoid", "HardSigmoid", "Softmax")


@dataclass
class Facts:
    """What is known of a network after its trial.

    Attributes:
        channels, classes: of input and output.
        spatial: sizes that the graph fixes, 0 where it leaves them open.
        ending: "softmax" are probabilities that sum to 1 over the channels, "sigmoid" others between 0 and 1.
        ends_in: what makes them so, in words.
        ending_known: it was run, so that the ending is known.
        one_window: it takes one window a call, not several.
        notes: what was changed in it, in words.
        compared: what it was compared with, and how well it agreed, in words.
    """

    channels: int
    classes: int
    spatial: Size
    ending: Ending = "logits"
    ends_in: str = ""
    ending_known: bool = False
    one_window: bool = False
    notes: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)

    @property
    def activated(self) -> bool:
        return self.ending in ("softmax", "sigmoid")


def made_patch(channels: int, patch: Size, batch: int = 1, amplitude: float = 1.0) -> NDArray[np.float32]:
    """Normally distributed voxels (batch, channels, *patch): no air, no symmetry, the same ones each time."""
    rng = np.random.default_rng(20_26)
    return (amplitude * rng.standard_normal((batch, channels, *patch))).astype(np.float32)


def outputs_for(model: Any, given: Array) -> dict[str, Array]:
    """All outputs of a network, by name, as ONNX Runtime computes them.

    Raises:
        EngineError: it cannot be loaded.
        PackageError: it does not run on this input.
    """
    from ..engines.onnxruntime import session

    run = session(model.SerializeToString(), "fp32")
    try:
        found = run.run(None, {run.get_inputs()[0].name: np.ascontiguousarray(given)})
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        raise PackageError(
            f"The network does not run on an input of {given.shape}: {graph.reason_of(error)}.", "Check the patch size."
        ) from error
    return dict(zip([o.name for o in run.get_outputs()], found, strict=True))


def activation_before(model: Any) -> str:
    """What keeps the network's output between 0 and 1 by the way its graph ends, in words; empty where nothing does."""
    found = graph.Graph(model)
    return _squashed(found, model.graph.output[0].name, 64) if model.graph.output else ""


def _squashed(found: graph.Graph, name: str, depth: int) -> str:
    node = found.producer.get(name)
    if node is None or depth == 0:
        return ""
    if node.op_type in _SQUASHING:
        return f"{node.op_type} ({node.name})" if node.name else node.op_type
    if node.op_type in _KEEPING:
        return _squashed(found, node.input[0], depth - 1)
    if node.op_type == "Resize" and attributes(node).get("mode", b"nearest") in (b"nearest", b"linear"):
        return _squashed(found, node.input[0], depth - 1)
    if node.op_type in _JOINING:
        parts = [_squashed(found, i, depth // len(node.input)) for i in node.input]
        return parts[0] if all(parts) else ""
    if node.op_type == "Sub" and (one := found.array(node.input[0])) is not None and np.all(one == 1):
        return _squashed(found, node.input[1], depth - 1)
    return "a softmax written out (Exp over its sum)" if _is_written_softmax(found, node) else ""


def _is_written_softmax(found: graph.Graph, node: Any) -> bool:
    """Exp over its own ReduceSum, by Div or by Reciprocal and Mul."""
    if node.op_type not in ("Div", "Mul"):
        return False
    for exp, other in (node.input, reversed(node.input)):
        above = found.producer.get(exp)
        below = found.producer.get(other)
        if node.op_type == "Mul":
            below = found.producer.get(below.input[0]) if below is not None and below.op_type == "Reciprocal" else None
        if (
            above is not None
            and above.op_type == "Exp"
            and below is not None
            and below.op_type == "ReduceSum"
            and below.input[0] == exp
        ):
            return True
    return False


def ending_of(scores: Array, again: Array | None, by_graph: str) -> Ending:
    """How a network ends, by what it gives.

    Args:
        scores: (N, classes, A0, A1, A2) for one input, ``again`` for a much larger one (or None where that was not needed).
        by_graph: what :func:`activation_before` says.
    """
    both = [scores] if again is None else [scores, again]
    if not by_graph and not (again is not None and all(_is_bounded(s) for s in both) and _varies(both)):
        total = np.log(np.exp(np.clip(scores.astype(np.float64), -700, 80)).sum(axis=1))
        logarithms = scores.shape[1] > 1 and float(scores.max()) <= 1e-4 and bool(np.abs(total).max() < 1e-3)
        return "log_softmax" if logarithms else "logits"
    sums = all(s.shape[1] > 1 and bool(np.abs(s.astype(np.float64).sum(axis=1) - 1).max() < 1e-3) for s in both)
    return "softmax" if sums else "sigmoid"


def _is_bounded(scores: Array) -> bool:
    return bool(scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6)


def _varies(both: list[Array]) -> bool:
    """Whether the scores depend on the voxels at all: those of a network without weights are between 0 and 1 as well."""
    return any(float(np.ptp(s[:, c])) > 1e-3 for s in both for c in range(s.shape[1]))


def try_network(model: Any, patch: Size, name: str, *, batches: bool = True) -> Facts:
    """Run a network on a made patch and say what came out.

    Args:
        model: one float32 input (N, C, A0, A1, A2), one output; its output's shape is written into it.
        batches: also whether two windows a call give what one does.

    Raises:
        PackageError: it does not run, or its output is not (1, classes, *patch) of finite numbers.
    """
    shape = graph.dims_of(model.graph.input[0])
    spatial = (shape[2], shape[3], shape[4])
    if shape[1] < 1:
        raise PackageError(f"{name} leaves the number of its input's channels open.", "Export it with a fixed number.")
    by_graph = activation_before(model)
    x = made_patch(shape[1], patch)
    scores = _scores(graph.fixed_shape(model, patch), x, name, patch)
    facts = Facts(shape[1], scores.shape[1], spatial)
    again = None
    if not by_graph and _is_bounded(scores):
        again = _scores(graph.fixed_shape(model, patch), made_patch(shape[1], patch, amplitude=1e3), name, patch)
    facts.ending = ending_of(scores, again, by_graph)
    facts.ending_known = True
    facts.ends_in = by_graph or ("numbers between 0 and 1 whatever the scan" if facts.activated else "")
    if batches:
        facts.one_window = not _takes_two(model, x, scores, patch)
    _write_output_shape(model, facts)
    return facts


def _scores(model: Any, x: Array, name: str, patch: Size) -> Array:
    try:
        scores = next(iter(outputs_for(model, x).values()))
    except PackageError as error:
        reason = error.args[0].split(": ", 1)[-1]
        raise PackageError(
            f"{name} does not run on one window of {_by(patch)} voxels: {reason}", "Check the patch size and the batch."
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
            f"{name} gives {_by(scores.shape[2:])} voxels of scores for a window of {_by(patch)}; it must give as many as it takes.",
            "Export it with padding (and upsampling), so that its output has the size of its input.",
        )
    if not np.isfinite(scores).all():
        raise PackageError(f"{name} gives scores that are no finite numbers on made voxels.", "Check its weights.")
    return scores


def _by(sizes: Any) -> str:
    return " x ".join(str(n) for n in sizes)


def _takes_two(model: Any, x: Array, scores: Array, patch: Size) -> bool:
    pair = np.concatenate([x, x[..., ::-1]])
    try:
        both = next(iter(outputs_for(graph.fixed_shape(model, patch, batch=2), pair).values()))
    except MedQuantError:
        return False
    return both.shape[0] == 2 and relative_error(both[:1], scores) < _TOLERANCE["float"]


def _write_output_shape(model: Any, facts: Facts) -> None:
    """Say in the graph, in place, what the trial showed: inference cannot follow every graph."""
    onnx = graph.require_onnx()
    batch: Any = 1 if facts.one_window else "N"
    dims = [batch, facts.classes, *(size or f"out{axis}" for axis, size in enumerate(facts.spatial, start=2))]
    output = model.graph.output[0]
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, dims))
    if facts.one_window:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def relative_error(got: Array, expected: Array) -> float:
    """Norm of the difference over norm of what was expected."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def compare_with_original(original: Any, model: Any, patch: Size, name: str) -> str:
    """Run the file as it came beside what was made of it; returns what was compared, and how well it agreed, in words.

    Raises:
        PackageError: the two compute something else.
    """
    onnx = graph.require_onnx()
    value, made = graph.free_inputs(original)[0], graph.dims_of(model.graph.input[0])
    word = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    dims = graph.dims_of(value)
    last = dims[1] != made[1] and dims[4] == made[1]
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_value <= 0 and not dim.dim_param:
            dim.Clear()  # some exporters write an open size as 0 or -1, which ONNX Runtime takes by its word
    x = made_patch(made[1], patch)
    given = np.repeat(x, dims[0], axis=0) if dims[0] > 1 else x
    given = given.transpose(0, 2, 3, 4, 1) if last else given
    try:
        outputs = outputs_for(
            original, given.astype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        )
    except MedQuantError as error:
        return f"not compared with the file as it came, which ONNX Runtime does not run ({error.args[0].split(': ', 1)[-1].rstrip('.')})"
    got = next(iter(outputs_for(graph.fixed_shape(model, patch), x).values()))
    expected = outputs.get(model.graph.output[0].name, next(iter(outputs.values())))[:1]
    if expected.dtype.kind != "f" or expected.ndim != 5:
        equal = (
            float(np.mean(np.argmax(got, axis=1).ravel() == np.rint(expected).astype(np.int64).ravel()))
            if expected.size * got.shape[1] == got.size
            else 0.0
        )
        if equal < 0.999:
            raise _else(name, f"{100 * equal:.1f} % of labels equal")
        return f"labels equal to those of the file as it came in {100 * equal:.2f} % of a made patch (ONNX Runtime)"
    if expected.shape != got.shape:
        expected = expected.transpose(0, 4, 1, 2, 3)
    apart = relative_error(got, expected)
    if apart > _TOLERANCE.get(word, 1e-3):
        raise _else(name, f"relative error {apart:.2g}")
    return f"scores equal to those of the file as it came up to {apart:.1g} (relative, a made patch, ONNX Runtime)"


def _else(name: str, what: str) -> PackageError:
    return PackageError(
        f"{name} computes something else once it is in the form that engines take ({what}).",
        "Export it in float32 at opset 19; please report this with the network.",
    )
