"""Section "Make INT8 engine": a model, scans to calibrate on, a budget; and what became of each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ...errors import InputError, MedQuantError
from ...imaging.volume_files import scan_files
from ...progress import ProgressEvent
from ...quantization.calibration import METHODS, STUDY_VOLUMES
from ...quantization.effort import check_effort
from ..dependencies import GROUPS, missing
from ..installation import Ask
from ..logic import MedQuantINT8Logic
from ..model_entries import ModelEntry, shares_of_all
from ..parameter_node import Parameters
from .base import WorkPanel, fill_models, show_whole_title
from .job_runner import JobRunner
from .layer_bar import show_layers
from .qt_compat import check_nodes, chosen, quiet_fill, read, silently
from .stage_titles import stage_title
from .theme import line_height, make_primary, make_quiet

_MB = 1e6
#: From so many scans on, the result need not be distrusted from the start.
_SOME_SCANS = 5
_LOG_LINES = 8


class BuildPanel(WorkPanel):
    """Connects the widgets of the section with the parameters and the logic.

    Args:
        ready: called with a model's name after it got an INT8 network.
    """

    def __init__(
        self,
        ui: Any,
        logic: MedQuantINT8Logic,
        parameters: Parameters,
        runner: JobRunner,
        ask: Ask,
        ready: Callable[[str], None],
    ) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.buildStatusLabel, ui.buildProgress)
        self._ready = ready
        self._stage = ""
        #: What the scans themselves say of how many are enough.
        self._heldOut: list[str] = []
        self._models: list[ModelEntry] = []
        make_primary(ui.buildButton)
        for label in (ui.buildModelLabel, ui.scansLabel, ui.packagesLabel):
            make_quiet(label)
        ui.logText.setFixedHeight(_LOG_LINES * line_height(ui.logText))
        ui.buildModelCombo.currentTextChanged.connect(self._modelChosen)
        selector, folder = ui.calibrationSelector, ui.calibrationFolderEdit
        self._bind("calibrationVolumes", selector.checkedNodesChanged, lambda: list(selector.checkedNodes()))
        self._bind("calibrationFolder", folder.currentPathChanged, lambda: str(read(folder, "currentPath") or ""))
        self._bind("patches", ui.patchesSpin.editingFinished, lambda: int(read(ui.patchesSpin, "value")))
        self._bind("agreement", ui.agreementSpin.editingFinished, lambda: float(read(ui.agreementSpin, "value")))
        self._bind("method", ui.methodCombo.currentTextChanged, lambda: chosen(ui.methodCombo))
        self._bind("effort", ui.effortCombo.currentTextChanged, lambda: chosen(ui.effortCombo))
        self._bind("buildEngine", ui.buildEngineCombo.currentTextChanged, lambda: chosen(ui.buildEngineCombo))
        self._bind("weightBits", ui.weightBitsCombo.currentTextChanged, lambda: int(chosen(ui.weightBitsCombo) or 8))
        worst = ui.worstStructureSpin
        self._bind("worstStructure", worst.editingFinished, lambda: float(read(worst, "value")))
        self._bind("transposed", ui.transposedCheck.toggled, lambda: bool(read(ui.transposedCheck, "checked")))
        self._bind("fallback", ui.fallbackCheck.toggled, lambda: bool(read(ui.fallbackCheck, "checked")))
        ui.buildButton.clicked.connect(self._press)

    def show(self) -> None:
        """Show what the parameter node says."""
        ui, p = self._ui, self.parameters
        self._shown = False
        self._models = [entry for entry in self._logic.modelEntries() if entry.installed and not entry.problem]
        fill_models(ui.buildModelCombo, self._models, chosen(ui.buildModelCombo) or p.model)
        quiet_fill(ui.methodCombo, [(name, name) for name in METHODS], p.method)
        efforts = [
            ("fast", _("Fast: rounding alone")),
            ("normal", _("Normal")),
            ("best", _("Best: everything is tried")),
        ]
        quiet_fill(ui.effortCombo, efforts, p.effort)
        engines = [("auto", _("Automatic")), *self._logic.engineTitles()]
        quiet_fill(ui.buildEngineCombo, engines, p.buildEngine)
        bits = [("8", _("8 bits")), ("4", _("4 bits: half the file"))]
        quiet_fill(ui.weightBitsCombo, bits, str(p.weightBits))
        silently(ui.worstStructureSpin, ui.worstStructureSpin.setValue, p.worstStructure)
        silently(ui.transposedCheck, ui.transposedCheck.setChecked, p.transposed)
        silently(ui.patchesSpin, ui.patchesSpin.setValue, p.patches)
        silently(ui.agreementSpin, ui.agreementSpin.setValue, p.agreement)
        silently(ui.fallbackCheck, ui.fallbackCheck.setChecked, p.fallback)
        silently(ui.calibrationFolderEdit, ui.calibrationFolderEdit.setProperty, "currentPath", p.calibrationFolder)
        check_nodes(ui.calibrationSelector, p.calibrationVolumes)
        self._shown = True
        self._showButtons()

    def suspend(self) -> None:
        super().suspend()
        check_nodes(self._ui.calibrationSelector, [])

    def select(self, name: str) -> None:
        """Choose the model that shall get an INT8 network."""
        self.show()
        index = next((n for n, model in enumerate(self._models) if model.name == name), -1)
        if index >= 0:
            self._ui.buildModelCombo.setCurrentIndex(index)

    def _modelChosen(self, _text: str) -> None:
        show_whole_title(self._ui.buildModelCombo)
        if self._shown:
            self._showButtons()

    def _showButtons(self) -> None:
        ui = self._ui
        working = self._working
        self._showWorkButton(ui.buildButton, _("Make INT8 engine"))
        ui.buildProgress.setVisible(working)
        if self._shown and not working:
            ui.buildModelLabel.setText(self._modelText())
            ui.scansLabel.setText(self._scansText())
            ui.packagesLabel.setText(self._packagesText())

    # ---- what each step needs

    def _modelText(self) -> str:
        name = chosen(self._ui.buildModelCombo)
        model = next((model for model in self._models if model.name == name), None)
        if model is None:
            return _("Install one, or import your own, under Models.")
        if model.task or model.networks > 1:
            return self._networksText(name, model.int8)
        if not model.int8:
            return _("It has no INT8 network yet.")
        if self._logic.ownCopyName(name) != name:
            text = _("It is part of the program and stays as it is: what is made is installed as {name}.")
            return text.format(name=self._logic.ownCopyName(name))
        return _("It has an INT8 network, which is made anew.")

    def _networksText(self, name: str, int8: bool) -> str:
        """How many networks a task or an ensemble has; all get their INT8 network together."""
        try:
            count = len(self._logic.networksOf(name))
        except MedQuantError as error:
            return f"{error}"
        if int8:
            return _("Its {count} networks have INT8, which is made anew, one after the other.").format(count=count)
        text = _("It runs {count} networks: each is made INT8 in turn. A run that is canceled leaves all as they are.")
        return text.format(count=count)

    def _scansText(self) -> str:
        """How many scans are chosen, and whether they are enough."""
        try:
            count = len(self.parameters.calibrationVolumes) + len(self._scans())
        except MedQuantError as error:
            return error.args[0]
        least, most = STUDY_VOLUMES
        if count == 0:
            return _("None yet. One is needed; {least} or more are safe (the study used {least} to {most}).").format(
                least=least, most=most
            )
        if count < _SOME_SCANS:
            text = _(
                "{count}: enough to make it, not to rely on it. Compare it with FP32 on other scans afterwards; {least} or more are safe."
            )
        elif count < least:
            text = _(
                "{count}: often enough; the report says how many would be. {least} or more are safe. Compare it on scans that are not among them."
            )
        else:
            text = _(
                "{count}: as many as the study used. The report says how far the agreement moves from scan to scan."
            )
        return text.format(count=count, least=least)

    def _packagesText(self) -> str:
        lacking = [
            GROUPS[name].size
            for name in ("segment", "build")
            if self._logic.pythonOf(name) is None and missing(GROUPS[name])
        ]
        if lacking:
            return _("NVIDIA ModelOpt and PyTorch are installed first: {size}. You are asked before.").format(
                size="; ".join(lacking)
            )
        return _("What it needs is installed. It takes minutes on a processor; the window stays free meanwhile.")

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        name = chosen(self._ui.buildModelCombo)
        p = self.parameters
        try:
            # Before anything is installed for it.
            self._logic.networksOf(name)
            check_effort(p.effort, p.weightBits)
            self._logic.checkScans(p.calibrationVolumes, self._scans())
        except MedQuantError as error:
            self._failed(error)
            return

        def start() -> Any:
            return self._logic.calibrate(
                p.calibrationVolumes,
                name,
                self._logic.ownCopyPath(name),
                p.method,
                p.patches,
                p.agreement,
                scans=self._scans(),
                fallback=p.fallback,
                effort=p.effort,
                weightBits=p.weightBits,
                worstStructure=p.worstStructure,
                transposed=p.transposed,
                waitForCompletion=False,
            )

        self._start(start, lambda job: self._quantized(name, job.value))

    def _scans(self) -> list[str]:
        """Scan files of the folder that was chosen."""
        folder = self.parameters.calibrationFolder
        if not folder:
            return []
        if not Path(folder).is_dir():
            raise InputError(f"There is no folder {folder}.", "Choose another one.")
        return [str(p) for p in scan_files(folder)]

    def _start(self, start: Any, done: Any, *, fresh: bool = True) -> None:
        if self._begin(start, done, ("segment", "build")):
            self._stage = ""
            if fresh:
                self._ui.logText.clear()
                show_layers(self._ui.buildBarLabel, self._ui.buildBarText, None)

    def _progressed(self, event: ProgressEvent) -> None:
        super()._progressed(event)
        if event.stage != self._stage:
            self._stage = event.stage
            self._log(stage_title(event.stage))

    def _quantized(self, name: str, report: dict[str, Any]) -> None:
        networks = report.get("networks", [report])
        self._heldOut = []
        for network in networks:
            # Of a model of several networks, each line says of which it is.
            prefix = f"{network['network']}: " if "network" in network else ""
            for text in _of_the_kept_network(network):
                self._log(f"{prefix}{text}")
            self._heldOut += [f"{prefix}{line}" for line in network["held_out"]["lines"]]
        show_layers(self._ui.buildBarLabel, self._ui.buildBarText, shares_of_all(networks))
        target = self._logic.ownCopyName(name)
        self._ready(target)
        volumes = self.parameters.calibrationVolumes
        volume = volumes[0] if volumes else None
        self._start(
            lambda: self._logic.buildEngine(
                target, volume, self.parameters.buildEngine, waitForCompletion=False, device=self.parameters.device
            ),
            lambda job: self._built(job.value),
            fresh=False,
        )

    def _built(self, report: dict[str, Any]) -> None:
        for network in report.get("networks", [report]):
            self._logEngine(network, f"{network['network']}: " if "network" in network else "")
        done = _("Done. The model is chosen in the section Segment.")
        self._showStatus("\n".join([done, *self._heldOut]))

    def _logEngine(self, report: dict[str, Any], prefix: str) -> None:
        """Note what an engine is, and how near its results are to the simulation's."""
        share = f"{100 * report['int8_mac_share']:.1f} %"
        text = _("{engine}: {verdict}, {share} of the work in INT8")
        self._log(prefix + text.format(engine=report["engine"], verdict=report["verdict"], share=share))
        if report["note"]:
            self._log(prefix + report["note"])
        if fidelity := report["fidelity"]:
            text = _("real INT8 against the simulation: relative error {error}, {labels} of voxels with another label")
            labels = f"{100 * fidelity['label_disagreement']:.3f} %"
            self._log(prefix + text.format(error=f"{fidelity['relative_error']:.4f}", labels=labels))

    def _say(self, text: str) -> None:
        super()._say(text)
        self._log(text)

    def _log(self, text: str) -> None:
        self._ui.logText.appendPlainText(text)


