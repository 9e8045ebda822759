"""The viewer of a page: scan, FP32, INT8 and what differs in slices that scroll and in 3D, in one file that opens offline.

It is drawn by NiiVue, a viewer of the neuroimaging community (BSD-2-Clause), which the package ``ipyniivue`` ships; that is the
extra ``viewer``. Without it a page has its pictures only. Nothing is loaded from elsewhere: the viewer's program and the volumes
stand in the page.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ...imaging.nifti_file import write_nifti
from ...imaging.pictures import around, display_range
from ...imaging.volume import Volume
from ...models.spec import Label

#: What the volumes of a page may take in it, all scans together: with the viewer's program a page stays below 25 MB.
MOST_BYTES = 21_000_000
#: Regions that are listed beside the viewer.
MOST_LISTED = 20
#: The name that the layer of what differs has in every viewer.
DIFFERENCES = "differences"
_DIFFERS_COLOR = (255, 0, 64)
#: NiiVue's own module stands in the widget's as text in percent encoding, for its "save as HTML".
_EMBEDDED = re.compile(r"\"((?:[A-Za-z0-9_.!~*'()-]|%[0-9A-F]{2}){200000,})\"")


@dataclass(frozen=True)
class Place:
    """A place to jump to: its name, and where it is in millimeters (RAS)."""

    name: str
    ras: tuple[float, float, float]


@dataclass(frozen=True)
class ViewerScan:
    """A scan with its label maps, as a page shows it.

    Attributes:
        layers: base64 of a NIfTI file by the layer's name; "scan" is the first, then label maps, :data:`DIFFERENCES` last.
        colors: label value, name and color of each structure.
        note: what was left out or made coarser, in words.
    """

    name: str
    layers: dict[str, str]
    colors: list[tuple[int, str, tuple[int, int, int]]]
    places: list[Place] = field(default_factory=list)
    note: str = ""

    @property
    def bytes(self) -> int:
        """What the scan takes in a page."""
        return sum(map(len, self.layers.values()))


@cache
def viewer_module() -> str | None:
    """Return NiiVue's program, a JavaScript module that exports ``Niivue`` and ``NVImage``; None where it is not installed."""
    try:
        spec = importlib.util.find_spec("ipyniivue")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "static" / "widget.js"
        if not path.is_file():
            continue
        for match in _EMBEDDED.finditer(path.read_text(encoding="utf-8")):
            module = unquote(match[1])
            exported = re.search(r"export\{([^{}]*)\};?\s*$", module)
            if exported and {"Niivue", "NVImage"} <= set(exported[1].split(",")):
                return module
    return None


def viewer_scan(
    volume: Volume,
    label_maps: Mapping[str, NDArray[Any]],
    labels: Sequence[Label],
    places: Sequence[Place] = (),
    most_bytes: int = MOST_BYTES,
) -> ViewerScan:
    """Crop and quantize a scan and its label maps until they fit.

    The scan is cut to the structures with 30 mm around, and its grey values to 8 bits between those that are shown as black and
    white. Where that is still too much, every second (third, ...) voxel is left out, in the label maps as well.

    Args:
        volume: of which the first channel is shown.
        label_maps: (K, J, I) each, of the volume's grid; what differs between "FP32" and "INT8" is a layer of its own.
        places: to jump to.
    """
    maps = {name: np.asarray(label_map) for name, label_map in label_maps.items()}
    some = np.zeros(volume.data.shape[1:], bool)
    for label_map in maps.values():
        some |= label_map > 0
    i, j, k = volume.grid.spacing
    box = around(some, (k, j, i))
    low, high = display_range(volume.data[0])
    scan = volume.data[0][box].astype(np.float32)
    grey = np.clip((scan - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    arrays = {"scan": grey, **{name: _small(label_map[box]) for name, label_map in maps.items()}}
    if {"FP32", "INT8"} <= set(maps):
        arrays[DIFFERENCES] = (maps["FP32"][box] != maps["INT8"][box]).astype(np.uint8)
    start = np.array([part.start or 0 for part in box])[::-1]
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ start
    step = 1
    while True:
        layers = {name: _nifti(array[::step, ::step, ::step], matrix, step) for name, array in arrays.items()}
        if sum(map(len, layers.values())) <= most_bytes or min(grey.shape) // (step + 1) < 8:
            break
        step += 1
    note = "" if grey.size == some.size else "The scan is cut to the structures with 30 mm around. "
    if step > 1:
        note += f"Of the voxels one in {step} along each axis is shown; the figures of this page are of all of them."
    colors = [(label.value, label.name, label.color) for label in labels]
    return ViewerScan(volume.name, layers, colors, list(places)[:MOST_LISTED], note.strip())


def region_places(regions: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Places of the regions of :class:`..differences.Differences`, as its JSON names them."""
    return [
        Place(
            f"{region['ml']:.3f} ml: {region['first']} in FP32, {region['second']} in INT8", tuple(region["center_ras"])
        )
        for region in regions[:MOST_LISTED]
    ]


def viewer_values(scans: Sequence[ViewerScan]) -> dict[str, Any] | None:
    """Return what the template of a viewer shows; None where there is no scan, or no viewer installed."""
    module = viewer_module()
    if not scans or module is None:
        return None
    # In a page a script ends at its end tag, wherever that stands, and a comment's opening changes what such a tag means.
    safe = module.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return {
        "module": safe,
        "scans": [
            {
                "name": scan.name,
                # A list, because a dictionary's order is lost on the way into the page.
                "layers": list(scan.layers.items()),
                "colors": scan.colors,
                "places": [{"name": place.name, "ras": place.ras} for place in scan.places],
                "note": scan.note,
            }
            for scan in scans
        ],
        "differences": DIFFERENCES,
        "color": _DIFFERS_COLOR,
    }


def _small(label_map: NDArray[Any]) -> NDArray[Any]:
    """Return the same values in as few bytes as they need."""
    return label_map.astype(np.uint8 if label_map.max(initial=0) < 256 else np.uint16)


def _nifti(array: NDArray[Any], ijk_to_ras: NDArray[np.float64], step: int) -> str:
    matrix = ijk_to_ras.copy()
    matrix[:3, :3] *= step
    with TemporaryDirectory(prefix="medquant-viewer-") as scratch:
        path = Path(scratch) / "layer.nii.gz"
        write_nifti(path, np.ascontiguousarray(array), matrix)
        return base64.b64encode(path.read_bytes()).decode()
