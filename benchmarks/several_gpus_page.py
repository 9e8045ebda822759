"""The page of benchmarks/several_gpus.py: docs/results/several_gpus.json and .md, and their line in mkdocs.yml."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, NAV, AFTER = "results/several_gpus.md", "      - On several GPUs: results/several_gpus.md\n", "results/gpu.md\n"
#: What is aimed at.
BARS = {"one scan": 1.7, "a task": 1.7, "all": 1.9, "ray, all": 1.85}


def write_page(result: dict[str, Any], docs: Path = ROOT / "docs") -> None:
    """Write the page of a run, its figures, and a line in the site's contents."""
    (docs / "results" / "several_gpus.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (docs / PAGE).write_text(page(result), encoding="utf-8")
    contents = docs.parent / "mkdocs.yml"
    text = contents.read_text(encoding="utf-8")
    if PAGE not in text:
        assert text.count(AFTER) == 1
        contents.write_text(text.replace(AFTER, AFTER + NAV), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """Return the page of a run."""
    link = result.get("link", {})
    lines = [
        "# On several GPUs",
        "",
        "Made by `benchmarks/several_gpus.py`; do not edit.",
        f"Machine: {_machine(result['machine'])}; {len(link.get('gpus', []))} x {(link.get('gpus') or ['?'])[0]}; {result['date']}.",
        "",
        *_link(link),
        f'CUDA INT8, network `{result["network"]}` with random weights; one GPU and all of them in one run. What is aimed at is behind "at least".',
        "",
        *_said(result),
        *([result["note"], ""] if result.get("note") else []),
    ]
    for key in ("scan", "mirrored", "whole", "task"):
        if key in result:
            lines += _in_memory(result[key])
    if "cohort" in result:
        lines += _cohort(result["cohort"])
    return "\n".join(lines).rstrip() + "\n"


def _said(result: dict[str, Any]) -> list[str]:
    """Return sentences on what the figures mean, by what they are."""
    below = [
        row["what"]
        for row in (result.get(key) for key in ("scan", "mirrored", "whole", "task"))
        if row and row["faster"] < _bar(row)
    ]
    rows = result.get("cohort", {}).get("rows", {})
    many = [
        f"{name} ({row['faster_after_start']:.2f} times faster after the start)"
        for name, row in rows.items()
        if name in BARS and row.get("faster") and row["faster"] < BARS[name] and row.get("faster_after_start")
    ]
    of_many = [
        f"Many scans below the aim, by the whole command with the start of its processes: {'; '.join(many)}.",
        "",
    ]
    if not below:
        return of_many if many else []
    return [
        f"Below the aim: {', '.join(below)}. Where the time of each goes stands below it: what does not become shorter with more GPUs is the scan's way over the bus, which the computer's own "
        "copies into pinned memory bound, what Python does before and after the windows, and, of a task, the merged label map's way down when the last GPU is done.",
        "",
        *(of_many if many else []),
    ]


def _bar(row: dict[str, Any]) -> float:
    return next(value for name, value in BARS.items() if row["what"].startswith(name))


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}"


def _link(link: dict[str, Any]) -> list[str]:
    if "peer_access" not in link:
        return []
    how = "directly" if link["peer_access"] else "by way of the computer's memory"
    return [f"The first two GPUs copy from each other {how}, {link['gb_a_second']:.0f} GB/s in one direction.", ""]


def _in_memory(row: dict[str, Any]) -> list[str]:
    voxels = " x ".join(map(str, row["voxels"][::-1]))
    bar = _bar(row)
    other = row["other_labels"]
    same = (
        "equal to those of one GPU in every voxel"
        if not other
        else f"{other} voxels have another label than on one GPU"
    )
    lines = [
        f"## {row['what'][0].upper()}{row['what'][1:]}",
        "",
        f"{voxels} voxels in memory to labels in memory, engines loaded, {row['windows']} windows; median (least to most) of the runs after the first. Labels: {same}.",
        "",
        "| | s | times faster |",
        "| --- | ---: | ---: |",
        f"| one GPU | {_seconds(row['one'])} | |",
        f"| {len(row['gpus'])} GPUs | {_seconds(row['all'])} | {row['faster']:.2f} (at least {bar}) |",
    ]
    lines += ["", row["note"]] if row.get("note") else []
    lines += _memory(row)
    lines += _timeline(row)
    notes = [note for note in row["notes_all"] if "GPU" in note or "gpu:" in note]
    return [*lines, "", "The program's notes: " + "; ".join(notes) + ".", ""]


def _memory(row: dict[str, Any]) -> list[str]:
    """Return what of each GPU's memory was used, and what crossed the bus; nothing where that was not counted."""
    if "counted_one" not in row:
        return []
    lines = [
        "",
        "Memory, and what crosses the bus, counted where it happens, in a run of its own in which each copy is waited for; its share is of that run's time.",
        "",
        "| | GPU | memory allocated at once, most, GB | freed memory that waits, most, GB | up, MB | down, MB | GB/s up | GB/s down | bus's share of the time | from other GPUs, MB | GB/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, name in (("counted_one", "one GPU"), ("counted_all", f"{len(row['gpus'])} GPUs")):
        total = row[key]["seconds"]
        for index, gpu in sorted(row[key]["gpus"].items(), key=lambda item: int(item[0])):
            known = [gpu[f"seconds_{what}"] for what in ("up", "down") if f"seconds_{what}" in gpu]
            share = (
                f"{100 * sum(known) / total:.0f} %"
                if len(known) == 2
                else f"{100 * sum(known) / total:.0f} % (down alone)"
            )
            lines.append(
                f"| {name} | {index} | {gpu['most_allocated'] / 1e9:.2f} | {_waiting(gpu)} | {_megabytes(gpu, 'up')} | {_megabytes(gpu, 'down')} | "
                f"{_rate(gpu, 'up')} | {_rate(gpu, 'down')} | {share} | {_megabytes(gpu, 'from_gpus')} | {_rate(gpu, 'from_gpus')} |"
            )
    return lines


def _timeline(row: dict[str, Any]) -> list[str]:
    """Return what the threads that drive the GPUs do, and what the GPUs are busy with."""
    columns: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}
    for key in ("timeline_one", "timeline_all"):
        timeline = row.get(key)
        if not timeline:
            return []
        drivers = [name for name in sorted(timeline["threads"]) if name.startswith(("gpu-", "parts-"))] or [
            "MainThread"
        ]
        for number, (thread, gpu) in enumerate(zip(drivers, sorted(timeline["gpus"].items()), strict=False)):
            title = "one GPU" if key == "timeline_one" else f"{number + 1} of {len(drivers)}"
            columns[title] = timeline["threads"][thread], gpu[1]
        if merging := timeline["threads"].get("merging_0"):
            columns[f"merging, {'one GPU' if key == 'timeline_one' else 'all'}"] = merging, {}
    what = [name for name in _longest(threads for threads, _ in columns.values()) if not name.endswith(", calls")]
    busy = _longest({name: values["ms"] for name, values in gpus.items()} for _, gpus in columns.values())
    took = " and ".join(f"{1e3 * row[key]['seconds']:.0f}" for key in ("timeline_one", "timeline_all"))
    lines = [
        "",
        f"Where the time goes, in a run of its own of each ({took} ms in all) whose calls are timed: what each thread does that drives a GPU, ms, then what its GPU is busy with, some of it at the same time.",
        "",
        f"| | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name in what:
        lines.append(f"| {name} | {' | '.join(_ms(threads.get(name)) for threads, _ in columns.values())} |")
    for name in busy:
        cells = [_ms(gpus[name]["ms"] if name in gpus else None) for _, gpus in columns.values()]
        lines.append(f"| GPU: {name} | {' | '.join(cells)} |")
    return lines


def _longest(rows: Iterable[dict[str, float]]) -> list[str]:
    """Return what takes half a millisecond in any row, the longest first."""
    most: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            most[name] = max(most.get(name, 0.0), value)
    return [name for name, value in sorted(most.items(), key=lambda item: -item[1]) if value >= 0.5]


def _ms(value: float | None) -> str:
    return "" if value is None or value < 0.05 else f"{value:.1f}"


def _seconds(times: dict[str, float]) -> str:
    return f"{times['seconds']:.3f} ({times['least']:.3f} to {times['most']:.3f})"


def _megabytes(gpu: dict[str, float], what: str) -> str:
    return f"{gpu[f'bytes_{what}'] / 1e6:.0f}" if f"bytes_{what}" in gpu else "not counted"


def _waiting(gpu: dict[str, float]) -> str:
    return f"{gpu['most_waiting'] / 1e9:.2f}" if "most_waiting" in gpu else "not counted"


def _rate(gpu: dict[str, float], what: str) -> str:
    return f"{gpu[f'bytes_{what}'] / gpu[f'seconds_{what}'] / 1e9:.1f}" if gpu.get(f"seconds_{what}") else "–"


def _cohort(cohort: dict[str, Any]) -> list[str]:
    voxels = " x ".join(map(str, cohort["voxels"][::-1]))
    rows = cohort["rows"]
    cases = max(row.get("cases", 0) for row in rows.values())
    lines = [
        "## Many scans",
        "",
        f"{cases} scans of {voxels} voxels, uncompressed, from their files to label maps in files by `medquant segment`, a process on each GPU. The whole command, start of its processes "
        "included, and seconds a case from the first case of each worker to the last. Each case is counted once if it stands once in the journal and is done.",
        "",
        "| | s | times faster | s to the first case | s a case after the start | times faster | cases done | distinct | other labels than on one GPU | a case's attempts, most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | not done: {row['failed'].strip().splitlines()[-1][:120]} | | | | | | | | |")
            continue
        bar = f" (at least {BARS[name]})" if name in BARS else ""
        faster, after = row.get("faster"), row.get("faster_after_start")
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {f'{faster:.2f}{bar}' if faster else ''} | {row['to_first']:.1f} | {row['seconds_a_case']:.3f} | {f'{after:.2f}' if after else ''} | {row['done']} | "
            f"{row['distinct']} | {row['cases_with_other_labels']} | {max(row['attempts'])} |"
        )
    lines += ["", cohort["note"]] if cohort.get("note") else []
    lines += ["", "Stages of a case, median seconds (each runs beside the others', of other cases):", ""]
    for name in ("one", "all"):
        if "stages" in rows.get(name, {}):
            stages = {key: value for key, value in rows[name]["stages"].items() if value >= 0.001}
            lines.append(f"- {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in stages.items()) + ".")
    fewer = [
        f"{name}: {row['cases']}"
        for name, row in rows.items()
        if row.get("cases", cases) < cases and "failed" not in row
    ]
    if fewer:
        lines += ["", f"Of fewer scans, the first of them: {'; '.join(fewer)}."]
    killed = [f"{name}: {row['killed'][0]}" for name, row in rows.items() if row.get("killed")]
    if killed:
        lines += ["", f"Ended with SIGKILL when a third of the cases were done: {'; '.join(killed)}."]
    lines += ["", f"Ray: {cohort['ray']}." if "ray" in cohort else ""]
    return lines
