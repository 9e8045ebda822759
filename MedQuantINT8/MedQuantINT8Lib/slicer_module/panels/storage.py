"""Panel "Disk space": what models and built engines take, and how to be rid of them."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ..dependencies import Ask
from ..logic import MedQuantINT8Logic
from .job_runner import JobRunner
from .qt_compat import chosen, quiet_fill

_MB = 1e6


class StoragePanel:
    """Connects the widgets of the last panel with the logic.

    Args:
        ask: asks the user a yes-or-no question.
        changed: called after a model was removed.
    """

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, runner: JobRunner, ask: Ask, changed: Any) -> None:
        self._ui, self._logic, self._runner, self._ask, self._changed = ui, logic, runner, ask, changed
        ui.storageModelCombo.currentTextChanged.connect(self._showButtons)
        ui.removeModelButton.clicked.connect(self._removeModel)
        ui.removeEnginesButton.clicked.connect(self._removeEngines)
        runner.changed.append(self._showButtons)

    def show(self) -> None:
        """Show what takes how much now."""
        rows = [(name, f"{name} ({size / _MB:.1f} MB)") for name, size in self._logic.modelSizes().items()]
        quiet_fill(self._ui.storageModelCombo, rows, chosen(self._ui.storageModelCombo))
        text = _("Built engines take {size} MB; they are built again when they are needed.")
        self._ui.storageStatusLabel.setText(text.format(size=f"{self._logic.engineBytes() / _MB:.1f}"))
        self._showButtons()

    def _showButtons(self, _text: Any = None) -> None:
        idle = not self._runner.busy
        self._ui.removeModelButton.setEnabled(idle and bool(chosen(self._ui.storageModelCombo)))
        self._ui.removeEnginesButton.setEnabled(idle and self._logic.engineBytes() > 0)

    def _removeModel(self) -> None:
        name = chosen(self._ui.storageModelCombo)
        self._remove(
            _("Remove the model {name} from this computer?").format(name=name), lambda: self._logic.removeModel(name)
        )
        self._changed()

    def _removeEngines(self) -> None:
        self._remove(
            _("Remove all engines that were built on this computer? They are built again when they are needed."),
            self._logic.removeEngines,
        )
        self.show()

    def _remove(self, question: str, remove: Any) -> None:
        if not self._ask(question):
            return
        try:
            remove()
        except MedQuantError as error:
            slicer.util.errorDisplay(str(error), windowTitle="MedQuantINT8")
