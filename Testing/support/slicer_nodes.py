"""What tests read out of segmentation nodes. Needs Slicer or slicer-core."""

from __future__ import annotations

import numpy as np
import slicer


def segments(node):
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]


def names(node):
    return [segment.GetName() for segment in segments(node)]


def centroid_in_slicer(result, segment_id):
    """Centre of a segment in RAS, read out of Slicer's own representation."""
    image = slicer.vtkOrientedImageData()
    result.GetBinaryLabelmapRepresentation(segment_id, image)
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    extent = image.GetExtent()
    shape = [extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1]
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)
    kji = np.argwhere(array == result.GetSegmentation().GetSegment(segment_id).GetLabelValue()).mean(axis=0)
    ijk = np.array([kji[2] + extent[0], kji[1] + extent[2], kji[0] + extent[4], 1])
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])[:3] @ ijk
