"""Section "Segment": a volume, a model, one button; what will happen, what happens, and what was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ...inference.segmenter import SegmentationOptions
from ...progress import ProgressEvent
from .. import sequences
from ..dependencies import GROUPS, missing
from ..installation import Ask
from ..logic import MedQuantINT8Logic
from ..model_entries import ModelEntry
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel, fill_models, show_whole_title
from .channels import ChannelSelectors
from .forecast_line import forecast_text
from .job_runner import JobRunner, duration
from .progress_view import LoadView, StageList
from .qt_compat import chosen, enable, id_of, quiet_fill, read, silently
from .result_table import ResultTable
from .structures import StructureList
from .theme import make_primary, make_quiet

#: Shares of the windows of an INT8 run that FP32 runs as well, by the names that the parameters keep; "" leaves it to the program.
_CHECK_SHARES = {"": None, "0": 0.0, "0.05": 0.05, "0.2": 0.2, "1": 1.0}

#: A region that is dragged moves with every turn of the event loop.
_WHILE_DRAGGED_MS = 150


class SegmentPanel(WorkPanel):
    """Connects the widgets of the first section with the parameters and the logic."""

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, parameters: Parameters, runner: JobRunner, ask: Ask) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.segmentStatusLabel, ui.segmentProgress)
        self._models: list[ModelEntry] = []
        #: The nodes that are followed, and the tags of their observers: the volume's voxels, the region's place.
        self._observed: list[tuple[Any, int]] = []
        self._forecastIsDue = False
        #: Called when another volume or model was chosen.
        self.followers: list[Callable[[], None]] = []
        self.channels = ChannelSelectors(ui.channelsWidget, self._channelsChanged)
        self._structures = StructureList(ui, self._structuresChanged)
        self.results = ResultTable(ui)
        self._stages = StageList(ui.stageLabel)
        self.load = LoadView(ui, logic, runner)
        make_primary(ui.segmentButton)
        make_quiet(ui.forecastLabel)
        ui.volumeSelector.currentNodeIDChanged.connect(self._volumeChosen)
        ui.modelCombo.currentTextChanged.connect(self._modelChosen)
        ui.segmentButton.clicked.connect(self._press)
        ui.segmentAllButton.clicked.connect(self._pressAll)
        ui.segmentFolderButton.clicked.connect(self._pressFolder)
        ui.segmentSequenceButton.clicked.connect(self._pressSequence)
        ui.undoButton.clicked.connect(self._undo)
        for field, combo in self._combos().items():
            self._bind(field, combo.currentTextChanged, partial(chosen, combo))
        self._bind("surface", ui.surfaceCheck.toggled, lambda: bool(read(ui.surfaceCheck, "checked")))
        self._bind("replace", ui.replaceCheck.toggled, lambda: bool(read(ui.replaceCheck, "checked")))
        self._bind("output", ui.outputSelector.currentNodeIDChanged, ui.outputSelector.currentNode)
        self._bind("region", ui.regionSelector.currentNodeIDChanged, ui.regionSelector.currentNode)
        ui.regionSelector.currentNodeIDChanged.connect(lambda *_arguments: self._observe() if self._shown else None)

    def _combos(self) -> dict[str, Any]:
        """The combo boxes that show a field of the parameters, by its name."""
        ui = self._ui
        return {
            "engine": ui.engineCombo,
            "precision": ui.precisionCombo,
            "device": ui.deviceCombo,
            "terminology": ui.terminologyCombo,
            "checkShare": ui.checkShareCombo,
        }

    # ---- parameters to widgets

    def show(self) -> None:
        """Show what the parameter node says."""
        ui, p = self._ui, self.parameters
        self._shown = False
        entries = {
            "engine": [("auto", _("Automatic")), *self._logic.engineTitles()],
            "precision": [("auto", _("Fastest (INT8 or FP32)")), ("int8", "INT8"), ("fp32", "FP32")],
            "device": [
                (name, _("Whatever is fastest") if name == "auto" else title) for name, title in self._logic.devices()
            ],
            "terminology": [("", _("Slicer’s own")), *((name, name) for name in self._logic.terminologies()[1:])],
            "checkShare": [(name, _share_title(share)) for name, share in _CHECK_SHARES.items()],
        }
        for field, combo in self._combos().items():
            quiet_fill(combo, entries[field], getattr(p, field))
        silently(ui.surfaceCheck, ui.surfaceCheck.setChecked, p.surface)
        silently(ui.replaceCheck, ui.replaceCheck.setChecked, p.replace)
        silently(ui.outputSelector, ui.outputSelector.setCurrentNodeID, id_of(p.output))
        silently(ui.regionSelector, ui.regionSelector.setCurrentNodeID, id_of(p.region))
        if p.volume is None:
            p.volume = active_volume()
        silently(ui.volumeSelector, ui.volumeSelector.setCurrentNodeID, id_of(p.volume))
        self._observe()
        self._models = [entry for entry in self._logic.modelEntries() if entry.installed and not entry.problem]
        fill_models(ui.modelCombo, self._models, p.model)
        self._shown = True
        self._showModel()
        self._showButtons()

    def _modelChosen(self, _text: str) -> None:
        if self._shown:
            self._choose(chosen(self._ui.modelCombo))

    def _choose(self, name: str) -> None:
        show_whole_title(self._ui.modelCombo)
        if name != self.parameters.model:
            self.parameters.segments = None
            self.parameters.model = name
        self._showModel()
        self._showButtons()

    @property
    def model(self) -> ModelEntry | None:
        """The model that was chosen; None where it is not installed."""
        return next((model for model in self._models if model.name == self.parameters.model), None)

    def _showModel(self) -> None:
        model = self.model
        if model is None:
            self._structures.show([], [], [])
        else:
            self._structures.show(model.labels, model.colors, self.parameters.segments)
        self.channels.show(model.channels if model is not None else (), self.parameters.channels)
        self._showAdvice()

    def _channelsChanged(self, nodes: list[Any]) -> None:
        if self._shown:
            self.parameters.channels = nodes

    def _structuresChanged(self, names: list[str] | None) -> None:
        self.parameters.segments = names
        self._planForecast()

    def _showAdvice(self) -> None:
        """Warn where the scan seems to be of another kind than the model was made for."""
        text = ""
        if self.parameters.volume is not None and self.model is not None:
            # What cannot be segmented at all is said at the click; a volume that is just being loaded has no voxels yet.
            with contextlib.suppress(MedQuantError):
                text = self._logic.advise(self.parameters.volume, self.parameters.model)
        self.results.warn([text] if text else [])
        self._planForecast()

    def _planForecast(self, milliseconds: int = 0) -> None:
        """Tell what will happen, once the event loop comes round to it: several things may change at once."""
        if not self._forecastIsDue:
            self._forecastIsDue = True
            qt.QTimer.singleShot(milliseconds, self._showForecast)

    def _showForecast(self) -> None:
        self._forecastIsDue = False
        if self._shown:
            self._ui.forecastLabel.setText(self._forecast())
            for call in self.followers:
                call()

    def _forecast(self) -> str:
        p = self.parameters
        if p.volume is None or self.model is None:
            return _("Choose a volume and a model.")
        group = GROUPS[self._engineGroup]
        if self._logic.pythonOf(self._engineGroup) is None and missing(group):
            return _("Packages have to be installed first: {size}. You are asked before.").format(size=group.size)
        try:
            plan = self._logic.forecast(
                p.volume,
                p.model,
                p.engine,
                self._precision(),
                segments=p.segments,
                device=p.device,
                options=self._options(),
                roi=p.region,
            )
        except MedQuantError as error:
            return error.args[0]
        return forecast_text(plan)

    def _showButtons(self) -> None:
        ui = self._ui
        working = self._working
        self._showWorkButton(ui.segmentButton, _("Segment"))
        self._enable(ui.segmentAllButton, ui.segmentFolderButton, ui.segmentSequenceButton)
        undone = "" if self._logic.canUndo else _("There is no segmentation to take back.")
        self._enable(ui.undoButton, hindrance=undone)
        float_run = _("Only INT8 runs are checked in FP32.") if self._precision() == "fp32" else ""
        enable(ui.checkShareCombo, float_run)
        new = _("A new segmentation holds nothing that could be replaced: choose an output first.")
        enable(ui.replaceCheck, "" if self.parameters.output is not None else new)
        ui.segmentWorkWidget.setVisible(working)
        ui.forecastLabel.setVisible(not working)
        if self._shown and not working:
            self._planForecast()

    def _observe(self) -> None:
        """Follow the voxels of the volume, since a loader may fill a node that is chosen already, and the place of the region."""
        self.close()
        volume, region = self.parameters.volume, self.parameters.region
        if volume is not None:
            event = slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent
            self._observed.append((volume, volume.AddObserver(event, lambda *_arguments: self._showAdvice())))
        if region is not None:
            for event in ("ModifiedEvent", getattr(region, "PointModifiedEvent", None)):
                if event is not None:
                    self._observed.append(
                        (region, region.AddObserver(event, lambda *_: self._planForecast(_WHILE_DRAGGED_MS)))
                    )

    def suspend(self) -> None:
        super().suspend()
        self.close()

    def forget(self) -> None:
        """Forget the result as well: its segments are gone."""
        super().forget()
        self._logic.result = None
        self.results.show(None)

    def close(self) -> None:
        """Follow no node any more."""
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []

    # ---- widgets to parameters

    def _volumeChosen(self, _id: str) -> None:
        if not self._shown:
            return
        self.parameters.volume = self._ui.volumeSelector.currentNode()
        self._observe()
        self._showAdvice()
        self._showButtons()

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        p = self.parameters
        nodes = [p.volume, *p.channels] if self.channels else p.volume
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
            nodes_only = ("surface", "replace", "terminology")
            options = {name: value for name, value in self._chosenOptions().items() if name not in nodes_only}
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
            "terminology": p.terminology,
            "roi": p.region,
            "options": self._options(),
        }

    def _options(self) -> SegmentationOptions:
        share = None if self._precision() == "fp32" else _CHECK_SHARES.get(self.parameters.checkShare)
        return SegmentationOptions(check_share=share)

    def _precision(self) -> str:
        """A model without an INT8 network can be run as it is, if the user leaves the choice to the program."""
        model = self.model
        without = model is not None and not model.int8
        return "fp32" if self.parameters.precision == "auto" and without else self.parameters.precision

    def _start(self, start: Any) -> None:
        self._stages.clear()
        self._logic.result = None
        if self._begin(start, self._done, (self._engineGroup,)):
            self.results.show(None)

    def _progressed(self, event: ProgressEvent) -> None:
        super()._progressed(event)
        self._stages.add(event)

    def _done(self, job: Any) -> None:
        failures = getattr(job, "failures", [])
        if failures:
            lines = [f"{f.name}: {f.error}" for f in failures]
            slicer.util.warningDisplay("\n".join(lines), windowTitle=_("Some could not be segmented"))
        report = self._logic.report
        engine = report.get("engine", {})
        reason = (engine.get("choice") or {}).get("reason", "")
        text = _("Done in {time} ({engine}, {precision}).").format(
            time=duration(report.get("seconds", {}).get("total", 0)),
            engine=engine.get("title", ""),
            precision=engine.get("precision", "").upper(),
        )
        self._say(f"{text} {reason}".strip())
        self.results.show(self._logic.result)

    def _undo(self) -> None:
        self._logic.undo()
        self.results.show(None)
        self._say(_("The last segmentation was taken back."))
        self._showButtons()

    def selectModel(self, name: str) -> None:
        """Choose a model that was made or installed a moment ago."""
        self.parameters.segments = None
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
        self.show()
        self._press()


def _share_title(share: float | None) -> str:
    if share is None:
        return _("Automatic: a few windows")
    return _("{share} of the windows").format(share=f"{100 * share:g} %") if share else _("None")


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
