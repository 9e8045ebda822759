"""MONAI's transforms before the network as the fields of model.json. One that is not understood is an error that names it.

Each transform becomes steps (:mod:`.monai_spatial`, :mod:`.monai_intensity`); here they are put together for the entry of MONAI's
dictionary that the network reads, with their order where it is not the usual one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PackageError
from ..models.spec import NATIVE, Crop, Fit, Geometry, Normalization, Step, usual_order
from .monai_arguments import ADVICE, Arguments, enabled, transform_name, true
from .monai_intensity import HANDLERS as INTENSITY
from .monai_intensity import cast
from .monai_spatial import HANDLERS as SPATIAL
from .monai_spatial import Orient, Resample

#: What changes no voxel, with the arguments that are understood to do so.
_HARMLESS: dict[str, tuple[str, ...]] = {
    "AddChanneld": (), "ToDeviced": ("device", "non_blocking"), "Identityd": (), "SelectItemsd": (), "DeleteItemsd": ("sep", "use_re"),
    "FromMetaTensord": ("data_type",), "ToMetaTensord": (), "VistaPreTransformd": ("special_index", "labels_replace_dict", "subclass"),
    "SimulateDelayd": ("delay_time",), "DataStatsd": ("prefix", "data_type", "data_shape", "value_range", "data_value", "name"),
}  # fmt: skip
_READERS = ("NibabelReader", "ITKReader", "PydicomReader", "NrrdReader", "NumpyReader", "ITKreader")


@dataclass
class Preprocessing:
    """What the preprocessing says, in model.json's terms."""

    geometry: Geometry
    crop: Crop
    normalization: tuple[Normalization, ...]
    normalize_in: str
    order: tuple[Step, ...] = ()
    fits: tuple[Fit, ...] = ()
    notes: list[str] = field(default_factory=list)


def translate_preprocessing(transforms: Sequence[Any], channels: int | None = None) -> Preprocessing:
    """Translate the transforms that run before the network.

    Args:
        channels: how many input channels the network has, where that is known.

    Raises:
        PackageError: A transform, an argument of one, or an order, which the message names, has no form in model.json.
    """
    active = enabled(transforms)
    names = [transform_name(transform) for transform in active]
    image, members, join_index = _members(active, names)
    reader = _Reader(len(members) if join_index is not None else channels)
    for place, (transform, name) in enumerate(zip(active, names, strict=True)):
        if join_index is not None and place == join_index:
            _concatenation(Arguments(transform))
            continue
        # Before the channels are joined each has a key of its own; afterwards there is one.
        current = members if join_index is not None and place < join_index else [image]
        keys = [key for key in current if key in Arguments(transform).keys]
        if keys or name == "LoadImaged":
            reader.read(transform, name, keys or current, current)
    return reader.result()


def image_keys(transforms: Sequence[Any]) -> tuple[str, list[str]]:
    """Return the key that the network reads, and the keys of its channels before they are joined."""
    active = enabled(transforms)
    image, members, _ = _members(active, [transform_name(transform) for transform in active])
    return image, members


def _members(transforms: list[dict[str, Any]], names: list[str]) -> tuple[str, list[str], int | None]:
    """Return the key that the network reads, the keys of its channels, and which transform joins them."""
    keys = [Arguments(transform).keys for transform in transforms]
    places = [n for n, name in enumerate(names) if name == "ConcatItemsd"]
    if len(places) > 1:
        raise PackageError("The bundle joins channels twice (ConcatItemsd), which is not understood.", ADVICE)
    if places:
        name = str(transforms[places[0]].get("name", "image"))
        return name, keys[places[0]], places[0]
    if any("image" in key_list for key_list in keys):
        return "image", ["image"], None
    key = next((key_list[0] for key_list in keys if key_list), "image")
    return key, [key], None


def _concatenation(t: Arguments) -> None:
    if len(set(t.keys)) != len(t.keys):
        raise t.refusal("keys", t.keys)
    t.only("dim", 0)
    t.ignore("name")
    t.finish()


