"""The Slicer module: what the application looks for, and no more. The work is in MedQuantINT8Lib."""

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class MedQuantINT8(ScriptedLoadableModule):
    """Describes the module to the application."""

    home = "https://github.com/MedQuantINT8/SlicerMedQuantINT8"

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = _("Fast 3D Segmentation (INT8)")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = [f"The MedQuantINT8 developers (contact: {self.home}/issues)"]
        parent.helpText = _(
            "Segments CT and MR scans with 3D networks that run in real 8-bit integers: smaller and faster than in floating point, and you are "
            "shown what was gained and what was lost. Turns your own networks (MONAI bundle, nnU-Net, ONNX) into INT8 engines for this computer. "
            "Nothing leaves the computer.<br><br>Step by step: <a href='{tutorial}'>tutorial of five minutes</a>."
        ).format(tutorial=f"{self.home}#tutorial-the-synthetic-abdomen-five-minutes")
        parent.acknowledgementText = _(
            "Follows the study 'Post-Training Quantization for 3D Medical Image Segmentation: A Practical Study on Real "
            "Inference Engines' (arXiv:2501.17343). For research; not a medical device."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", registerContextMenu)
        slicer.app.connect("startupCompleted()", registerSettings)


def registerSampleData() -> None:
    """Add a synthetic abdomen to the Sample Data module: the scan that the tutorial uses. Nothing is downloaded."""
    import SampleData

    from MedQuantINT8Lib import __version__
    from MedQuantINT8Lib.slicer_module.sample_data import NAME, GeneratedScan, show_scan

    logic = SampleData.SampleDataLogic
    # Newer Slicers want a category to be registered before its first source.
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory("MedQuantINT8", title=_("Fast 3D Segmentation (INT8)"))
    logic.registerCustomSampleDataSource(
        category="MedQuantINT8",
        sampleName=NAME,
        thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "SyntheticAbdomen.png"),
        # Asked for by its name in a script, it comes as a file, which Sample Data keeps under this name.
        uris=GeneratedScan(),
        fileNames=[f"{NAME}-{__version__}.nrrd"],
        nodeNames=[NAME],
        customDownloader=show_scan,
    )


def registerContextMenu() -> None:
    """Add "Segment with" to the context menu of volumes, where this Slicer has a subject hierarchy with menus."""
    if hasattr(slicer, "qSlicerSubjectHierarchyScriptedPlugin"):
        plugin = slicer.qSlicerSubjectHierarchyScriptedPlugin(None)
        panels = Path(__file__).parent / "MedQuantINT8Lib" / "slicer_module" / "panels"
        # The application keeps the plugin from now on.
        plugin.setPythonSource(str(panels / "MedQuantINT8SubjectHierarchyPlugin.py"))


def registerSettings() -> None:
    """Add the module's page to the Application Settings."""
    from MedQuantINT8Lib.slicer_module.panels.settings_page import add_settings_page

    add_settings_page(_("Fast 3D Segmentation (INT8)"))


class MedQuantINT8Widget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel of the module; see MedQuantINT8Lib.slicer_module.widget."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.view: Any = None
        self._root: Any = None

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        from MedQuantINT8Lib.slicer_module.widget import ModuleView

        root = self._root = slicer.util.loadUI(self.resourcePath("UI/MedQuantINT8.ui"))
        self.layout.addWidget(root)
        self.logic = MedQuantINT8Logic()
        self.view = ModuleView(root, self.logic.implementation, self.logic.getParameterNode())
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneClosing)
        self.addObserver(scene, scene.StartImportEvent, self._onSceneLoading)
        for event in (scene.EndCloseEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self._onSceneChanged)

    def cleanup(self) -> None:
        """End the work and the worker, and remove the panel: the application only hides it when the module is reloaded."""
        self.removeObservers()
        view, self.view = self.view, None
        if view is not None:
            view.close()
        root, self._root = self._root, None
        if root is not None:
            root.setParent(None)
            root.deleteLater()

    def enter(self) -> None:
        """The module is shown."""
        if self.view is not None:
            self.view.setParameterNode(self.logic.getParameterNode())

    def exit(self) -> None:
        """Another module is shown: nothing of the scene is followed but its end, which ends the work on it."""
        if self.view is not None:
            self.view.leave()

    def _onSceneClosing(self, _caller: Any, _event: str) -> None:
        self.view.sceneClosing()

    def _onSceneLoading(self, _caller: Any, _event: str) -> None:
        self.view.suspend()

    def _onSceneChanged(self, _caller: Any, _event: str) -> None:
        self.view.resume(self.logic.getParameterNode)

    def segmentVolume(self, volumeNode: Any, model: str) -> None:
        """Choose a volume and a model in the panel, and press its button."""
        self.view.segment.segmentWith(volumeNode, model)

    def onReload(self) -> None:
        """Reload the library as well: Slicer's own reload knows only this file."""
        import sys

        # Slicer cleans up its own widget of the module; this one may be another, in a window of its own.
        self.cleanup()
        for name in [n for n in sys.modules if n == "MedQuantINT8Lib" or n.startswith("MedQuantINT8Lib.")]:
            del sys.modules[name]
        super().onReload()


class MedQuantINT8Logic(ScriptedLoadableModuleLogic):
    """Everything that MedQuantINT8Lib.slicer_module.logic.MedQuantINT8Logic can do, under the name that Slicer looks for."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self, parent)
        from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic as Implementation

        self.implementation = Implementation()

    def __getattr__(self, name: str) -> Any:
        # Only for names that this class lacks. implementation itself is looked up while it does not exist yet.
        if name == "implementation":
            raise AttributeError(name)
        return getattr(self.implementation, name)


class MedQuantINT8Test(ScriptedLoadableModuleTest):
    """A whole round in the application: synthetic scan, segmentation, comparison."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        self.setUp()
        self.test_a_made_scan_is_segmented_and_compared()

    def test_a_made_scan_is_segmented_and_compared(self) -> None:
        from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels
        from MedQuantINT8Lib.slicer_module import scene

        self.delayDisplay("Making a scan")
        node = scene.volume_node(make_phantom(1000, (84, 60, 64), 4.0)[0], "SyntheticAbdomen", slicer.mrmlScene)
        logic = MedQuantINT8Logic()
        try:
            self.delayDisplay("Segmenting")
            segmentation = logic.process(node, None, "demo")
            self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), len(phantom_labels()))
            self.delayDisplay("Comparing FP32 with INT8")
            comparison = logic.compare(node, "demo")
            self.assertGreater(comparison.meanDice, 0.95)
        finally:
            logic.close()
        self.delayDisplay("Test passed")
