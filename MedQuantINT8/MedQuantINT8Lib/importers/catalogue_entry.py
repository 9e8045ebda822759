"""One public model of the catalog, as ``Resources/Models.json`` describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .download import Checksum

if TYPE_CHECKING:
    from .totalsegmentator import Resampling


@dataclass(frozen=True)
class CatalogueEntry:
    """One public model of the catalog.

    Attributes:
        form: how it is imported: "onnx", "bundle", "nnunet", "auto3dseg", "package" for one that needs no import, or "task" for several
            other entries that are run together.
        labels: the structures that it segments, the first few where there are many; ``structures`` is their number.
        url: where it can be downloaded, or None: then ``by_hand`` says how to get it.
        needs_trust: whether it holds Python code that has to be run.
        resampling: for nnU-Net's networks, how a scan reaches the network and labels come back (:func:`.nnunet.understand`).
        spec: its description, for forms that carry none; for "task", what task.json says.
    """

    name: str
    title: str
    task: str
    modality: str
    network: str
    form: str
    structures: int
    labels: tuple[str, ...]
    license: str
    license_url: str
    homepage: str
    citation: str
    url: str | None = None
    by_hand: str = ""
    size_bytes: int | None = None
    checksum: Checksum | None = None
    needs_trust: bool = False
    resampling: Resampling | None = None
    spec: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def needed(self) -> tuple[str, ...]:
        """The entries that a task runs, each once; none for a model."""
        if self.form != "task" or self.spec is None:
            return ()
        sources = (*self.spec.get("find", ()), *self.spec["parts"])
        return tuple(dict.fromkeys(source["installed"] for source in sources))
