"""Slicer's Sample Data, as far as a module meets it: sources by category, a button for each, and the call by name.

The button of a source with a downloader of its own calls that one, and shows nothing. The call by name knows no such downloader: it
fetches the source's files, and returns the first node that it loaded.
"""

from __future__ import annotations

import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import slicer


@dataclass
class SampleDataSource:
    """What a module registers."""

    sampleName: str
    uris: list[str]
    fileNames: list[str]
    nodeNames: list[str]
    thumbnailFileName: str = ""
    customDownloader: Any = None
    checksums: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checksums = self.checksums or [None] * len(self.uris)
        if not len(self.uris) == len(self.fileNames) == len(self.nodeNames) == len(self.checksums):
            raise ValueError("All fields of sample data source must have the same length")


class SampleDataLogic:
    """Keeps the sources in slicer.modules.sampleDataSources."""

    categories: ClassVar[dict[str, str]] = {}

    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str = "") -> None:
        SampleDataLogic.categories[category] = title

    @staticmethod
    def registerCustomSampleDataSource(category: str, **source: Any) -> None:
        sources = slicer.modules.sampleDataSources.setdefault(category, [])
        if not any(other.sampleName == source["sampleName"] for other in sources):
            sources.append(SampleDataSource(**source))

    def downloadSample(self, sampleName: str) -> Any:
        """The first node of a sample."""
        return self.downloadSamples(sampleName)[0]

    def downloadSamples(self, sampleName: str) -> list[Any]:
        sources = [s for all_of_one in slicer.modules.sampleDataSources.values() for s in all_of_one]
        [source] = [s for s in sources if s.sampleName == sampleName]
        return [
            self._load(*of_one)
            for of_one in zip(source.uris, source.fileNames, source.nodeNames, source.checksums, strict=True)
        ]

    @staticmethod
    def _load(uri: str, fileName: str, nodeName: str, _checksum: str | None) -> Any:
        from MedQuantINT8Lib.slicer_module.scene import load_volume_node

        with tempfile.TemporaryDirectory() as cache:
            path = Path(cache) / fileName
            urllib.request.urlretrieve(uri, path)
            node = load_volume_node(path, slicer.mrmlScene)
        node.SetName(nodeName)
        return node
