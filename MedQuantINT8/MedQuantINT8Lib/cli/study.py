"""``medquant networks``, ``reproduce``, ``selftest`` and ``evaluate``: the study's networks and tables, and what an engine proves."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..importers.networks import STUDY
from ..progress import Task
from .terminal import print_result


def networks(args: argparse.Namespace, task: Task) -> None:
    rows = [
        {
            "name": n.name,
            "title": n.title,
            "data": n.data,
            "classes": n.classes,
            "study_mb": n.engine_mb,
            "free_size": n.free_size,
            "note": n.note,
        }
        for n in STUDY.values()
    ]
    lines = [f"{'name':12}{'network':12}{'data of the study':22}{'classes':>8}{'FP32 MB':>9}  patch"]
    for n in STUDY.values():
        sizes = f"multiples of {n.multiples[0]}" if n.free_size else "96 x 96 x 96 only"
        lines.append(f"{n.name:12}{n.title:12}{n.data:22}{n.classes:8}{n.engine_mb:9.1f}  {sizes}")
        lines += [f"{'':12}{n.note}"] if n.note else []
    print_result(args, {"networks": rows}, *lines)


def reproduce(args: argparse.Namespace, task: Task) -> None:
    from ..evaluation.study_tables import page
    from ..evaluation.study_tables import reproduce as run
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    folder = Path(args.output) if args.output else None
    files = [f"{args.table}.json", f"{args.table}.md"]
    if folder:
        check_output_folder(folder, files)
    with overwriting(args, [folder / name for name in files] if folder else []):
        value = run(args.table, args.networks, args.engine, folder, task)
    print_result(args, value, *page(value))


def selftest(args: argparse.Namespace, task: Task) -> None:
    from ..errors import EngineError
    from ..evaluation.selftest import FILES, lines_of, run_selftest
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    check_output_folder(args.output, FILES)
    with overwriting(args, [Path(args.output) / name for name in FILES]):
        value = run_selftest(args.engine, args.networks, Path(args.output), task)
    print_result(args, value, *lines_of(value))
    if not value["passed"]:
        raise EngineError(
            "The self-test failed.", f"Look at {args.output}/selftest.html, and send it to the developers."
        )


def evaluate(args: argparse.Namespace, task: Task) -> None:
    from ..evaluation.dataset_evaluation import FILES, lines_of, write_results
    from ..evaluation.dataset_evaluation import evaluate as run
    from ..evaluation.datasets import files_of, read_dataset
    from ..files import split_paths
    from ..inference.engine_choice import EngineChoice
    from ..inference.ensemble import load_ensemble
    from ..outputs import check_output_folder
    from .commands import options_of, packages_of, reader_of
    from .overwriting import overwriting

    data = read_dataset(Path(args.data), args.form)
    cases = data.of(args.split)[: args.cases or None]
    model = packages_of(args)
    check_output_folder(args.output, FILES, [*split_paths(model), args.data, *files_of(cases)])
    with overwriting(args, [Path(args.output) / name for name in FILES]), load_ensemble(model) as ensemble:
        for member in ensemble.packages:
            member.onnx_path("int8")
        choice = EngineChoice(args.engine, "int8", args.threads, args.device)
        reader = reader_of(args, task)
        value = run(ensemble, data, cases, choice, options_of(args), args.tolerance, task, reader)
        write_results(value, Path(args.output))
    print_result(
        args,
        value,
        *lines_of(value),
        *(f"  note: {text}" for text in reader.notes),
        f"  wrote {args.output}/evaluation.html, .csv, .json",
    )
