"""The importer of a plain ONNX file, which becomes a ModelPackage with a description of its preprocessing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import PackageError
from ..models import onnx_graph as graph
from ..models.colors import palette
from ..models.package import FP32, ModelPackage, write_package
from ..models.rewrites import with_folded_normalization
from ..models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window
from ..progress import Task
from . import onnx_forms as forms
from .onnx_trial import Facts, Size, compare_with_original, outputs_for, random_patch, try_network


def import_onnx(source: str | os.PathLike[str], spec: ModelSpec, target: str | os.PathLike[str]) -> ModelPackage:
    """Bring a network into the form that engines take, run it, check it against its description, and write both as a package.

    Raises:
        PackageError: no ONNX file, a network that is not understood (by what stands in the way), or one that does not fit
            its description.
        StorageError: the target cannot be written.
    """
    name = Path(source).name
    with TemporaryDirectory(prefix="medquant-import-") as scratch:
        path = Path(scratch) / FP32
        check_fits(prepare_network(source, path, spec.window.patch_size), spec, name)
        write_package(target, spec, {FP32: path})
    return ModelPackage.load(target)


def prepare_network(
    source: str | os.PathLike[str], target: Path, patch: Size | None, *, proved: bool = False, name: str = ""
) -> Facts:
    """Bring a network into the form that engines take and write it to ``target``; returns the facts that are known of it.

    Args:
        patch: the patch for sizes that the graph leaves open.
        proved: whether it comes from this program's own export, which compared it with its original: it is run, but not compared again.

    Raises:
        PackageError: as for :func:`import_onnx`; sizes that the graph leaves open and ``patch`` does not give.
    """
    name = name or Path(source).name
    original = graph.load_network(source)
    with graph.damage(name):
        model, facts = _prepare(original, patch, name, proved)
        graph.require_onnx().save(model, str(target))
    return facts


def _prepare(original: Any, patch: Size | None, name: str, proved: bool) -> tuple[Any, Facts]:
    model = forms.with_one_input(forms.check_standard(original, name), name)
    model, notes = forms.as_float32(model, name)
    model = forms.at_known_opset(model, name)
    model = forms.with_scores(model)
    model, more_notes = forms.channels_first(model)
    notes += more_notes
    size = _patch_of(model, patch, name)
    has_runtime = importlib.util.find_spec("onnxruntime") is not None

    def shapes(network: Any) -> dict[str, list[int]]:
        dims = graph.dims_of(network.graph.input[0])
        outputs = outputs_for(network, random_patch(dims[1], size, max(1, dims[0])))
        return {"": list(size), **{key: list(value.shape) for key, value in outputs.items()}}

    model, more_notes = forms.with_one_output(model, shapes, name)
    notes += more_notes
    batch = graph.dims_of(model.graph.input[0])[0]
    model = with_folded_normalization(forms.tidy(forms.with_open_sizes(model)))
    graph.name_nodes(model)
    if not has_runtime:
        shape = graph.network_shape(model, name)
        facts = Facts(shape.channels, shape.classes, shape.spatial)
        notes.append("it was not run: ONNX Runtime is not installed")
    else:
        try:
            facts, scores = try_network(model, size, name, batches=not proved)
        except PackageError as error:
            if batch > 1 and "does not run" in error.args[0]:
                raise PackageError(
                    f"{name} takes {batch} windows at once, no fewer (its batch is fixed).",
                    "Export it with a batch of 1, or an open one.",
                ) from error
            raise
        if facts.one_window and batch > 1:
            raise PackageError(
                f"{name} takes {batch} windows at once (its batch is fixed).",
                "Export it with a batch of 1, or an open one.",
            )
        if not proved:
            facts.comparisons.append(compare_with_original(original, model, scores, name))
    if batch > 1:
        notes.append(f"its batch was fixed to {batch}, and is open here")
    facts.notes[:0] = notes
    return model, facts


def _patch_of(model: Any, patch: Size | None, name: str) -> Size:
    """Return the patch that a network is run on: the sizes it fixes, else those that are given."""
    dims = graph.dims_of(model.graph.input[0])[2:]
    if not all(dims) and patch is None:
        raise PackageError(f"{name} has dynamic spatial shapes.", "Give the patch size, such as --patch 96 96 96.")
    a, b, c = (fixed or side for fixed, side in zip(dims, patch or (0, 0, 0), strict=True))
    return a, b, c


def check_fits(facts: Facts, spec: ModelSpec, name: str, *, by_hand: bool = True) -> None:
    """Raise :class:`PackageError` where a network and its description disagree; the notes state what becomes of its ending.

    Args:
        by_hand: the description is somebody's own, and may not contradict the network's ending. One that was read from the
            original software says what that software does, a second sigmoid included.
    """
    check_sizes(facts, spec, name)
    if by_hand:
        check_ending(facts, spec, name)
        if facts.activated:
            facts.notes.append(f"it ends in {facts.ends_in}: its probabilities are blended as they are")
    elif facts.activated and not spec.output.activated:
        facts.notes.append(
            f"it ends in {facts.ends_in}, and the original software puts a {spec.output.activation} behind it, as is done here"
        )


def check_ending(facts: Facts, spec: ModelSpec, name: str) -> None:
    """Raise :class:`PackageError` where a description calls logits probabilities, or the other way round.

    A network that ends in its activation would get a second one: a sigmoid of a probability is never below one half.
    """
    output = spec.output
    if facts.activated and not output.activated:
        raise PackageError(
            f"{name} already ends in {facts.ends_in}: its output is probabilities, but its description says that "
            f"{output.activation} is still to come (output.activated is false).",
            "Set 'output.activated' to true, or export it without its last activation.",
        )
    if output.activated and not facts.activated and facts.ending_known:
        raise PackageError(
            f"{name} gives {'logarithms of probabilities' if facts.ending == 'log_softmax' else 'scores that leave 0 to 1'}, "
            "but its description says that they are probabilities (output.activated is true).",
            "Set 'output.activated' to false.",
        )
    if facts.ending == "log_softmax" and output.activation == "sigmoid":
        raise PackageError(
            f"{name} ends in a LogSoftmax, but its description says sigmoid.", "Set 'output.activation' to softmax."
        )


def check_sizes(shape: Facts, spec: ModelSpec, name: str) -> None:
    """Raise :class:`PackageError` where a network's sizes and its description disagree."""
    if shape.channels != spec.input_channels:
        raise PackageError(
            f"{name} takes {shape.channels} channel(s), but its description names {spec.input_channels}.",
            "Correct 'channels'.",
        )
    if shape.classes != spec.output_channels:
        raise PackageError(
            f"{name} gives {shape.classes} channel(s), but its description's labels need {spec.output_channels}.",
            "Correct 'labels'.",
        )
    if spec.window.whole_volume and any(shape.spatial):
        raise PackageError(
            f"{name} has the fixed size {shape.spatial}, so it cannot take a whole volume in one piece.",
            "Set 'window.whole_volume' to false, or export it with dynamic spatial sizes.",
        )
    for axis, (size, side) in enumerate(zip(shape.spatial, spec.window.patch_size, strict=True)):
        if size and size != side:
            raise PackageError(
                f"{name} takes {shape.spatial} voxels, but its description's patch size is {spec.window.patch_size}.",
                "Correct 'window.patch_size'.",
            )
        if not size and side % spec.window.multiples[axis]:
            raise PackageError(
                f"{name}: the patch size {side} is no multiple of {spec.window.multiples[axis]}.", "Correct 'window'."
            )


