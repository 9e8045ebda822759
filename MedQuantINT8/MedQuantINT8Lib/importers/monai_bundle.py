"""The import of a MONAI bundle (folder or zip) as a package.

The configuration is read as data (:mod:`.expressions`). Networks that are part of MONAI are built from their names and
arguments (:mod:`.monai_networks`); a network or expression that is Python code of the bundle's own is run only with
``trust_code``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import PackageError
from ..models.colors import palette
from ..models.spec import Channel, Cleaning, Label, ModelSpec, Window
from .base import ImportedModel
from .bundle_license import license_of
from .class_scores import single_output
from .expression_evaluator import NotAConstant
from .expressions import Config
from .monai_inferers import slice_axis, translate_inferer
from .monai_metadata import channel_count, cite, first_part, numbered_names, part, word_of
from .monai_networks import Definition, definition_of, make, safe_functions
from .monai_original import BundleParts, MonaiPipeline, monai_original
from .monai_postprocessing import Postprocessing, translate_postprocessing
from .monai_preprocessing import translate_preprocessing
from .monai_weights import Weights, find_weights
from .slices import sliced

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_TRUST = "If you trust where it comes from, give --trust-code; else describe it with --spec."
#: Under which names configurations describe their network, the usual one first.
_NETWORKS = ("network_def", "network", "net", "model")
_T = TypeVar("_T")


def understand(folder: Path, *, trust_code: bool = False, spec: ModelSpec | None = None) -> ImportedModel:
    """Read a bundle.

    Args:
        spec: the user's own description; then only the network comes from the bundle.

    Raises:
        DependencyError: MONAI is not installed.
        PackageError: a part that is missing or not understood, or Python code in the bundle without ``trust_code``.
    """
    model = _use_bundle(
        folder, trust_code, lambda bundle: bundle.import_model() if spec is None else bundle.import_network(spec)
    )
    model.network = partial(_load_network, folder, trust_code)
    return model


def _load_network(folder: Path, trust_code: bool) -> Any:
    """Return the bundle's network, read again where it is exported: configurations cannot be sent to that other process."""
    return _use_bundle(folder, trust_code, lambda bundle: bundle.of_three_axes())


def _use_bundle(folder: Path, trust_code: bool, use: Callable[[_Bundle], _T]) -> _T:
    """Return what ``use`` gives for a bundle; what it cannot read is raised as an error of the bundle."""
    folder = folder.resolve()
    path = next((folder / "configs" / name for name in _CONFIGS if (folder / "configs" / name).is_file()), None)
    if path is None or not (folder / "configs" / "metadata.json").is_file():
        raise PackageError(
            f"{folder.name} is no MONAI bundle: configs/metadata.json or configs/inference.json is missing.",
            "Check the path.",
        )
    metadata = Config.read(folder / "configs" / "metadata.json")
    file_config = Config.read(path)
    config = Config(
        {**file_config.values, "bundle_root": str(folder)}, path.parent, file_config.budget, safe_functions(folder)
    )
    if trust_code:
        config.trusted = lambda text: _run(folder, path, text)
    try:
        return use(_Bundle(folder, path, config, metadata, trust_code))
    except NotAConstant as error:
        raise PackageError(f"{path.name} needs Python code of the bundle to be run: {error}.", _TRUST if not trust_code else
                           "Describe the network by hand: medquant import onnx, or give --spec.") from error  # fmt: skip
    except RecursionError as error:
        raise PackageError(f"{path.name} is nested too deep.", "Do not use this file.") from error


