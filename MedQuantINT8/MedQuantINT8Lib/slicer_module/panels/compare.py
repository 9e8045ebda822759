"""Section "Compare": the three numbers first, then the worst structure, then the places where FP32 and INT8 differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ...evaluation.boundary import SHOWN_REGIONS, region_title
from ..comparison import Comparison
from ..installation import Ask
from ..logic import MedQuantINT8Logic
from ..model_entries import ModelEntry
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel
from .job_runner import JobRunner
from .qt_compat import check_nodes, enable, fill_table, read, set_columns
from .theme import make_number, make_primary, make_quiet, show_rows

_ROWS = 8


class ComparePanel(WorkPanel):
    """Connects the widgets of the section with the parameters and the logic.

    Args:
        model: gives the model that was chosen, in the section Segment; None where there is none.
    """

    def __init__(
        self,
        ui: Any,
        logic: MedQuantINT8Logic,
        parameters: Parameters,
        runner: JobRunner,
        ask: Ask,
        model: Callable[[], ModelEntry | None],
    ) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.compareStatusLabel, ui.compareProgress)
        self._model = model
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
        make_primary(ui.compareButton)
        make_quiet(ui.comparePlanLabel)
        for label in (ui.diceLabel, ui.speedLabel, ui.sizeLabel):
            make_number(label)
            label.setTextFormat(qt.Qt.RichText)
        self._showResult()

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
        self._showWorkButton(ui.compareButton, _("Compare FP32 with INT8"))
        ui.compareProgress.setVisible(working)
        ui.comparePlanLabel.setVisible(not working)
        missing = "" if self._current is not None else _("Nothing was compared yet.")
        for button in (ui.showDifferencesButton, ui.saveReportButton):
            enable(button, missing or (self._hindrance if working else ""))
        if self._shown and not working:
            ui.comparePlanLabel.setText(self._planText())

    def plan(self) -> None:
        """Say what will be compared, after another volume or model was chosen."""
        self._showButtons()

    def _planText(self) -> str:
        """What a click will compare: volumes and model, where they were chosen."""
        p, model = self.parameters, self._model()
        if model is None or not (p.compareVolumes or p.volume):
            return _("Choose a volume and a model in the section Segment.")
        if not model.int8:
            return _("{model} has no INT8 network yet: make one above.").format(model=model.title)
        volumes = ", ".join(node.GetName() for node in p.compareVolumes) or p.volume.GetName()
        return _("{model}, on {volumes}").format(model=model.title, volumes=volumes)

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
        before = ui.regionList.blockSignals(True)
        ui.regionList.clear()
        structures = worst_first(comparison.structures) if comparison is not None else []
        rows = comparison.rows() if comparison is not None else []
        table = [[_quantity(row[0]), *map(_value, row[1:])] for row in rows]
        fill_table(ui.summaryTable, table, ["  ".join(row) for row in rows])
        fill_table(ui.structureTable, [_row(s) for s in structures], [_volumes(s) for s in structures])
        if comparison is not None:
            for region in comparison.regions[:SHOWN_REGIONS]:
                ui.regionList.addItem(region_title(region))
            for label, (number, caption) in zip(
                (ui.diceLabel, ui.speedLabel, ui.sizeLabel), _numbers(comparison), strict=True
            ):
                label.setText(f"<b style='font-size: x-large'>{number}</b><br>{caption}")
        ui.compareResultLabel.setText(_summary(comparison) if comparison is not None else "")
        ui.regionList.setCurrentRow(-1)
        ui.regionList.blockSignals(before)
        for table in (ui.structureTable, ui.summaryTable):
            count = int(read(table, "rowCount"))
            show_rows(table, count, _ROWS, int(read(table.horizontalHeader(), "sizeHint").height()))
        show_rows(ui.regionList, int(read(ui.regionList, "count")), _ROWS)
        for widget in (ui.numbersWidget, ui.compareResultLabel, ui.compareDetails):
            widget.setVisible(comparison is not None)
        ui.regionSection.setVisible(comparison is not None and bool(comparison.regions))
        several = len(self.comparisons) > 1
        ui.compareResultCombo.setVisible(several)
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


def worst_first(structures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Structures by their Dice, the lowest first; those without one, which neither run found, come last."""
    return sorted(structures, key=lambda s: (s["dice"] is None, s["dice"] if s["dice"] is not None else 0.0))


def _numbers(comparison: Comparison) -> list[tuple[str, str]]:
    """The three numbers that are looked at first: agreement, speed, size; each with what it is."""
    dice = "–" if comparison.meanDice is None else f"{comparison.meanDice:.4f}"
    fp32, int8 = (comparison.report["runs"][name]["seconds"].get("network", 0.0) for name in ("fp32", "int8"))
    files = comparison.report["model"]["file_bytes"]
    speed = f"{fp32 / int8:.1f} ×" if fp32 and int8 else "–"
    size = f"{100 * files['int8'] / files['fp32']:.0f} %" if files["fp32"] else "–"
    fast = _("as fast in the network") if fp32 and int8 else _("speed not measured")
    return [(dice, _("mean Dice with FP32")), (speed, fast), (size, _("of FP32’s file"))]


def _quantity(name: str) -> str:
    """What a row of the table of both runs is about, in the application's language and short."""
    titles = {
        "network file, MB": _("file, MB"),
        "engine": _("engine"),
        "engine, MB": _("engine, MB"),
        "time, s": _("time, s"),
        "in the network, s": _("network, s"),
        "memory, GB": _("memory, GB"),
        "work in INT8": _("in INT8"),
        "least agreement, Dice": _("worst Dice"),
    }
    return titles.get(name, name)


def _value(text: str) -> str:
    """A value without the remark in brackets that follows it, which stands in the tip."""
    return text.split(" (")[0]


def _summary(comparison: Comparison) -> str:
    """The verdict: the structure that differs most, then how much differs and where."""
    differences = comparison.report["differences"]
    if not differences["voxels"]:
        return _("INT8 and FP32 are the same everywhere.")
    lines = []
    worst = next((s for s in worst_first(comparison.structures) if s["dice"] is not None), None)
    if worst is not None:
        text = _("Worst structure: {name}, Dice {dice}, {change} ml.")
        change = f"{worst['ml'] - worst['other_ml']:+.2f}"
        lines.append(text.format(name=worst["name"], dice=f"{worst['dice']:.4f}", change=change))
    text = _("{ml} ml differ in {count} regions; {share} of it lies within one voxel of a boundary.").format(
        ml=f"{differences['ml']:.2f}",
        count=differences["region_count"],
        share=f"{100 * differences['boundary_share']:.0f} %",
    )
    return "\n".join([*lines, text, _verdict(comparison)])


def _verdict(comparison: Comparison) -> str:
    names, limit = comparison.report["pointed_out"], f"{comparison.report['volume_change_percent']:g}"
    if not names:
        return _("No structure changes its volume by more than {limit} %.").format(limit=limit)
    text = _("Structures that change their volume by more than {limit} % ({count}): {names}.")
    return text.format(limit=limit, count=len(names), names=", ".join(names))
