"""Section "Models": a list of all models to look through, and what can be done with the chosen one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ..installation import Ask
from ..logic import MedQuantINT8Logic
from ..model_entries import ModelEntry, calibration_of, offered_version, shares_of_all
from ..parameter_node import Parameters
from . import file_dialogs
from .base import WorkPanel, distinct_titles
from .job_runner import JobRunner
from .layer_bar import show_layers
from .model_icons import model_icon
from .qt_compat import enable, read
from .theme import line_height, make_primary, make_quiet, show_rows

_MB = 1e6
_ROWS = 5
_SHOWN_STRUCTURES = 12


@dataclass(frozen=True)
class ModelUser:
    """Who is told of models.

    Attributes:
        use: a model was chosen to segment with.
        changed: a model was installed, updated or removed; called with its name, or with an empty text.
    """

    use: Callable[[str], None]
    changed: Callable[[str], None]


class ModelsPanel(WorkPanel):
    """Connects the widgets of the list of models with the logic."""

    def __init__(
        self,
        ui: Any,
        logic: MedQuantINT8Logic,
        parameters: Parameters,
        runner: JobRunner,
        ask: Ask,
        user: ModelUser,
    ) -> None:
        super().__init__(ui, logic, parameters, runner, ask, ui.modelsStatusLabel, ui.modelsProgress)
        self._user = user
        self._entries: list[ModelEntry] = []
        #: The model that is shown; it need not be the one that is segmented with.
        self._name = ""
        make_primary(ui.modelButton)
        make_quiet(ui.storageStatusLabel)
        side = 3 * line_height(ui.modelList)
        ui.modelList.setIconSize(qt.QSize(side, side))
        ui.modelList.setWordWrap(True)
        ui.modelSearchEdit.textChanged.connect(self._search)
        ui.modelList.currentRowChanged.connect(self._rowChosen)
        ui.modelList.itemActivated.connect(lambda _item: self._press())
        ui.modelButton.clicked.connect(self._press)
        ui.updateModelButton.clicked.connect(self._update)
        ui.removeModelButton.clicked.connect(self._remove)
        ui.removeEnginesButton.clicked.connect(self._removeEngines)
        ui.importFileButton.clicked.connect(self._importFile)
        ui.importFolderButton.clicked.connect(self._importFolder)
        ui.browseButton.clicked.connect(self.open)

    def open(self, *_arguments: Any) -> None:
        """Unfold the section, and put the cursor into its search."""
        self._ui.modelsSection.setProperty("collapsed", False)
        self._ui.modelSearchEdit.setFocus()

    def show(self) -> None:
        """Show what is installed and what can be."""
        self._entries = self._logic.modelEntries()
        if not any(entry.name == self._name for entry in self._entries):
            self._name = self.parameters.model
        self._shown = True
        self._search(read(self._ui.modelSearchEdit, "text"))
        total = sum(self._logic.modelSizes().values())
        text = _("Installed models take {models} MB, engines that were built {engines} MB.")
        engines = self._logic.engineBytes()
        self._ui.storageStatusLabel.setText(text.format(models=f"{total / _MB:.1f}", engines=f"{engines / _MB:.1f}"))
        self._showButtons()

    def _search(self, text: str) -> None:
        """List the models that hold every word of ``text``."""
        words = text.lower().split()
        fitting = [entry for entry in self._entries if all(word in entry.searched() for word in words)]
        items, titles = self._ui.modelList, distinct_titles(self._entries)
        before = items.blockSignals(True)
        items.clear()
        row = -1
        for number, entry in enumerate(fitting):
            item = qt.QListWidgetItem(f"{titles[entry.name]}\n{_facts(entry)}")
            item.setIcon(model_icon(entry))
            item.setData(qt.Qt.UserRole, entry.name)
            item.setToolTip(": ".join(filter(None, [entry.modality, ", ".join(entry.labels)])))
            items.addItem(item)
            if entry.name == self._name:
                row = number
        items.setCurrentRow(row)
        items.blockSignals(before)
        show_rows(items, len(fitting), _ROWS)
        self._showModel()

    def _rowChosen(self, row: int) -> None:
        item = self._ui.modelList.item(row) if row >= 0 else None
        if item is not None:
            self._name = item.data(qt.Qt.UserRole)
            self._showModel()

    def select(self, name: str) -> None:
        """Show a model's details, whatever is looked for."""
        self._name = name
        self._ui.modelSearchEdit.setText("")
        self.show()

    @property
    def _entry(self) -> ModelEntry | None:
        return next((entry for entry in self._entries if entry.name == self._name), None)

    def _showModel(self) -> None:
        ui, entry = self._ui, self._entry
        ui.modelInfoLabel.setText(_details(entry) if entry is not None else _("Choose a model."))
        paths = entry.paths if entry is not None and entry.int8 and not entry.task else ()
        reports = [(calibration_of(path) or {}).get("quantization") or {} for path in paths]
        show_layers(ui.modelBarLabel, ui.modelBarText, shares_of_all(reports) if reports else None)
        self._showButtons()

    def _showButtons(self) -> None:
        ui, entry = self._ui, self._entry
        if self._working:
            ui.modelButton.setText(_("Cancel"))
        elif entry is None or entry.installed:
            ui.modelButton.setText(_("Use this model"))
        else:
            ui.modelButton.setText(_("Install ({size})").format(size=_size(entry)))
        missing = _("Choose a model in the list.") if entry is None else ""
        damaged = _("The model is damaged: remove it, and install it again.") if entry and entry.problem else ""
        enable(ui.modelButton, "" if self._working else self._hindrance or missing or damaged)
        offer = entry.offer if entry is not None and entry.installed else None
        ui.updateModelButton.setVisible(offer is not None)
        if entry is not None and offer is not None:
            size = _megabytes(offer.size_bytes)
            newer = entry.newer_version
            text = _("U&pdate to {version} ({size})") if newer else _("Install a&gain ({size})")
            ui.updateModelButton.setText(text.format(version=newer, size=size))
        removable = entry is not None and entry.removable
        ui.removeModelButton.setVisible(removable)
        if entry is not None and removable:
            ui.removeModelButton.setText(_("Remo&ve ({size})").format(size=_size(entry)))
        self._enable(ui.updateModelButton, ui.removeModelButton, ui.importFileButton, ui.importFolderButton)
        built = "" if self._logic.engineBytes() > 0 else _("No engine was built on this computer yet.")
        self._enable(ui.removeEnginesButton, hindrance=built)
        ui.modelsProgress.setVisible(self._working)

    # ---- work

    def _press(self) -> None:
        if self._stopped():
            return
        entry = self._entry
        if entry is None or entry.problem:
            return
        if entry.installed:
            self._user.use(entry.name)
        else:
            self._download(entry)

    def _update(self) -> None:
        entry = self._entry
        if entry is not None and entry.offer is not None:
            self._download(entry)

    def _download(self, entry: ModelEntry) -> None:
        """Install a model of the catalog, or install it again; its license is shown first."""
        offer = entry.offer
        assert offer is not None
        lines = [entry.title, ""]
        for item in entry.downloads:
            lines.append(_("From: {url} ({size})").format(url=item.url, size=_megabytes(item.size_bytes)))
        if not entry.downloads:
            lines.append(_("All networks that it runs are installed: nothing is downloaded."))
        for text, url in dict.fromkeys((item.license, item.license_url) for item in (*entry.downloads, offer)):
            lines.append(_("License: {license} ({license_url})").format(license=text, license_url=url))
        lines += [offer.citation, ""]
        if entry.installed and entry.int8:
            lines += [_("What was calibrated here is replaced: its INT8 network has to be made again."), ""]
        lines.append(_("Do you accept the license, and download it?"))
        trust = any(item.needs_trust for item in (*entry.downloads, offer))
        if self._ask("\n".join(lines)) and (not trust or self._trusts(entry.title)):
            needs = ("import",) if self._logic.importsFor(entry.name) else ()
            self._start(
                lambda: self._logic.installModel(entry.name, trustCode=trust, waitForCompletion=False),
                needs,
            )

    def _trusts(self, title: str) -> bool:
        text = _(
            "{title} holds Python code that has to be run on this computer, with your rights. Do you trust whoever made it?"
        )
        return self._ask(text.format(title=title))

    def _importFile(self) -> None:
        title = _("Model: package or bundle (.zip), ONNX, or model.pt of Auto3DSeg")
        self._import(file_dialogs.open_file(self._ui.modelsSection, title))

    def _importFolder(self) -> None:
        title = _("Model: package, MONAI bundle or result folder of nnU-Net")
        self._import(file_dialogs.open_folder(self._ui.modelsSection, title))

    def _import(self, source: str) -> None:
        if source:
            needs = ("import",) if self._logic.needsImport(source) else ()
            self._start(lambda: self._logic.installModel(source=source, waitForCompletion=False), needs)

    def _start(self, start: Any, needs: tuple[str, ...]) -> None:
        self._begin(start, lambda job: self._installed(job.value), ("segment", *needs))

    def _installed(self, name: str) -> None:
        self._name = name
        self._ui.modelSearchEdit.setText("")
        self._user.changed(name)
        entry = self._entry
        if entry is not None and entry.int8:
            text = _("Installed {name}.")
        elif entry is not None and entry.task:
            text = _("Installed {name}: make the INT8 networks that it runs in the section below.")
        else:
            text = _("Installed {name}: make its INT8 network in the section below.")
        self._say(text.format(name=name))

    def _remove(self) -> None:
        entry = self._entry
        if entry is None or not self._ask(
            _("Remove the model {name} ({size}) from this computer?").format(name=entry.name, size=_size(entry))
        ):
            return
        try:
            self._logic.removeModel(entry.name)
        except MedQuantError as error:
            self._failed(error)
            return
        self._say(_("Removed {name}; {size} are free again.").format(name=entry.name, size=_size(entry)))
        self._user.changed("")

    def _removeEngines(self) -> None:
        question = _("Remove all engines that were built on this computer? They are built again when they are needed.")
        if self._ask(question):
            try:
                self._logic.removeEngines()
            except MedQuantError as error:
                self._failed(error)
                return
            self.show()


