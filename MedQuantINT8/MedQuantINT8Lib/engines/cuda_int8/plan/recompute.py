"""First layers that are normalized: computed twice, which is less than to store in FP16 what statistics are gathered of, and to read it again."""

from __future__ import annotations

from dataclasses import replace

from .kernel_plan import KernelPlan, Step


def recomputed(plan: KernelPlan) -> KernelPlan:
    """The plan in which a first convolution that nothing but its normalization reads only gathers statistics, and is done again where they are applied.

    Its input is a channel or a few, and its product short: both are over before 32 channels in FP16 have gone to the GPU's memory and come back.
    """
    steps, arrays, buffers = list(plan.steps), dict(plan.arrays), dict(plan.buffers)
    for number, step in enumerate(plan.steps):
        applied = _only_reader(plan, step)
        if applied is None:
            continue
        assert applied.source is not None
        gathered = tuple(op for op in step.ops if op.kind not in ("store", "statistics"))
        # Weights lie in the order of a step's own tiles.
        weights = f"{step.weights}_again"
        arrays[weights] = arrays[step.weights]
        again = replace(
            step,
            name=applied.name,
            ops=gathered + applied.ops,
            weights=weights,
            sources=tuple(dict.fromkeys((*step.sources, *applied.sources))),
        )
        steps[plan.steps.index(applied)] = again
        steps[number] = replace(step, ops=tuple(op for op in step.ops if op.kind != "store"), macs=0)
        del buffers[applied.source.buffer]
    return replace(plan, steps=steps, arrays=arrays, buffers=buffers)


def _only_reader(plan: KernelPlan, step: Step) -> Step | None:
    """The step that normalizes a first convolution's output, if that is stored for it alone."""
    stores = list(step.writes())
    norms = [op.norm for op in step.ops if op.kind == "statistics"]
    if step.neighbors is None or len(stores) != 1 or not norms:
        return None
    touching = [
        other
        for other in plan.steps
        if any(view.buffer == stores[0].buffer for view in (*other.reads(), *other.writes()))
    ]
    if len(touching) != 2 or touching[0] is not step:
        return None
    applied = touching[1]
    begins = bool(applied.ops) and applied.ops[0].kind == "norm" and applied.ops[0].norm == norms[0]
    reads_once = applied.source == stores[0] and not any(
        op.view is not None and op.view.buffer == stores[0].buffer for op in applied.ops
    )
    return applied if applied.kind == "elementwise" and begins and reads_once else None
