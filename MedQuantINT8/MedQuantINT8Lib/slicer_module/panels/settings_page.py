"""The module's page in the Application Settings."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...engines.cache import cache_root
from ...models.installed import models_root
from ...system import cpu_count
from ..settings import KEYS, Settings

_MOST_GB = 1024.0


def read_settings() -> Settings:
    """The settings as the application keeps them now."""
    kept = slicer.app.userSettings()
    return Settings.read(kept.value)


def add_settings_page(title: str) -> Any | None:
    """Add the page to the application's dialog; the page, or None where there is no such dialog."""
    dialog = getattr(slicer.app, "settingsDialog", None)
    if dialog is None or slicer.app.commandOptions().noMainWindow:
        return None
    page = settings_page()
    dialog().addPanel(title, page)
    return page


def settings_page() -> Any:
    """The page: folders, threads, memory, and what is sent to anybody."""
    import ctk

    page = ctk.ctkSettingsPanel()
    form = qt.QFormLayout(page)
    form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)

    def row(field: str, text: str, widget: Any, tip: str, bound: tuple[str, str]) -> None:
        label = qt.QLabel(text)
        label.setBuddy(widget)
        widget.setToolTip(tip)
        widget.setAccessibleName(text.replace("&", "").rstrip(":"))
        widget.setObjectName(f"{field}Edit")
        form.addRow(label, widget)
        name, signal = bound
        page.registerProperty(KEYS[field], widget, name, str(qt.SIGNAL(signal)))

    row(
        "modelsFolder",
        _("&Models:"),
        _folder(str(models_root())),
        _("Folder of installed models; empty for {folder}").format(folder=models_root()),
        ("text", "textChanged(QString)"),
    )
    row(
        "enginesFolder",
        _("&Built engines:"),
        _folder(str(cache_root())),
        _("Folder of engines that were built for this computer; empty for {folder}").format(folder=cache_root()),
        ("text", "textChanged(QString)"),
    )
    row(
        "wheelsFolder",
        _("&Packages (wheels):"),
        _folder(),
        _(
            "Folder with Python packages to install from, for computers without a network; empty takes them from the network"
        ),
        ("text", "textChanged(QString)"),
    )
    row(
        "buildPython",
        _("Python for &INT8 networks:"),
        _folder(),
        _("A Python with torch and ModelOpt, so that they need not be installed into Slicer; empty for Slicer’s own"),
        ("text", "textChanged(QString)"),
    )
    threads = qt.QSpinBox()
    threads.setRange(0, cpu_count())
    threads.setSpecialValueText(_("all"))
    row(
        "threads",
        _("&Threads:"),
        threads,
        _("Threads of the processor for a segmentation; fewer leave more of it to other programs"),
        ("value", "valueChanged(int)"),
    )
    memory = qt.QDoubleSpinBox()
    memory.setRange(0.0, _MOST_GB)
    memory.setSingleStep(0.5)
    memory.setSuffix(" GB")
    memory.setSpecialValueText(_("what is free"))
    row(
        "memoryGB",
        _("Memory for &scores:"),
        memory,
        _("Most memory for class scores that are blended; with less, some windows are computed twice"),
        ("value", "valueChanged(double)"),
    )
    telemetry = qt.QLabel(
        _("Telemetry: none. Nothing is sent to anybody; models and packages are downloaded at a click alone.")
    )
    telemetry.setWordWrap(True)
    telemetry.setObjectName("telemetryLabel")
    telemetry.setToolTip(_("What engines and libraries would send is switched off as well"))
    form.addRow(telemetry)
    return page


def _folder(usual: str = "") -> Any:
    """A line for a folder; what an empty one stands for is shown in it."""
    edit = qt.QLineEdit()
    edit.setPlaceholderText(usual)
    edit.setClearButtonEnabled(True)
    return edit
