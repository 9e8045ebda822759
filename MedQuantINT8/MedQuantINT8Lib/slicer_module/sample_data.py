"""The synthetic abdomen in Slicer's Sample Data: by a click there, or by its name in a script. Nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "SyntheticAbdomen"


class GeneratedScan(list[str]):
    """The addresses of a sample's files: one file, which is written when somebody asks for its address and removed afterwards.

    ``SampleDataLogic().downloadSample()`` knows files alone; it copies each while it holds the address.
    """

    def __init__(self) -> None:
        super().__init__([f"generated:{NAME}"])

    def __iter__(self) -> Iterator[str]:
        import SimpleITK as sitk

        from ..imaging.phantom import demo_scan
        from ..imaging.volume import to_sitk

        volume = demo_scan()[0]
        with tempfile.TemporaryDirectory(prefix="medquant-sample-") as folder:
            path = Path(folder) / f"{NAME}.nrrd"
            sitk.WriteImage(to_sitk(volume.data[0], volume.grid), str(path))
            yield path.as_uri()


def show_scan(_source: Any = None) -> Any:
    """The scan as a new volume node, shown in the slice views: Sample Data shows only what it has downloaded itself."""
    import slicer

    from ..imaging.phantom import demo_scan
    from . import scene

    node = scene.volume_node(demo_scan()[0], NAME, slicer.mrmlScene)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
