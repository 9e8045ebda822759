"""Takes back what a segmentation changed: the node that was made, or what a node was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: How a segment is shown, by the display node's Get and Set.
_SHOWN = (
    "Visibility",
    "Visibility3D",
    "Visibility2DFill",
    "Visibility2DOutline",
    "Opacity3D",
    "Opacity2DFill",
    "Opacity2DOutline",
)
#: What the closed surface and others are made with; holds the reference geometry.
_GEOMETRY = "Reference image geometry"


@dataclass(frozen=True)
class NodeState:
    """A segmentation node as it was.

    Attributes:
        segments: identifier, segment, and how it was shown, in the node's order.
        parent: its parent's item in the subject hierarchy; None where there was no item for it, or no hierarchy.
    """

    segments: tuple[tuple[str, Any, dict[str, Any]], ...]
    source: str
    geometry: str
    reference: str | None
    transform: str | None
    parent: int | None


def state_of(node: Any) -> NodeState:
    """What a segmentation node is now. Segments are kept, not copied: they cost no memory of their own as long as nothing changes them."""
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    shown = {
        name: {what: getattr(display, f"GetSegment{what}")(name) for what in _SHOWN} if display is not None else {}
        for name in ids
    }
    item, hierarchy = _item(node)
    return NodeState(
        tuple((name, segmentation.GetSegment(name), shown[name]) for name in ids),
        segmentation.GetSourceRepresentationName(),
        segmentation.GetConversionParameter(_GEOMETRY),
        node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()),
        node.GetTransformNodeID(),
        hierarchy.GetItemParent(item) if item else None,
    )


def restore(node: Any, state: NodeState) -> None:
    """Make a segmentation node what it was."""
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    modified = node.StartModify()
    segmentation.RemoveAllSegments()
    segmentation.SetSourceRepresentationName(state.source)
    for name, segment, shown in state.segments:
        segmentation.AddSegment(segment, name)
        for what, value in shown.items() if display is not None else ():
            getattr(display, f"SetSegment{what}")(name, value)
    scene = node.GetScene()
    role = node.GetReferenceImageGeometryReferenceRole()
    # Nodes that are gone by now cannot be referred to again.
    node.SetNodeReferenceID(role, state.reference if state.reference and scene.GetNodeByID(state.reference) else None)
    segmentation.SetConversionParameter(_GEOMETRY, state.geometry)
    node.SetAndObserveTransformNodeID(
        state.transform if state.transform and scene.GetNodeByID(state.transform) else None
    )
    node.EndModify(modified)
    item, hierarchy = _item(node)
    if not item:
        return
    if state.parent is None:
        # A bare scene makes no items by itself; the application does, and moves this one to its top then.
        hierarchy.RemoveItem(item, False, False)
    elif (
        state.parent == hierarchy.GetSceneItemID()
        or hierarchy.GetItemLevel(state.parent)
        or hierarchy.GetItemDataNode(state.parent)
    ):
        hierarchy.SetItemParent(item, state.parent)


def _item(node: Any) -> tuple[int, Any]:
    """The node's item in the subject hierarchy (0 for none), and the hierarchy."""
    from .scene import require_slicer

    hierarchy = require_slicer().vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    return (hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0), hierarchy


@dataclass
class Change:
    """What is being changed; ``node`` is to be set to the node that was changed, or made."""

    node: Any = None


class SegmentationUndo:
    """Remembers segmentation nodes as they were."""

    def __init__(self, most: int = 20) -> None:
        self._most = most
        self._remembered: list[tuple[Any, NodeState | None]] = []

    def remember(self, node: Any | None) -> NodeState | None:
        """What ``node`` is now; None for a node that is yet to be made. Give it to :meth:`changed` afterwards."""
        return None if node is None else state_of(node)

    def changed(self, node: Any, before: NodeState | None) -> None:
        """``node`` was changed, and was ``before``."""
        self._remembered = [*self._remembered, (node, before)][-self._most :]

    @contextmanager
    def changing(self, node: Any | None) -> Iterator[Change]:
        """Change a node (None for one that is yet to be made), so that it can be undone; what fails leaves it as it was."""
        before, change = self.remember(node), Change()
        try:
            yield change
        except BaseException:
            if node is not None and before is not None:
                restore(node, before)
            raise
        self.changed(change.node, before)

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
        restore(node, before)
        return node

    def _forget_removed(self) -> None:
        self._remembered = [item for item in self._remembered if item[0].GetScene() is not None]
