"""Comparing FP32 with INT8, for Slicer's console and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ..errors import InputError
from ..evaluation.boundary import VOLUME_CHANGE
from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions
from ..worker.jobs import BackgroundJob, BatchJob
from ..worker.submitted_job import WorkerResult
from . import scene
from .comparison import Comparison, add_differences, add_table
from .logic_base import LogicBase, Progress


class CompareLogic(LogicBase):
    """Runs a model in FP32 and in INT8, and shows where the two differ."""

    def compare(
        self,
        volumeNode: Any,
        model: str,
        engine: str = "auto",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        options: SegmentationOptions = SegmentationOptions(),
        volumeChange: float = VOLUME_CHANGE,
        *,
        device: str = EngineChoice.device,
    ) -> Any:
        """FP32 beside INT8 on a volume node: a :class:`.comparison.Comparison`.

        Its nodes come into the scene with :meth:`showDifferences` and :meth:`differencesTable`.

        Args:
            volumeChange: structures whose volume changes by more than this are pointed out, in percent.
            device: as at :meth:`segment`.
        """
        volume = scene.volume_from_node(volumeNode)
        path = self._modelPath(model)
        spec = self._spec(path)
        choice = self._choice(engine, "int8", device)
        job = self._client.begin(
            "compare",
            [volume],
            model=path,
            choice=asdict(choice),
            options=asdict(self.settings.options(options)),
            volume_change=volumeChange,
        )

        def finish(result: WorkerResult) -> Comparison:
            return Comparison(volumeNode, spec, result.arrays, result.report)

        check = partial(self._stillThere, volumeNode, "The volume")
        return self._result(BackgroundJob(job, finish, check), waitForCompletion, progress)

    def compareAll(
        self,
        volumeNodes: Sequence[Any],
        model: str,
        engine: str = "auto",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """:meth:`compare` for several volumes, with its further arguments; a list of comparisons."""
        if not volumeNodes:
            raise InputError("There is no volume to compare on.", "Choose at least one.")
        pieces = [
            (node.GetName(), partial(self.compare, node, model, engine, waitForCompletion=False, **options))
            for node in volumeNodes
        ]
        return self._result(BatchJob(pieces), waitForCompletion, progress)

    def showDifferences(self, comparison: Comparison) -> Any | None:
        """A segmentation node of the regions where INT8 differs from FP32, or None if there is none."""
        self._stillThere(comparison.volumeNode, "The volume")
        return add_differences(comparison)

    def differencesTable(self, comparison: Comparison) -> Any:
        """A table node of the regions where INT8 differs from FP32."""
        self._stillThere(comparison.volumeNode, "The volume")
        return add_table(comparison)