class _Bundle:
    def __init__(self, folder: Path, path: Path, config: Config, metadata: Config, trust: bool) -> None:
        self._folder, self._path, self._config, self._metadata, self._trust = folder, path, config, metadata, trust
        self._notes: list[str] = []

    def import_network(self, spec: ModelSpec) -> ImportedModel:
        """Return the import of the network alone, with the user's description ``spec``."""
        network = self.network()
        return ImportedModel(spec, network, self._notes, original=lambda: self._original(spec, network), by_hand=True)

    def network(self) -> Callable[[], Any]:
        """Return the function that builds the network."""
        definition = self._definition()
        return self._network(definition, self._vista_classes(definition))

    def of_three_axes(self) -> Any:
        """Return the network itself, on (N, C, A0, A1, A2); a network of slices takes one slice."""
        across = slice_axis(self._config.get("inferer")) if self._config.has("inferer") else None
        network = self.network()()
        return network if across is None else sliced(network, across, "The bundle's network")

    def import_model(self) -> ImportedModel:
        definition = self._definition()
        classes = self._vista_classes(definition)
        network = self._network(definition, classes)
        formats = part(self._metadata.raw("network_data_format"), "network_data_format")
        image = first_part(part(formats.get("inputs"), "inputs"), "image")
        pred = first_part(part(formats.get("outputs"), "outputs"), "pred")
        channels = self._output_channels(definition, classes, pred)
        inputs = self._channels(image, definition)
        preprocessing = translate_preprocessing(self._transforms("preprocessing"), len(inputs))
        run = self._function if self._trust else None
        post = translate_postprocessing(
            self._transforms("postprocessing"), channels, vista=classes is not None, run=run
        )
        window = self._window(definition)
        self._notes += preprocessing.notes + post.notes
        labels = self._labels(pred, channels, classes, post)
        spec = ModelSpec(
            name=re.sub(r"[^A-Za-z0-9._-]", "-", self._metadata_text("name") or self._folder.name).lstrip("._-")
            or "bundle",
            version=self._metadata_text("version") or "1",
            modality=word_of(image.get("modality")) or word_of(image.get("format")) or "unknown",
            channels=inputs,
            geometry=preprocessing.geometry,
            normalization=preprocessing.normalization,
            window=window,
            output=post.output,
            labels=labels,
            cleaning=_cleaning_by_value(post, labels),
            license=license_of(
                self._folder,
                self._metadata_text("license") or self._metadata_text("copyright") or "unknown: see the bundle",
            ),
            citation=cite(self._metadata.raw("references")),
            source_url=self._metadata_text("source_url"),
            title=self._metadata_text("task"),
            description=self._metadata_text("description"),
            crop=preprocessing.crop,
            normalize_in=preprocessing.normalize_in,  # type: ignore[arg-type]
            order=preprocessing.order,
            fits=preprocessing.fits,
        )
        return ImportedModel(spec, network, self._notes, original=lambda: self._original(spec, network, post))

    def _original(
        self, spec: ModelSpec, network: Callable[[], Any], post: Postprocessing | None = None
    ) -> MonaiPipeline:
        """Return MONAI's own pipeline for this bundle."""
        if post is None:
            definition = self._definition()
            vista = self._vista_classes(definition) is not None
            post = translate_postprocessing(self._transforms("postprocessing"), spec.output_channels, vista=vista)
        return monai_original(
            BundleParts(
                self._transforms("preprocessing"),
                self._config.get("inferer"),
                self._transforms("postprocessing"),
                network,
                spec,
                post.values is not None,
                self._function if self._trust else None,
            )
        )

    def _metadata_text(self, name: str) -> str:
        return word_of(self._metadata.raw(name))

    def _transforms(self, name: str) -> list[Any]:
        transforms = self._config.get(name)
        if isinstance(transforms, dict):
            transforms = transforms.get("transforms", [])
        if not isinstance(transforms, list | tuple):
            raise PackageError(
                f"{self._path.name} has no '{name}' that is a list of transforms.", "Give a description with --spec."
            )
        return list(transforms)

    # The network

    def _definition(self) -> Definition | None:
        """Return the configuration's description of its network; None where that is code of another kind."""
        for name in _NETWORKS:
            if self._config.has(name):
                return definition_of(self._config, self._config.raw(name))
        raise PackageError(
            f"{self._path.name} has no 'network_def' that describes its network.", "Get the bundle again."
        )

    def _network(self, definition: Definition | None, classes: list[int] | None) -> Callable[[], Any]:
        weights = find_weights(self._config, self._folder)
        if weights.note:
            self._notes.append(weights.note)
        if weights.torchscript:
            return self._torchscript(weights)
        if definition is None or not definition.listed:
            if not self._trust:
                what = definition.target if definition is not None else str(self._config.raw("network_def"))[:200]
                raise PackageError(
                    f"The bundle's network is {what}: Python code of its own, which would have to be run.", _TRUST
                )
            return lambda: self._by_code(weights)
        if classes is not None:
            self._notes.append(
                "VISTA3D's automatic road with its fixed classes; point prompts and zero-shot classes are left out"
            )
            return lambda: _make_vista(self._config, definition, classes, weights)
        return lambda: _load_weights(make(self._config, definition), weights, definition.name)

    def _torchscript(self, weights: Weights) -> Callable[[], Any]:
        name = weights.path.relative_to(self._folder)
        if not self._trust:
            raise PackageError(
                f"The bundle holds its network as {name} alone, a TorchScript file: a program, which would have to be run.",
                _TRUST,
            )
        self._notes.append(f"the network is {name} (TorchScript)")

        def load() -> Any:
            import torch

            try:
                return torch.jit.load(str(weights.path), map_location="cpu").eval()
            except (RuntimeError, ValueError) as error:
                raise PackageError(
                    f"{name} is no TorchScript file, or it is damaged.", "Get the bundle again."
                ) from error

        return load

    def _by_code(self, weights: Weights) -> Any:
        from torch import nn

        name = next(name for name in _NETWORKS if self._config.has(name))
        module = _run(self._folder, self._path, f"@{name}")
        if not isinstance(module, nn.Module):
            raise PackageError(
                f"The bundle's '{name}' is {type(module).__name__}, no network of torch.", "Get the bundle again."
            )
        return _load_weights(module.to("cpu"), weights, "the bundle's network")

    def _function(self, text: str) -> Callable[[Any], Any]:
        """Return a function of the bundle's code, which the user trusts, from its text."""
        function = _run(self._folder, self._path, text)
        if not callable(function):
            raise PackageError(f"The bundle's {text[:100]!r} is no function.", "Get the bundle again.")
        return function  # type: ignore[no-any-return]

    def _vista_classes(self, definition: Definition | None) -> list[int] | None:
        if definition is None or definition.name != "vista3d132":
            return None
        classes = self._config.get("everything_labels") or list(range(1, 133))
        if not isinstance(classes, list | tuple) or not all(isinstance(c, int) and 0 <= c <= 132 for c in classes):
            raise PackageError("The bundle's everything_labels are no classes of VISTA3D.", "Get the bundle again.")
        return sorted({c for c in classes if c > 0})

    def _window(self, definition: Definition | None) -> Window:
        if not self._config.has("inferer"):
            raise PackageError(f"{self._path.name} has no 'inferer'.", "Give a description with --spec.")
        inferer = self._config.get("inferer")
        unknown = (1, 1, 1) if slice_axis(inferer) is None else (1, 1)
        return translate_inferer(
            inferer, definition.multiples if definition is not None and definition.listed else unknown
        )

    # What its channels mean

    def _channels(self, image: dict[str, Any], definition: Definition | None) -> tuple[Channel, ...]:
        metadata_count = channel_count(image.get("num_channels", 1), "num_channels of the network's input")
        count = (definition.input_channels if definition is not None else None) or metadata_count
        names = image.get("channel_def")
        names = names if isinstance(names, dict) else {}
        return tuple(Channel(word_of(names.get(str(n), names.get(n))) or f"channel {n}") for n in range(count))

    def _output_channels(self, definition: Definition | None, classes: list[int] | None, pred: dict[str, Any]) -> int:
        if classes is not None:
            return len(classes) + 1
        if definition is not None and definition.output_channels is not None:
            return definition.output_channels
        names = numbered_names(pred)
        metadata_count = pred.get("num_channels")
        count = (
            channel_count(metadata_count, "num_channels of the network's output")
            if metadata_count is not None
            else 1 + max(names, default=-1)
        )
        if count < 1:
            raise PackageError("The bundle's metadata names no output channels.", "Give a description with --spec.")
        return count

    def _labels(
        self, pred: dict[str, Any], channels: int, classes: list[int] | None, post: Postprocessing
    ) -> tuple[Label, ...]:
        names = numbered_names(pred)
        if classes is not None:
            # Channel n of the static graph is VISTA3D's class n - 1 of the list; its number is kept as the label's value.
            rows = [(c, names.get(c, f"class {c}"), n) for n, c in enumerate(classes, start=1)]
        elif post.output.regions and post.output.activation == "sigmoid":
            # A single region may be named as what it is in the label map: 0 background, 1 the structure.
            shift = 1 if channels == 1 and 1 in names else 0
            first = 1 if post.order is None and channels > 1 and names.get(0, "").lower() in ("background", "bg") else 0
            values = post.values or {channel: channel + 1 - first for channel in range(channels)}
            order = post.order if post.order is not None else list(range(first, channels))
            rows = [(values[channel], names.get(channel + shift, f"region {channel}"), channel) for channel in order]
        else:
            values = post.values or {number: number for number in range(channels)}
            rows = [(values[number], names.get(number, f"class {number}"), number) for number in range(1, channels)]
        if not rows:
            raise PackageError(
                "The bundle's network has one output channel, which an argmax never chooses.",
                "Give a description with --spec.",
            )
        colors = palette(len(rows))
        return tuple(Label(value, name, channel, colors[i]) for i, (value, name, channel) in enumerate(rows))


