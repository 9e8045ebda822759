"""The module's window: takes the loaded .ui file, joins the sections of the panel, and follows the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .installation import Consent, Installer, InstallQuestion
from .logic import MedQuantINT8Logic
from .panels.build import BuildPanel
from .panels.compare import ComparePanel
from .panels.job_runner import JobRunner
from .panels.models import ModelsPanel, ModelUser
from .panels.packages_dialog import ask_consent
from .panels.segment import SegmentPanel
from .panels.settings_page import read_settings
from .parameter_node import Parameters


class ModuleView:
    """What the module's widget shows.

    Args:
        ui: the loaded .ui file's root widget.
        logic: what does the work.
        parameterNode: where the state is kept.
    """

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, parameterNode: Any) -> None:
        self.ui = slicer.util.childWidgetVariables(ui)
        self._root = ui
        ui.setMRMLScene(slicer.mrmlScene)
        self._logic = logic
        #: Counts the scenes that were closed or loaded, so that only the last one is followed; None once the panel is closed.
        self._scenes: int | None = 0
        self.runner = JobRunner()
        parameters = Parameters(parameterNode)
        # Questions go through this, so that a test can answer them.
        self.ask = lambda text: bool(slicer.util.confirmOkCancelDisplay(text, windowTitle=_("MedQuantINT8")))
        self.consent = ask_consent
        self.segment = SegmentPanel(self.ui, logic, parameters, self.runner, self._asked)
        user = ModelUser(self._useModel, self._modelsChanged)
        self.models = ModelsPanel(self.ui, logic, parameters, self.runner, self._asked, user)
        self.build = BuildPanel(self.ui, logic, parameters, self.runner, self._asked, self._modelReady)
        self.compare = ComparePanel(self.ui, logic, parameters, self.runner, self._asked, lambda: self.segment.model)
        self.segment.followers.append(self.compare.plan)
        self.show()

    def _asked(self, text: str) -> bool:
        return self.ask(text)

    def _consented(self, question: InstallQuestion) -> Consent:
        return self.consent(question)

    @property
    def _panels(self) -> tuple[SegmentPanel, ModelsPanel, BuildPanel, ComparePanel]:
        return self.segment, self.models, self.build, self.compare

    def show(self) -> None:
        """Show what the parameter node and the application's settings say, and what is installed now."""
        settings = read_settings()
        if not self.runner.busy:
            self._logic.applySettings(settings)
        installer = Installer(self._consented, self._asked, wheels=settings.wheelsFolder)
        for panel in self._panels:
            panel.installer = installer
        for panel in self._panels:
            panel.show()

    def setParameterNode(self, node: Any) -> None:
        """Follow another parameter node: a scene was loaded."""
        parameters = Parameters(node)
        for panel in self._panels:
            panel.parameters = parameters
        self.show()

    def leave(self) -> None:
        """Another module is shown: the scan is no longer followed. What runs goes on."""
        self.segment.close()

    def suspend(self) -> None:
        """The scene begins to close or to load: what the selectors say from now on is not the user's word."""
        if self._scenes is not None:
            self._scenes += 1
        for panel in self._panels:
            panel.suspend()

    def sceneClosing(self) -> None:
        """The scene goes, and with it what is being segmented."""
        self.suspend()
        self.runner.cancel()
        for panel in self._panels:
            panel.forget()

    def resume(self, parameterNode: Callable[[], Any]) -> None:
        """The scene was closed or loaded: follow it from the event loop's next turn on.

        Selectors that follow the scene tell of its nodes late, when the loop comes round to them.

        Args:
            parameterNode: gives the scene's parameter node, when it is time to.
        """
        scenes = self._scenes

        def follow() -> None:
            if scenes is not None and scenes == self._scenes:
                self.setParameterNode(parameterNode())

        qt.QTimer.singleShot(0, follow)

    def close(self) -> None:
        """End the work and the worker."""
        self._scenes = None
        for panel in self._panels:
            panel.suspend()
        # The application keeps the widgets of a panel that was reloaded; they would go on following the scene.
        self._root.setMRMLScene(None)
        self.segment.channels.close()
        self.runner.close()
        self.segment.close()
        self._logic.close()

    def _useModel(self, name: str) -> None:
        """Segment with a model that was chosen in the list."""
        self.segment.selectModel(name)
        self.ui.segmentSection.setProperty("collapsed", False)

    def _modelsChanged(self, name: str) -> None:
        """A model was installed (``name``) or removed: show what there is now."""
        if name:
            self.segment.selectModel(name)
        self.show()
        if name:
            self.build.select(name)

    def _modelReady(self, name: str) -> None:
        """A model got its INT8 network."""
        self.segment.selectModel(name)
        self.models.select(name)
        self.build.show()
