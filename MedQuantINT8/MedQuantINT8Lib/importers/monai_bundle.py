"""A MONAI bundle (folder or zip) to a package.

The configuration is read as data (:mod:`.expressions`). Networks that are part of MONAI are made from their names and
arguments; a network or expression that is Python code of the bundle's own is run only with ``trust_code``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from ..errors import DependencyError, PackageError
from ..model_spec import Channel, Cleaning, Label, ModelSpec, Window
from .base import Understood, single_output
from .checkpoints import load_weights
from .colors import palette
from .expressions import Config, NotPlain
from .monai_transforms import translate_postprocessing, translate_preprocessing

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_VISTA = re.compile(r"\$\s*(?:monai\.networks\.nets\.)?vista3d132\((.*)\)\s*")
#: Arguments that MONAI's networks used to take and that change nothing.
_FORMER = {"img_size", "use_checkpoint"}


def understand(folder: Path, *, trust_code: bool = False) -> Understood:
    """Read a bundle.

    Raises:
        DependencyError: MONAI is not installed.
        PackageError: a part that is missing or not understood, or Python code in the bundle without ``trust_code``.
    """
    path = next((folder / "configs" / name for name in _CONFIGS if (folder / "configs" / name).is_file()), None)
    if path is None or not (folder / "configs" / "metadata.json").is_file():
        raise PackageError(
            f"{folder.name} is no MONAI bundle: configs/metadata.json or configs/inference.json is missing.", "Check the path."
        )
    metadata = Config.read(folder / "configs" / "metadata.json").raw
    config = Config({**Config.read(path)._value, "bundle_root": str(folder)}, path.parent)
    try:
        return _Bundle(folder, path, config, metadata, trust_code).understood()
    except NotPlain as error:
        raise PackageError(
            f"{path.name} needs Python code of the bundle to be run: {error}.",
            "If you trust where it comes from, give --trust-code; else describe it with --spec.",
        ) from error


class _Bundle:
    def __init__(self, folder: Path, path: Path, config: Config, metadata: Any, trust_code: bool) -> None:
        self._folder, self._path, self._config, self._metadata, self._trust = folder, path, config, metadata, trust_code
        self._notes: list[str] = []

    def understood(self) -> Understood:
        classes = self._vista_classes()
        network, multiples = self._network(classes)
        preprocessing = translate_preprocessing(self._transforms("preprocessing"))
        output, largest, notes = translate_postprocessing(self._transforms("postprocessing"))
        window = self._window(multiples)
        self._notes += preprocessing.notes + notes
        formats = self._metadata("network_data_format") or {}
        image: dict[str, Any] = next(iter((formats.get("inputs") or {}).values()), {})
        names = self._label_names(next(iter((formats.get("outputs") or {}).values()), {}), classes, output.activation)
        citation = "; ".join(str(r) for r in self._metadata("references") or [])
        spec = ModelSpec(
            name=re.sub(r"[^A-Za-z0-9._-]", "-", str(self._metadata("name") or self._folder.name)).lstrip("._-") or "bundle",
            version=str(self._metadata("version") or "1"),
            modality=str(image.get("modality") or image.get("format") or "unknown"),
            channels=self._channels(image),
            geometry=preprocessing.geometry,
            normalization=preprocessing.normalization,
            window=window,
            output=output,
            labels=names,
            cleaning=() if largest is None else (Cleaning("largest", tuple(n.value for n in names if n.channel in largest)),),
            license=self._license(),
            citation=citation,
            source_url=str(self._metadata("source_url") or ""),
            title=str(self._metadata("task") or ""),
            description=str(self._metadata("description") or ""),
            crop=preprocessing.crop,
            normalize_in=preprocessing.normalize_in,  # type: ignore[arg-type]
        )
        return Understood(spec, network, self._notes)

    def _transforms(self, name: str) -> list[Any]:
        found = self._config.get(name)
        if isinstance(found, dict):
            found = found.get("transforms", [])
        if not isinstance(found, list):
            raise PackageError(f"{self._path.name} has no '{name}' that is a list of transforms.", "Give a description with --spec.")
        return found

    def _channels(self, image: dict[str, Any]) -> tuple[Channel, ...]:
        count = int(image.get("num_channels", 1))
        names = image.get("channel_def") or {}
        return tuple(Channel(str(names.get(str(n)) or f"channel {n}")) for n in range(count))

    def _label_names(self, pred: dict[str, Any], classes: list[int] | None, activation: str) -> tuple[Label, ...]:
        names = {int(k): str(v) for k, v in (pred.get("channel_def") or {}).items() if str(k).isdigit()}
        if classes is not None:
            # Channel n of the static graph is VISTA3D's class n - 1 of the list; its number is kept as the label's value.
            rows = [(c, names.get(c, f"class {c}"), n) for n, c in enumerate(classes, start=1)]
        elif activation == "sigmoid":
            rows = [(n + 1, names.get(n, f"region {n}"), n) for n in range(int(pred.get("num_channels") or len(names)))]
        else:
            count = int(pred.get("num_channels") or len(names))
            rows = [(n, names.get(n) or f"class {n}", n) for n in range(1, count)]
        if not rows:
            raise PackageError("The bundle's metadata names no output channels.", "Give a description with --spec.")
        colors = palette(len(rows))
        return tuple(Label(value, name, channel, colors[i]) for i, (value, name, channel) in enumerate(rows))

    def _license(self) -> str:
        for path in (self._folder / "LICENSE", self._folder / "docs" / "data_license.txt"):
            if path.is_file():
                lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
                return f"{lines[0]} (the bundle's {path.name})" if lines else path.name
        return str(self._metadata("license") or self._metadata("copyright") or "unknown: see the bundle")

    def _window(self, multiples: tuple[int, int, int]) -> Window:
        inferer = self._config.get("inferer")
        name = str(inferer.get("_target_", "")).rsplit(".", 1)[-1] if isinstance(inferer, dict) else ""
        if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "Vista3dInferer"):
            raise PackageError(f"The bundle's inferer is {name or inferer!r}, which is not understood.", "Give a description with --spec.")
        size = inferer["roi_size"]
        a, b, c = (int(s) for s in (size if isinstance(size, list | tuple) else [size] * 3))
        mode = str(inferer.get("mode", "gaussian" if name == "Vista3dInferer" else "constant"))
        if mode not in ("gaussian", "constant"):
            raise PackageError(f"The bundle blends windows by {mode!r}, which is not understood.", "Give a description with --spec.")
        if str(inferer.get("padding_mode", "constant")) != "constant":
            self._notes.append("volumes smaller than a window are padded with zeros, not as the bundle pads them")
        fitting = all(side % m == 0 for side, m in zip((a, b, c), multiples, strict=True))
        return Window((a, b, c), multiples if fitting else (a, b, c), float(inferer.get("overlap", 0.25)), blend=mode)  # type: ignore[arg-type]

    def _vista_classes(self) -> list[int] | None:
        definition = self._config.raw("network_def")
        if not (isinstance(definition, str) and _VISTA.fullmatch(definition)):
            return None
        classes = self._config.get("everything_labels") or list(range(1, 133))
        return sorted(int(c) for c in classes if int(c) > 0)

    def _network(self, classes: list[int] | None) -> tuple[Any, tuple[int, int, int]]:
        weights = self._weights()
        if classes is not None:
            channels = int(self._config.get("input_channels", 1))
            dim = int(self._config.get("encoder_embed_dim", 48))
            self._notes.append("VISTA3D's automatic road with its fixed classes; point prompts and zero-shot classes are left out")
            return lambda: _vista(channels, dim, classes, weights), (16, 16, 16)
        definition = self._config.raw("network_def")
        target = definition.get("_target_", "") if isinstance(definition, dict) else ""
        cls = _monai_network(target)
        if cls is None:
            if not self._trust:
                raise PackageError(
                    f"The bundle's network is {target or definition!r}: Python code of its own, which would have to be run.",
                    "If you trust where it comes from, give --trust-code.",
                )
            return lambda: self._by_code(weights), (1, 1, 1)
        arguments = {k: v for k, v in self._config.get("network_def").items() if not k.startswith("_")}
        return lambda: _from_monai(cls, arguments, weights), _multiples(cls.__name__, arguments)

    def _by_code(self, weights: Path) -> Any:
        """The network as MONAI itself makes it, running the bundle's code."""
        from monai.bundle import ConfigParser

        with _importable(self._folder):
            parser = ConfigParser()
            parser.read_config(str(self._path))
            parser["bundle_root"] = str(self._folder)
            module = parser.get_parsed_content("network_def", instantiate=True)
        load_weights(module, weights)
        return single_output(module, "the bundle's network")

    def _weights(self) -> Path:
        places = [self._config.raw("checkpointloader"), *(self._config.raw("handlers") or [])]
        for place in places:
            if isinstance(place, dict) and "load_path" in place:
                path = Path(str(self._config.resolve(place["load_path"])))
                path = path if path.is_absolute() else self._folder / path
                if self._folder.resolve() in path.resolve().parents and path.is_file():
                    return path
        if not (path := self._folder / "models" / "model.pt").is_file():
            raise PackageError(f"{self._folder.name} holds no weights: models/model.pt is missing.", "Download the whole bundle.")
        return path


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n == "scripts" or n.startswith("scripts.")]:
            del sys.modules[name]


