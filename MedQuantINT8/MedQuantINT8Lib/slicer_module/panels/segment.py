"""Panel "Segment": a volume, a model, one button."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from .. import sequences
from ..dependencies import Ask
from ..logic import MedQuantINT8Logic
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel, distinct_titles
from .job_runner import JobRunner, duration
from .qt_compat import chosen, id_of, quiet_fill, read, silently


class SegmentPanel(WorkPanel):
    """Connects the widgets of the first panel with the parameters and the logic."""

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, parameters: Parameters, runner: JobRunner, ask: Ask) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.segmentStatusLabel, ui.segmentProgress)
        self._models: list[dict[str, Any]] = []
        self._channelSelectors: list[Any] = []
        self._observed: tuple[Any, int] = (None, 0)
        ui.volumeSelector.currentNodeIDChanged.connect(self._volumeChosen)
        ui.modelSearchEdit.textChanged.connect(self._search)
        ui.modelList.currentRowChanged.connect(self._modelChosen)
        ui.segmentButton.clicked.connect(self._press)
        ui.segmentAllButton.clicked.connect(self._pressAll)
        ui.segmentFolderButton.clicked.connect(self._pressFolder)
        ui.segmentSequenceButton.clicked.connect(self._pressSequence)
        ui.undoButton.clicked.connect(self._undo)
        self._bind("engine", ui.engineCombo.currentTextChanged, lambda: chosen(ui.engineCombo))
        self._bind("precision", ui.precisionCombo.currentTextChanged, lambda: chosen(ui.precisionCombo))
        self._bind("device", ui.deviceCombo.currentTextChanged, lambda: chosen(ui.deviceCombo))
        self._bind("surface", ui.surfaceCheck.toggled, lambda: bool(read(ui.surfaceCheck, "checked")))
        self._bind("replace", ui.replaceCheck.toggled, lambda: bool(read(ui.replaceCheck, "checked")))
        self._bind("output", ui.outputSelector.currentNodeIDChanged, ui.outputSelector.currentNode)
        ui.classList.itemChanged.connect(self._classesChanged)
        ui.allClassesButton.clicked.connect(self._allClasses)

    # ---- parameters to widgets

    def show(self) -> None:
        """Show what the parameter node says."""
        ui, p = self._ui, self.parameters
        self._shown = False
        engines = [("auto", _("Automatic")), *self._logic.engineTitles()]
        precisions = [("auto", _("Fastest (INT8 or FP32)")), ("int8", "INT8"), ("fp32", "FP32")]
        quiet_fill(ui.engineCombo, engines, p.engine)
        quiet_fill(ui.precisionCombo, precisions, p.precision)
        quiet_fill(ui.deviceCombo, self._logic.devices(), p.device)
        silently(ui.surfaceCheck, ui.surfaceCheck.setChecked, p.surface)
        silently(ui.replaceCheck, ui.replaceCheck.setChecked, p.replace)
        silently(ui.outputSelector, ui.outputSelector.setCurrentNodeID, id_of(p.output))
        if p.volume is None:
            p.volume = active_volume()
        silently(ui.volumeSelector, ui.volumeSelector.setCurrentNodeID, id_of(p.volume))
        self._observe(p.volume)
        self._models = self._logic.models()
        self._search(read(ui.modelSearchEdit, "text"))
        self._shown = True
        self._showModel()
        self._showButtons()

    def _search(self, text: str) -> None:
        """List the models whose name, title, modality or structures hold every word of ``text``."""
        words = text.lower().split()
        fitting = [m for m in self._models if all(word in _searched(m) for word in words)]
        items, titles = self._ui.modelList, distinct_titles(self._models)
        before = items.blockSignals(True)
        items.clear()
        row = -1
        for number, model in enumerate(fitting):
            mark = "" if model["int8"] else _(" (no INT8 network yet)")
            item = qt.QListWidgetItem(f"{titles[model['name']]}  [{model['modality']}]{mark}")
            item.setData(qt.Qt.UserRole, model["name"])
            item.setToolTip(", ".join(model["labels"]))
            items.addItem(item)
            if model["name"] == self.parameters.model:
                row = number
        items.setCurrentRow(row)
        items.blockSignals(before)

    def _modelChosen(self, row: int) -> None:
        item = self._ui.modelList.item(row) if row >= 0 else None
        if item is None:
            return
        name = item.data(qt.Qt.UserRole)
        if name != self.parameters.model:
            self.parameters.segments = None
            self.parameters.model = name
        self._showModel()

    @property
    def _model(self) -> dict[str, Any] | None:
        return next((m for m in self._models if m["name"] == self.parameters.model), None)

    def _showModel(self) -> None:
        ui, model = self._ui, self._model
        if model is None:
            ui.modelInfoLabel.setText(_("Choose a model."))
            return
        shown = ", ".join(model["labels"][:6]) + (" …" if len(model["labels"]) > 6 else "")
        text = _("Structures ({count}): {names}. License: {license}")
        ui.modelInfoLabel.setText(text.format(count=len(model["labels"]), names=shown, license=model["license"]))
        before = ui.classList.blockSignals(True)
        ui.classList.clear()
        for name in model["labels"]:
            item = qt.QListWidgetItem(name)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            wanted = self.parameters.segments is None or name in self.parameters.segments
            item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
            ui.classList.addItem(item)
        ui.classList.blockSignals(before)
        self._showChannels(model["channels"])
        self._showAdvice()

    def _showChannels(self, names: Sequence[str]) -> None:
        """One selector for each channel beyond the first."""
        while len(self._channelSelectors) >= len(names) and self._channelSelectors:
            selector, label = self._channelSelectors.pop()
            for widget in (selector, label):
                self._ui.channelsWidget.layout().removeWidget(widget)
                widget.deleteLater()
        for number in range(len(self._channelSelectors) + 1, len(names)):
            selector, label = slicer.qMRMLNodeComboBox(), qt.QLabel(names[number])
            for name, value in (
                ("nodeTypes", ["vtkMRMLScalarVolumeNode"]),
                ("showChildNodeTypes", False),
                ("noneEnabled", True),
            ):
                selector.setProperty(name, value)
            for name in ("addEnabled", "removeEnabled"):
                selector.setProperty(name, False)
            selector.setMRMLScene(slicer.mrmlScene)
            selector.setAccessibleName(names[number])
            given = self.parameters.channels
            if number - 1 < len(given):
                selector.setCurrentNodeID(given[number - 1].GetID())
            selector.currentNodeIDChanged.connect(self._channelsChanged)
            self._ui.channelsWidget.layout().addWidget(label)
            self._ui.channelsWidget.layout().addWidget(selector)
            self._channelSelectors.append((selector, label))
        self._ui.channelsWidget.setVisible(bool(self._channelSelectors))

    def _channelsChanged(self, _id: str) -> None:
        if not self._shown:
            return
        nodes = [selector.currentNode() for selector, _label in self._channelSelectors]
        self.parameters.channels = [node for node in nodes if node is not None]

    def _showAdvice(self) -> None:
        """Warn where the scan seems to be of another kind than the model was made for."""
        text = ""
        if self.parameters.volume is not None and self._model is not None:
            # What cannot be segmented at all is said at the click; a volume that is just being loaded has no voxels yet.
            with contextlib.suppress(MedQuantError):
                text = self._logic.advise(self.parameters.volume, self.parameters.model)
        self._ui.warningLabel.setText(text)
        self._ui.warningLabel.setVisible(bool(text))

    def _showButtons(self) -> None:
        ui = self._ui
        working = self._working
        ui.segmentButton.setText(_("Cancel") if working else _("Segment"))
        ui.segmentButton.setEnabled(working or not self._runner.busy)
        for button in (ui.segmentAllButton, ui.segmentFolderButton, ui.segmentSequenceButton):
            button.setEnabled(not self._runner.busy)
        ui.undoButton.setEnabled(self._logic.canUndo and not self._runner.busy)
        ui.segmentProgress.setVisible(working)

    def _observe(self, volume: Any) -> None:
        """Follow the voxels of the volume: a loader may fill a node that is chosen already."""
        node, tag = self._observed
        if node is not None:
            node.RemoveObserver(tag)
        if volume is None:
            self._observed = (None, 0)
        else:
            event = slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent
            self._observed = (volume, volume.AddObserver(event, lambda *_arguments: self._showAdvice()))

    def suspend(self) -> None:
        super().suspend()
        self._observe(None)

    def close(self) -> None:
        """Follow no volume any more."""
        self._observe(None)

    # ---- widgets to parameters

    def _volumeChosen(self, _id: str) -> None:
        if not self._shown:
            return
        self.parameters.volume = self._ui.volumeSelector.currentNode()
        self._observe(self.parameters.volume)
        self._showAdvice()
        self._showButtons()

    def _classesChanged(self, _item: Any) -> None:
        items = [self._ui.classList.item(n) for n in range(read(self._ui.classList, "count"))]
        kept = [item.text() for item in items if item.checkState() == qt.Qt.Checked]
        self.parameters.segments = None if len(kept) == len(items) else kept

    def _allClasses(self) -> None:
        """Choose all structures, or none if all are chosen."""
        self.parameters.segments = [] if self.parameters.segments is None else None
        self._showModel()

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        p = self.parameters
        nodes = [p.volume, *p.channels] if self._channelSelectors else p.volume
        self._start(lambda: self._logic.segment(nodes, p.output, waitForCompletion=False, **self._chosenOptions()))

    def _pressAll(self) -> None:
        options = self._chosenOptions()
        self._start(lambda: self._logic.segmentAll(waitForCompletion=False, **options))

    def _pressSequence(self) -> None:
        options = self._chosenOptions()
        volume = self.parameters.volume
        sequence = sequences.sequence_of(volume) if volume is not None else None
        self._start(lambda: self._logic.segmentSequence(sequence, waitForCompletion=False, **options))

    def _pressFolder(self) -> None:
        over = self._ui.segmentSection
        source = file_dialogs.open_folder(over, _("Folder with scans"))
        target = file_dialogs.open_folder(over, _("Folder for the segmentations")) if source else ""
        if target:
            # How a segmentation node is filled does not concern files.
            options = {
                name: value for name, value in self._chosenOptions().items() if name not in ("surface", "replace")
            }
            self._start(lambda: self._logic.segmentFolder(source, output=target, waitForCompletion=False, **options))

    def _chosenOptions(self) -> dict[str, Any]:
        p = self.parameters
        return {
            "model": p.model,
            "engine": p.engine,
            "precision": self._precision(),
            "device": p.device,
            "segments": p.segments,
            "surface": p.surface,
            "replace": p.replace,
        }

    def _precision(self) -> str:
        """A model without an INT8 network can be run as it is, if the user leaves the choice to the program."""
        model = self._model
        return (
            "fp32"
            if self.parameters.precision == "auto" and model is not None and not model["int8"]
            else self.parameters.precision
        )

    def _start(self, start: Any) -> None:
        self._begin(start, self._done, (self._engineGroup,))

    def _done(self, job: Any) -> None:
        failures = getattr(job, "failures", [])
        if failures:
            lines = [f"{f.name}: {f.error}" for f in failures]
            slicer.util.warningDisplay("\n".join(lines), windowTitle=_("Some could not be segmented"))
        report = self._logic.report
        engine = report.get("engine", {})
        reason = (engine.get("choice") or {}).get("reason", "")
        notes = "; ".join(filter(None, [reason, *report.get("notes", [])]))
        text = _("Done in {time} ({engine}, {precision}).").format(
            time=duration(report.get("seconds", {}).get("total", 0)),
            engine=engine.get("title", ""),
            precision=engine.get("precision", "").upper(),
        )
        self._say(f"{text} {notes}".strip())

    def _undo(self) -> None:
        self._logic.undo()
        self._say(_("The last segmentation was taken back."))
        self._showButtons()

    def selectModel(self, name: str) -> None:
        """Choose a model that was made or installed a moment ago."""
        self.parameters.model = name
        self.show()

    def segmentWith(self, volume: Any, model: str) -> None:
        """Segment a volume with a model, as if both were chosen and the button pressed; not while something runs."""
        if self._runner.busy:
            self._say(_("Something is at work; try again when it has ended."))
            return
        if model != self.parameters.model:
            self.parameters.segments = None
        self.parameters.volume, self.parameters.model = volume, model
        # A search that hides the model would choose another.
        self._ui.modelSearchEdit.setText("")
        self.show()
        self._press()


def active_volume() -> Any | None:
    """The volume that the slice views show; else the first of the scene."""
    scene = slicer.mrmlScene
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    shown = (
        scene.GetNodeByID(selection.GetActiveVolumeID())
        if selection is not None and selection.GetActiveVolumeID()
        else None
    )
    if shown is not None and not shown.IsA("vtkMRMLLabelMapVolumeNode"):
        return shown
    nodes = [
        scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
    ]
    return next((node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode")), None)


def _searched(model: dict[str, Any]) -> str:
    return " ".join([model["name"], model["title"], model["modality"], *model["labels"]]).lower()