def _of_the_kept_network(report: dict[str, Any]) -> list[str]:
    """What is said of a quantized network, all of it counted on the network that was kept, after layers went back to float."""
    guard, held_out = report["guard"], report["held_out"]
    # A layer that runs as two INT8 halves is one layer.
    layers = [layer for layer in report["layers"] if layer.get("half") != "low"]
    float_layers = [layer["name"] for layer in layers if not layer["quantized"]]
    lines = [
        _("{count} of {all} layers compute in INT8, {share} of the work; agreement with FP32 {where}: {dice}").format(
            count=len(layers) - len(float_layers),
            all=len(layers),
            share=f"{100 * report['int8_mac_share']:.1f} %",
            where=_("on held-out scans") if held_out["held_out"] else _("on the calibration scan itself"),
            dice=_("unknown") if report["agreement"] is None else f"{report['agreement']:.4f}",
        ),
        *held_out["lines"],
        _("file: {before} MB to {after} MB").format(
            before=f"{report['fp32_bytes'] / _MB:.1f}", after=f"{report['int8_bytes'] / _MB:.1f}"
        ),
    ]
    if as_int8 := len(guard["returned_stored_as_int8"]):
        text = _(
            "{count} layers compute in floating point on weights stored as INT8: the file is small, but not faster there"
        )
        lines.append(text.format(count=as_int8))
    if guard.get("halves"):
        lines.append(_("as two INT8 halves, at twice the work each: {names}").format(names=", ".join(guard["halves"])))
    if float_layers:
        lines.append(_("in floating point: {names}").format(names=", ".join(float_layers)))
    return [*lines, *report["warnings"]]
