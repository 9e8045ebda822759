"""``medquant doctor``: what is installed, what can run here, and why not the rest.

Nothing heavy is imported for it: versions are read from what is installed beside the packages, and whether a network can be
quantized is told by looking whether each module that takes part can be found.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import TYPE_CHECKING, Any

from .common import Add, add_command
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task

_PACKAGES = (
    "medquantint8",
    "numpy",
    "SimpleITK",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "cuda-python",
    "nvidia-cuda-nvrtc",
    "nvidia-modelopt",
    "torch",
    "monai",
    "slicer-core",
)
#: The modules that ModelOpt's ONNX road (modelopt.onnx.quantization) imports, and the packages that hold them.
QUANTIZER_MODULES = {
    "modelopt": "nvidia-modelopt",
    "torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "onnxslim": "onnxslim",
    "lief": "lief",
    "ml_dtypes": "ml-dtypes",
    "onnx_ir": "onnx-ir",
    "packaging": "packaging",
    "pynvml": "nvidia-ml-py",
    "tqdm": "tqdm",
}
_WIDTH = 80
_INDENT = 11
_INT8 = {
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_int8": "AMX",
    "i8mm": "I8MM",
    "asimddp": "dot products",
}


def add_parser(add: Add) -> None:
    """State the command."""
    add_command(
        add,
        "doctor",
        run,
        "what is installed, which engines can run here, and why not the others",
        "doctor",
    )


def run(args: argparse.Namespace, task: Task) -> None:
    """Print what is installed, what can run here, and why not the rest."""
    report = examine()
    print_result(args, report, *lines_of(report))


def examine() -> dict[str, Any]:
    """What is installed, what can run here and why not the rest."""
    from ..engines.availability import examine_engines
    from ..engines.cache import cache_root
    from ..system import available_memory, installed_version, machine, peak_memory

    lacking = quantizer_lacks()
    return {
        "machine": machine(),
        "gpus": _gpus(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "engines": examine_engines(),
        "quantizer": {"available": not lacking, "reason": lacking},
        "cache": str(cache_root()),
        "memory_available_bytes": available_memory(),
        "peak_memory_bytes": peak_memory(),
    }


def _gpus() -> list[str]:
    from ..engines.cuda.setup_hints import advice_for_gpus
    from ..errors import one_line

    try:
        return advice_for_gpus()
    except Exception as error:
        return [one_line(error)]


def quantizer_lacks() -> str:
    """Why networks cannot be quantized here, or an empty string: every module that takes part must be found, in a version that is new enough."""
    from ..slicer_module.dependencies import GROUPS
    from ..system import installed_version

    absent = [package for module, package in QUANTIZER_MODULES.items() if not _is_installed(module)]
    if absent:
        return f"{', '.join(absent)} {'are' if len(absent) > 1 else 'is'} not installed (pip install 'medquantint8[quantize]')"
    for line in GROUPS["build"].lines():
        package, _, wanted = line.partition(">=")
        have = installed_version(package)
        if have is not None and _numbers(have) < _numbers(wanted):
            return f"{package} {have} is too old: {wanted} is needed (pip install -U {package})"
    return ""


def _is_installed(module: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def lines_of(report: dict[str, Any]) -> list[str]:
    """For a terminal of 80 columns: what can run, what cannot and why, what would make it faster."""
    described, engines, packages = report["machine"], report["engines"], report["packages"]
    features = [_INT8[name] for name in described["features"] if name in _INT8]
    memory = f"{report['memory_available_bytes'] / 1e9:.1f} GB of memory free"
    lines = [
        *_entry("machine", f"{described['processor']}, {described['cores']} cores, {memory}"),
        *_entry(
            "",
            f"{described['system']}, Python {described['python']}; fast INT8: {', '.join(features) or 'no instructions for it'}",
        ),
        "",
    ]
    can = [(name, f"{e['title']} {e['version'].partition('-')[0]}") for name, e in engines.items() if e["available"]]
    cannot = [
        (name, re.sub(r"^The Python package '(\S+)' is", r"\1 is", e["reason"]))
        for name, e in engines.items()
        if not e["available"]
    ]
    quantizer = report["quantizer"]
    if quantizer["available"]:
        can.append(
            ("quantize", f"NVIDIA ModelOpt {packages['nvidia-modelopt'] or ''}, torch {packages['torch'] or ''}")
        )
    else:
        cannot.append(("quantize", quantizer["reason"]))
    lines += _table("can run", can or [("nothing", "no engine: pip install openvino onnx")])
    lines += _table("cannot", cannot)
    lines += [*_list("faster", faster(report)), ""]
    there = [f"{name} {have}" for name, have in packages.items() if have]
    absent = [name for name, have in packages.items() if not have]
    lines += _entry("packages", ", ".join(there))
    lines += _entry("", f"not installed: {', '.join(absent)}") if absent else []
    return [*lines, *_entry("engines in", report["cache"])]


def faster(report: dict[str, Any]) -> list[str]:
    """What would make networks run faster on this machine, most worthwhile first."""
    engines, features = report["engines"], set(report["machine"]["features"])
    advice = [f"GPU {line}" if line[:1].isdigit() else f"an NVIDIA GPU: {line}" for line in report["gpus"]]
    if not engines["openvino"]["available"]:
        advice.append("pip install openvino onnx: INT8 kernels for this processor")
    elif features and not features & _INT8.keys():
        advice.append("this processor has no INT8 instructions (VNNI, AMX): FP32 may be as fast")
    return advice


def _entry(name: str, text: str) -> list[str]:
    """A name and its text, wrapped beside it."""
    return textwrap.wrap(f"{name:{_INDENT}}{text}", _WIDTH, subsequent_indent=" " * _INDENT, break_on_hyphens=False)


def _list(name: str, texts: list[str]) -> list[str]:
    return [line for number, text in enumerate(texts) for line in _entry("" if number else name, text)]


def _table(name: str, rows: list[tuple[str, str]]) -> list[str]:
    """A line for each row: what does not fit is cut at the end of its first sentence, or of the line."""
    lines = []
    for number, (key, text) in enumerate(rows):
        line = f"{'' if number else name:{_INDENT}}{key:12} {text}"
        if len(line) > _WIDTH:
            line = line[: _INDENT + 13] + re.split(r"(?<=\w)\. ", text)[0]
        lines.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3].rstrip() + "...")
    return lines
