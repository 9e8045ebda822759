"""What ``medquant import`` says of the description that it made or was given, in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.spec import Geometry, ModelSpec


def described(spec: ModelSpec, notes: list[str]) -> list[str]:
    """Return a description in lines for people."""
    g, w = spec.geometry, spec.window
    grid = _grid(g)
    steps = [step.kind + _limits(step) for step in spec.normalization] or ["none"]
    names = [label.name for label in spec.labels]
    listing = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    lines = [
        f"{spec.name} {spec.version}: {spec.modality}, channels: {', '.join(c.name for c in spec.channels)}",
        f"  grid        {grid}, orientation {g.orientation}, {g.interpolation} interpolation",
        f"  intensity   {', '.join(steps)}" + (", before resampling" if spec.normalize_in == "input" else ""),
    ]
    if spec.crop.kind != "none":
        where = "non-zero" if spec.crop.kind == "nonzero" else f"above {spec.crop.threshold:g}"
        lines.append(f"  crop        to what is {where}, margin {spec.crop.margin}")
    if spec.order:
        lines.append(f"  order       {', '.join(spec.order)}")
    lines += [
        f"  window      {' x '.join(map(str, w.patch_size))}, overlap {w.overlap:g}, {w.blend}",
        f"  output      {spec.output.activation}{' (the network ends in it)' if spec.output.activated else ''}: {len(names)} structure(s): {listing}",
        *_decided(spec),
        f"  license     {spec.license}",
    ]
    return lines + [f"  note        {note}" for note in notes]


def _decided(spec: ModelSpec) -> list[str]:
    """How scores become labels, where it is not the usual way."""
    output, lines = spec.output, []
    if output.regions:
        cuts = ", ".join(f"{t:g}" for t in output.thresholds or (output.threshold,))
        lines.append(
            f"  regions     from a probability of {cuts} on"
            + ("; one inside another stays" if output.paint == "nested" else "")
        )
    if output.resample is not None:
        lines.append(f"  way back    {output.resample} are resampled to the scan's grid")
    names = {label.value: label.name for label in spec.labels}
    lines += [f"  cleaning    {step.in_words(names)}" for step in spec.cleaning]
    return lines


def _grid(g: Geometry) -> str:
    """Return the grid of the network in words."""
    if g.spacing is not None:
        return f"{' x '.join('own' if s is None else f'{s:g}' for s in g.spacing)} mm"
    if g.size is not None:
        return f"{' x '.join('own' if n is None else str(n) for n in g.size)} voxels"
    return f"{g.longest} voxels along the longest axis" if g.longest is not None else "the scan's own"


def _limits(step: Any) -> str:
    bounds = [f"{value:g}" for value in (step.low, step.high) if value is not None]
    inside = " to ".join(bounds) if bounds else step.mask if step.kind == "zscore" and step.mask != "all" else ""
    return f" ({inside})" if inside else ""
