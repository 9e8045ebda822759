"""A plan in NumPy, with the integers of the GPU: what its kernels are held against, and what runs where there is none (in tests)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plan.kernel_plan import Geometry, KernelPlan, Op, Size, Step, View
from . import transformer as tokens

Values = NDArray[np.float32]
#: What FP16 holds; beyond it, kernels store this and not infinity.
LARGEST_HALF = np.float32(65504)
#: Filled in for what nobody has written, so that a step that reads it is noticed.
POISON = {"i8": -113, "f16": np.nan}


def quantized(values: Values, scale: float) -> NDArray[np.int8]:
    """Round half to even, saturate; multiplied by the reciprocal, as the kernels do."""
    return np.clip(np.rint(values * np.float32(1 / np.float32(scale))), -128, 127).astype(np.int8)


class ReferenceExecutor:
    """Runs a plan step by step.

    Attributes:
        buffers: (batch, *size, pitch) of each name, as the last run left them; nothing shares memory here.
    """

    def __init__(self, plan: KernelPlan, batch: int = 1) -> None:
        self.plan = plan
        self.buffers: dict[str, NDArray[Any]] = {}
        for name, buffer in plan.buffers.items():
            shape = (batch, *buffer.size, buffer.pitch)
            dtype = np.int8 if buffer.kind == "i8" else np.float16
            self.buffers[name] = np.full(shape, POISON[buffer.kind], dtype)
        self.output = np.full((batch, plan.classes, *plan.size), np.nan, np.float32)
        self._statistics: dict[str, tuple[Values, Values]] = {}
        self._factors: dict[str, tuple[Values, Values]] = {}

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the plan on patches (n, C, *size) and return scores (n, classes, ...)."""
        for step in self.plan.steps:
            self.run_step(step, batch)
        return self.output

    def run_step(self, step: Step, batch: NDArray[np.float32]) -> None:
        if step.kind == "normalize":
            self._normalize(step)
            return
        values = self._source(step, batch)
        with np.errstate(over="ignore", invalid="ignore"):
            for op in step.ops:
                values = self._apply(step, op, values)

    def read(self, view: View) -> Values:
        """Return the values of a view, by slot."""
        numbers = self.buffers[view.buffer][..., view.start : view.start + view.layout.width]
        return numbers.astype(np.float32) * np.float32(view.scale) if view.scale else numbers.astype(np.float32)

    def _source(self, step: Step, batch: NDArray[np.float32]) -> Values:
        if step.kind == "input":
            values = np.zeros((*batch[:, 0].shape, step.layout.width), np.float32)
            values[..., step.layout.slots] = np.moveaxis(batch, 1, -1)
            return values
        assert step.source is not None
        if step.kind in ("conv", "deconv"):
            return self._accumulated(step, self.rows(step, batch))
        values = self.read(step.source)
        if step.kind in ("move", "layernorm", "attention"):
            return self._of_tokens(step, values)
        if step.kind == "maxpool":
            return _pooled(values, step, np.maximum, -np.inf)
        if step.kind == "avgpool":
            inside = _pooled(np.ones_like(values), step, np.add, 0.0)
            return _pooled(values, step, np.add, 0.0) / (
                math.prod(step.geometry.kernel) if step.geometry.whole else inside
            )
        if step.kind == "resize":
            return _resized(values, [self.plan.arrays[name] for name in step.tables])
        if step.kind == "softmax":
            return _softmax(values, step.layout.slots)
        return values

    def _of_tokens(self, step: Step, values: Values) -> Values:
        """Compute a step that takes voxels one by one, or in windows."""
        tables: list[Any] = [self.plan.arrays[name] if name else None for name in step.tables]
        if step.kind == "move":
            return tokens.moved(values, tables[0]).reshape(len(values), *step.size, -1)
        if step.kind == "attention":
            assert step.attention is not None
            result = np.zeros((len(values), *step.size, step.layout.width), np.float32)
            result[..., step.layout.slots] = tokens.attended(values, step.attention, *tables).reshape(
                *result.shape[:-1], -1
            )
            return result
        normalized = tokens.normalized(values, step.layout.slots, step.epsilon, tables[0], tables[1])
        return tokens.moved(normalized, tables[2] if len(tables) > 2 else None).reshape(len(values), *step.size, -1)

    def rows(self, step: Step, batch: NDArray[np.float32]) -> Values:
        """What a convolution multiplies, by slot and without its scale."""
        view = step.source
        assert view is not None
        if step.neighbors is not None:
            return self._rounded(_neighbors(batch, step.neighbors, step.size, view.layout.width), view).astype(
                np.float32
            )
        return self.buffers[view.buffer][..., view.start : view.start + view.layout.width].astype(np.float32)

    def _accumulated(self, step: Step, rows: Values) -> Values:
        """Sums of products by slot: whole numbers for INT8."""
        weights = self.plan.arrays[step.weights].astype(np.float32)
        assert step.source is not None
        inputs = rows[..., step.source.layout.slots]
        # One tap's sums of up to 1,040 products of INT8 are exact in float32; those of all taps together need not be.
        sums = np.zeros((len(inputs), *step.size, len(weights)), np.int64 if step.int8 else np.float32)
        taps = _taps(step.geometry, step.source_size, step.size, step.kind == "deconv")
        for (k0, k1, k2), targets, sources in taps:
            part = inputs[(slice(None), *sources)] @ weights[:, :, k0, k1, k2].T
            sums[(slice(None), *targets)] += part.astype(sums.dtype)
        assert not step.int8 or np.abs(sums).max(initial=0) < 2**31
        values = np.zeros((*sums.shape[:-1], step.layout.width), np.float32)
        values[..., step.layout.slots] = sums
        return values

    def _apply(self, step: Step, op: Op, values: Values) -> Values:
        arrays = [self.plan.arrays[name] for name in op.arrays]
        if op.kind == "affine":
            return _fused(values, arrays[0], arrays[1])
        if op.kind == "offset":
            return values + arrays[0].reshape(*step.size, -1)
        if op.kind == "norm":
            return _fused(values, *self._factors_of(op.norm))
        if op.kind == "prelu":
            return np.where(values < 0, values * arrays[0], values)
        if op.kind == "act":
            return ACTIVATIONS[op.function](values, *map(np.float32, op.params)).astype(np.float32)
        if op.kind in ("add", "mul"):
            assert op.view is not None
            other = self.read(op.view)
            if op.norm:
                other = _fused(other, *self._factors_of(op.norm))
            return values + other if op.kind == "add" else values * other
        if op.kind == "store":
            assert op.view is not None
            view, width = op.view, step.layout.width
            target = self.buffers[view.buffer][..., view.start : view.start + width]
            target[...] = self._rounded(values, view)
        if op.kind == "output":
            self.output = np.ascontiguousarray(np.moveaxis(values[..., step.layout.slots], -1, 1))
        if op.kind == "statistics":
            exact = values.astype(np.float64)
            self._statistics[op.norm] = exact.sum((1, 2, 3)), (exact * exact).sum((1, 2, 3))
        return values

    @staticmethod
    def _rounded(values: Values, view: View) -> NDArray[Any]:
        """Values as the view holds them: rounded to INT8, or FP16."""
        return (
            quantized(values, view.scale)
            if view.scale
            else np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        )

    def _factors_of(self, norm: str) -> tuple[Values, Values]:
        """Scale and shift by patch and slot, for all voxels."""
        scale, shift = (v[:, None, None, None] for v in self._factors[norm])
        return scale, shift

    def _normalize(self, step: Step) -> None:
        """Scale and shift of each patch and slot, from sums and sums of squares."""
        norm, (sums, squares) = self.plan.norms[step.norm], self._statistics[step.norm]
        scale, shift = np.zeros_like(sums, np.float32), np.zeros_like(sums, np.float32)
        gamma, beta = self.plan.arrays[norm.gamma], self.plan.arrays[norm.beta]
        for group in map(list, norm.groups):
            count = len(group) * step.voxels
            mean = sums[:, group].sum(1, keepdims=True) / count
            variance = np.maximum(squares[:, group].sum(1, keepdims=True) / count - mean * mean, 0)
            scale[:, group] = gamma[group] / np.sqrt(variance + norm.epsilon)
            shift[:, group] = beta[group] - mean * scale[:, group]
        self._factors[step.norm] = scale, shift


