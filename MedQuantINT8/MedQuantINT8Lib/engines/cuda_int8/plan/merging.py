"""Scales and shifts by channel that follow one another: one step of an epilogue instead of two or three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel_plan import KernelPlan, Op, Step


def merged(plan: KernelPlan) -> KernelPlan:
    """The plan in which a scale and shift that follow a normalization are part of its own, and those that follow one another are one.

    A thread keeps two numbers of each channel in registers for every one of them: with six, fewer threads fit, and a step that waits for memory is
    slower. GroupNorm is written as a normalization without scale and shift, a product and a sum.
    """
    result = replace(plan, steps=list(plan.steps), norms=dict(plan.norms), arrays=dict(plan.arrays))
    for number, step in enumerate(plan.steps):
        ops = list(step.ops)
        place = 1
        while place < len(ops):
            if _merge(result, ops[place - 1], ops[place], ops, place):
                del ops[place]
            else:
                place += 1
        result.steps[number] = replace(step, ops=tuple(ops))
    return result


def _merge(plan: KernelPlan, before: Op, op: Op, ops: list[Op], place: int) -> bool:
    """Take ``op`` into the operation ``before`` it, if both scale and shift by channel."""
    if op.kind != "affine":
        return False
    scale, shift = (plan.arrays[name].astype(np.float64) for name in op.arrays)
    if before.kind == "affine":
        first, second = (plan.arrays[name].astype(np.float64) for name in before.arrays)
        arrays = _added(plan, first * scale), _added(plan, second * scale + shift)
        ops[place - 1] = replace(before, arrays=arrays)
        return True
    if before.kind == "norm" and _is_used_once(plan.steps, before.norm):
        norm = plan.norms[before.norm]
        gamma, beta = (plan.arrays[name].astype(np.float64) for name in (norm.gamma, norm.beta))
        plan.norms[before.norm] = replace(
            norm, gamma=_added(plan, gamma * scale), beta=_added(plan, beta * scale + shift)
        )
        return True
    return False


def _is_used_once(steps: list[Step], norm: str) -> bool:
    """Whether what a norm's statistics give is multiplied in one place only."""
    return sum(op.norm == norm and op.kind != "statistics" for step in steps for op in step.ops) == 1


def _added(plan: KernelPlan, values: NDArray[Any]) -> str:
    name = f"m{len(plan.arrays)}"
    plan.arrays[name] = np.ascontiguousarray(values, np.float32)
    return name
