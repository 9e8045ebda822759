"""What the window's list of models shows of each: those that are installed, and those of the catalog that can be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MedQuantError
from ..files import read_json
from ..models.colors import color_of
from ..models.installed import DEMO, holds_int8, installed_models, size_of
from ..models.package import CALIBRATION
from ..models.task import TaskSpec
from ..models.task_package import describe
from ..zip_files import ZipLimits, checked_members, opened_zip, read_member

if TYPE_CHECKING:
    from ..importers.catalogue import CatalogueEntry

_MAX_JSON_BYTES = 32 << 20
_LIMITS = ZipLimits(64, 8 << 30)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ModelEntry:
    """A line of the list of models.

    Attributes:
        labels: names of the structures, the first few for a model of the catalog; ``structures`` is their number.
        colors: of the structures, for the model's picture.
        size_bytes: on the disk where it is installed, else of the download; None where that is not known.
        int8: whether it holds an INT8 network.
        networks: how many it is made of.
        task: whether they are the parts of a task, rather than the folds of one training.
        offer: the entry of the catalog that installs it, or a newer version of it; None where there is none.
        downloads: what the offer fetches: itself, or the models that a task runs and that are not installed.
        problem: why an installed model cannot be used, or an empty text.
    """

    name: str
    title: str
    modality: str
    labels: tuple[str, ...]
    structures: int
    colors: tuple[Color, ...]
    size_bytes: int | None
    license: str
    installed: bool
    int8: bool
    version: str = ""
    channels: tuple[str, ...] = ()
    networks: int = 1
    task: bool = False
    description: str = ""
    citation: str = ""
    homepage: str = ""
    paths: tuple[str, ...] = ()
    offer: CatalogueEntry | None = None
    downloads: tuple[CatalogueEntry, ...] = ()
    problem: str = ""

    @property
    def newer_version(self) -> str:
        """The version that the catalog offers, where it is newer than the one that is installed; else an empty text."""
        offered = offered_version(self.offer) if self.offer is not None else ""
        return offered if self.installed and _numbers(offered) > _numbers(self.version) else ""

    @property
    def removable(self) -> bool:
        """Whether it can be removed: the demo is part of the program."""
        return self.installed and self.name != DEMO

    def searched(self) -> str:
        """The text in which words are looked for, in lower case."""
        state = ["installed", "int8 ready" if self.int8 else "fp32 only"] if self.installed else ["download"]
        return " ".join([self.name, self.title, self.modality, self.license, *self.labels, *state]).lower()


def offered_version(item: CatalogueEntry) -> str:
    """The version that an entry's address names, such as "0.3.7"; an empty text where it names none."""
    match = re.search(r"_v(\d+(?:\.\d+)+)\.zip$", item.url or "")
    return match[1] if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def model_entries() -> list[ModelEntry]:
    """All models: those that are installed, then those that can be downloaded."""
    from ..importers.catalogue import can_download, entries

    catalog = entries()
    offers = {name: item for name, item in catalog.items() if can_download(item, catalog)}
    installed = installed_models()

    def downloads(item: CatalogueEntry | None) -> tuple[CatalogueEntry, ...]:
        if item is None or item.form != "task":
            return () if item is None else (item,)
        return tuple(catalog[name] for name in item.needed if name not in installed)

    present = [_installed(name, paths, offers.get(name)) for name, paths in installed.items()]
    others = [_offered(item) for name, item in offers.items() if name not in installed]
    return [replace(entry, downloads=downloads(entry.offer)) for entry in present + others]


def _installed(name: str, paths: Sequence[Path], offer: CatalogueEntry | None) -> ModelEntry:
    try:
        spec = describe(paths[0])
        int8 = holds_int8(paths)
    except MedQuantError as error:
        return _damaged(name, paths, str(error))
    return ModelEntry(
        name=name,
        title=spec.title or spec.name,
        modality=spec.modality,
        labels=tuple(label.name for label in spec.labels),
        structures=len(spec.labels),
        colors=tuple(label.color for label in spec.labels),
        size_bytes=paths[0].stat().st_size if name == DEMO else size_of(name),
        license=spec.license,
        installed=True,
        int8=int8,
        version=spec.version,
        channels=tuple(channel.name for channel in spec.channels),
        networks=len(spec.sources) if isinstance(spec, TaskSpec) else len(paths),
        task=isinstance(spec, TaskSpec),
        description=spec.description,
        citation=spec.citation,
        homepage=spec.source_url,
        paths=tuple(map(str, paths)),
        offer=offer,
    )


