"""Takes back what a segmentation changed: the node that was made, or the segments that a node held before."""

from __future__ import annotations

from typing import Any


class SegmentationUndo:
    """Remembers segmentation nodes as they were. Segments are kept, not copied: a remembered one costs no memory of its own
    as long as nothing changes it.
    """

    def __init__(self, most: int = 20) -> None:
        self._most = most
        self._remembered: list[tuple[Any, list[tuple[str, Any]] | None]] = []

    def remember(self, node: Any | None) -> list[tuple[str, Any]] | None:
        """What ``node`` holds now; None for a node that is yet to be made. Give it to :meth:`changed` afterwards."""
        if node is None:
            return None
        held = node.GetSegmentation()
        ids = [held.GetNthSegmentID(n) for n in range(held.GetNumberOfSegments())]
        return [(name, held.GetSegment(name)) for name in ids]

    def changed(self, node: Any, before: list[tuple[str, Any]] | None) -> None:
        """``node`` was changed, and held ``before``."""
        self._remembered = [*self._remembered, (node, before)][-self._most :]

    @property
    def possible(self) -> bool:
        self._forget_removed()
        return bool(self._remembered)

    def undo(self) -> Any | None:
        """Take the last change back; the node, or None if it was removed because that change had made it."""
        self._forget_removed()
        if not self._remembered:
            return None
        node, before = self._remembered.pop()
        if before is None:
            node.GetScene().RemoveNode(node)
            return None
        held = node.GetSegmentation()
        held.RemoveAllSegments()
        for name, segment in before:
            held.AddSegment(segment, name)
        return node

    def _forget_removed(self) -> None:
        self._remembered = [item for item in self._remembered if item[0].GetScene() is not None]