def _megabytes(size: int | None) -> str:
    if size is None:
        return _("unknown size")
    return f"{size / _MB:.0f} MB" if size >= 10 * _MB else f"{size / _MB:.1f} MB"


def _size(entry: ModelEntry) -> str:
    return _megabytes(entry.size_bytes)


def _state(entry: ModelEntry) -> str:
    if entry.problem:
        return _("damaged")
    if not entry.installed:
        return _("to download")
    if entry.newer_version:
        return _("INT8 ready, update there") if entry.int8 else _("FP32 only, update there")
    return _("INT8 ready") if entry.int8 else _("FP32 only")


def _facts(entry: ModelEntry) -> str:
    """The second line of a model in the list; its picture tells the modality."""
    structures = _("1 structure") if entry.structures == 1 else _("{count} structures").format(count=entry.structures)
    # A license may go on with remarks, which stand in the details.
    license_name = entry.license.split(" (")[0].split(";")[0]
    size = "" if entry.size_bytes is None else _size(entry)
    parts = [structures, size, license_name, _state(entry)]
    if entry.networks > 1:
        parts.insert(1, _("{count} networks").format(count=entry.networks))
    return " · ".join(filter(None, parts))


def _details(entry: ModelEntry) -> str:
    """What is said of the chosen model below the list."""
    if entry.problem:
        return entry.problem
    shown = ", ".join(entry.labels[:_SHOWN_STRUCTURES])
    more = entry.structures - min(_SHOWN_STRUCTURES, len(entry.labels))
    if more > 0:
        shown = _("{names} and {count} more").format(names=shown, count=more)
    lines = [entry.description, _("Structures ({count}): {names}").format(count=entry.structures, names=shown)]
    if len(entry.channels) > 1:
        lines.append(_("Channels: {names}").format(names=", ".join(entry.channels)))
    lines.append(_("License: {license}").format(license=entry.license))
    version = entry.version or (offered_version(entry.offer) if entry.offer is not None else "")
    if version:
        lines.append(_("Version: {version}").format(version=version))
    if entry.citation:
        lines.append(_("To cite: {citation}").format(citation=entry.citation))
    if entry.homepage:
        lines.append(entry.homepage)
    return "\n".join(filter(None, lines))
