"""What can be measured of the structures of a label map: size, place, and the intensities of the scan inside.

Memory does not grow with the number of structures: voxels are counted slice by slice, and intensities are looked at in the box of
one structure after the other.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.spec import Label
from .volume import LPS_FROM_RAS, Volume

#: The percentiles of intensity that are given; the 50th is the median.
PERCENTILES = (5, 25, 50, 75, 95)
#: What the measurements can be written as.
STATISTICS_EXTENSIONS = (".csv", ".json")


@dataclass(frozen=True)
class Intensity:
    """The values of one channel inside a structure, in the scan's own units (Hounsfield units for CT).

    Attributes:
        standard_deviation: of the sample (the sum is divided by the number of voxels less one), as SimpleITK has it; 0 for one voxel.
        percentiles: those of :data:`PERCENTILES`, linear between values.
    """

    channel: str
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    percentiles: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one structure.

    Attributes:
        ml: voxels times the volume of one, in milliliters.
        centroid_lps: the mean of its voxels' centers in millimeters (LPS, as DICOM and ITK have it); None without voxels.
        box_ijk: its first and last voxel along I, J and K: (i0, j0, k0, i1, j1, k1), both included; None without voxels.
        intensities: one a channel of the scan; none without voxels.
        surface_mm2: the area of its closed surface in square millimeters, where one was made.
    """

    value: int
    name: str
    voxels: int
    ml: float
    centroid_lps: tuple[float, float, float] | None
    box_ijk: tuple[int, int, int, int, int, int] | None
    intensities: tuple[Intensity, ...]
    surface_mm2: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; the surface only where there is one."""
        surface = {} if self.surface_mm2 is None else {"surface_mm2": self.surface_mm2}
        return {
            "value": self.value,
            "name": self.name,
            "voxels": self.voxels,
            "ml": self.ml,
            **surface,
            "centroid_lps": None if self.centroid_lps is None else list(self.centroid_lps),
            "box_ijk": None if self.box_ijk is None else list(self.box_ijk),
            "intensity": [
                {
                    "channel": item.channel,
                    "mean": item.mean,
                    "standard_deviation": item.standard_deviation,
                    "minimum": item.minimum,
                    "maximum": item.maximum,
                    "percentiles": dict(zip(map(str, PERCENTILES), item.percentiles, strict=True)),
                }
                for item in self.intensities
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        """Return the measurement that :meth:`to_json` gave."""
        intensities = tuple(
            Intensity(**{**item, "percentiles": tuple(item["percentiles"].values())}) for item in value["intensity"]
        )
        places = {name: None if value[name] is None else tuple(value[name]) for name in ("centroid_lps", "box_ijk")}
        return cls(
            value["value"], value["name"], value["voxels"], value["ml"], places["centroid_lps"], places["box_ijk"],
            intensities, value.get("surface_mm2"),
        )  # fmt: skip


def measure(
    volume: Volume, label_map: NDArray[Any], labels: Sequence[Label], channels: Sequence[str] = ()
) -> list[Measurement]:
    """Measure every structure; those that were not found have no voxels and no place.

    Args:
        volume: the scan, (C, K, J, I).
        label_map: unsigned integers, array (K, J, I) on the scan's grid.
        channels: their names; by default numbers from 1.

    Raises:
        InputError: the label map does not lie on the scan's grid.
    """
    if label_map.shape != volume.data.shape[1:]:
        raise InputError(
            f"The segmentation has {label_map.shape} voxels, but {volume.name} has {volume.data.shape[1:]}.",
            "Give the scan that was segmented.",
        )
    named = len(set(channels)) == volume.channels == len(channels)
    names = list(channels) if named else [str(n + 1) for n in range(volume.channels)]
    counts = _count(label_map, [label.value for label in labels])
    return [_measure_one(volume, label_map, label, counts[n], names) for n, label in enumerate(labels)]


def _count(label_map: NDArray[Any], values: Sequence[int]) -> list[list[NDArray[np.int64]]]:
    """Return for each value how many of its voxels lie at each index along K, J and I."""
    number = len(values)
    index_of = np.zeros(max([*values, int(label_map.max(initial=0))]) + 1, np.int32)
    index_of[list(values)] = np.arange(1, number + 1)
    k, j, i = label_map.shape
    along_k = np.zeros((number + 1, k), np.int64)
    along_j, along_i = np.zeros((number + 1) * j, np.int64), np.zeros((number + 1) * i, np.int64)
    for n, plane in enumerate(label_map):
        rows, columns = np.nonzero(plane)
        numbers = index_of[plane[rows, columns]]
        along_k[:, n] = np.bincount(numbers, minlength=number + 1)
        along_j += np.bincount(numbers * j + rows, minlength=along_j.size)
        along_i += np.bincount(numbers * i + columns, minlength=along_i.size)
    tables = (along_k, along_j.reshape(number + 1, j), along_i.reshape(number + 1, i))
    return [[table[n + 1] for table in tables] for n in range(number)]


def _measure_one(
    volume: Volume, label_map: NDArray[Any], label: Label, counts: list[NDArray[np.int64]], channels: Sequence[str]
) -> Measurement:
    voxels = int(counts[0].sum())
    if not voxels:
        return Measurement(label.value, label.name, 0, 0.0, None, None, ())
    present = [np.flatnonzero(count) for count in counts]
    box = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in present)
    center_ijk = [float(count @ np.arange(count.size)) / voxels for count in reversed(counts)]
    x, y, z = (LPS_FROM_RAS @ volume.ijk_to_ras @ np.array([*center_ijk, 1.0]))[:3]
    inside = label_map[box] == label.value
    intensities = tuple(
        _intensity(channel[box][inside], name) for channel, name in zip(volume.data, channels, strict=True)
    )
    (k0, k1), (j0, j1), (i0, i1) = ((int(index[0]), int(index[-1])) for index in present)
    return Measurement(
        label.value,
        label.name,
        voxels,
        voxels * volume.grid.voxel_ml,
        (float(x), float(y), float(z)),
        (i0, j0, k0, i1, j1, k1),
        intensities,
    )


def _intensity(values: NDArray[Any], channel: str) -> Intensity:
    spread = float(values.std(dtype=np.float64, ddof=1)) if values.size > 1 else 0.0
    percentiles = tuple(float(value) for value in np.percentile(values, PERCENTILES))
    return Intensity(
        channel, float(values.mean(dtype=np.float64)), spread, float(values.min()), float(values.max()), percentiles
    )


def columns(measurements: Sequence[Measurement]) -> list[str]:
    """Return the heads of the table's columns: those of surfaces only where there are any, those of intensity for each channel."""
    surface = ["surface_mm2"] if any(item.surface_mm2 is not None for item in measurements) else []
    place = [
        *(f"centroid_{axis}_lps_mm" for axis in "xyz"),
        *(f"{axis}_{end}" for end in ("min", "max") for axis in "ijk"),
    ]
    return ["value", "name", "voxels", "ml", *surface, *place, *_intensity_columns(_channels(measurements))]


