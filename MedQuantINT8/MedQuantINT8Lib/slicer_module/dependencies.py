"""Python packages that a road needs: asked for at the click, with size and license, and only what the chosen road takes."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import DependencyError
from ..resources import resource
from ..translation import tr as _


@dataclass(frozen=True)
class Group:
    """Packages that are installed together.

    Attributes:
        requirements: file in Resources.
        purpose, size, license: told before anything is installed.
        torch: whether PyTorch is needed too; it comes through the PyTorch extension, which picks the right build.
    """

    requirements: str
    purpose: str
    size: str
    license: str
    torch: bool = False

    def lines(self) -> list[str]:
        text = resource(self.requirements).read_text(encoding="utf-8")
        return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


GROUPS = {
    "segment": Group(
        "requirements-segment.txt",
        _("to run INT8 networks on this computer's processor"),
        _("about 90 MB to download"),
        _("OpenVINO and ONNX: Apache-2.0; ONNX Runtime: MIT"),
    ),
    "cuda_int8": Group(
        "requirements-cuda.txt",
        _("to run INT8 networks on this computer's NVIDIA graphics card with this extension's own kernels"),
        _("about 120 MB to download"),
        _(
            "cuda-python and NVRTC: NVIDIA's proprietary licenses, which you accept by installing them; ONNX: Apache-2.0; ONNX Runtime: MIT"
        ),
    ),
    "tensorrt": Group(
        "requirements-tensorrt.txt",
        _("to run INT8 networks on this computer's NVIDIA graphics card"),
        _("more than 1 GB to download"),
        _(
            "TensorRT and cuda-python: NVIDIA's proprietary licenses, which you accept by installing them "
            "(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/sla.html); ONNX: Apache-2.0; ONNX Runtime: MIT"
        ),
    ),
    "tensorrt_rtx": Group(
        "requirements-tensorrt-rtx.txt",
        _("to run INT8 networks on this computer's GeForce or RTX graphics card"),
        _("about 170 MB to download"),
        _(
            "TensorRT for RTX: NVIDIA's proprietary license, which you accept by installing it; ONNX: Apache-2.0; ONNX Runtime: MIT"
        ),
    ),
    "import": Group(
        "requirements-import.txt",
        _("to turn PyTorch networks (MONAI bundles, nnU-Net, Auto3DSeg) into ONNX"),
        _("about 20 MB to download, and PyTorch (0.2 to 3 GB) where it is not there yet"),
        _("MONAI and dynamic-network-architectures: Apache-2.0; onnxscript and einops: MIT; PyTorch: BSD-3-Clause"),
        torch=True,
    ),
    "build": Group(
        "requirements-build.txt",
        _("to make INT8 networks (NVIDIA ModelOpt and what it needs)"),
        _("about 100 MB to download, and PyTorch (0.2 to 3 GB) where it is not there yet"),
        _("ModelOpt: Apache-2.0; PyTorch: BSD-3-Clause"),
        torch=True,
    ),
}

Ask = Callable[[str], bool]
Install = Callable[[list[str]], None]


def missing(group: Group) -> list[str]:
    """The group's requirements that are not installed, or are too old."""
    return [line for line in [*group.lines(), *(["torch>=2.8"] if group.torch else [])] if not _satisfied(line)]


def _satisfied(line: str) -> bool:
    match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line)
    assert match is not None, line
    try:
        have = importlib.metadata.version(match[1])
    except importlib.metadata.PackageNotFoundError:
        return False
    return _numbers(have) >= _numbers(match[2])


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def ensure(
    name: str, ask: Ask, install: Install | None = None, install_torch: Callable[[], None] | None = None
) -> bool:
    """Install what a road needs, if the user agrees.

    Args:
        ask: shows the text and returns whether the user agreed.
        install, install_torch: by default Slicer's own ways.

    Returns:
        Whether anything was installed.

    Raises:
        DependencyError: the user refused, or it could not be installed; says what is missing.
    """
    group = GROUPS[name]
    lacking = missing(group)
    if not lacking:
        return False
    question = _(
        "MedQuantINT8 needs Python packages {purpose}:\n\n{packages}\n\n{size}.\nLicenses: {license}.\n\n"
        "They are installed into Slicer's own Python. Install now?"
    )
    if not ask(
        question.format(purpose=group.purpose, packages=", ".join(lacking), size=group.size, license=group.license)
    ):
        text = _("Nothing was installed; {packages} would be needed.")
        raise DependencyError(text.format(packages=_names(lacking)), _("Press the button again to be asked again."))
    try:
        if any(line.startswith("torch>") for line in lacking):
            (install_torch or partial(_install_torch, ask))()
        others = [line for line in lacking if not line.startswith("torch>")]
        if others:
            (install or _install)(others)
    except DependencyError:
        raise
    except Exception as error:
        # pip fails in many ways (no network, a proxy, a full disk, no rights), each with an exception of its own.
        raise DependencyError(
            _("The packages could not be installed: {reason}").format(reason=_last_line(error)),
            _("Check the network and the proxy (https_proxy) and the space on the disk, then press the button again."),
        ) from error
    importlib.invalidate_caches()
    if still := missing(group):
        text = _("{packages} could not be installed.").format(packages=_names(still))
        raise DependencyError(text, _("Look at the Python console for pip's own words."))
    return True


def _names(lines: list[str]) -> str:
    return ", ".join(line.split(">")[0] for line in lines)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


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
    from packaging.requirements import Requirement

    # The user has agreed already, to more than pip would tell.
    ensure_packages([Requirement(line) for line in lines], prompt_install=False, requester="MedQuantINT8")


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
