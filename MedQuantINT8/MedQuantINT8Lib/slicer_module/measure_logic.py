"""Measuring the segments of a segmentation node, for Slicer's console and window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..imaging.measurements import Measurement, columns, rows
from ..imaging.volume import Volume
from ..worker.jobs import BackgroundJob
from ..worker.submitted_job import WorkerResult
from . import scene
from .logic_base import LogicBase, Progress


class MeasureLogic(LogicBase):
    """Measures segments on the scan that was segmented."""

    def measure(
        self,
        volumeNode: Any,
        segmentationNode: Any,
        waitForCompletion: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Measure every segment on a volume: voxels, milliliters, place, intensities, and the area of its closed surface where it was made.

        The segments are measured as they are now, on the volume's grid, also where they overlap or were corrected by hand. Intensities
        are those of the volume node (Hounsfield units for CT); places are millimeters in the volume's own coordinates (LPS).

        Returns:
            A table node with a row for each segment, or the job whose ``value`` it becomes.

        Raises:
            InputError: no volume, or no segment.
        """
        volume = scene.volume_from_node(volumeNode)
        if segmentationNode is None or not segmentationNode.IsA("vtkMRMLSegmentationNode"):
            raise InputError("There is no segmentation to measure.", "Choose a segmentation.")
        layers = _label_maps(volume, volumeNode, segmentationNode)
        surfaces = _surface_areas(segmentationNode)
        name = f"{segmentationNode.GetName()}: measurements"
        job = self._client.begin(
            "measure",
            [volume, *(label_map for label_map, _ in layers)],
            labels=[[{"value": n, "name": name} for n, (_, name) in enumerate(segments, 1)] for _, segments in layers],
        )
        identifiers = [identifier for _, segments in layers for identifier, _ in segments]

        def finish(result: WorkerResult) -> Any:
            by_id = {
                identifier: replace(Measurement.from_json(item), surface_mm2=surfaces.get(identifier))
                for identifier, item in zip(identifiers, result.report["structures"], strict=True)
            }
            segmentation = segmentationNode.GetSegmentation()
            order = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
            # Those that were removed meanwhile come last.
            ordered = [by_id[i] for i in sorted(by_id, key=lambda i: order.index(i) if i in order else len(order))]
            numbered = [replace(item, value=n) for n, item in enumerate(ordered, 1)]
            return scene.add_table(columns(numbered), list(rows(numbered)), volumeNode, name)

        def check() -> None:
            self._stillThere(volumeNode, "The volume")
            self._stillThere(segmentationNode, "The segmentation")

        return self._result(BackgroundJob(job, finish, check), waitForCompletion, progress)


def _label_maps(volume: Volume, volumeNode: Any, segmentationNode: Any) -> list[tuple[Volume, list[tuple[str, str]]]]:
    """Label maps on a volume's grid, one for each layer of segments that do not overlap; the n-th segment has the value n.

    Returns:
        Each label map with the identifiers and names of its segments.

    Raises:
        InputError: there is no segment, or Slicer cannot bring them onto the volume's grid.
    """
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    slicer = scene.require_slicer()
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        raise InputError(f"{segmentationNode.GetName()!r} has no segments.", "Segment the scan first.")
    mrmlScene = volumeNode.GetScene()
    layers = []
    for number in range(segmentation.GetNumberOfLayers()):
        identifiers = vtk.vtkStringArray()
        for identifier in segmentation.GetSegmentIDsForLayer(number):
            identifiers.InsertNextValue(identifier)
        before = {node.GetID() for node in _nodes(mrmlScene)}
        node = mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "measured")
        try:
            if not slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
                segmentationNode, identifiers, node, volumeNode, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
            ):
                raise InputError(
                    f"{segmentationNode.GetName()!r} cannot be brought onto the grid of {volumeNode.GetName()!r}.",
                    "Choose the volume that was segmented.",
                )
            values = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
            layers.append(
                (
                    # A copy: the node's voxels go with it.
                    Volume(values.reshape(volume.data.shape[1:]).copy(), volume.ijk_to_ras, node.GetName()),
                    [
                        (identifiers.GetValue(n), segmentation.GetSegment(identifiers.GetValue(n)).GetName())
                        for n in range(identifiers.GetNumberOfValues())
                    ],
                )
            )
        finally:
            # The label map, and what Slicer made with it: its display and its color table.
            for added in [n for n in _nodes(mrmlScene) if n.GetID() not in before]:
                mrmlScene.RemoveNode(added)
    return layers


def _nodes(mrmlScene: Any) -> list[Any]:
    return [mrmlScene.GetNthNode(n) for n in range(mrmlScene.GetNumberOfNodes())]


def _surface_areas(segmentationNode: Any) -> dict[str, float]:
    """The area of each closed surface in square millimeters, by the segments' identifiers; none where they were not made."""
    import vtk

    slicer = scene.require_slicer()
    segmentation = segmentationNode.GetSegmentation()
    closed = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    areas = {}
    for number in range(segmentation.GetNumberOfSegments()):
        identifier = segmentation.GetNthSegmentID(number)
        surface = segmentation.GetSegment(identifier).GetRepresentation(closed)
        if surface is None or surface.GetNumberOfPolys() == 0:
            continue
        triangles, properties = vtk.vtkTriangleFilter(), vtk.vtkMassProperties()
        triangles.SetInputData(surface)
        properties.SetInputConnection(triangles.GetOutputPort())
        properties.Update()
        areas[identifier] = float(properties.GetSurfaceArea())
    return areas