def _monai_network(target: str) -> type | None:
    """The network class of that name, if it is one of MONAI's own."""
    try:
        from monai.networks import nets
        from torch import nn
    except ImportError as error:
        raise DependencyError("MONAI is not installed.", "Install it with: pip install 'medquantint8[import]'") from error
    package, _, name = target.rpartition(".")
    if package not in ("", "monai.networks.nets") and not package.startswith("monai.networks.nets."):
        return None
    found = getattr(nets, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _from_monai(cls: type, arguments: dict[str, Any], weights: Path) -> Any:
    import inspect

    accepted = inspect.signature(cls).parameters
    arguments = {k: v for k, v in arguments.items() if k in accepted or k not in _FORMER}
    try:
        module = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise PackageError(f"MONAI cannot make the bundle's {cls.__name__}: {error}.", "Check which MONAI it was made for.") from error
    load_weights(module, weights)
    return single_output(module, cls.__name__)


def _vista(channels: int, dim: int, classes: list[int], weights: Path) -> Any:
    from monai.networks.nets import vista3d132

    from ..networks.vista3d import AutomaticVista3D

    vista = vista3d132(encoder_embed_dim=dim, in_channels=channels)
    load_weights(vista, weights)
    return AutomaticVista3D(vista, classes)


def _multiples(name: str, arguments: dict[str, Any]) -> tuple[int, int, int]:
    """What a patch's sides must be multiples of."""
    if name in ("UNet", "DynUNet"):
        strides = [s if isinstance(s, list | tuple) else [s] * 3 for s in arguments.get("strides", [])]
        a, b, c = (prod(s[axis] for s in strides) for axis in range(3)) if strides else (1, 1, 1)
        return a, b, c
    factor = {"SwinUNETR": 32, "BasicUNet": 16, "UNETR": 16}.get(name)
    if name in ("SegResNet", "SegResNetDS", "SegResNetVAE"):
        factor = 2 ** (len(arguments.get("blocks_down", (1, 2, 2, 4))) - 1)
    return (factor or 1,) * 3
