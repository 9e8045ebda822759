"""The comparison of an import with the software it comes from: both segment synthetic scans before the package is accepted."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MedQuantError, PackageError
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.volume import Volume
from ..inference.blending import ScoreSink
from ..inference.segmenter import SegmentationOptions, plan_for, segment
from ..inference.sliding_window import SlidingWindow, slide
from ..models.spec import ModelSpec
from ..progress import Task
from ..system import available_memory
from .check_scans import make_synthetic_scans
from .import_check import ImportCheck, OriginalPipeline, ScanCheck, difference

#: Seconds that networks may take in a comparison; scans that do not fit are compared up to the network's input.
SECONDS = 90.0
#: Scores of both sides may take this share of the free memory.
_MEMORY_SHARE = 0.3
#: Scores of a scan's windows that are kept from blending to labels.
_CACHE_BYTES = 512 << 20


def compare_import(spec: ModelSpec, network: Path, original: OriginalPipeline, task: Task | None = None) -> ImportCheck:
    """Run the segment road (FP32 in ONNX Runtime) and the original on synthetic scans and compare input, scores and labels.

    The network runs on as many scans as fit into :data:`SECONDS`, the one with the fewest windows first; the network's input is
    compared on all of them.

    Args:
        network: the package's FP32 ONNX file.

    Raises:
        Cancelled: ``task`` was cancelled.
    """
    task = task or Task()
    scans = make_synthetic_scans(spec)
    with task.stage("comparing the import", len(scans)):
        pipeline = _ImportPipeline(spec, network)
        # The cheapest scan is run first: it tells how long the others take.
        inputs = [pipeline.prepare(volume) for volume in scans]
        order = sorted(range(len(scans)), key=lambda n: pipeline.count_windows(inputs[n]))
        checks_by_scan: dict[int, ScanCheck] = {}
        for number in order:
            task.check()
            checks_by_scan[number] = _compare_scan(pipeline, scans[number], inputs[number], original)
            task.step()
    checks = tuple(checks_by_scan[number] for number in range(len(scans)))
    compared = any(check.input_difference is not None for check in checks)
    return ImportCheck(original.title, compared, pipeline.reason(len(scans)), checks)


def accept(check: ImportCheck, *, by_hand: bool = False) -> list[str]:
    """Return notes on an import that was compared, or refuse it.

    Args:
        by_hand: the description is the user's own, and may differ from the original; a disagreement is then only reported.

    Raises:
        PackageError: The import disagrees; the message names the scan and the part, and says by how much.
    """
    if check.acceptable:
        return []
    if by_hand:
        return [f"differs from {check.original}: {check.problem}; the description is your own, so it is kept"]
    raise PackageError(
        f"The import does not do what {check.original} does: {check.problem}.",
        "It is not written. Report this network, or describe it by hand with --spec.",
    )


def _compare_scan(
    pipeline: _ImportPipeline, volume: Volume, network_input: NetworkInput | str, original: OriginalPipeline
) -> ScanCheck:
    if isinstance(network_input, str):
        return ScanCheck(volume.name, None, None, None, f"not compared: {network_input}")
    try:
        their_input = np.asarray(original.prepare(volume))
    except MedQuantError:
        raise
    except Exception as error:
        # A synthetic scan may be one that the original cannot take, and it may raise anything.
        return ScanCheck(volume.name, None, None, None, pipeline.record_failure(original, error))
    input_difference = difference(network_input.data, their_input)
    if network_input.data.shape != their_input.shape:
        return ScanCheck(
            volume.name,
            input_difference,
            None,
            None,
            f"its shape is {network_input.data.shape}, not {their_input.shape}",
        )
    if not np.isfinite(input_difference) or not pipeline.affords(network_input):
        return ScanCheck(volume.name, input_difference, None, None)
    if pipeline.spec.input_channels > pipeline.spec.scans:
        # Where two masks of a label map are equal a last bit decides, and a network may make much of such a voxel: the input was compared
        # by itself, so what the network gives is compared on the original's.
        network_input = replace(network_input, data=np.ascontiguousarray(their_input, np.float32))
    start = time.perf_counter()
    try:
        their_scores = original.scores(volume)
        their_labels = None if their_scores is None else original.labels(volume)
    except MedQuantError:
        raise
    except Exception as error:
        return ScanCheck(volume.name, input_difference, None, None, pipeline.record_failure(original, error))
    score_difference, label_agreement, words = None, None, ""
    if their_scores is not None:
        our_scores = pipeline.scores(network_input)
        score_difference = difference(our_scores, np.asarray(their_scores))
        if our_scores.shape != np.shape(their_scores):
            words = f"their shape is {our_scores.shape}, not {np.shape(their_scores)}"
    if their_labels is not None:
        labels = pipeline.labels(network_input)
        if labels.shape == np.shape(their_labels):
            # -1: the original gives no label there.
            has_label = np.asarray(their_labels) != -1
            label_agreement = float(np.mean((labels == their_labels)[has_label])) if has_label.any() else None
        else:
            label_agreement, words = 0.0, f"its shape is {labels.shape}, not {np.shape(their_labels)}"
    pipeline.record_time(network_input, time.perf_counter() - start)
    return ScanCheck(volume.name, input_difference, score_difference, label_agreement, words)


@dataclass
class _ImportPipeline:
    """The segment road with the package's network."""

    spec: ModelSpec
    network: Path
    _engine: Any = None
    _seconds_per_window: float = 0.0
    _total_seconds: float = 0.0
    _skip_count: int = 0
    _empty_reasons: list[str] = field(default_factory=list)
    _failures: list[str] = field(default_factory=list)
    _scores_by_batch: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def prepare(self, volume: Volume) -> NetworkInput | str:
        """Return the scan in network space, or why it has no such form, such as nothing left after a crop."""
        try:
            return preprocess(volume, self.spec)
        except InputError as error:
            self._empty_reasons.append(str(error))
            return error.args[0]

    def count_windows(self, network_input: NetworkInput | str) -> int:
        return 0 if isinstance(network_input, str) else plan_for(network_input, self.spec, SegmentationOptions()).count

    def affords(self, network_input: NetworkInput) -> bool:
        """Return whether the network may run on this scan as well, by time and memory."""
        plan = plan_for(network_input, self.spec, SegmentationOptions())
        needed = 4 * self.spec.output_channels * 4 * int(np.prod(np.maximum(plan.volume_shape, plan.patch)))
        fits = (
            needed <= _MEMORY_SHARE * available_memory()
            and self._total_seconds + plan.count * self._seconds_per_window <= SECONDS
        )
        self._skip_count += not fits
        return fits

    def record_failure(self, original: OriginalPipeline, error: Exception) -> str:
        """Note an error of the original on a scan, and return it as a sentence."""
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        self._failures.append(line)
        return f"{original.title} itself fails on it: {line}"

    def record_time(self, network_input: NetworkInput, seconds: float) -> None:
        self._total_seconds += seconds
        self._scores_by_batch.clear()
        self._seconds_per_window = max(self._seconds_per_window, seconds / max(1, self.count_windows(network_input)))

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._engine is None:
            from ..engines.onnxruntime import OnnxRuntimeEngine, session

            self._engine = OnnxRuntimeEngine(session(self.network.read_bytes(), "fp32"), "fp32")
        # Scores and labels of a scan come from the same windows.
        key = hashlib.sha256(np.ascontiguousarray(batch).tobytes()).digest()
        if key not in self._scores_by_batch:
            scores = self._engine.infer(batch)
            if sum(known.nbytes for known in self._scores_by_batch.values()) + scores.nbytes > _CACHE_BYTES:
                return scores  # type: ignore[no-any-return]
            self._scores_by_batch[key] = scores
        return self._scores_by_batch[key]

    def scores(self, network_input: NetworkInput) -> NDArray[np.float32]:
        plan = plan_for(network_input, self.spec, SegmentationOptions())
        a, b, c = network_input.data.shape[1:]
        sink = ScoreSink(self.spec.output_channels, (a, b, c))
        slide(
            network_input.data,
            self.infer,
            sink,
            SlidingWindow(plan, self.spec.window, self.spec.output_channels, normalized=True),
        )
        return sink.scores

    def labels(self, network_input: NetworkInput) -> NDArray[Any]:
        return segment(network_input, self.spec, self).labels  # type: ignore[arg-type]

    def reason(self, scans: int) -> str:
        """Return why parts were not compared, in words; the text is empty if all were."""
        reasons = []
        if self._skip_count:
            reasons.append(
                f"the network ran on {scans - self._skip_count - len(self._empty_reasons)} of them: "
                f"it takes {self._seconds_per_window:.1f} s a window, and {SECONDS:.0f} s are spent at most"
            )
        if self._failures:
            reasons.append(f"the original itself fails on {len(self._failures)}: {self._failures[0]}")
        if self._empty_reasons:
            reasons.append(f"{len(self._empty_reasons)} had nothing to segment: {self._empty_reasons[0]}")
        return "; ".join(reasons)
