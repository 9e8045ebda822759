"""An import beside the software it comes from: both segment the made scans before the package is accepted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from .check_scans import made_scans
from .import_check import ImportCheck, OriginalPipeline, ScanCheck, difference

#: Seconds that networks may take in a comparison; scans that do not fit are compared up to the network's input.
SECONDS = 90.0
#: Scores of both sides may take this share of the free memory.
_MEMORY_SHARE = 0.3
#: Scores of a scan's windows that are kept from blending to labels.
_KEPT_BYTES = 512 << 20


def compare_import(
    spec: ModelSpec,
    network: Path,
    original: OriginalPipeline,
    task: Task | None = None,
    scans: Sequence[Volume] | None = None,
) -> ImportCheck:
    """Run the segment road (FP32 in ONNX Runtime) and the original on made scans and compare input, scores and labels.

    The network runs on as many scans as fit into :data:`SECONDS`, the one with the fewest windows first; the network's input is
    compared on all of them.

    Args:
        network: the package's FP32 ONNX file.
        scans: other scans than the made ones.

    Raises:
        Cancelled: ``task`` was.
    """
    task = task or Task()
    if scans is None:
        scans = made_scans(spec)
    with task.stage("comparing the import", len(scans)):
        side = _OurSide(spec, network)
        # The cheapest scan is run first: it tells how long the others take.
        prepared = [side.prepared(volume) for volume in scans]
        order = sorted(range(len(scans)), key=lambda n: side.windows(prepared[n]))
        found: dict[int, ScanCheck] = {}
        for number in order:
            task.check()
            found[number] = _compared(side, scans[number], prepared[number], original)
            task.step()
    checks = tuple(found[number] for number in range(len(scans)))
    compared = any(check.input_difference is not None for check in checks)
    return ImportCheck(original.title, compared, side.reason(len(scans)), checks)


def accept(check: ImportCheck, *, by_hand: bool = False) -> list[str]:
    """Notes on an import that was compared.

    Args:
        by_hand: the description is the user's own, and may differ from the original: then a disagreement is only told.

    Raises:
        PackageError: it disagrees; names scan, part and by how much.
    """
    if check.acceptable:
        return []
    if by_hand:
        return [f"differs from {check.original}: {check.problem}; the description is your own, so it is kept"]
    raise PackageError(
        f"The import does not do what {check.original} does: {check.problem}.",
        "It is not written. Report this network, or describe it by hand with --spec.",
    )


def _compared(side: _OurSide, volume: Volume, prepared: NetworkInput | str, original: OriginalPipeline) -> ScanCheck:
    if isinstance(prepared, str):
        return ScanCheck(volume.name, None, None, None, f"not compared: {prepared}")
    try:
        theirs = np.asarray(original.prepare(volume))
    except MedQuantError:
        raise
    except Exception as error:
        # A made scan may be one that the original cannot take, and it may raise anything.
        return ScanCheck(volume.name, None, None, None, side.failed(original, error))
    close = difference(prepared.data, theirs)
    if prepared.data.shape != theirs.shape:
        return ScanCheck(volume.name, close, None, None, f"its shape is {prepared.data.shape}, not {theirs.shape}")
    if not np.isfinite(close) or not side.affords(prepared):
        return ScanCheck(volume.name, close, None, None)
    began = time.perf_counter()
    try:
        their_scores = original.scores(volume)
        their_labels = None if their_scores is None else original.labels(volume)
    except MedQuantError:
        raise
    except Exception as error:
        return ScanCheck(volume.name, close, None, None, side.failed(original, error))
    scored, agreement, words = None, None, ""
    if their_scores is not None:
        ours = side.scores(prepared)
        scored = difference(ours, np.asarray(their_scores))
        if ours.shape != np.shape(their_scores):
            words = f"their shape is {ours.shape}, not {np.shape(their_scores)}"
    if their_labels is not None:
        labels = side.labels(prepared)
        if labels.shape == np.shape(their_labels):
            # -1: the original gives no label there.
            decided = np.asarray(their_labels) != -1
            agreement = float(np.mean((labels == their_labels)[decided])) if decided.any() else None
        else:
            agreement, words = 0.0, f"its shape is {labels.shape}, not {np.shape(their_labels)}"
    side.took(prepared, time.perf_counter() - began)
    return ScanCheck(volume.name, close, scored, agreement, words)


@dataclass
class _OurSide:
    """The segment road with the package's network."""

    spec: ModelSpec
    network: Path
    _engine: Any = None
    _seconds_a_window: float = 0.0
    _spent: float = 0.0
    _left_out: int = 0
    _empty: list[str] = field(default_factory=list)
    _failed: list[str] = field(default_factory=list)
    _known: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def prepared(self, volume: Volume) -> NetworkInput | str:
        """The scan in network space; or why it has none, such as nothing left after a crop."""
        try:
            return preprocess(volume, self.spec)
        except InputError as error:
            self._empty.append(str(error))
            return error.args[0]

    def windows(self, prepared: NetworkInput | str) -> int:
        return 0 if isinstance(prepared, str) else plan_for(prepared, self.spec, SegmentationOptions()).count

    def affords(self, prepared: NetworkInput) -> bool:
        """Whether the network may run on this scan as well, by time and memory."""
        plan = plan_for(prepared, self.spec, SegmentationOptions())
        needed = 4 * self.spec.output_channels * 4 * int(np.prod(np.maximum(plan.volume_shape, plan.patch)))
        fits = (
            needed <= _MEMORY_SHARE * available_memory()
            and self._spent + plan.count * self._seconds_a_window <= SECONDS
        )
        self._left_out += not fits
        return fits

    def failed(self, original: OriginalPipeline, error: Exception) -> str:
        """Words for a scan that the original cannot segment."""
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        self._failed.append(line)
        return f"{original.title} itself fails on it: {line}"

    def took(self, prepared: NetworkInput, seconds: float) -> None:
        self._spent += seconds
        self._known.clear()
        self._seconds_a_window = max(self._seconds_a_window, seconds / max(1, self.windows(prepared)))

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._engine is None:
            from ..engines.onnxruntime import OnnxRuntimeEngine, session

            self._engine = OnnxRuntimeEngine(session(self.network.read_bytes(), "fp32"), "fp32")
        # Scores and labels of a scan are made from the same windows.
        key = hashlib.sha256(np.ascontiguousarray(batch).tobytes()).digest()
        if key not in self._known:
            made = self._engine.infer(batch)
            if sum(scores.nbytes for scores in self._known.values()) + made.nbytes > _KEPT_BYTES:
                return made  # type: ignore[no-any-return]
            self._known[key] = made
        return self._known[key]

    def scores(self, prepared: NetworkInput) -> NDArray[np.float32]:
        plan = plan_for(prepared, self.spec, SegmentationOptions())
        a, b, c = prepared.data.shape[1:]
        sink = ScoreSink(self.spec.output_channels, (a, b, c))
        slide(
            prepared.data,
            self.infer,
            sink,
            SlidingWindow(plan, self.spec.window, self.spec.output_channels, normalized=True),
        )
        return sink.scores

    def labels(self, prepared: NetworkInput) -> NDArray[Any]:
        return segment(prepared, self.spec, self).labels  # type: ignore[arg-type]

    def reason(self, scans: int) -> str:
        """Why something was left out, in words; empty if nothing was."""
        said = []
        if self._left_out:
            said.append(
                f"the network ran on {scans - self._left_out - len(self._empty)} of them: "
                f"it takes {self._seconds_a_window:.1f} s a window, and {SECONDS:.0f} s are spent at most"
            )
        if self._failed:
            said.append(f"the original itself fails on {len(self._failed)}: {self._failed[0]}")
        if self._empty:
            said.append(f"{len(self._empty)} had nothing to segment: {self._empty[0]}")
        return "; ".join(said)