def _damaged(name: str, paths: Sequence[Path], problem: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        title=name,
        modality="",
        labels=(),
        structures=0,
        colors=(),
        size_bytes=size_of(name),
        license="",
        installed=True,
        int8=False,
        paths=tuple(map(str, paths)),
        problem=problem,
    )


def _offered(item: CatalogueEntry) -> ModelEntry:
    return ModelEntry(
        name=item.name,
        title=item.title,
        modality=item.modality,
        labels=item.labels,
        structures=item.structures,
        colors=tuple(color_of(number + 1) for number in range(item.structures)),
        size_bytes=item.size_bytes,
        license=item.license,
        installed=False,
        int8=False,
        version=offered_version(item),
        networks=len(item.needed) if item.form == "task" else 1,
        task=item.form == "task",
        description=item.task,
        citation=item.citation,
        homepage=item.homepage,
        offer=item,
    )


@dataclass(frozen=True)
class LayerShares:
    """What became of a network's work: shares of its multiply-accumulates, which add up to 1.

    Attributes:
        int8: computed in INT8.
        halves: in two INT8 halves, since its range is too wide for 8 bits.
        by_rule: in floating point, since a rule of the quantization says so.
        by_guard: in floating point, since INT8 would have cost more than was allowed.
        layers: a line for each layer that is not in INT8: its name and why.
        counts: number of layers by the same names as the shares.
    """

    int8: float
    halves: float
    by_rule: float
    by_guard: float
    layers: tuple[tuple[str, str], ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


def layer_shares(report: dict[str, Any]) -> LayerShares | None:
    """Sum up the layers of a quantization's report; None where it lists none."""
    layers = report.get("layers")
    if not isinstance(layers, list) or not layers:
        return None
    returned = report.get("guard", {}).get("returned", {})
    work = dict.fromkeys(("int8", "halves", "by_rule", "by_guard"), 0.0)
    counts = dict.fromkeys(work, 0)
    lines = []
    for layer in layers:
        kind = _kind(layer, returned)
        work[kind] += float(layer.get("macs") or 0)
        # The two products of a layer in halves are one layer.
        counts[kind] += layer.get("half") != "low"
        if kind in ("by_rule", "by_guard"):
            lines.append((str(layer["name"]), str(layer.get("reason", ""))))
    total = sum(work.values())
    if not total:
        return None
    return LayerShares(**{kind: value / total for kind, value in work.items()}, layers=tuple(lines), counts=counts)


def shares_of_all(networks: Sequence[dict[str, Any]]) -> LayerShares | None:
    """Sum up the reports of one network or of several, a window of each; of several, a layer's name follows its network's."""
    if len(networks) == 1:
        return layer_shares(networks[0])
    layers = list[dict[str, Any]]()
    returned = dict[str, Any]()
    for report in networks:
        name = str(report.get("network", ""))
        layers += [{**layer, "name": f"{name}: {layer['name']}"} for layer in report.get("layers", [])]
        put_back = report.get("guard", {}).get("returned", {})
        returned |= {f"{name}: {layer}": put_back[layer] for layer in put_back}
    return layer_shares({"layers": layers, "guard": {"returned": returned}})


def _kind(layer: dict[str, Any], returned: Any) -> str:
    if layer.get("quantized"):
        return "halves" if layer.get("half") else "int8"
    return "by_guard" if layer["name"] in returned else "by_rule"


def calibration_of(path: str) -> dict[str, Any] | None:
    """What a package says of its quantization (``calibration.json``); None where it holds no INT8 network, or cannot be read."""
    source = Path(path)
    try:
        if source.is_dir():
            content = read_json(source / CALIBRATION)
        else:
            with opened_zip(source, "") as archive:
                members = [e for e, member in checked_members(archive, source, _LIMITS) if member.name == CALIBRATION]
                content = json.loads(read_member(archive, members[0], _MAX_JSON_BYTES)) if members else None
    except (OSError, ValueError, MedQuantError):
        return None
    return content if isinstance(content, dict) else None
