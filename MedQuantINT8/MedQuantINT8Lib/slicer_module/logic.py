"""What Slicer's Python console and the module's window call: nodes in, nodes out.

Names are camelCase, as Slicer's are. All work is done in a resident worker process, so that the application stays
responsive and the engine stays loaded. Every method that works takes ``waitForCompletion``: True blocks and returns the
result, False returns a job to poll from a timer (:mod:`..worker.jobs`). No Qt in here.
"""

from __future__ import annotations

from .build_logic import BuildLogic
from .compare_logic import CompareLogic
from .logic_base import PRECISIONS, Progress
from .measure_logic import MeasureLogic
from .segment_logic import SegmentLogic, SegmentRequest

__all__ = ["PRECISIONS", "MedQuantINT8Logic", "Progress", "SegmentRequest"]


class MedQuantINT8Logic(SegmentLogic, MeasureLogic, CompareLogic, BuildLogic):
    """Segments volume nodes with INT8 engines, measures what was found, makes such engines, and compares them with FP32.

    Args:
        python: the Python that segments; by default the caller's own.
        buildPython: the Python that makes INT8 networks, which needs torch and ModelOpt; by default the same. Naming another
            environment keeps those gigabytes out of Slicer.
    """

    def __init__(self, python: str | None = None, buildPython: str | None = None) -> None:
        super().__init__(python)
        self._setBuildPython(buildPython)

    def close(self) -> None:
        """End the workers."""
        self._client.close()
        self._endBuilder()
