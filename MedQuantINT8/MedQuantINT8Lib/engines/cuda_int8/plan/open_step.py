"""A step while it is planned: its epilogue may still grow, and where its tensors lie is not known yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .kernel_plan import Op, Step, View

#: A tensor's form: 0 for FP16, else the scale of INT8.
Form = float
HALF: Form = 0.0


@dataclass
class OpenStep:
    """A step while its epilogue may still grow: operations, and the names of the values between them."""

    step: Step
    #: Operations, and names of tensors that are the value at that point.
    epilogue: list[Op | str] = field(default_factory=list)
    #: The tensor that it reads, and in which form.
    reads: tuple[str, Form] | None = None
    #: Tensors that operations read, by their place in the epilogue.
    others: dict[int, tuple[str, Form]] = field(default_factory=dict)

    @property
    def value(self) -> str:
        return next((item for item in reversed(self.epilogue) if isinstance(item, str)), "")


def closed(open_step: OpenStep, views: dict[tuple[str, Form], View], stores: dict[str, list[View]]) -> Step:
    """The step with all its operations."""
    ops: list[Op] = []
    for place, item in enumerate(open_step.epilogue):
        if isinstance(item, str):
            ops += [Op("store", view=view) for view in stores.get(item, [])]
        elif place in open_step.others:
            ops.append(replace(item, view=views[open_step.others[place]]))
        else:
            ops.append(item)
    return replace(
        open_step.step, source=views[open_step.reads] if open_step.reads else open_step.step.source, ops=tuple(ops)
    )
