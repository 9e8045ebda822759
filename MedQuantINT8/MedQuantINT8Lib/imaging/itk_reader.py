"""Reads files with ITK for :mod:`.reading_process`, in a process whose memory and time are limited: ``python -m MedQuantINT8Lib.imaging.itk_reader``.

Imports NumPy and SimpleITK alone. The request comes as JSON on standard input: ``{"kind": "scan"|"frames", "paths": [...],
"memory": bytes, "seconds": CPU time, "target": file}``; the voxels go into the target, one array after the other, and what
they are as one line of JSON to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_MOST_WARNINGS = 20


def limit(memory: int, seconds: int) -> None:
    """Let the system end this process beyond so much memory (address space) or CPU time; where it cannot, its caller waits so long."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the hard limit of time the system kills without a reason; at the soft one, a second before, it says so.
        later = value + 1 if kind == resource.RLIMIT_CPU else value
        try:
            resource.setrlimit(kind, (value, later if hard == resource.RLIM_INFINITY else min(later, hard)))
        except (ValueError, OSError):
            continue


def main() -> int:
    if sys.argv[1:] == ["ahead"]:
        # Started before there is anything to read: what takes longest is done by then.
        import numpy as np
        import SimpleITK as sitk
    text = sys.stdin.read()
    if not text:
        # Its caller is gone, or has no use for it.
        return 0
    request = json.loads(text)
    limit(request["memory"], request["seconds"])
    import numpy as np
    import SimpleITK as sitk

    class Listener(sitk.LoggerBase):  # type: ignore[misc]
        """Keeps what ITK would print."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def DisplayWarningText(self, text: str) -> None:
            self.messages.append(" ".join(text.split()))

        def DisplayErrorText(self, text: str) -> None:
            self.messages.append(" ".join(text.split()))

        def DisplayText(self, text: str) -> None:
            pass

    listener = Listener()
    listener.SetAsGlobalITKLogger()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)
    arrays: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"arrays": arrays}
    number = 0
    try:
        with open(request["target"], "wb") as target:
            for path in map(Path, request["paths"]):
                # Inside of the folder: its name need not be one that ITK can read.
                os.chdir(path.parent)
                image = sitk.ReadImage(path.name)
                data = np.ascontiguousarray(sitk.GetArrayViewFromImage(image))
                arrays.append({
                    "shape": data.shape, "dtype": data.dtype.str, "dimension": image.GetDimension(),
                    "components": image.GetNumberOfComponentsPerPixel(),
                    "spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection(),
                })  # fmt: skip
                data.tofile(target)
                number += 1
            target.flush()
    except MemoryError:
        answer = {"error": "it needs more memory than a file of its size may take", "number": number}
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The line that says what is wrong; what follows may be the numbers of a matrix.
        message = next(
            (line.split("ERROR:", 1)[1].strip() for line in lines if "ERROR:" in line),
            lines[-1] if lines else type(error).__name__,
        )
        answer = {"error": message.rstrip("."), "number": number}
    answer["warnings"] = listener.messages[:_MOST_WARNINGS]
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
