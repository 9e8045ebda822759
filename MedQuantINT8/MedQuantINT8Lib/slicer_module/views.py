"""Pictures of a volume and its segmentation, rendered offscreen by Slicer's own displayable managers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import replacing
from ..imaging.pictures import display_range
from .scene import require_slicer

_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
_ORIENTATIONS = ("Axial", "Coronal", "Sagittal")


def save_picture(volume: Any, segmentation: Any, path: str | os.PathLike[str], size: int = 360) -> None:
    """Write a PNG: axial, coronal and sagittal slice through the largest structure, and the 3D surface.

    Args:
        volume: scalar volume node.
        segmentation: segmentation node of the same scene.
        size: side of each of the four squares, in pixels.
    """
    center = _center_of(segmentation, volume)
    pictures = [_slice_picture(volume, center, orientation, size) for orientation in _ORIENTATIONS]
    pictures.append(_surface_picture(segmentation, size))
    _write_png(np.concatenate(pictures, axis=1), path)


def _center_of(segmentation: Any, volume: Any) -> list[float]:
    """RAS centre of the largest segment's bounding box; of the volume if there is none."""
    bounds = [0.0] * 6
    segmentation.GetRASBounds(bounds)
    if bounds[0] > bounds[1]:
        volume.GetRASBounds(bounds)
    return [(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)]


def _slice_picture(volume: Any, center: list[float], orientation: str, size: int) -> NDArray[np.uint8]:
    slicer = require_slicer()
    import vtk

    scene = volume.GetScene()
    _set_window_level(volume)
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLScene(scene)
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", f"MedQuantINT8 {orientation}")
    node.SetLayoutName(f"MedQuantINT8{orientation}")
    node.SetOrientation(orientation)
    node.SetDimensions(size, size, 1)
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    composite.SetLayoutName(node.GetLayoutName())
    try:
        logic.SetSliceNode(node)
        logic.SetSliceCompositeNode(composite)
        composite.SetBackgroundVolumeID(volume.GetID())
        logic.FitSliceToAll(size, size)
        node.JumpSliceByCentering(*center)
        background, overlay = vtk.vtkRenderer(), vtk.vtkRenderer()
        overlay.SetLayer(1)
        window = _window(size)
        window.SetNumberOfLayers(2)
        logic.UpdatePipeline()
        _show_slice_image(logic, background, size)
        window.AddRenderer(background)
        window.AddRenderer(overlay)
        _look_at_pixels(overlay, size)
        group = _managers(slicer, overlay, node, scene, _SLICE_MANAGERS)
        picture = _grab(window)
        del group
        return picture
    finally:
        scene.RemoveNode(composite)
        scene.RemoveNode(node)


def _set_window_level(volume: Any) -> None:
    display = volume.GetDisplayNode()
    if display is None:
        volume.CreateDefaultDisplayNodes()
        display = volume.GetDisplayNode()
    if display.GetColorNode() is None:
        # The application's colour nodes are missing in a bare scene; without one the slice pipeline gives noise.
        grey = volume.GetScene().AddNewNodeByClass("vtkMRMLColorTableNode", "Grey")
        grey.SetTypeToGrey()
        display.SetAndObserveColorNodeID(grey.GetID())
    from vtk.util.numpy_support import vtk_to_numpy

    values = vtk_to_numpy(volume.GetImageData().GetPointData().GetScalars())
    low, high = display_range(values)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-3)))


def _show_slice_image(logic: Any, renderer: Any, size: int) -> None:
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    producer = logic.GetImageDataConnection().GetProducer()
    producer.Update()
    # Slicer's blend is transparent where there is no voxel, with a colour of no meaning.
    rgba = vtk_to_numpy(producer.GetOutput().GetPointData().GetScalars()).reshape(size * size, 4)
    rgb = np.where(rgba[:, 3:] > 0, rgba[:, :3], 0).astype(np.uint8)
    image = vtk.vtkImageData()
    image.SetDimensions(size, size, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(rgb, deep=True))
    actor = vtk.vtkImageActor()
    actor.SetInputData(image)
    renderer.AddActor(actor)
    _look_at_pixels(renderer, size)


def _look_at_pixels(renderer: Any, size: int) -> None:
    """Aim the camera so that one unit of the x-y plane is one pixel."""
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    middle = (size - 1) / 2
    camera.SetFocalPoint(middle, middle, 0)
    camera.SetPosition(middle, middle, 100)
    camera.SetParallelScale(size / 2)
    camera.SetClippingRange(1, 200)


def _surface_picture(segmentation: Any, size: int) -> NDArray[np.uint8]:
    slicer = require_slicer()
    import vtk

    scene = segmentation.GetScene()
    segmentation.CreateClosedSurfaceRepresentation()
    view = scene.AddNewNodeByClass("vtkMRMLViewNode", "MedQuantINT8 3D")
    view.SetLayoutName("MedQuantINT83D")
    try:
        renderer = vtk.vtkRenderer()
        renderer.SetBackground(0.93, 0.94, 0.96)
        window = _window(size)
        window.AddRenderer(renderer)
        group = _managers(slicer, renderer, view, scene, ("vtkMRMLSegmentationsDisplayableManager3D",))
        camera = renderer.GetActiveCamera()
        camera.SetPosition(-1, 1.6, 0.6)
        camera.SetFocalPoint(0, 0, 0)
        camera.SetViewUp(0, 0, 1)
        renderer.ResetCamera()
        camera.Zoom(1.4)
        picture = _grab(window)
        del group
        return picture
    finally:
        scene.RemoveNode(view)


def _window(size: int) -> Any:
    import vtk

    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(size, size)
    # Displayable managers listen to an interactor, also where nobody interacts.
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    window._medquant_keep_alive = interactor
    return window


def _managers(slicer: Any, renderer: Any, node: Any, scene: Any, names: tuple[str, ...]) -> Any:
    """A group of displayable managers for one view."""
    application = slicer.vtkMRMLApplicationLogic()
    application.SetMRMLScene(scene)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.SetRenderer(renderer)
    managers = []
    for name in names:
        if not hasattr(slicer, name):
            continue
        manager = getattr(slicer, name)()
        manager.SetMRMLApplicationLogic(application)
        group.AddDisplayableManager(manager)
        manager.SetMRMLScene(scene)
        managers.append(manager)
    group.SetMRMLDisplayableNode(node)
    return group, managers, application


def _grab(window: Any) -> NDArray[np.uint8]:
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    window.Render()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _ = image.GetDimensions()
    return np.asarray(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[..., :3])


def _write_png(pixels: NDArray[np.uint8], path: str | os.PathLike[str]) -> None:
    """Write rows from bottom to top (VTK's order) as a PNG."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(pixels).reshape(-1, 3), deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetInputData(image)
    with replacing(Path(path)) as scratch:
        writer.SetFileName(str(scratch))
        writer.Write()
