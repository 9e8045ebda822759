"""Installing the packages that a road needs: one question that says what, how large, which license and where to; then pip, or wheels."""

from __future__ import annotations

import importlib
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DependencyError
from ..translation import tr as _
from . import dependencies

Ask = Callable[[str], bool]
Install = Callable[[list[str]], None]


@dataclass(frozen=True)
class InstallQuestion:
    """What is asked before anything is installed.

    Attributes:
        packages: requirements that are missing.
        purposes, sizes, licenses: of the groups that they belong to.
        target: the folder that they are installed into.
        wheels: the folder of wheels that was set, or an empty text.
    """

    packages: tuple[str, ...]
    purposes: tuple[str, ...]
    sizes: tuple[str, ...]
    licenses: tuple[str, ...]
    target: str
    wheels: str = ""

    def text(self) -> str:
        """The question in words."""
        text = _(
            "MedQuantINT8 needs Python packages {purpose}:\n\n{packages}\n\n{size}.\nLicenses: {license}.\n\n"
            "They are installed into Slicer's own Python, {target}. Install now?"
        )
        return text.format(
            purpose=_(" and ").join(self.purposes),
            packages=", ".join(self.packages),
            size="; ".join(self.sizes),
            license="; ".join(self.licenses),
            target=self.target,
        )


@dataclass(frozen=True)
class Consent:
    """What the user answered.

    Attributes:
        agreed: whether to install.
        wheels: a folder of wheels to install from, without a network; or an empty text.
    """

    agreed: bool
    wheels: str = ""


@dataclass(frozen=True)
class Installer:
    """Who is asked, and how packages come in.

    Attributes:
        consent: asks for the user's agreement.
        ask: asks a yes-or-no question, where Slicer's PyTorch extension is missing.
        install, install_torch: by default Slicer's own ways.
        wheels: the folder of wheels that the user set once for all.
    """

    consent: Callable[[InstallQuestion], Consent]
    ask: Ask
    install: Install | None = None
    install_torch: Callable[[], None] | None = None
    wheels: str = ""


def ensure(
    names: Sequence[str], installer: Installer, python: Callable[[str], str | None] = lambda _name: None
) -> bool:
    """Install what several roads need, if the user agrees; asked once for all of them.

    Args:
        names: of :data:`.dependencies.GROUPS`.
        python: the Python that does a group's work; None for Slicer's own. Nothing is installed into another.

    Returns:
        Whether anything was installed.

    Raises:
        DependencyError: the user refused, or it could not be installed, or another Python lacks it; says what is missing.
    """
    groups = [dependencies.GROUPS[name] for name in dict.fromkeys(names)]
    lacking: dict[str, None] = {}
    own = []
    for name, group in zip(dict.fromkeys(names), groups, strict=True):
        other = python(name)
        missing = dependencies.missing(group, other)
        if missing and other is not None:
            _refuse(other, group, missing)
        if missing:
            own.append(group)
            lacking.update(dict.fromkeys(missing))
    if not lacking:
        return False
    question = InstallQuestion(
        tuple(lacking),
        tuple(dict.fromkeys(group.purpose for group in own)),
        tuple(dict.fromkeys(group.size for group in own)),
        tuple(dict.fromkeys(group.license for group in own)),
        sysconfig.get_paths()["purelib"],
        installer.wheels,
    )
    consent = installer.consent(question)
    if not consent.agreed:
        text = _("Nothing was installed; {packages} would be needed.")
        raise DependencyError(
            text.format(packages=dependencies.names_of(list(lacking))), _("Press the button again to be asked again.")
        )
    if consent.wheels:
        check_wheels(consent.wheels)
    _install_all(list(lacking), installer, consent)
    importlib.invalidate_caches()
    if still := [line for group in own for line in dependencies.missing(group)]:
        text = _("{packages} could not be installed.").format(packages=dependencies.names_of(still))
        raise DependencyError(text, _("Look at the Python console for pip's own words."))
    return True


