"""What of TensorRT can be had without NVIDIA's own index: the real Python bindings over stub libraries, and the real parser and
builder of TensorRT for RTX under the bindings of TensorRT 11 (an unsupported mix, for tests only).

``make test`` installs the wheels below .venv/tensorrt; ``MEDQUANT_TENSORRT`` names another folder. They are proprietary: installed,
never part of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = Path(os.environ.get("MEDQUANT_TENSORRT", ROOT / ".venv" / "tensorrt"))
VERSIONS = ("10.13", "10.16", "11.4")


def bindings(version: str) -> Path | None:
    path = FOLDER / version
    return path if (path / "tensorrt_bindings").is_dir() else None


def rtx() -> Path | None:
    path = FOLDER / "rtx" / "onnxruntime_ep_nv_tensorrt_rtx"
    return path if bindings("11.4") and next(path.glob("libtensorrt_rtx.so.*"), None) else None


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def stub_libraries(version: str, folder: Path) -> Path:
    """Stub libraries with the names that the bindings of a version look for."""
    major = version.split(".")[0]
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        _compile(stem, f"lib{stem}.so.{major}", folder)
    return folder


def stub_driver(folder: Path) -> Path:
    """NVIDIA's driver, finding no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("cuda", "nvidia-ml"):
        _compile(stem, f"lib{stem}.so.1", folder)
    return folder


def _compile(stem: str, name: str, folder: Path) -> None:
    source = HERE / "tensorrt_stubs" / f"{stem}.c"
    subprocess.run(
        [compiler() or "cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)],
        check=True,
    )


def rtx_libraries(folder: Path) -> list[Path]:
    """TensorRT for RTX under the names of TensorRT 11, and a stub for the plugins."""
    found = rtx()
    assert found is not None
    stub_libraries("11.4", folder)
    for name, real in (
        ("libnvinfer.so.11", "libtensorrt_rtx.so.*"),
        ("libnvonnxparser.so.11", "libtensorrt_onnxparser_rtx.so.*"),
    ):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(next(found.glob(real)))
    return [folder, found]


def run(version: str, libraries: list[Path], code: str, *arguments: str) -> Any:
    """Run code in a process where ``import tensorrt`` gives the bindings of a version; the JSON of its last line."""
    start = (
        "import sys, importlib.machinery, types\n"
        "import tensorrt_bindings\n"
        "sys.modules['tensorrt'] = tensorrt_bindings\n"
        "tensorrt_bindings.__spec__ = importlib.machinery.ModuleSpec('tensorrt', None)\n"
    )
    path = os.pathsep.join([str(FOLDER / version), str(ROOT / "MedQuantINT8"), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    done = subprocess.run(
        [sys.executable, "-c", start + code, *arguments], capture_output=True, text=True, env=environment, timeout=560
    )
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


#: Builds a package's network as the engine does, and reads the builder's own table of layers.
COMPILE = """
import json, sys, time
from pathlib import Path
import tensorrt as trt
from MedQuantINT8Lib.engines.tensorrt import backend
from MedQuantINT8Lib.engines.base import BuildOptions, EngineDescription
from MedQuantINT8Lib.engines.tensorrt.layer_table import from_log, traffic_from_log, without_double_work
from MedQuantINT8Lib.progress import Task

network, precision, *patch = sys.argv[1:]
class Verbose:
    def __init__(self):
        lines = self.lines = []
        class Logger(trt.ILogger):
            def __init__(self): trt.ILogger.__init__(self)
            def log(self, severity, message): lines.extend(message.splitlines())
        self.logger = Logger()
    errors = ()
    def last_words(self):
        return next((l for l in reversed(self.lines) if "rror" in l), self.lines[-1])
log, events = Verbose(), []
options = BuildOptions(precision, tuple(map(int, patch)))
model, macs = backend.prepared(Path(network), options)
began = time.perf_counter()
plan = backend.build_plan(trt, model, options, 1 << 32, None, Task(events.append), log)
layers = without_double_work(from_log(log.lines, macs))
description = EngineDescription("tensorrt", trt.__version__, "none", layers)
kinds = {}
for layer in layers:
    kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
print(json.dumps({"seconds": time.perf_counter() - began, "bytes": len(plan), "kinds": kinds, "layers": len(layers),
    "share": description.int8_mac_share, "verdict": description.verdict, "macs": sum(l.macs for l in layers), "all_macs": sum(macs.values()),
    "traffic": traffic_from_log(log.lines), "int8_layers": sum(l.int8 for l in layers), "events": len(events),
    "not_int8": [[l.name, l.kind, l.macs] for l in layers if l.macs and not l.int8]}))
"""
