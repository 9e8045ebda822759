"""How a run goes: its stages, the time that is left, and what it takes of the computer."""

from __future__ import annotations

import time
from typing import Any

from slicer.i18n import tr as _

from ...progress import ProgressEvent
from ..load_gauge import Load
from ..logic import MedQuantINT8Logic
from .job_runner import JobRunner
from .stage_titles import stage_title
from .theme import make_quiet

_GB = 1e9
_SECONDS_BETWEEN_LOOKS = 0.5
#: Stages that are shown, the last ones.
_STAGES = 4


class StageList:
    """The stages of a run in one line: those that are done, and the one under way.

    Args:
        label: where they are shown.
    """

    def __init__(self, label: Any) -> None:
        self._label = label
        self._stages: list[str] = []
        make_quiet(label)

    def clear(self) -> None:
        """A run begins."""
        self._stages = []
        self._label.setText("")

    def add(self, event: ProgressEvent) -> None:
        """A report came."""
        if event.stage and (not self._stages or event.stage != self._stages[-1]):
            if event.stage in self._stages:
                # Back from a stage within it.
                del self._stages[self._stages.index(event.stage) :]
            self._stages.append(event.stage)
            titles = [stage_title(stage) for stage in self._stages[-_STAGES:]]
            marked = [*(f"✓ {title}" for title in titles[:-1]), f"▸ {titles[-1]}"]
            # A line breaks between stages, not within one.
            self._label.setText("   ".join(text.replace(" ", "\u00a0") for text in marked))


class LoadView:
    """Shows what the worker takes while something runs.

    Args:
        ui: the widgets of the .ui file by name.
    """

    def __init__(self, ui: Any, logic: MedQuantINT8Logic, runner: JobRunner) -> None:
        self._ui, self._logic = ui, logic
        self._looked = 0.0
        self.largest_bytes = 0
        runner.ticked.append(self.look)

    def look(self) -> None:
        """Look at the worker, not more often than twice a second."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        load = self._logic.load()
        self._ui.gaugeWidget.setVisible(load is not None)
        if load is not None:
            self.show(load)

    def show(self, load: Load) -> None:
        """Show one look; what is not known is not shown."""
        ui = self._ui
        ui.processorBar.setVisible(load.processor_share is not None)
        if load.processor_share is not None:
            _show_share(ui.processorBar, load.processor_share, _("Processor {share}"))
        ui.memoryBar.setVisible(load.memory_bytes is not None)
        if load.memory_bytes is not None:
            text = _("{used} of {all} GB").format(
                used=f"{load.memory_bytes / _GB:.1f}", all=f"{(load.memory_bytes + load.free_bytes) / _GB:.1f}"
            )
            _show_share(ui.memoryBar, load.memory_bytes / max(1, load.memory_bytes + load.free_bytes), text)
        ui.gpuBar.setVisible(load.gpu is not None)
        if load.gpu is not None:
            text = _("GPU {number}: {share}, {used} GB").format(
                number=load.gpu.index, share="{share}", used=f"{load.gpu.used_bytes / _GB:.1f}"
            )
            _show_share(ui.gpuBar, load.gpu.share, text)


def _show_share(bar: Any, share: float, text: str) -> None:
    """Show a share (0 to 1), which stands in the text as ``{share}``."""
    percent = round(100 * share)
    bar.setValue(percent)
    # Qt takes %p, %v and %m of a bar's text for numbers of its own.
    bar.setFormat(text.format(share=f"{percent} %"))
