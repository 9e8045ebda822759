"""What was segmented: a line for each structure with its volume; a click leads to it. And what the reader should know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..results import RunResult
from .model_icons import color_icon
from .qt_compat import fill_table, read, set_columns
from .theme import make_quiet, make_warning, show_rows

_ROWS = 12


class ResultTable:
    """Connects the table of results and the fold of warnings with what a run brought.

    Args:
        ui: the widgets of the .ui file by name.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._result: RunResult | None = None
        #: What is known of the scan before a run, and what the run said.
        self._before: list[str] = []
        self._after: list[str] = []
        set_columns(ui.resultTable, [_("Structure"), _("ml")])
        ui.resultTable.cellClicked.connect(lambda row, _column: self._jump(row))
        ui.resultTable.cellActivated.connect(lambda row, _column: self._jump(row))
        make_warning(ui.warningLabel)
        make_quiet(ui.missingLabel)

    def show(self, result: RunResult | None) -> None:
        """Show what a run brought; None clears it."""
        ui, self._result = self._ui, result
        structures = result.structures if result is not None else ()
        fill_table(ui.resultTable, [[s.name, f"{s.ml:.2f}"] for s in structures], [s.name for s in structures])
        for row, structure in enumerate(structures):
            ui.resultTable.item(row, 0).setIcon(color_icon(structure.color))
        show_rows(ui.resultTable, len(structures), _ROWS, _header(ui.resultTable))
        missing = result.missing if result is not None else ()
        ui.missingLabel.setText(_("Not found: {names}").format(names=", ".join(missing)) if missing else "")
        ui.resultTable.setVisible(bool(structures))
        ui.resultWidget.setVisible(result is not None)
        self._after = list(result.warnings) if result is not None else []
        self._showWarnings()

    def warn(self, texts: Sequence[str]) -> None:
        """Show what should be known of the scan before it is segmented; unfolded, since it may change the user's mind."""
        changed = list(texts) != self._before
        self._before = list(texts)
        self._showWarnings()
        if changed:
            self._ui.warningsSection.setProperty("collapsed", not texts)

    def _showWarnings(self) -> None:
        texts = [*self._before, *self._after]
        self._ui.warningLabel.setText("\n\n".join(texts))
        self._ui.warningsSection.setProperty("text", _("Warnings and notes ({count})").format(count=len(texts)))
        self._ui.warningsSection.setVisible(bool(texts))

    def _jump(self, row: int) -> None:
        """Center all slice views on a structure."""
        if self._result is None or not 0 <= row < len(self._result.structures):
            return
        center = self._result.center(self._result.structures[row].segmentID)
        if center is not None:
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


def _header(table: Any) -> int:
    return int(read(table.horizontalHeader(), "sizeHint").height())