def _refuse(python: str, group: dependencies.Group, missing: list[str]) -> None:
    text = _("{python} lacks packages {purpose}: {packages}.")
    hint = _("Install them there: {python} -m pip install {quoted}")
    raise DependencyError(
        text.format(python=python, purpose=group.purpose, packages=dependencies.names_of(missing)),
        hint.format(python=python, quoted=" ".join(f"'{line}'" for line in missing)),
    )


def check_wheels(folder: str) -> None:
    """Whether a folder holds wheels.

    Raises:
        DependencyError: it does not exist, or holds none.
    """
    if not Path(folder).is_dir() or not any(Path(folder).glob("*.whl")):
        raise DependencyError(
            _("{folder} holds no Python packages (.whl).").format(folder=folder),
            _("Fill it on a computer with a network: python -m pip download -r requirements-segment.txt -d FOLDER"),
        )


def _install_all(lacking: list[str], installer: Installer, consent: Consent) -> None:
    try:
        if consent.wheels:
            (installer.install or partial(_install_wheels, consent.wheels))(lacking)
            return
        if any(dependencies.name_of(line) == "torch" for line in lacking):
            (installer.install_torch or partial(_install_torch, installer.ask))()
        others = [line for line in lacking if dependencies.name_of(line) != "torch"]
        if others:
            (installer.install or _install)(others)
    except DependencyError:
        raise
    except Exception as error:
        # pip fails in many ways (no network, a proxy, a full disk, no rights), each with an exception of its own.
        raise DependencyError(
            _("The packages could not be installed: {reason}").format(reason=dependencies.last_line(error)),
            _("Check that the folder holds all of them, for this Python and system.")
            if consent.wheels
            else _(
                "Check the network and the proxy (https_proxy) and the space on the disk, then press the button again."
            ),
        ) from error


def _install_wheels(folder: str, lines: list[str]) -> None:
    """From a folder, without a network."""
    import slicer

    slicer.util.pip_install(["--no-index", "--find-links", folder, *lines])


def _install(lines: list[str]) -> None:
    """Through Slicer's package manager (5.11 and later), or pip on an older Slicer."""
    import slicer

    try:
        # A submodule of Slicer, not the attribute: it is loaded on demand.
        import slicer.packaging as manager
    except ImportError:
        manager = None
    ensure_packages: Any = getattr(manager, "pip_ensure", None)
    if ensure_packages is None:
        slicer.util.pip_install(" ".join(lines))
        return
    # The user has agreed already, to more than pip would tell.
    ensure_packages([dependencies.parsed(line) for line in lines], prompt_install=False, requester="MedQuantINT8")


def _install_torch(ask: Ask) -> None:
    """PyTorch by Slicer's PyTorch extension, which picks the right build; where the extension is missing, it is offered."""
    try:
        import PyTorchUtils
    except ImportError as error:
        _offer_extension(ask)
        text = _("PyTorch is needed to make INT8 networks, and Slicer's PyTorch extension is not installed.")
        hint = _(
            "Install the PyTorch extension from the Extensions Manager and restart Slicer, or name another Python that has torch."
        )
        raise DependencyError(text, hint) from error
    if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=">=2.8") is None:
        raise DependencyError(
            _("PyTorch could not be installed."), _("Install it with the PyTorch extension's own module.")
        )


def _offer_extension(ask: Ask) -> None:
    """Install Slicer's PyTorch extension, if the user agrees and this Slicer has an Extensions Manager.

    Raises:
        DependencyError: it was installed; Slicer has to be restarted before it can be used.
    """
    import slicer

    manager_of = getattr(getattr(slicer, "app", None), "extensionsManagerModel", None)
    if manager_of is None or not ask(
        _("PyTorch is installed by Slicer's PyTorch extension, which is not there yet. Install the extension now?")
    ):
        return
    manager = manager_of()
    manager.interactive = False  # the user has just agreed
    if manager.installExtensionFromServer("PyTorch", False):
        raise DependencyError(
            _("The PyTorch extension was installed."), _("Restart Slicer, then press the button again.")
        )
