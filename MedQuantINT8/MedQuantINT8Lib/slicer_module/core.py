"""The slicer module and its scene: those of the application, or of the bare core (slicer-core), set up as the application would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ..errors import DependencyError


def require_slicer() -> Any:
    """Return the slicer module, from Slicer or slicer-core.

    Raises:
        DependencyError: neither is there.
    """
    try:
        import slicer
    except ImportError as error:
        raise DependencyError(
            "Neither 3D Slicer nor its core is installed.", "Run inside Slicer, or: pip install slicer-core"
        ) from error
    return slicer


def headless_scene() -> Any:
    """Return a scene with the module logics that this package uses, as the application sets them up.

    In Slicer it is the application's own scene.
    """
    slicer = require_slicer()
    if getattr(slicer, "mrmlScene", None) is not None:
        return slicer.mrmlScene
    import vtk

    # Its warnings would go to a window that does not exist; errors still raise or return a status.
    vtk.vtkObject.GlobalWarningDisplayOff()
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    modules = SimpleNamespace()
    # slicer-core looks the logics up by the application logic, slicer.util by slicer.modules.
    logics = [application]
    for name, cls in (
        ("Terminologies", "vtkSlicerTerminologiesModuleLogic"),
        ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
        ("Volumes", "vtkSlicerVolumesLogic"),
        ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    ):
        logic = getattr(slicer, cls)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        setattr(modules, name.lower(), SimpleNamespace(logic=lambda module_logic=logic: module_logic))
        logics.append(logic)
    slicer.mrmlScene, slicer.modules = scene, modules
    scene._medquant_keep_alive = logics
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return scene