def _fused(values: Values, scale: Values, shift: Values) -> Values:
    """Multiply and add with one rounding: products of two float32 are exact in float64."""
    return (values.astype(np.float64) * scale + shift).astype(np.float32)


def _erf(values: Values) -> Values:
    return np.vectorize(math.erf, otypes=[np.float32])(values)


def _sigmoid(v: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-v)), np.float32)


def _softplus(v: Values) -> Values:
    return np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v)))


ACTIVATIONS: dict[str, Callable[..., Values]] = {
    "relu": lambda v: np.maximum(v, 0),
    "leakyrelu": lambda v, alpha: np.where(v < 0, v * alpha, v),
    "elu": lambda v, alpha: np.where(v < 0, alpha * np.expm1(np.minimum(v, 0)), v),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softplus": _softplus,
    "hardsigmoid": lambda v, alpha, beta: np.clip(alpha * v + beta, 0, 1),
    "hardswish": lambda v: v * np.clip(v / np.float32(6) + np.float32(0.5), 0, 1),
    "mish": lambda v: v * np.tanh(_softplus(v)),
    "gelu": lambda v: np.float32(0.5) * v * (1 + _erf(v * np.float32(math.sqrt(0.5)))),
    "silu": lambda v: v * _sigmoid(v),
    "rest": lambda v, scale, inverse: v - scale * np.clip(np.rint(v * inverse), -128, 127),
    "clip": lambda v, low, high: np.clip(v, low, high),
}


