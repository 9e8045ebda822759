"""A plain ONNX file, with a description of its preprocessing, to a ModelPackage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import graph
from ..errors import PackageError
from ..model import FP32, ModelPackage, write_package
from ..model_spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window
from ..rewrites import attributes, with_folded_normalization
from .colors import palette

#: ModelOpt raises older networks to this; doing it here keeps the layers' names the same in FP32 and INT8.
OPSET = 19
#: What may stand between a network's ArgMax and its output.
_AROUND_LABELS = ("Cast", "Squeeze", "Unsqueeze", "Identity")


def import_onnx(
    source: str | os.PathLike[str],
    spec: ModelSpec,
    target: str | os.PathLike[str],
) -> ModelPackage:
    """Check a network against its description and write both as a package.

    Raises:
        PackageError: no ONNX file, a graph with open spatial sizes and no patch size to close them, or channels, classes
            and sizes that do not fit the description.
        StorageError: the target cannot be written.
    """
    onnx = graph.require_onnx()
    model = giving_scores(graph.load_network(source))
    name = Path(source).name
    if model.opset_import[0].version < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:
            # The converter raises RuntimeError and its own ConvertError, whose messages are one C++ assertion.
            raise PackageError(
                f"{name} uses opset {model.opset_import[0].version} and cannot be raised to {OPSET}: {error}.",
                "Export it with opset 19 or later.",
            ) from error
    graph.strip_notes(model)
    graph.name_nodes(model)
    model = with_folded_normalization(model)
    check_fits(model, spec, name)
    with TemporaryDirectory(prefix="medquant-import-") as scratch:
        path = Path(scratch) / FP32
        onnx.save(model, str(path))
        write_package(target, spec, {FP32: path})
    return ModelPackage.load(target)


def giving_scores(model: Any) -> Any:
    """A network that ends in the number of the best class gives the scores of all instead, so that windows can be blended.

    A Softmax in between goes as well: it is the description's part, and changes no label.
    """
    found = graph.Graph(model)
    if len(model.graph.output) != 1:
        return model
    node = found.producer.get(model.graph.output[0].name)
    while node is not None and node.op_type in _AROUND_LABELS:
        node = found.producer.get(node.input[0])
    if node is None or node.op_type != "ArgMax" or attributes(node).get("axis", 0) not in (1, -4):
        return model
    before = found.producer.get(node.input[0])
    scores = before.input[0] if before is not None and before.op_type in ("Softmax", "LogSoftmax") else node.input[0]
    copy = graph.inferred(model)
    known = [value for value in copy.graph.value_info if value.name == scores]
    if not known:
        return model
    copy.graph.output[0].CopyFrom(known[0])
    del copy.graph.value_info[:]
    return graph.pruned(copy)


def check_fits(model: Any, spec: ModelSpec, name: str) -> None:
    """Raise :class:`PackageError` where the network and its description disagree."""
    shape = graph.network_shape(model, name)
    if shape.channels != len(spec.channels):
        raise PackageError(
            f"{name} takes {shape.channels} channel(s), but its description names {len(spec.channels)}.", "Correct 'channels'."
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
    for axis, (given, wanted) in enumerate(zip(shape.spatial, spec.window.patch_size, strict=True)):
        if given and given != wanted:
            raise PackageError(
                f"{name} takes {shape.spatial} voxels, but its description's patch size is {spec.window.patch_size}.",
                "Correct 'window.patch_size'.",
            )
        if not given and wanted % spec.window.multiples[axis]:
            raise PackageError(
                f"{name}: the patch size {wanted} is no multiple of {spec.window.multiples[axis]}.", "Correct 'window'."
            )


def draft_spec(source: str | os.PathLike[str], patch: tuple[int, int, int] | None = None) -> ModelSpec:
    """A first description of a network, to be completed by hand: what the graph tells, defaults for the rest.

    Raises:
        PackageError: spatial sizes that the graph leaves open and ``patch`` does not give.
    """
    model = giving_scores(graph.load_network(source))
    name = Path(source).name
    shape = graph.network_shape(model, name)
    if not all(shape.spatial) and patch is None:
        raise PackageError(f"{name} has dynamic spatial shapes.", "Give the patch size, such as --patch 96 96 96.")
    return draft_for(Path(source).stem, shape.channels, shape.classes, patch or shape.spatial)


def draft_for(name: str, channels: int, classes: int, patch: tuple[int, int, int]) -> ModelSpec:
    """A first description of a network of which only the shapes are known."""
    softmax = classes > 1
    colors = palette(classes)
    return ModelSpec(
        name="".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("._-") or "network",
        version="1.0.0",
        modality="MR",
        channels=tuple(Channel(f"channel {n}") for n in range(channels)),
        geometry=Geometry(spacing=(1.0, 1.0, 1.0)),
        normalization=(Normalization("zscore"),),
        window=Window(patch_size=patch),
        output=Output("softmax" if softmax else "sigmoid"),
        labels=tuple(
            Label(n + (not softmax), f"structure {n}", n, colors[n]) for n in (range(1, classes) if softmax else range(1))
        ),
        license="unknown",
    )


def with_patch(spec: ModelSpec, patch: tuple[int, int, int]) -> ModelSpec:
    """The description with another patch size."""
    return replace(spec, window=replace(spec.window, patch_size=patch))