class _Reader:
    """A reader that puts the steps of transforms together, in their order."""

    def __init__(self, channels: int | None) -> None:
        self._channels = channels
        self._orientation = NATIVE
        self._resample: Geometry | None = None
        self._crop: Crop | None = None
        self._steps, self._fits, self._order = list[Normalization](), list[Fit](), list[Step]()
        self._untracked = ""
        self.notes: list[str] = []

    def read(self, transform: dict[str, Any], name: str, keys: list[str], members: list[str]) -> None:
        """Read one transform, for those of the channels' keys that it names."""
        steps_by_key = [_steps(transform, name, key) for key in keys]
        if name in ("EnsureTyped", "ToTensord", "FromMetaTensord") and (
            name == "FromMetaTensord" or not true(transform.get("track_meta", True))
        ):
            self._untracked = name
        if len(members) == 1:
            for step in steps_by_key[0]:
                self._add(self._of_source(step, transform, members), name)
            return
        everywhere = keys == members or set(keys) == set(members)
        if everywhere and all(steps == steps_by_key[0] for steps in steps_by_key):
            for step in steps_by_key[0]:
                # Each key is a channel by itself: what is computed over all of it is computed over a channel.
                each = (
                    replace(step, over="channel")
                    if isinstance(step, Normalization)
                    else self._of_source(step, transform, members)
                )
                self._add(each, name)
            return
        for key, steps in zip(keys, steps_by_key, strict=True):
            for step in steps:
                if not isinstance(step, Normalization):
                    raise PackageError(
                        f"The bundle's {name} treats the channels' keys differently, which is not understood.", ADVICE
                    )
                self._add(replace(step, over="channel", channels=(members.index(key),)), name)

    def _of_source(self, step: Any, transform: dict[str, Any], members: list[str]) -> Any:
        """Return a crop with the channels that its source key names; another step as it is."""
        if not isinstance(step, Crop):
            return step
        source = str(transform.get("source_key", members[0]))
        if source not in members:
            raise PackageError(
                f"The bundle crops by the foreground of {source!r}, which is not the network's image.", ADVICE
            )
        return replace(step, channels=(members.index(source),)) if len(members) > 1 else step

    def _add(self, step: Any, name: str) -> None:
        if isinstance(step, Normalization):
            if self._channels == 1:
                step = replace(step, over="channel", channels=())
            self._steps.append(step)
            self._order.append("normalize")
            return
        if self._untracked and not isinstance(step, Fit):
            raise PackageError(
                f"The bundle's {name} follows {self._untracked}, after which MONAI no longer knows where voxels lie.",
                ADVICE,
            )
        if isinstance(step, Orient):
            self._once(self._orientation != NATIVE and self._orientation != step.axcodes, name)
            if self._orientation == NATIVE:
                self._order.append("reorient")
            self._orientation = step.axcodes
        elif isinstance(step, Resample):
            self._once(self._resample is not None, name)
            self._resample = step.geometry
            self._order.append("resample")
        elif isinstance(step, Crop):
            self._once(self._crop is not None, name)
            self._crop = step
            self._order.append("crop")
        elif isinstance(step, Fit):
            self._fits.append(step)
            self._order.append("fit")

    def _once(self, again: bool, name: str) -> None:
        if again:
            raise PackageError(
                f"The bundle's preprocessing uses {name} more than once, which is not understood.", ADVICE
            )

    def result(self) -> Preprocessing:
        order = tuple(self._order)
        resampled, turned = "resample" in order, "reorient" in order
        last = resampled and turned and order.index("resample") < order.index("reorient")
        geometry = replace(
            self._resample or Geometry(), orientation=self._orientation, reorient="last" if last else "first"
        )
        crop = self._crop or Crop()
        normalized = "normalize" in order
        where = (
            "input" if normalized and resampled and order.index("normalize") < order.index("resample") else "network"
        )
        if not resampled and normalized:
            where = "input"
        usual = usual_order(geometry, crop, self._steps, where)
        plain = crop.margins is None and crop.multiples == (1, 1, 1) and crop.beyond == "cut"
        # A plain crop may stand before or after flips and swaps.
        swapped = tuple(order)
        if plain and order[:2] == ("reorient", "crop"):
            swapped = ("crop", "reorient", *order[2:])
        return Preprocessing(
            geometry, crop, tuple(self._steps), where, () if swapped == usual else order, tuple(self._fits), self.notes
        )


def _steps(transform: dict[str, Any], name: str, key: str) -> list[Any]:
    """Return the steps of one transform for one key.

    Raises:
        PackageError: the transform or one of its arguments is not understood.
    """
    t = Arguments(transform, key)
    handler: Callable[[Arguments], list[Any]] | None = SPATIAL.get(name) or INTENSITY.get(name) or _LOADING.get(name)
    if handler is not None:
        steps = handler(t)
    elif name in _HARMLESS:
        t.ignore(*_HARMLESS[name])
        steps = []
    else:
        raise PackageError(f"The bundle's preprocessing uses {name}, which is not understood.", ADVICE)
    t.finish()
    return steps


def _load(t: Arguments) -> list[Any]:
    reader = t.get("reader")
    if reader is not None and str(reader).rsplit(".", 1)[-1] not in _READERS:
        raise t.refusal("reader", reader)
    t.only("reverse_indexing", False)
    t.only("affine_lps_to_ras", True)
    t.only("as_closest_canonical", False)
    t.only("squeeze_non_spatial_dims", False)
    t.ignore(
        "image_only",
        "ensure_channel_first",
        "simple_keys",
        "meta_keys",
        "meta_key_postfix",
        "overwriting",
        "prune_meta_pattern",
    )
    t.ignore("prune_meta_sep", "expanduser", "series_name", "channel_dim")
    return cast(t)


def _channel_first(t: Arguments) -> list[Any]:
    t.ignore("strict_check", "channel_dim", "meta_keys", "meta_key_postfix")
    return []


def _read_dtype(t: Arguments) -> list[Any]:
    t.ignore("data_type", "device", "wrap_sequence", "track_meta", "allow_missing_keys")
    return cast(t)


_LOADING: dict[str, Callable[[Arguments], list[Any]]] = {
    "LoadImaged": _load,
    "EnsureChannelFirstd": _channel_first,
    "EnsureTyped": _read_dtype,
    "CastToTyped": _read_dtype,
    "ToTensord": _read_dtype,
    "ToNumpyd": _read_dtype,
}
#: Transforms that are understood here, besides those in space and of intensities.
UNDERSTOOD = {*_LOADING, *_HARMLESS, "ConcatItemsd"}
