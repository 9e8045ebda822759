"""Nothing leaves the machine: packages that this project runs on are kept from reporting to their makers.

ONNX Runtime keeps a file of events in the user's home folder and looks up its makers' host as soon as it is imported; its own
``disable_telemetry_events`` comes too late for both. OpenVINO's package for that is handled where it is imported (``engines/openvino.py``).
"""

from __future__ import annotations

import os
import sys

#: Read by ONNX Runtime, by the hub's client that ModelOpt brings, and by Ray, when they are imported.
SILENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def silence() -> None:
    """Let packages that are imported from now on report nothing. In the Slicer application, whose process belongs to its user and to other
    extensions as well, nothing is set; processes that this project starts from there are silent by :func:`silent`."""
    if not hasattr(sys.modules.get("slicer"), "app"):
        os.environ.update(SILENT)


def silent(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process of this project's own."""
    return {**environment, **SILENT}