def draft_spec(source: str | os.PathLike[str], patch: Size | None = None, *, task: Task | None = None) -> ModelSpec:
    """Return a first description of a network, to be completed by hand: the facts that the graph shows, defaults for the rest.

    Raises:
        PackageError: spatial sizes that the graph leaves open and ``patch`` does not give.
    """
    with TemporaryDirectory(prefix="medquant-draft-") as scratch, (task or Task()).stage("trying the network"):
        facts = prepare_network(source, Path(scratch) / FP32, patch)
    return draft_of(facts, Path(source).stem, patch)


def draft_of(facts: Facts, name: str, patch: Size | None) -> ModelSpec:
    """Return a first description of a network that was run: as :func:`draft_for`, with the output's activation judged by its ending."""
    a, b, c = (fixed or side for fixed, side in zip(facts.spatial, patch or (0, 0, 0), strict=True))
    softmax = facts.ending in ("softmax", "log_softmax") or (facts.ending == "logits" and facts.classes > 1)
    return draft_for(
        name, facts.channels, facts.classes, (a, b, c), Output("softmax" if softmax else "sigmoid", facts.activated)
    )


def draft_for(name: str, channels: int, classes: int, patch: Size, output: Output | None = None) -> ModelSpec:
    """Return a first description of a network of which only the shapes are known, and perhaps what its output means."""
    output = output or Output("softmax" if classes > 1 else "sigmoid")
    softmax = output.activation == "softmax"
    colors = palette(classes)
    return ModelSpec(
        name="".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-") or "network",
        version="1.0.0",
        modality="MR",
        channels=tuple(Channel(f"channel {n}") for n in range(channels)),
        geometry=Geometry(spacing=(1.0, 1.0, 1.0)),
        normalization=(Normalization("zscore"),),
        window=Window(patch_size=patch),
        output=output,
        labels=tuple(
            Label(n + (not softmax), f"structure {n}", n, colors[n])
            for n in (range(1, classes) if softmax else range(classes))
        ),
        license="unknown",
    )
