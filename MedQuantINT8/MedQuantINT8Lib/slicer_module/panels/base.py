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
from .packages_dialog import ask_consent


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
        self._status.setText("")

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
        self._status.setText(_("Starting …"))
        self._progress.setValue(0)
        self._runner.start(job, Listener(self._progressed, lambda job: self._ended(done, job), self._failed))
        return True

    def _progressed(self, event: ProgressEvent) -> None:
        self._progress.setValue(percent(event))
        self._status.setText(in_words(event))

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
        self._status.setText(text)


def distinct_titles(models: Sequence[ModelEntry]) -> dict[str, str]:
    """The title under which each model is offered, by its name; the name follows where titles are the same."""
    titles = [(model.title, model.modality) for model in models]
    return {
        model.name: model.title if titles.count(title) == 1 else f"{model.title} ({model.name})"
        for model, title in zip(models, titles, strict=True)
    }
