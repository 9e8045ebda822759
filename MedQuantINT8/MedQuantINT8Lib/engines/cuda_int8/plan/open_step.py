"""A step while it is planned: its chain may still grow, and where its tensors lie is not known yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .kernel_plan import Op, Step, View

#: A tensor's form: 0 for FP16, else the scale of INT8.
Form = float
HALF: Form = 0.0


@dataclass
class Made:
    """A step while its chain may still grow: operations, and the names of the values between them."""

    step: Step
    #: Operations, and names of tensors that are the value at that point.
    chain: list[Op | str] = field(default_factory=list)
    #: The tensor that it reads, and in which form.
    reads: tuple[str, Form] | None = None
    #: Tensors that operations read, by their place in the chain.
    others: dict[int, tuple[str, Form]] = field(default_factory=dict)

    @property
    def value(self) -> str:
        return next((item for item in reversed(self.chain) if isinstance(item, str)), "")


def closed(made: Made, views: dict[tuple[str, Form], View], stores: dict[str, list[View]]) -> Step:
    """The step with all its operations."""
    ops: list[Op] = []
    for place, item in enumerate(made.chain):
        if isinstance(item, str):
            ops += [Op("store", view=view) for view in stores.get(item, [])]
        elif place in made.others:
            ops.append(replace(item, view=views[made.others[place]]))
        else:
            ops.append(item)
    return replace(made.step, source=views[made.reads] if made.reads else made.step.source, ops=tuple(ops))
