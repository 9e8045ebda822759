"""A command of this program in a process of its own, so that its time and peak memory are those of a user's command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Cancelled, EngineError, MedQuantError
from ..inference.engine_choice import EngineChoice
from ..system import default_python, library_environment, module_arguments

_POLL_SECONDS = 0.02


def run_command(arguments: Sequence[str], check: Callable[[], None]) -> dict[str, Any]:
    """Run ``medquant`` in a process of its own; what it prints with ``--json``.

    Args:
        check: called while waiting; what it raises ends the process.

    Raises:
        MedQuantError: the error that the process ended with.
    """
    executable = sys.executable if "python" in Path(sys.executable or "").name.lower() else default_python()
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [executable, *module_arguments("MedQuantINT8Lib.cli.main"), *arguments, "--json"],
            stdout=output,
            stderr=errors,
            env=library_environment(),
        )
        try:
            while process.poll() is None:
                check()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            last = (errors.read().strip().splitlines() or ["the run ended without a word"])[-1]
            if process.returncode < 0 and process.returncode not in (-signal.SIGINT, -signal.SIGTERM):
                raise _ended_by_signal(arguments[0], -process.returncode, last)
            raise error_for(process.returncode)(last.removeprefix("medquant: "))
        return json.loads(output.read().strip().splitlines()[-1])


def _ended_by_signal(command: str, number: int, last: str) -> EngineError:
    """What a command's end by a signal is called: of a library below Python, which says no more than a few words, if any."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    reason = "the system ended it, which may be for lack of memory" if name == "SIGKILL" else last
    return EngineError(
        f"'medquant {command}' in a process of its own was ended by {name}: {reason}.",
        f"Run 'medquant {command}' alone; if it ends so too, choose another engine with --engine, or less memory with --memory.",
    )


def error_for(code: int) -> type[MedQuantError]:
    """Return the kind of error that ends a process with this exit code."""
    kinds = {kind.exit_code: kind for kind in MedQuantError.__subclasses__()}
    return Cancelled if code == Cancelled.exit_code else kinds.get(code, EngineError)


def segment_commands(
    model: str, scan: str, choice: EngineChoice, flags: Sequence[str], output: Path
) -> tuple[list[str], list[str]]:
    """Return the commands that build an engine for a scan and segment it.

    Args:
        choice: its precision is one of a run, not "auto".
        flags: further arguments that both commands take.
    """
    common = ["--engine", choice.name, "--precision", choice.precision, "--device", choice.device, *flags]
    return ["build", model, *common, "--scan", scan], ["segment", model, scan, *common, "--output", str(output)]
