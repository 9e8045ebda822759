"""Does a scan leave the ranges that INT8 was calibrated on?

INT8 holds values up to 127 steps; what is larger is cut off. On scans like those of the calibration next to nothing is. On a scan of
another kind it may be much, and the result can be wrong where FP32's would not be. So a run looks: at the input always, and on one of
fifty windows at every quantized tensor and at what FP32 makes of the window (:mod:`.second_look`). Which windows, and how many, follows
from the scan and the run's plan alone, not from the time that anything took: equal runs give equal warnings.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, EngineError
from ..imaging.network_input import NetworkInput
from ..models.package import CALIBRATION, FP32, ModelPackage
from ..system import available_memory
from .activation_sizes import activation_bytes
from .second_look import SecondLook, SecondLooker
from .sliding_window import take_patch
from .windows import WindowPlan

#: Of so many windows one is looked at, up to :data:`MOST`: about a twentieth of an INT8 run's time on a processor.
EVERY, MOST = 50, 8
#: Windows among which those are chosen that have most to see.
_CANDIDATES = 32
#: Shares of values beyond the range from which on a user is warned: in the tensor that is worst, and on average over all.
#: Scans of the calibration's kind stay far below both (docs/results/robustness.md).
WORST, MEAN = 0.01, 0.001
#: Steps between the voxels of the input that are looked at.
STRIDE = 4
#: Values are beyond a range that they exceed by more than rounding.
_ROUNDING = 1.001


@dataclass
class RangeCheck:
    """Shares of values beyond the calibrated range.

    Attributes:
        input: of the input's values; None if the input is not quantized.
        tensors: of each quantized tensor, mean over the windows looked at.
        windows: how many were.
        seconds: what it took.
        skipped: why no tensor was looked at, where it was to be.
        second_look: INT8 beside FP32 on those windows; None where none was looked at.
    """

    input: float | None
    tensors: dict[str, float] = field(default_factory=dict)
    windows: int = 0
    seconds: float = 0.0
    skipped: str = ""
    second_look: SecondLook | None = None

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.tensors.items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.tensors.values()))) if self.tensors else 0.0

    @property
    def warning(self) -> str:
        """A sentence for the user, or an empty string."""
        name, share = self.worst
        beyond = (
            f"{100 * self.input:.1f} % of the scan's values" if self.input is not None and self.input > WORST else ""
        )
        if share > WORST or self.mean > MEAN:
            beyond = f"{100 * share:.1f} % of the values in {name} ({100 * self.mean:.2f} % on average over {len(self.tensors)} tensors)"
        return (
            f"this scan is not like those that INT8 was calibrated on: {beyond} lie beyond the calibrated range; compare with FP32"
            if beyond
            else ""
        )

    @property
    def warnings(self) -> list[str]:
        """All sentences for the user: of the second look first, which saw the result."""
        return [text for text in (self.second_look.warning if self.second_look else "", self.warning) if text]

    def to_json(self) -> dict[str, Any]:
        most = sorted(self.tensors.items(), key=lambda item: -item[1])[:10]
        return {
            "input": self.input,
            "windows": self.windows,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "mean": self.mean if self.tensors else None,
            "worst": [{"tensor": name, "share": share} for name, share in most],
            "warning": self.warning,
            "second_look": None if self.second_look is None else self.second_look.to_json(),
        }


#: An INT8 engine: float32 (1, C, p0, p1, p2) to scores.
Infer = Callable[[NDArray[np.float32]], Any]


def check_ranges(
    package: ModelPackage,
    network_input: NetworkInput,
    plan: WindowPlan,
    *,
    tensors: bool = True,
    infer: Infer | None = None,
    share: float | None = None,
) -> RangeCheck | None:
    """Look at a volume in network space: at every few voxels, and at windows of it where tensors are looked at.

    Args:
        plan: of the run.
        tensors: whether to look at the network's tensors as well, which takes a window in FP32 on the processor for each that is looked
            at: beside a GPU that would be longer than the run.
        infer: the run's INT8 engine, for the second look.
        share: of the windows that are looked at; None leaves it to the program.

    Returns:
        None if the package does not say what ranges it was calibrated on, and no share was asked for.
    """
    limits = limits_of(package)
    if not limits and not share:
        return None
    began = time.perf_counter()
    check = RangeCheck(_input_share(package, network_input, limits))
    if tensors and (count := windows_looked_at(plan, share)):
        if package.has(FP32):
            _look(check, _View(package, network_input.data, plan, limits, infer), count)
        else:
            check.skipped = "the package holds no FP32 network"
    check.seconds = time.perf_counter() - began
    return check


def windows_looked_at(plan: WindowPlan, share: float | None = None) -> int:
    """How many windows of a plan are looked at: one of fifty, at most eight, or the share that was asked for, at least one."""
    return min(MOST, plan.count // EVERY) if share is None else math.ceil(round(share * plan.count, 9))


def limits_of(package: ModelPackage) -> dict[str, float]:
    """The largest magnitude that INT8 holds of each quantized tensor, as calibration.json says it."""
    return dict(_calibrated(package)[0])


#: What was read of the calibration that was looked at last: it is asked for at every scan.
_CALIBRATED: dict[tuple[str, Path], tuple[dict[str, float], str]] = {}


def _calibrated(package: ModelPackage) -> tuple[dict[str, float], str]:
    """The limits by tensor, and the name of the input, as calibration.json has them."""
    key = package.hashes.get(CALIBRATION, ""), package.folder
    # Parts of a task on several GPUs look at the same time, each at its own package.
    known = _CALIBRATED.get(key)
    if known is None:
        calibration = package.calibration() or {}
        tensors = calibration.get("tensors", {})
        limits = {name: float(row.get("limit", 127 * float(row["scale"]))) for name, row in tensors.items()}
        known = limits, str(calibration.get("input", ""))
        _CALIBRATED.clear()
        _CALIBRATED[key] = known
    return known


_Key = tuple[Path, float, tuple[int, int, int]]
#: The probe of the network that ran last: it holds that network's weights.
_PROBES: dict[_Key, Probe] = {}


@dataclass(frozen=True)
class _View:
    """What is looked at: the run of a package on a volume in network space."""

    package: ModelPackage
    data: NDArray[np.float32]
    plan: WindowPlan
    limits: dict[str, float]
    infer: Infer | None


def _look(check: RangeCheck, view: _View, count: int) -> None:
    path = view.package.onnx_path("fp32")
    key = path, path.stat().st_mtime, view.plan.patch
    if 2 * activation_bytes(view.package, "fp32", view.plan.patch) > available_memory():
        check.skipped = "there is not enough free memory"
        return
    probe = _PROBES.get(key)
    if probe is None:
        _PROBES.clear()
        try:
            probe = _PROBES[key] = Probe(key[0], key[2], view.limits)
        except (DependencyError, EngineError) as error:
            # Without a runtime for FP32 only the input is looked at.
            check.skipped = str(error)
            return
    looker = None if view.infer is None else SecondLooker(view.package, view.infer)
    shares = []
    for start in _starts(view.data, view.plan, count)[:count]:
        patch = take_patch(view.data, view.plan, start, view.package.spec.window)
        found, scores = probe.look(patch)
        shares.append(found)
        if looker is not None:
            looker.add(patch, scores)
    check.windows = len(shares)
    check.second_look = None if looker is None else looker.result()
    check.tensors = {name: float(np.mean([s[name] for s in shares])) for name in probe.tensors}


def _input_share(package: ModelPackage, network_input: NetworkInput, limits: dict[str, float]) -> float | None:
    name = _calibrated(package)[1]
    if name not in limits:
        return None
    return float((np.abs(network_input.every(STRIDE)) > _ROUNDING * limits[name]).mean())


class Probe:
    """An FP32 network that tells the share of values beyond a limit, for each of its tensors."""

    def __init__(self, path: Path, patch: tuple[int, int, int], limits: dict[str, float]) -> None:
        from ..engines.float_session import float_session
        from ..models import onnx_graph as graph

        model = graph.load_network(path)
        graph.name_nodes(model)
        fixed = graph.fixed_shape(model, patch)
        tensor_names = {o for node in fixed.graph.node for o in node.output} | {fixed.graph.input[0].name}
        self.tensors = [name for name in limits if name in tensor_names]
        self._input = fixed.graph.input[0].name
        self._output = fixed.graph.output[0].name
        probed = with_probes(fixed, {name: limits[name] for name in self.tensors}) if self.tensors else fixed
        self._session = float_session(probed.SerializeToString(), "fp32")
        # A session runs one patch at a time; parts of a task and requests of a server share the probe of their package.
        self._alone = threading.Lock()

    def look(self, patch: NDArray[np.float32]) -> tuple[dict[str, float], NDArray[np.float32]]:
        """Return the share of values outside the calibrated range by tensor, for one patch (C, p0, p1, p2), and its scores (1, classes, ...)."""
        wanted = [self._output, *([_SHARES] if self.tensors else [])]
        with self._alone:
            scores, *values = self._session.run(wanted, {self._input: np.ascontiguousarray(patch[None], np.float32)})
        return dict(zip(self.tensors, map(float, values[0] if values else ()), strict=True)), scores

    def shares(self, patch: NDArray[np.float32]) -> dict[str, float]:
        """Return the first part of :meth:`look`."""
        return self.look(patch)[0]


_SHARES = "medquant_shares"


def with_probes(model: Any, limits: dict[str, float]) -> Any:
    """A copy with one output more, the share of values beyond its limit for each tensor: float32 (tensors,)."""
    from ..models import onnx_graph as graph

    onnx = graph.require_onnx()
    helper, kind = onnx.helper, onnx.TensorProto
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    body, ends = copy.graph, []
    body.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), f"{_SHARES}_flat"))
    for number, (name, limit) in enumerate(limits.items()):
        base = f"{_SHARES}_{number}"
        body.initializer.append(onnx.numpy_helper.from_array(np.array(_ROUNDING * limit, np.float32), f"{base}_limit"))
        steps: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
            ("Abs", [name], "size", {}),
            ("Greater", [f"{base}_size", f"{base}_limit"], "beyond", {}),
            ("Cast", [f"{base}_beyond"], "one", {"to": kind.FLOAT}),
            ("ReduceMean", [f"{base}_one"], "share", {"keepdims": 0}),
            ("Reshape", [f"{base}_share", f"{_SHARES}_flat"], "end", {}),
        )
        for op, inputs, output, attributes in steps:
            body.node.append(helper.make_node(op, inputs, [f"{base}_{output}"], name=f"{base}_{output}", **attributes))
        ends.append(f"{base}_end")
    body.node.append(helper.make_node("Concat", ends, [_SHARES], name=_SHARES, axis=0))
    body.output.append(helper.make_tensor_value_info(_SHARES, kind.FLOAT, [len(ends)]))
    return graph.pruned(copy)


def _starts(data: NDArray[np.float32], plan: WindowPlan, least: int = 0) -> list[tuple[int, int, int]]:
    """At least so many windows of the plan, those with most to see first: by how much their values vary. The same for the same scan and plan."""
    windows = list(plan.windows())
    if len(windows) > 1:
        rng = np.random.default_rng(
            zlib.crc32(np.ascontiguousarray(data[:, :: 4 * STRIDE, :: 4 * STRIDE, :: 4 * STRIDE]).tobytes())
        )
        # A look at every window would be a pass over the volume.
        some = [windows[n] for n in rng.choice(len(windows), min(len(windows), max(least, _CANDIDATES)), replace=False)]
        windows = sorted(
            some, key=lambda start: -float(_patch(data[:1], plan, start)[:, ::STRIDE, ::STRIDE, ::STRIDE].std())
        )
    return windows


def _patch(data: NDArray[np.float32], plan: WindowPlan, start: tuple[int, int, int]) -> NDArray[np.float32]:
    begin = [max(0, s - b) for s, b in zip(start, plan.pad_before, strict=True)]
    inside = data[(slice(None), *(slice(b, b + p) for b, p in zip(begin, plan.patch, strict=True)))]
    missing = [p - n for p, n in zip(plan.patch, inside.shape[1:], strict=True)]
    # What is padded holds nothing that could leave a range.
    return np.pad(inside, [(0, 0), *((0, m) for m in missing)], mode="edge") if any(missing) else inside
