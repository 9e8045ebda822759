"""Compiles a network for TensorRT for RTX in a process of its own, and gives what the compiler wrote to its log.

The compiler cannot be stopped and writes straight to the process's standard error; in a child both are no trouble.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ...errors import Cancelled
from ...progress import Task
from ...system import default_python, library_environment, module_arguments
from ..error_causes import failure, last_and_first
from .rtx_provider import devices, session_options

_POLL_SECONDS = 0.1


def compile_in_process(
    source: Path, target: Path, device: int, provider: dict[str, str], task: Task, module: str = __name__
) -> list[str]:
    """Compile ``source`` into ``target``; the lines of the verbose log.

    Args:
        device: number among the plug-in's devices.
        provider: its options.
        module: what the child runs.

    Raises:
        EngineError: it failed; holds its last words.
        Cancelled: the task was cancelled; the child is gone.
    """
    request = {"source": str(source), "target": str(target), "device": device, "provider": provider}
    with task.stage("building the engine"):
        child = subprocess.Popen(
            [default_python(), *module_arguments(module), json.dumps(request)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=library_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(child.stderr or ()), daemon=True)
        reader.start()
        while child.poll() is None:
            if task.cancelled:
                child.kill()
                child.wait()
                raise Cancelled()
            reader.join(_POLL_SECONDS)
        reader.join()
    if child.returncode:
        errors = [line for line in lines if "rror" in line] or [line for line in lines if line.strip()][-1:]
        raise failure(
            f"TensorRT for RTX cannot compile this network: {last_and_first(errors)}.",
            errors,
            "Choose another engine with --engine.",
        )
    return lines


def compile_network(request: dict[str, Any]) -> None:
    """Compile the network; this is what the child process runs."""
    import onnxruntime as ort

    ort.set_default_logger_severity(0)
    options = session_options(ort, devices()[request["device"]], request["provider"])
    options.log_severity_level = 0
    ort.ModelCompiler(options, request["source"], embed_compiled_data_into_model=True).compile_to_file(
        request["target"]
    )


if __name__ == "__main__":
    compile_network(json.loads(sys.argv[1]))
