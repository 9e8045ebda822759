"""The one dialog before anything is installed: what, how large, under which license, where to; and from where without a network."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ..installation import Consent, InstallQuestion
from . import file_dialogs
from .qt_compat import read
from .theme import line_height, make_primary

_WIDTH_IN_LINES = 32
_LIST_LINES = 6


class PackagesDialog:
    """Shows what is to be installed.

    Args:
        question: what is asked.
    """

    def __init__(self, question: InstallQuestion) -> None:
        self.dialog = qt.QDialog(slicer.util.mainWindow())
        self.dialog.setWindowTitle(_("Packages for Fast 3D Segmentation (INT8)"))
        layout = qt.QVBoxLayout(self.dialog)
        layout.addWidget(
            _text(_("Python packages are needed {purpose}.").format(purpose=_(" and ").join(question.purposes)))
        )
        packages = qt.QPlainTextEdit("\n".join(question.packages))
        packages.setReadOnly(True)
        packages.setTabChangesFocus(True)
        packages.setFixedHeight(_LIST_LINES * line_height(packages))
        packages.setAccessibleName(_("Packages"))
        packages.setToolTip(_("The packages that are missing, with the versions that fit"))
        layout.addWidget(packages)
        for text in (
            _("Size: {size}").format(size="; ".join(question.sizes)),
            _("License: {license}").format(license="; ".join(question.licenses)),
            _("Installed into: {folder}").format(folder=question.target),
        ):
            layout.addWidget(_text(text))
        self.wheelsCheck = qt.QCheckBox(_("From a &folder of wheels, without a network"))
        self.wheelsCheck.setToolTip(_("Install from Python packages (.whl) in a folder, and fetch nothing"))
        self.wheelsEdit = qt.QLineEdit(question.wheels)
        self.wheelsEdit.setAccessibleName(_("Folder of wheels"))
        self.wheelsEdit.setToolTip(_("The folder with the Python packages"))
        browse = qt.QPushButton(_("&Choose …"))
        browse.setToolTip(_("Choose the folder with the Python packages"))
        browse.clicked.connect(self._browse)
        self.wheelsCheck.toggled.connect(self._showFolder)
        layout.addWidget(self.wheelsCheck)
        self._folder = qt.QWidget()
        row = qt.QHBoxLayout(self._folder)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.wheelsEdit)
        row.addWidget(browse)
        layout.addWidget(self._folder)
        self.wheelsCheck.setChecked(bool(question.wheels))
        self._showFolder(bool(question.wheels))
        buttons = qt.QHBoxLayout()
        self.installButton, self.cancelButton = qt.QPushButton(_("&Install")), qt.QPushButton(_("Cancel"))
        make_primary(self.installButton)
        self.installButton.setDefault(True)
        self.installButton.setToolTip(_("Accept the licenses, and install"))
        self.cancelButton.setToolTip(_("Install nothing"))
        self.agreed = False
        self.installButton.clicked.connect(self._agree)
        self.cancelButton.clicked.connect(lambda *_arguments: self.dialog.reject())
        buttons.addStretch(1)
        buttons.addWidget(self.cancelButton)
        buttons.addWidget(self.installButton)
        layout.addLayout(buttons)
        self.dialog.setMinimumWidth(_WIDTH_IN_LINES * line_height(self.dialog))
        self.dialog.adjustSize()

    def _agree(self, *_arguments: Any) -> None:
        self.agreed = True
        self.dialog.accept()

    def _showFolder(self, shown: bool) -> None:
        self._folder.setVisible(shown)

    def _browse(self, *_arguments: Any) -> None:
        folder = file_dialogs.open_folder(self.dialog, _("Folder of wheels"))
        if folder:
            self.wheelsEdit.setText(folder)

    def answer(self) -> Consent:
        """What the user said."""
        wheels = str(read(self.wheelsEdit, "text")).strip() if read(self.wheelsCheck, "checked") else ""
        return Consent(self.agreed, wheels)

    def run(self) -> Consent:
        """Ask."""
        self.dialog.exec_()
        consent = self.answer()
        self.dialog.deleteLater()
        return consent


def ask_consent(question: InstallQuestion) -> Consent:
    """Show the dialog, and wait for the answer."""
    return PackagesDialog(question).run()


def _text(text: str) -> Any:
    label = qt.QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse | qt.Qt.TextSelectableByKeyboard)
    return label
