"""Sequences: a segmentation for each frame, in a sequence of its own beside the scan's."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..progress import ProgressEvent
from ..worker.jobs import BatchJob
from . import scene


def frames_of(sequenceNode: Any) -> list[Any]:
    """The volume nodes that a sequence node holds, in order.

    Raises:
        InputError: no sequence of volumes.
    """
    if sequenceNode is None or not sequenceNode.IsA("vtkMRMLSequenceNode"):
        raise InputError("The volume is not a frame of a sequence.", "Choose a volume that a sequence browser plays.")
    frames = [sequenceNode.GetNthDataNode(n) for n in range(sequenceNode.GetNumberOfDataNodes())]
    if not frames or not all(frame.IsA("vtkMRMLScalarVolumeNode") for frame in frames):
        raise InputError(
            f"The sequence {sequenceNode.GetName()!r} does not hold volumes.", "Choose a sequence of volumes."
        )
    return frames


def segmentation_sequence(sequenceNode: Any) -> Any:
    """A new, empty sequence node with the same index as ``sequenceNode``."""
    results = sequenceNode.GetScene().AddNewNodeByClass("vtkMRMLSequenceNode", f"{sequenceNode.GetName()} segmentation")
    results.SetIndexName(sequenceNode.GetIndexName())
    results.SetIndexUnit(sequenceNode.GetIndexUnit())
    results.SetIndexType(sequenceNode.GetIndexType())
    return results


def keep_frame(sequence: Any, index: str, segmentation: Any) -> None:
    """Move a segmentation node of the scene into the sequence, at an index value."""
    sequence.SetDataNodeAtValue(segmentation, index)
    segmentation.GetScene().RemoveNode(segmentation)


def synchronize(sequenceNode: Any, segmentations: Any) -> Any | None:
    """Let the browser that plays the scan play its segmentations too; the proxy node, or None if nothing plays the scan."""
    mrmlScene = sequenceNode.GetScene()
    for number in range(mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = mrmlScene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode")
        if browser.IsSynchronizedSequenceNodeID(sequenceNode.GetID(), True):
            browser.AddSynchronizedSequenceNodeID(segmentations.GetID())
            proxy = browser.GetProxyNode(segmentations)
            if proxy is not None:
                scene.show(proxy)
            return proxy
    return None


class FrameJob:
    """A frame's job: its segmentation goes into the sequence, and the volume that was shown for it goes."""

    def __init__(self, job: Any, shown: Any, sequenceNode: Any, results: list[Any], index: str) -> None:
        self._job, self._shown, self._sequence, self._results, self._index = job, shown, sequenceNode, results, index
        self.value: Any = None

    @property
    def progress(self) -> ProgressEvent | None:
        return self._job.progress

    def poll(self) -> bool:
        try:
            done = bool(self._job.poll())
        except BaseException:
            self._remove(self._shown)
            raise
        if done:
            if not self._results:
                self._results.append(segmentation_sequence(self._sequence))
            keep_frame(self._results[0], self._index, self._job.value)
            self._remove(self._shown)
            self.value = self._index
        return done

    def cancel(self) -> None:
        self._job.cancel()

    @staticmethod
    def _remove(node: Any) -> None:
        if node.GetScene() is not None:
            node.GetScene().RemoveNode(node)


class SequenceJob(BatchJob):
    """The frames of a sequence; ``value`` becomes the sequence node of the segmentations."""

    def __init__(self, pieces: Any, sequenceNode: Any, results: list[Any]) -> None:
        super().__init__(pieces)
        self._sequence, self._results = sequenceNode, results

    def poll(self) -> bool:
        done = super().poll()
        if done and self._results:
            synchronize(self._sequence, self._results[0])
            self.value = self._results[0]
        return done


def sequence_of(volumeNode: Any) -> Any | None:
    """The sequence whose frames a volume node shows, or None."""
    mrmlScene = volumeNode.GetScene()
    for number in range(mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") if mrmlScene else 0):
        browser = mrmlScene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode")
        if browser.IsProxyNodeID(volumeNode.GetID()):
            return browser.GetSequenceNode(volumeNode)
    return None
