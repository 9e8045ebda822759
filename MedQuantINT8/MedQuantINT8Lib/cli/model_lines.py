"""What ``medquant models`` says of a package or a task, for people and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.task import TaskSpec


def own_row(name: str, path: Path) -> dict[str, Any]:
    """A row for an installed model that is not of the catalogue: the demo, and the user's own."""
    from ..models.task_package import describe

    spec = describe(path)
    return {
        "name": name,
        "title": spec.title or spec.name,
        "modality": spec.modality,
        "network": "-",
        "structures": len(spec.labels),
        "labels": [label.name for label in spec.labels],
        "license": spec.license,
        "homepage": spec.source_url,
        "citation": spec.citation,
        "installed": True,
        **run_of(path),
    }


def run_of(path: Path) -> dict[str, Any]:
    """What a package says of its runs beside the network: mirroring, what is done with the label map; and what a task runs."""
    from ..models.installed import installed_models
    from ..models.task import TaskSpec
    from ..models.task_package import describe

    spec = describe(path)
    names = {label.value: label.name for label in spec.labels}
    cleaning = {"cleaning": [step.in_words(names) for step in spec.cleaning]}
    if isinstance(spec, TaskSpec):
        return {"networks": networks_of(spec, installed_models()), **cleaning}
    return {"mirroring": {"axes": list(spec.mirroring.axes), "on": spec.mirroring.on}, **cleaning}


def networks_of(spec: TaskSpec, present: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """What a task runs: first what bounds the others, then its parts."""
    from ..models.task import Find

    return [
        {
            "name": source.name,
            "finds": isinstance(source, Find),
            "where": "where some structures are asked for" if getattr(source, "box_of", "") == "chosen" else "",
            "within": source.within,
            "model": source.installed or ", ".join(source.packages),
            "there": source.installed is None or source.installed in present,
        }
        for source in spec.sources
    ]


def _network_line(network: dict[str, Any]) -> str:
    where = f", {network['where']}" if network["where"] else ""
    box = f", in the box of {network['within']}" if network["within"] else ""
    there = "" if network["there"] else " (not installed)"
    return f"  {'first' if network['finds'] else 'runs '}     {network['name']}: {network['model']}{where}{box}{there}"


def run_lines(run: dict[str, Any]) -> list[str]:
    mirroring = run.get("mirroring", {"axes": [], "on": False})
    axes = ", ".join(map(str, mirroring["axes"]))
    how = "as usual" if mirroring["on"] else "with --mirroring"
    return [
        *map(_network_line, run.get("networks", [])),
        *([f"  mirrors   along the axes {axes}, {how}"] if axes else []),
        *(f"  then      {step}" for step in run.get("cleaning", [])),
    ]


def package_lines(row: dict[str, Any]) -> list[str]:
    """What is said of a package that the catalog does not hold."""
    return [
        f"{row['name']}: {row['title']}",
        f"  {row['modality']}",
        f"  finds     {', '.join(row['labels'])}",
        f"  license   {row['license']}",
        *([f"  cite      {row['citation']}"] if row["citation"] else []),
        *([f"  from      {row['homepage']}"] if row["homepage"] else []),
    ]
