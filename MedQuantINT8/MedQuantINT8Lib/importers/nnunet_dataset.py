"""dataset.json of nnU-Net v2: channels, and labels or regions as nnU-Net's label manager takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import PackageError
from ..models.colors import palette
from ..models.spec import Label
from .fields import Fields, each, mapping, text, whole, wrong

_ADVICE = "Correct dataset.json, or take the one that the network was trained with."
#: What nnU-Net's inference does not read; any other text counts as a remark as well, since nnU-Net writes those on demand.
_REMARKS = (
    "numTraining", "numTest", "training", "test", "tensorImageSize", "overwrite_image_reader_writer", "dataset", "file_ending",
    "citation", "dim", "image_shape", "nonzero_label",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """The channels, labels and remarks of a dataset.json.

    Attributes:
        channels: names of the input channels, in order.
        labels: the labels, each with its output channel of the network.
        regions: whether each output channel is a region of its own.
        foreground: the values of all labels but background, also of those that are only parts of regions, ascending.
        remarks: license, reference, name, description, release as they stand.
    """

    channels: list[str]
    labels: tuple[Label, ...]
    regions: bool
    foreground: tuple[int, ...]
    remarks: dict[str, str]

    @property
    def outputs(self) -> int:
        """The number of channels of the network's output."""
        return len(self.labels) + (not self.regions)


def read_dataset(value: Any) -> Dataset:
    """Return the channels, labels and remarks that dataset.json states.

    Raises:
        PackageError: names what is missing, of the wrong type, or against nnU-Net's own rules.
    """
    fields = Fields(value, "dataset.json", _ADVICE)
    channels_field = "channel_names" if "channel_names" in fields else "modality"
    names = fields.get(channels_field, mapping)
    if sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise PackageError(f"dataset.json: {channels_field!r} must name the channels 0, 1, 2 and so on.", _ADVICE)
    channels = [text(names[str(n)], f"dataset.json: channel {n}").strip() or f"channel {n}" for n in range(len(names))]
    labels, regions, foreground = _read_labels(fields.get("labels", mapping), fields)
    fields.ignore("modality", "regions_class_order", *_REMARKS)
    remarks = {
        name: value.strip() for name, value in fields.unread().items() if isinstance(value, str) and value.strip()
    }
    for name in ("release", "version"):  # often written as a number
        if isinstance(remark := fields.unread().get(name), int | float) and not isinstance(remark, bool):
            remarks[name] = str(remark)
    fields.ignore("release", "version", *(name for name, remark in fields.unread().items() if _is_text(remark)))
    fields.finish()
    return Dataset(channels, labels, regions, foreground, remarks)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _read_values(value: Any, where: str) -> int | list[int]:
    """Return the value of a label, or the values of a region's labels."""
    return each(whole)(value, where) if isinstance(value, list | tuple) else whole(value, where)


def _read_labels(labels: dict[str, Any], fields: Fields) -> tuple[tuple[Label, ...], bool, tuple[int, ...]]:
    """Return the labels with their output channels, whether they are regions (more than one label in a list), and all values but background's."""
    values = {name: _read_values(value, f"dataset.json: label {name!r}") for name, value in labels.items()}
    ignore_value = values.pop("ignore", None)
    all_values = sorted({value for item in values.values() for value in (item if isinstance(item, list) else [item])})
    if ignore_value is not None and ignore_value != (all_values[-1] + 1 if all_values else None):
        raise PackageError("dataset.json: the label 'ignore' must be one above all others.", _ADVICE)
    if all_values[:1] != [0]:
        raise PackageError("dataset.json: 'labels' has no background with the value 0.", _ADVICE)
    foreground = {name: item for name, item in values.items() if item != 0 and item != [0] and item != []}
    if not foreground:
        raise PackageError("dataset.json names no labels.", "Get the folder again.")
    if any(isinstance(item, list) and len(item) > 1 for item in values.values()):
        return _read_regions(list(foreground), fields), True, tuple(all_values[1:])
    if all_values != list(range(len(all_values))):
        # nnU-Net's network has a channel for each label and writes the channel's number, whatever the label was.
        raise PackageError(f"dataset.json: the labels are {all_values}, not 0, 1, 2 and so on.", _ADVICE)
    names_of_value: dict[int, list[str]] = {}
    for name, item in foreground.items():
        names_of_value.setdefault(item[0] if isinstance(item, list) else item, []).append(name)
    colors = palette(len(names_of_value))
    rows = enumerate(sorted(names_of_value.items()))
    return (
        tuple(Label(value, ", ".join(names), value, colors[n]) for n, (value, names) in rows),
        False,
        tuple(all_values[1:]),
    )


def _read_regions(names: list[str], fields: Fields) -> tuple[Label, ...]:
    """Return the regions, which are painted one over the other in the order of dataset.json, each with its value of regions_class_order."""
    order = fields.get("regions_class_order", each(whole))
    if len(order) != len(names):
        raise PackageError(
            f"dataset.json: regions_class_order has {len(order)} values for {len(names)} regions.", _ADVICE
        )
    if len(set(order)) != len(order) or 0 in order:
        raise wrong("dataset.json: 'regions_class_order'", order, "different values above 0")
    colors = palette(len(names))
    return tuple(Label(value, name, n, colors[n]) for n, (name, value) in enumerate(zip(names, order, strict=True)))
