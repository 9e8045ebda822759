"""Python packages that a road needs, with size and license, and which of them are missing; :mod:`.installation` installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DependencyError
from ..resources import resource
from ..translation import tr as _


@dataclass(frozen=True)
class Group:
    """A group of packages that are installed together.

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
        lines = [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]
        return [*lines, *([_TORCH] if self.torch else [])]

    def modules(self) -> dict[str, str]:
        """Modules that have to be importable on this computer, each with the requirement that brings it; those that take longest to import last."""
        needed = [line for line in self.lines() if _is_for(line, _OWN)]
        requirement_of = {_MODULES.get(name_of(line), name_of(line).replace("-", "_")): line for line in needed}
        return dict(sorted(requirement_of.items(), key=lambda item: item[0].split(".")[0] in _HEAVY))


_TORCH = "torch>=2.8"
#: Modules by the package that brings them, where its name is another; what they import is needed, too.
_MODULES = {"nvidia-modelopt": "modelopt.onnx.quantization", "pyyaml": "yaml"}
_HEAVY = ("torch", "monai", "modelopt", "dynamic_network_architectures")
GROUPS = {
    "segment": Group(
        "requirements-segment.txt",
        _("to run INT8 networks on this computer's processor"),
        _("about 90 MB to download"),
        _("OpenVINO, ONNX and archspec: Apache-2.0; ONNX Runtime: MIT; Jinja2: BSD-3-Clause"),
    ),
    "cuda_int8": Group(
        "requirements-cuda.txt",
        _("to run INT8 networks on this computer's NVIDIA graphics card with this extension's own kernels"),
        _("about 120 MB to download"),
        _(
            "cuda-python and NVRTC: NVIDIA's proprietary licenses, which you accept by installing them; ONNX and archspec: Apache-2.0; ONNX Runtime: MIT; Jinja2: BSD-3-Clause"
        ),
    ),
    "tensorrt": Group(
        "requirements-tensorrt.txt",
        _("to run INT8 networks on this computer's NVIDIA graphics card"),
        _("more than 1 GB to download"),
        _(
            "TensorRT and cuda-python: NVIDIA's proprietary licenses, which you accept by installing them "
            "(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/sla.html); ONNX and archspec: Apache-2.0; ONNX Runtime: MIT; Jinja2: BSD-3-Clause"
        ),
    ),
    "tensorrt_rtx": Group(
        "requirements-tensorrt-rtx.txt",
        _("to run INT8 networks on this computer's GeForce or RTX graphics card"),
        _("about 170 MB to download"),
        _(
            "TensorRT for RTX: NVIDIA's proprietary license, which you accept by installing it; ONNX and archspec: Apache-2.0; ONNX Runtime: MIT; Jinja2: BSD-3-Clause"
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


@dataclass(frozen=True)
class Packages:
    """The packages that a Python has installed.

    Attributes:
        found: a package's version and the requirements that it states, by its name in lower case with "-"; asked for when needed.
        environment: what markers are compared with, where it is another Python than the caller's.
    """

    find: Callable[[str], tuple[str, list[str]] | None]
    environment: Mapping[str, str]


def missing(group: Group, python: str | None = None) -> list[str]:
    """The group's requirements that are not installed, or are too old, without their markers.

    Args:
        python: the Python that needs them, where it is not the caller's own.

    Raises:
        DependencyError: that Python cannot be asked.
    """
    packages = None if python is None else _packages_of(python)
    lacking = [line for line in group.lines() if not (_satisfied(line, packages) if packages else _satisfied(line))]
    return [_without_marker(line) for line in lacking]


_ASK_PACKAGES = """
import importlib.metadata, json, os, platform, sys
found = {}
for package in importlib.metadata.distributions():
    name = package.metadata["Name"]
    if name:
        found.setdefault(name.lower().replace("_", "-").replace(".", "-"), [package.version, package.requires or []])
environment = {
    "os_name": os.name, "sys_platform": sys.platform, "platform_system": platform.system(), "platform_machine": platform.machine(),
    "python_version": "%d.%d" % sys.version_info[:2], "python_full_version": platform.python_version(),
    "implementation_name": sys.implementation.name, "platform_python_implementation": platform.python_implementation(),
}
print(json.dumps({"found": found, "environment": environment}))
"""
_ASK_SECONDS = 30


def _packages_of(python: str) -> Packages:
    """Ask another Python for the packages that it has installed."""
    try:
        process = subprocess.run(
            [python, "-c", _ASK_PACKAGES],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        answer: dict[str, Any] = json.loads(process.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        text = _("The Python {python} cannot be asked what it has installed: {reason}.")
        raise DependencyError(
            text.format(python=python, reason=last_line(error)), _("Name another Python, or none.")
        ) from error
    return Packages(answer["found"].get, answer["environment"])


def _own(name: str) -> tuple[str, list[str]] | None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return distribution.version, distribution.requires or []


_OWN = Packages(_own, {})


def _satisfied(line: str, packages: Packages = _OWN) -> bool:
    """Whether a requirement, with its extras, is met, or its marker says that it is for other computers."""
    if not _is_for(line, packages):
        return True
    wanted = parsed(line)
    package = packages.find(re.sub(r"[-_.]+", "-", wanted.name).lower())
    if package is None:
        return False
    version, stated = package
    if not _contains(wanted.specifier, version):
        return False
    requirements = [needed for extra in wanted.extras for needed in _added_by(extra, stated, packages)]
    return all(_satisfied(needed, packages) for needed in requirements)


def _is_for(line: str, packages: Packages) -> bool:
    """Whether a requirement is for the computer of that Python, as far as its marker says."""
    marker = parsed(line).marker
    return marker is None or marker.evaluate(dict(packages.environment))


def _added_by(extra: str, stated: Sequence[str], packages: Packages) -> list[str]:
    """The requirements that an extra adds to those that a package has without it."""
    added = []
    for line in stated:
        marker = parsed(line).marker
        with_it, without = ({**packages.environment, "extra": name} for name in (extra, ""))
        if marker is not None and marker.evaluate(with_it) and not marker.evaluate(without):
            added.append(_without_marker(line))
    return added


def _contains(specifier: Any, version: str) -> bool:
    """Whether a version lies within a requirement's limits; of one in a form of its own only the leading numbers count."""
    if specifier.contains(version, prereleases=True):
        return True
    release = re.match(r"\d+(?:\.\d+)*", version)
    return release is not None and not _is_standard(version) and specifier.contains(release[0], prereleases=True)


def _is_standard(version: str) -> bool:
    packaging = _packaging("version")
    try:
        packaging.Version(version)
    except packaging.InvalidVersion:
        return False
    return True


def _packaging(module: str) -> Any:
    """A module of the package "packaging", or of the copy that pip, which Slicer brings, holds."""
    try:
        return importlib.import_module(f"packaging.{module}")
    except ImportError:
        return importlib.import_module(f"pip._vendor.packaging.{module}")


def parsed(line: str) -> Any:
    """Parse a line of a requirements file."""
    return _packaging("requirements").Requirement(line)


def _without_marker(line: str) -> str:
    wanted = parsed(line)
    wanted.marker = None
    return str(wanted)


def name_of(line: str) -> str:
    """Return the name of the package that a requirement is for."""
    return str(parsed(line).name)


def names_of(lines: list[str]) -> str:
    """The names of the packages that requirements are for, joined by commas."""
    return ", ".join(map(name_of, lines))


def last_line(error: BaseException) -> str:
    """What an exception says last, which is what matters of pip's many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
