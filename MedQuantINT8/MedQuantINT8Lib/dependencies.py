"""Python packages that a road needs: asked for at the click, with size and licence, and only what the chosen road takes."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import DependencyError
from .resources import resource


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
        "to run INT8 networks on this computer's processor",
        "about 90 MB to download",
        "OpenVINO and ONNX: Apache-2.0; ONNX Runtime: MIT",
    ),
    "cuda_int8": Group(
        "requirements-cuda.txt",
        "to run INT8 networks on this computer's NVIDIA graphics card with this extension's own kernels",
        "about 120 MB to download",
        "cuda-python and NVRTC: NVIDIA's proprietary licences, which you accept by installing them; ONNX: Apache-2.0; ONNX Runtime: MIT",
    ),
    "tensorrt": Group(
        "requirements-tensorrt.txt",
        "to run INT8 networks on this computer's NVIDIA graphics card",
        "more than 1 GB to download",
        "TensorRT and cuda-python: NVIDIA's proprietary licences, which you accept by installing them "
        "(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/sla.html); ONNX: Apache-2.0; ONNX Runtime: MIT",
    ),
    "tensorrt_rtx": Group(
        "requirements-tensorrt-rtx.txt",
        "to run INT8 networks on this computer's GeForce or RTX graphics card",
        "about 170 MB to download",
        "TensorRT for RTX: NVIDIA's proprietary licence, which you accept by installing it; ONNX: Apache-2.0; ONNX Runtime: MIT",
    ),
    "import": Group(
        "requirements-import.txt",
        "to turn PyTorch networks (MONAI bundles, nnU-Net, Auto3DSeg) into ONNX",
        "about 20 MB to download, and PyTorch (0.2 to 3 GB) where it is not there yet",
        "MONAI and dynamic-network-architectures: Apache-2.0; onnxscript and einops: MIT; PyTorch: BSD-3-Clause",
        torch=True,
    ),
    "build": Group(
        "requirements-build.txt",
        "to make INT8 networks (NVIDIA ModelOpt and what it needs)",
        "about 100 MB to download, and PyTorch (0.2 to 3 GB) where it is not there yet",
        "ModelOpt: Apache-2.0; PyTorch: BSD-3-Clause",
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


def ensure(name: str, ask: Ask, install: Install | None = None, install_torch: Callable[[], None] | None = None) -> bool:
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
    text = (
        f"MedQuantINT8 needs Python packages {group.purpose}:\n\n{', '.join(lacking)}\n\n{group.size}.\nLicences: {group.license}.\n\n"
        "They are installed into Slicer's own Python. Install now?"
    )
    if not ask(text):
        raise DependencyError(f"Nothing was installed; {_names(lacking)} would be needed.", "Press the button again to be asked again.")
    try:
        if any(line.startswith("torch>") for line in lacking):
            (install_torch or _install_torch)()
        others = [line for line in lacking if not line.startswith("torch>")]
        if others:
            (install or _install)(others)
    except DependencyError:
        raise
    except Exception as error:
        # pip fails in many ways (no network, a proxy, a full disk, no rights), each with an exception of its own.
        raise DependencyError(
            f"The packages could not be installed: {_last_line(error)}",
            "Check the network and the proxy (https_proxy) and the space on the disk, then press the button again.",
        ) from error
    importlib.invalidate_caches()
    if still := missing(group):
        raise DependencyError(f"{_names(still)} could not be installed.", "Look at the Python console for pip's own words.")
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


def _install_torch() -> None:
    try:
        import PyTorchUtils
    except ImportError as error:
        raise DependencyError(
            "PyTorch is needed to make INT8 networks, and Slicer's PyTorch extension is not installed.",
            "Install the PyTorch extension from the Extensions Manager and restart Slicer, or name another Python that has torch.",
        ) from error
    if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=">=2.8") is None:
        raise DependencyError("PyTorch could not be installed.", "Install it with the PyTorch extension's own module.")