def _softmax(values: Values, slots: NDArray[np.int64]) -> Values:
    result = np.zeros_like(values)
    table = values[..., slots]
    powers = np.exp(table - table.max(-1, keepdims=True))
    result[..., slots] = powers / powers.sum(-1, keepdims=True)
    return result


def _taps(
    geometry: Geometry, source: Size, target: Size, transposed: bool
) -> list[tuple[Size, tuple[slice, ...], tuple[slice, ...]]]:
    """For each place in the kernel: the output voxels that it serves, and the input voxels that they take."""
    taps = []
    for place in np.ndindex(*geometry.kernel):
        axes = [
            _along(p * d - b, s, n, m, transposed)
            for p, d, b, s, n, m in zip(
                place, geometry.dilation, geometry.before, geometry.stride, source, target, strict=True
            )
        ]
        if all(t.stop > t.start for t, _ in axes):
            taps.append(((place[0], place[1], place[2]), tuple(t for t, _ in axes), tuple(s for _, s in axes)))
    return taps


def _along(offset: int, stride: int, source: int, target: int, transposed: bool) -> tuple[slice, slice]:
    """Along one axis: out i takes in ``i * stride + offset``; transposed, in i gives to out ``i * stride + offset``."""
    fine, coarse = (target, source) if transposed else (source, target)
    first = max(0, -(offset // stride))
    last = min(coarse - 1, (fine - 1 - offset) // stride)
    count = max(0, last - first + 1)
    few = slice(first, first + count)
    begin = first * stride + offset
    many = slice(begin, begin + max(0, (count - 1) * stride + 1), stride) if count else slice(0, 0)
    return (many, few) if transposed else (few, many)


def _pooled(values: Values, step: Step, combine: Any, start: float) -> Values:
    result = np.full((len(values), *step.size, values.shape[-1]), start, np.float32)
    for _, targets, sources in _taps(step.geometry, step.source_size, step.size, False):
        place = (slice(None), *targets)
        result[place] = combine(result[place], values[(slice(None), *sources)])
    return result


def _neighbors(batch: NDArray[np.float32], geometry: Geometry, size: Size, width: int) -> Values:
    """For each voxel of (n, C, ...) the input at all places of the kernel, 0 outside."""
    values, channels = np.moveaxis(batch, 1, -1), batch.shape[1]
    result = np.zeros((len(batch), *size, width), np.float32)
    a, b, c = batch.shape[2:]
    for place, targets, sources in _taps(geometry, (a, b, c), size, False):
        slot = int(np.ravel_multi_index(place, geometry.kernel)) * channels
        result[(slice(None), *targets)][..., slot : slot + channels] = values[(slice(None), *sources)]
    return result


def _resized(values: Values, tables: list[NDArray[np.float32]]) -> Values:
    """One axis after the other, in the order in which the kernel adds them up."""
    for axis in (2, 1, 3):
        low, high, share = tables[axis - 1]
        shape = [1] * values.ndim
        shape[axis] = len(low)
        below, above = (np.take(values, index.astype(np.int64), axis) for index in (low, high))
        values = below * (1 - share).reshape(shape) + above * share.reshape(shape) if share.any() else below
    return values
