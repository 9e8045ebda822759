"""Panel "Compare": FP32 beside INT8, and a list that leads to the places where they differ."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ...evaluation.boundary import SHOWN_REGIONS, region_title
from ..comparison import Comparison
from ..dependencies import Ask
from ..logic import MedQuantINT8Logic
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel
from .job_runner import JobRunner
from .qt_compat import check_nodes, fill_table, read, set_columns


class ComparePanel(WorkPanel):
    """Connects the widgets of the third panel with the parameters and the logic."""

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, parameters: Parameters, runner: JobRunner, ask: Ask) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.compareStatusLabel, ui.compareProgress)
        self.comparisons: list[Comparison] = []
        self._differences: dict[int, Any] = {}
        selector = ui.compareSelector
        self._bind("compareVolumes", selector.checkedNodesChanged, lambda: list(selector.checkedNodes()))
        ui.compareButton.clicked.connect(self._press)
        ui.compareResultCombo.currentTextChanged.connect(self._showResult)
        ui.showDifferencesButton.clicked.connect(self._showDifferences)
        ui.regionList.currentRowChanged.connect(self._jump)
        ui.saveReportButton.clicked.connect(self._save)
        set_columns(ui.summaryTable, ["", "FP32", "INT8"])
        set_columns(ui.structureTable, [_("Structure"), _("Dice"), _("Change, ml")])

    def show(self) -> None:
        """Show what the parameter node says."""
        self._shown = False
        check_nodes(self._ui.compareSelector, self.parameters.compareVolumes)
        self._shown = True
        self._showButtons()

    def forget(self) -> None:
        """Forget the results as well."""
        super().forget()
        self.comparisons, self._differences = [], {}
        self._ui.compareResultCombo.clear()
        self._showResult()

    def suspend(self) -> None:
        super().suspend()
        check_nodes(self._ui.compareSelector, [])

    def _showButtons(self) -> None:
        ui = self._ui
        working = self._working
        ui.compareButton.setText(_("Cancel") if working else _("Compare FP32 with INT8"))
        ui.compareButton.setEnabled(working or not self._runner.busy)
        ui.compareProgress.setVisible(working)
        for button in (ui.showDifferencesButton, ui.saveReportButton):
            button.setEnabled(self._current is not None and not working)

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        p = self.parameters
        nodes = p.compareVolumes or [node for node in [p.volume] if node is not None]
        self._begin(
            lambda: self._logic.compareAll(nodes, p.model, p.engine, waitForCompletion=False, device=p.device),
            self._done,
            (self._engineGroup,),
        )

    def _done(self, job: Any) -> None:
        self.comparisons, self._differences = list(job.value), {}
        combo = self._ui.compareResultCombo
        before = combo.blockSignals(True)
        combo.clear()
        for comparison in self.comparisons:
            combo.addItem(comparison.volumeNode.GetName())
        combo.blockSignals(before)
        self._say("; ".join(f"{f.name}: {f.error}" for f in job.failures))
        self._showResult()

    # ---- results

    @property
    def _index(self) -> int:
        return int(read(self._ui.compareResultCombo, "currentIndex"))

    @property
    def _current(self) -> Comparison | None:
        return self.comparisons[self._index] if 0 <= self._index < len(self.comparisons) else None

    def _showResult(self, _text: str = "") -> None:
        ui, comparison = self._ui, self._current
        ui.regionList.blockSignals(True)
        ui.regionList.clear()
        if comparison is None:
            fill_table(ui.summaryTable, [])
            fill_table(ui.structureTable, [])
            ui.compareResultLabel.setText("")
        else:
            fill_table(ui.summaryTable, [list(row) for row in comparison.rows()])
            fill_table(
                ui.structureTable,
                [_row(s) for s in comparison.structures],
                [_volumes(s) for s in comparison.structures],
            )
            ui.compareResultLabel.setText(_summary(comparison))
            for region in comparison.regions[:SHOWN_REGIONS]:
                ui.regionList.addItem(region_title(region))
        ui.regionList.setCurrentRow(-1)
        ui.regionList.blockSignals(False)
        self._showButtons()

    def _showDifferences(self) -> None:
        comparison = self._current
        if comparison is None:
            return
        try:
            node = self._differences.get(self._index)
            if node is None or node.GetScene() is None:
                self._differences[self._index] = node = self._logic.showDifferences(comparison)
                if node is not None:
                    self._logic.differencesTable(comparison)
        except MedQuantError as error:
            self._failed(error)
            return
        if node is None:
            self._say(_("INT8 and FP32 are the same everywhere."))
        elif comparison.regions:
            self._ui.regionList.setCurrentRow(0)
            self._jump(0)

    def _jump(self, row: int) -> None:
        """Center all slice views on a region."""
        comparison = self._current
        if comparison is not None and 0 <= row < len(comparison.regions):
            point = comparison.regions[row]["center_ras"]
            if transform := comparison.volumeNode.GetParentTransformNode():
                point = _to_world(transform, point)
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *point, slicer.vtkMRMLSliceNode.CenteredJumpSlice)

    def _save(self) -> None:
        kinds = _("Page (*.html);;Table of regions (*.csv);;JSON (*.json)")
        path = file_dialogs.save_file(self._ui.compareSection, _("Save report"), "comparison.html", kinds)
        if path and self._current is not None:
            try:
                self._current.save(path)
                self._say(_("Saved {path}.").format(path=path))
            except MedQuantError as error:
                self._failed(error)


def _to_world(transform: Any, point: list[float]) -> list[float]:
    import vtk

    general = vtk.vtkGeneralTransform()
    transform.GetTransformToWorld(general)
    return list(general.TransformPoint(*point))


def _row(structure: dict[str, Any]) -> list[str]:
    """A structure, its Dice, and by how much its volume differs in INT8."""
    dice = "–" if structure["dice"] is None else f"{structure['dice']:.4f}"
    return [structure["name"], dice, f"{structure['ml'] - structure['other_ml']:+.2f}"]


def _volumes(structure: dict[str, Any]) -> str:
    text = _("{name}: {fp32} ml in FP32, {int8} ml in INT8")
    return text.format(name=structure["name"], fp32=f"{structure['other_ml']:.2f}", int8=f"{structure['ml']:.2f}")


def _summary(comparison: Comparison) -> str:
    differences = comparison.report["differences"]
    if not differences["voxels"]:
        return _("INT8 and FP32 are the same everywhere.")
    dice = "–" if comparison.meanDice is None else f"{comparison.meanDice:.4f}"
    text = _(
        "Mean Dice {dice}. {ml} ml differ in {count} regions; {share} of it lies within one voxel of a boundary."
    ).format(
        dice=dice,
        ml=f"{differences['ml']:.2f}",
        count=differences["region_count"],
        share=f"{100 * differences['boundary_share']:.0f} %",
    )
    return f"{text} {comparison.verdict}"