def _channels(measurements: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(item.channel for row in measurements for item in row.intensities))


def _intensity_columns(channels: Sequence[str]) -> list[str]:
    heads = ["mean", "standard_deviation", "minimum", *(f"percentile_{p}" for p in PERCENTILES), "maximum"]
    if len(channels) < 2:
        return heads
    return [f"{head} ({channel})" for channel in channels for head in heads]


def rows(measurements: Sequence[Measurement]) -> Iterator[list[str]]:
    """Yield a row of text for each structure, as :func:`columns` are headed; cells without a value are empty."""
    channels = _channels(measurements)
    has_surface = any(item.surface_mm2 is not None for item in measurements)
    for item in measurements:
        by_channel = {intensity.channel: intensity for intensity in item.intensities}
        cells: list[Any] = [item.value, item.name, item.voxels, item.ml, *([item.surface_mm2] if has_surface else [])]
        cells += item.centroid_lps or [None] * 3
        cells += item.box_ijk or [None] * 6
        for channel in channels or [""]:
            one = by_channel.get(channel)
            cells += (
                [one.mean, one.standard_deviation, one.minimum, *one.percentiles, one.maximum]
                if one
                else [None] * (4 + len(PERCENTILES))
            )
        yield [_text(cell) for cell in cells]


def _text(cell: Any) -> str:
    return "" if cell is None else f"{cell:.10g}" if isinstance(cell, float) else str(cell)


def statistics_text(kind: str, measurements: Sequence[Measurement], about: dict[str, Any]) -> str:
    """Return the measurements as the content of a file.

    Args:
        kind: ".csv" or ".json".
        about: what the JSON file says beside the structures: of which scan and model they are.
    """
    if kind == ".json":
        value = {**about, "structures": [item.to_json() for item in measurements]}
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns(measurements))
    writer.writerows(rows(measurements))
    return table.getvalue()
