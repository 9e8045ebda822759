"""Whether the probabilities of networks that prepare a scan differently can be averaged on the scan's grid."""

from __future__ import annotations

from .spec import ModelSpec


def averaging_problem(one: ModelSpec, other: ModelSpec) -> str | None:
    """Return why the probabilities of two models cannot be averaged on a scan's grid, in words; None where they can."""
    for what, values in (
        ("channels", [spec.channels for spec in (one, other)]),
        ("labels", [[(label.channel, label.name, label.value) for label in spec.labels] for spec in (one, other)]),
        ("output channels", [spec.output_channels for spec in (one, other)]),
        ("kind of output", [_output_kind(spec) for spec in (one, other)]),
        ("cleaning", [spec.cleaning for spec in (one, other)]),
    ):
        if values[0] != values[1]:
            return f"their {what} differ" + ("s" if what in ("kind of output", "cleaning") else "")
    for spec in (one, other):
        if spec.output.resample in ("masks", "labels") or any(step.where == "network" for step in spec.cleaning):
            return f"{spec.name} makes labels before it goes back to the scan's grid"
    return None


def _output_kind(spec: ModelSpec) -> tuple[object, ...]:
    output = spec.output
    return output.activation, output.decision, output.thresholds, output.threshold, output.inclusive, output.paint
