"""What the sections of the panel share: one piece of work at a time, its progress, its end and its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import MedQuantError
from ...progress import ProgressEvent
from ..installation import Ask, Installer, ensure
from ..logic import MedQuantINT8Logic
from ..model_entries import ModelEntry
from ..parameter_node import Parameters
from .job_runner import JobRunner, Listener, in_words, is_cancel, percent
from .model_icons import model_icon
from .packages_dialog import ask_consent
from .qt_compat import chosen, enable, quiet_fill, read


class WorkPanel:
    """A panel with a button that starts work and cancels it, a status line and a progress bar.

    Args:
        ui: the widgets of the .ui file by name.
        ask: asks the user a yes-or-no question.
        status, progress: the panel's label and bar.
    """

    def __init__(
        self,
        ui: Any,
        logic: MedQuantINT8Logic,
        parameters: Parameters,
        runner: JobRunner,
        ask: Ask,
        status: Any,
        progress: Any,
    ) -> None:
        self._ui, self._logic, self._runner, self._ask = ui, logic, runner, ask
        self._status, self._progress = status, progress
        self.parameters = parameters
        #: Who is asked before packages are installed.
        self.installer = Installer(ask_consent, ask)
        #: Whether the work that runs is this panel's.
        self._mine = False
        #: Whether the widgets show the parameters; until then their changes are not the user's.
        self._shown = False
        self._writers: dict[str, Callable[[], None]] = {}
        runner.changed.append(self._showButtons)
        self._showStatus("")

    def _bind(self, field: str, signal: Any, value: Callable[[], Any]) -> None:
        """Let a widget's signal write the widget's own field of the parameters, and no other.

        What the other widgets show may be older than the parameters: a scene that is being loaded fills the parameter node first,
        and selectors tell of its nodes later.
        """

        def write(*_arguments: Any) -> None:
            if self._shown:
                setattr(self.parameters, field, value())
                self._showButtons()

        self._writers[field] = write
        signal.connect(write)

    def suspend(self) -> None:
        """The scene is being closed or loaded: what the widgets say is not the user's word until :meth:`show` is called."""
        self._shown = False

    def forget(self) -> None:
        """The scene is gone, and with it what the status line told of it."""
        self._say("")

    def show(self) -> None:
        """Show what the parameter node says; from now on the widgets' changes are the user's."""
        raise NotImplementedError

    def _showButtons(self) -> None:
        raise NotImplementedError

    @property
    def _working(self) -> bool:
        return self._runner.busy and self._mine

    @property
    def _engineGroup(self) -> str:
        """The packages that the chosen engine needs."""
        return (
            self.parameters.engine if self.parameters.engine in ("cuda_int8", "tensorrt", "tensorrt_rtx") else "segment"
        )

    def _stopped(self) -> bool:
        """If work runs, cancel it: the button was pressed as Cancel."""
        if self._runner.busy:
            self._runner.cancel()
            self._say(_("Stopping …"))
        return self._runner.busy

    def _begin(self, start: Any, done: Any, groups: tuple[str, ...]) -> bool:
        """Make sure of the packages, start a job and follow it; whether it was started."""
        try:
            ensure(groups, self.installer, self._logic.pythonOf)
            job = start()
        except MedQuantError as error:
            self._failed(error)
            return False
        self._mine = True
        self._say(_("Starting …"))
        self._progress.setValue(0)
        self._runner.start(job, Listener(self._progressed, lambda job: self._ended(done, job), self._failed))
        return True

    def _progressed(self, event: ProgressEvent) -> None:
        self._progress.setValue(percent(event))
        self._showStatus(in_words(event))

    def _ended(self, done: Any, job: Any) -> None:
        self._mine = False
        done(job)
        self._showButtons()

    def _failed(self, error: MedQuantError) -> None:
        self._mine = False
        self._say(_("Canceled.") if is_cancel(error) else str(error))
        self._showButtons()
        if not is_cancel(error):
            slicer.util.errorDisplay(str(error), windowTitle="MedQuantINT8")

    def _say(self, text: str) -> None:
        self._showStatus(text)

    def _showStatus(self, text: str) -> None:
        """Show a text in the status line, which takes no room while there is none."""
        self._status.setText(text)
        self._status.setVisible(bool(text))

    @property
    def _hindrance(self) -> str:
        """Why nothing can be started now; an empty text where it can."""
        return _("Something is at work: wait for it, or cancel it.") if self._runner.busy else ""

    def _enable(self, *widgets: Any, hindrance: str = "") -> None:
        """Enable widgets that start or change something, unless something is at work or something else hinders them, which their tips say then."""
        for widget in widgets:
            enable(widget, self._hindrance or hindrance)

    def _showWorkButton(self, button: Any, title: str) -> None:
        """Show the section's main button: it starts the work, and cancels it while it runs."""
        button.setText(_("Cancel") if self._working else title)
        enable(button, "" if self._working else self._hindrance)


def fill_models(combo: Any, models: Sequence[ModelEntry], current: str) -> None:
    """Offer models in a combo box, with their pictures; what a narrow panel cuts is whole where the pointer rests."""
    titles = distinct_titles(models)
    quiet_fill(combo, [(model.name, f"{titles[model.name]} [{model.modality}]") for model in models], current)
    for number, model in enumerate(models):
        combo.setItemIcon(number, model_icon(model))
    show_whole_title(combo)


def show_whole_title(combo: Any) -> None:
    """Let the tip of a combo box begin with the title that it shows, which may be cut."""
    tip = read(combo, "ownTip")
    if tip is None:
        tip = read(combo, "toolTip")
        combo.setProperty("ownTip", tip)
    title = read(combo, "currentText") if chosen(combo) else ""
    combo.setToolTip("\n".join(filter(None, [title, tip])))


def distinct_titles(models: Sequence[ModelEntry]) -> dict[str, str]:
    """The title under which each model is offered, by its name; the name comes first where titles are the same: a narrow panel cuts the end."""
    titles = [(model.title, model.modality) for model in models]
    return {
        model.name: model.title if titles.count(title) == 1 else f"{model.name}: {model.title}"
        for model, title in zip(models, titles, strict=True)
    }