def _run(folder: Path, path: Path, text: str) -> Any:
    """Return the value that MONAI itself gives an expression, by running the bundle's code, which the user trusts."""
    from monai.bundle import ConfigParser

    with _importable(folder):
        try:
            parser = ConfigParser()
            parser.read_config(str(path))
            parser["bundle_root"] = str(folder)
            parser["medquant_expression"] = "$" + text
            return parser.get_parsed_content("medquant_expression", instantiate=True)
        except Exception as error:
            # The code is the bundle's own, and may raise anything.
            line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise PackageError(
                f"The bundle's {text[:100]!r} cannot be made: {line}.", "Check which MONAI it was made for."
            ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n == "scripts" or n.startswith("scripts.")]:
            del sys.modules[name]


def _load_weights(module: Any, weights: Weights, name: str) -> Any:
    weights.load_into(module)
    return single_output(module, name)


def _make_vista(config: Config, definition: Definition, classes: list[int], weights: Weights) -> Any:
    from .networks.vista3d import AutomaticVista3D

    vista = make(config, definition)
    weights.load_into(vista)
    return AutomaticVista3D(vista, classes)


def _cleaning_by_value(post: Postprocessing, labels: tuple[Label, ...]) -> tuple[Cleaning, ...]:
    """Return the cleaning steps with the labels' values in place of the numbers of classes."""
    first = 1 if post.output.regions and post.output.activation == "sigmoid" else 0
    values = {label.channel + first: label.value for label in labels}
    return tuple(replace(step, labels=tuple(values[n] for n in step.labels if n in values)) for step in post.cleaning)
