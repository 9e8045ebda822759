"""Panel "Make INT8 engine": a model, scans to calibrate on, a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ...errors import InputError, MedQuantError
from ...imaging.volume_files import scan_files
from ...progress import ProgressEvent
from ...quantization.calibration import METHODS
from ..dependencies import Ask
from ..logic import MedQuantINT8Logic
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel, distinct_titles
from .job_runner import JobRunner
from .qt_compat import check_nodes, chosen, quiet_fill, read, silently

_MB = 1e6


class BuildPanel(WorkPanel):
    """Connects the widgets of the second panel with the parameters and the logic.

    Args:
        ready: called with a model's name after it got an INT8 network, or was installed.
    """

    def __init__(
        self, ui: Any, logic: MedQuantINT8Logic, parameters: Parameters, runner: JobRunner, ask: Ask, ready: Any
    ) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.buildStatusLabel, ui.buildProgress)
        self._ready = ready
        self._stage = ""
        ui.buildModelCombo.currentTextChanged.connect(self._modelChosen)
        ui.importFileButton.clicked.connect(self._importFile)
        ui.importFolderButton.clicked.connect(self._importFolder)
        selector, folder = ui.calibrationSelector, ui.calibrationFolderEdit
        self._bind("calibrationVolumes", selector.checkedNodesChanged, lambda: list(selector.checkedNodes()))
        self._bind("calibrationFolder", folder.currentPathChanged, lambda: str(read(folder, "currentPath") or ""))
        self._bind("patches", ui.patchesSpin.editingFinished, lambda: int(read(ui.patchesSpin, "value")))
        self._bind("agreement", ui.agreementSpin.editingFinished, lambda: float(read(ui.agreementSpin, "value")))
        self._bind("method", ui.methodCombo.currentTextChanged, lambda: chosen(ui.methodCombo))
        self._bind("buildEngine", ui.buildEngineCombo.currentTextChanged, lambda: chosen(ui.buildEngineCombo))
        self._bind("fallback", ui.fallbackCheck.toggled, lambda: bool(read(ui.fallbackCheck, "checked")))
        ui.buildButton.clicked.connect(self._press)

    def show(self) -> None:
        """Show what the parameter node says."""
        ui, p = self._ui, self.parameters
        self._shown = False
        models = self._logic.models()
        titles = distinct_titles(models)
        installed = [
            (m["name"], titles[m["name"]] + ("" if m["int8"] else _(" (no INT8 network yet)"))) for m in models
        ]
        offered = [
            (f"get:{e.name}", _("Download: {title} ({license})").format(title=e.title, license=e.license))
            for e in self._logic.publicModels()
        ]
        quiet_fill(ui.buildModelCombo, installed + offered, chosen(ui.buildModelCombo) or p.model)
        quiet_fill(ui.methodCombo, [(name, name) for name in METHODS], p.method)
        engines = [("auto", _("Automatic")), *self._logic.engineTitles()]
        quiet_fill(ui.buildEngineCombo, engines, p.buildEngine)
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

    def _modelChosen(self, _text: str) -> None:
        if self._shown:
            self._showButtons()

    def _showButtons(self) -> None:
        ui = self._ui
        working = self._working
        download = chosen(ui.buildModelCombo).startswith("get:")
        ui.buildButton.setText(_("Cancel") if working else _("Download model") if download else _("Make INT8 engine"))
        ui.buildButton.setEnabled(working or not self._runner.busy)
        for button in (ui.importFileButton, ui.importFolderButton):
            button.setEnabled(not self._runner.busy)
        ui.buildProgress.setVisible(working)

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        name = chosen(self._ui.buildModelCombo)
        if name.startswith("get:"):
            self._download(name.removeprefix("get:"))
            return
        p = self.parameters
        try:
            # Before anything is installed for it.
            self._logic.checkScans(p.calibrationVolumes, self._scans())
        except MedQuantError as error:
            self._failed(error)
            return

        def start() -> Any:
            return self._logic.calibrate(
                p.calibrationVolumes,
                name,
                self._target(name),
                p.method,
                p.patches,
                p.agreement,
                scans=self._scans(),
                fallback=p.fallback,
                effort=p.effort,
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

    def _target(self, name: str) -> str | None:
        """The demo model is part of the program: what is made of it becomes a model of its own."""
        return self._logic.ownCopyPath(name)

    def _download(self, name: str) -> None:
        entry = next(item for item in self._logic.publicModels() if item.name == name)
        size = f"{entry.size_bytes / _MB:.0f} MB" if entry.size_bytes else _("unknown size")
        text = _(
            "{title}\n\nFrom: {url} ({size})\nLicense: {license} ({license_url})\n{citation}\n\nDo you accept the license, and download it?"
        )
        shown = text.format(
            title=entry.title,
            url=entry.url,
            size=size,
            license=entry.license,
            license_url=entry.license_url,
            citation=entry.citation,
        )
        if self._ask(shown) and (not entry.needs_trust or self._trusts(entry.title)):
            self._start(
                lambda: self._logic.installModel(name, trustCode=entry.needs_trust, waitForCompletion=False),
                lambda job: self._installed(job.value),
                needs=() if entry.form == "onnx" else ("import",),
            )

    def _trusts(self, title: str) -> bool:
        text = _(
            "{title} holds Python code that has to be run on this computer, with your rights. Do you trust whoever made it?"
        )
        return self._ask(text.format(title=title))

    def _importFile(self) -> None:
        title = _("Model: package or bundle (.zip), ONNX, or model.pt of Auto3DSeg")
        self._import(file_dialogs.open_file(self._ui.buildSection, title))

    def _importFolder(self) -> None:
        title = _("Model: package, MONAI bundle or result folder of nnU-Net")
        self._import(file_dialogs.open_folder(self._ui.buildSection, title))

    def _import(self, source: str) -> None:
        if source:
            self._start(
                lambda: self._logic.installModel(source=source, waitForCompletion=False),
                lambda job: self._installed(job.value),
                needs=("import",) if self._logic.needsImport(source) else (),
            )

    def _start(self, start: Any, done: Any, *, fresh: bool = True, needs: tuple[str, ...] = ("build",)) -> None:
        if self._begin(start, done, ("segment", *needs)):
            self._stage = ""
            if fresh:
                self._ui.logText.clear()

    def _progressed(self, event: ProgressEvent) -> None:
        super()._progressed(event)
        if event.stage != self._stage:
            self._stage = event.stage
            self._log(event.stage)

    def _quantized(self, name: str, report: dict[str, Any]) -> None:
        for text in _of_the_kept_network(report):
            self._log(text)
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
        share = f"{100 * report['int8_mac_share']:.1f} %"
        self._log(
            _("{engine}: {verdict}, {share} of the work in INT8").format(
                engine=report["engine"], verdict=report["verdict"], share=share
            )
        )
        if report["note"]:
            self._log(report["note"])
        if fidelity := report["fidelity"]:
            text = _("real INT8 against the simulation: relative error {error}, {labels} of voxels with another label")
            labels = f"{100 * fidelity['label_disagreement']:.3f} %"
            self._log(text.format(error=f"{fidelity['relative_error']:.4f}", labels=labels))
        self._ui.buildStatusLabel.setText(_("Done. The model is chosen in the panel above."))

    def _installed(self, name: str) -> None:
        self._ui.buildStatusLabel.setText(
            _("Installed {name}. Choose scans, and make its INT8 engine.").format(name=name)
        )
        self._ready(name)

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
