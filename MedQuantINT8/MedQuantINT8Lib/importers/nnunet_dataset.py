"""dataset.json of nnU-Net v2: channels, and labels or regions as nnU-Net's label manager takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import PackageError
from ..models.colors import palette
from ..models.spec import Label
from .fields import Fields, each, mapping, text, whole, wrong

_ADVICE = "Correct dataset.json, or take the one that the network was trained with."
#: What nnU-Net's inference does not read; any other text is taken for a remark as well, since nnU-Net writes those on demand.
_REMARKS = (
    "numTraining", "numTest", "training", "test", "tensorImageSize", "overwrite_image_reader_writer", "dataset", "file_ending",
    "citation", "dim", "image_shape", "nonzero_label",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """What dataset.json says.

    Attributes:
        channels: names of the input channels, in order.
        labels: with the network's output channel of each.
        regions: whether each output channel is a region of its own.
        remarks: license, reference, name, description, release as they stand.
    """

    channels: list[str]
    labels: tuple[Label, ...]
    regions: bool
    remarks: dict[str, str]

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.labels) + (not self.regions)


def read_dataset(value: Any) -> Dataset:
    """What dataset.json says.

    Raises:
        PackageError: names what is missing, of the wrong type, or against nnU-Net's own rules.
    """
    read = Fields(value, "dataset.json", _ADVICE)
    place = "channel_names" if "channel_names" in read else "modality"
    names = read.get(place, mapping)
    if sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise PackageError(f"dataset.json: {place!r} must name the channels 0, 1, 2 and so on.", _ADVICE)
    channels = [text(names[str(n)], f"dataset.json: channel {n}").strip() or f"channel {n}" for n in range(len(names))]
    labels, regions = _labels(read.get("labels", mapping), read)
    read.ignore("modality", "regions_class_order", *_REMARKS)
    remarks = {name: value.strip() for name, value in read.unread().items() if isinstance(value, str) and value.strip()}
    for name in ("release", "version"):  # often written as a number
        if isinstance(given := read.unread().get(name), int | float) and not isinstance(given, bool):
            remarks[name] = str(given)
    read.ignore("release", "version", *(name for name, given in read.unread().items() if _is_text(given)))
    read.finish()
    return Dataset(channels, labels, regions, remarks)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _values(value: Any, where: str) -> int | list[int]:
    """A label, or the labels of a region."""
    return each(whole)(value, where) if isinstance(value, list | tuple) else whole(value, where)


def _labels(given: dict[str, Any], read: Fields) -> tuple[tuple[Label, ...], bool]:
    """Labels with their output channels, and whether they are regions (more than one label in a list)."""
    values = {name: _values(value, f"dataset.json: label {name!r}") for name, value in given.items()}
    ignored = values.pop("ignore", None)
    everything = sorted({value for item in values.values() for value in (item if isinstance(item, list) else [item])})
    if ignored is not None and ignored != (everything[-1] + 1 if everything else None):
        raise PackageError("dataset.json: the label 'ignore' must be one above all others.", _ADVICE)
    if everything[:1] != [0]:
        raise PackageError("dataset.json: 'labels' has no background with the value 0.", _ADVICE)
    foreground = {name: item for name, item in values.items() if item != 0 and item != [0] and item != []}
    if not foreground:
        raise PackageError("dataset.json names no labels.", "Get the folder again.")
    if any(isinstance(item, list) and len(item) > 1 for item in values.values()):
        return _regions(list(foreground), read), True
    if everything != list(range(len(everything))):
        # nnU-Net's network has a channel for each label and writes the channel's number, whatever the label was.
        raise PackageError(f"dataset.json: the labels are {everything}, not 0, 1, 2 and so on.", _ADVICE)
    named: dict[int, list[str]] = {}
    for name, item in foreground.items():
        named.setdefault(item[0] if isinstance(item, list) else item, []).append(name)
    colors = palette(len(named))
    rows = enumerate(sorted(named.items()))
    return tuple(Label(value, ", ".join(names), value, colors[n]) for n, (value, names) in rows), False


def _regions(names: list[str], read: Fields) -> tuple[Label, ...]:
    """Regions are painted one over the other in the order of dataset.json, each with its value of regions_class_order."""
    order = read.get("regions_class_order", each(whole))
    if len(order) != len(names):
        raise PackageError(
            f"dataset.json: regions_class_order has {len(order)} values for {len(names)} regions.", _ADVICE
        )
    if len(set(order)) != len(order) or 0 in order:
        raise wrong("dataset.json: 'regions_class_order'", order, "different values above 0")
    colors = palette(len(names))
    return tuple(Label(value, name, n, colors[n]) for n, (name, value) in enumerate(zip(names, order, strict=True)))
