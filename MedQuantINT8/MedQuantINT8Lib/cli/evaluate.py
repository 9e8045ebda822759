"""``medquant evaluate``: FP32 and INT8 against manual labels, with intervals and tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import number, whole
from .common import (
    PACKAGE,
    Add,
    add_command,
    add_force,
    add_model,
    add_reading_options,
    add_running_options,
    choice_of,
    options_of,
    packages_of,
    reader_of,
)
from .pool_options import add_pool_options, pool_of, uses_pool
from .terminal import print_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..evaluation.datasets import Case, DataSet
    from ..progress import Task


#: The description of a data set, for the help.
JSON_FORM = """the JSON description of a data set:
  {
    "name": "my scans",
    "structures": {"1": "liver", "2": "spleen"},
    "cases": [
      {"name": "case 1", "split": "test",
       "image": "images/1.nii.gz", "label": "labels/1.nii.gz"},
      {"name": "case 2",
       "image": ["t1/2.nii.gz", "flair/2.nii.gz"], "label": "labels/2.nii.gz"}
    ]
  }
  name, structures and split may be left out. structures names the label maps'
  values as the model names its structures; without it the label maps hold the
  model's own values. image is one path, or one a channel; paths begin at the
  folder of the description.
"""


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    command = add_command(
        add,
        "evaluate",
        run,
        "FP32 and INT8 against manual labels, with intervals and tests",
        "evaluate hippocampus --data Task04_Hippocampus --output evaluation",
        more=f"{JSON_FORM}\n",
    )
    add_model(command, f"{PACKAGE}, with both networks")
    command.add_argument(
        "--data", required=True, help="a data set: JSON description (see below), or the folder of a public one"
    )
    command.add_argument(
        "--form", default="auto", help="json, msd, btcv, totalsegmentator, wholebrain (default: by its files)"
    )
    command.add_argument("--split", default="all", help="train, val, test or all (default: %(default)s)")
    command.add_argument(
        "--cases", type=whole(0, 10_000_000), default=0, metavar="N", help="only the first N (default: all)"
    )
    command.add_argument(
        "--tolerance",
        type=number(0, 1000, above=True),
        default=1.0,
        metavar="MM",
        help="of the surface Dice (default: %(default)s mm)",
    )
    command.add_argument(
        "--output", "-o", default="evaluation", help="folder for evaluation.html, .csv, .json (default: %(default)s)"
    )
    add_force(command)
    add_running_options(command, precision=False)
    add_reading_options(command)
    add_pool_options(command)


def run(args: argparse.Namespace, task: Task) -> None:
    """Evaluate the model on the cases of a data set, and write the results into a folder."""
    from ..evaluation.dataset_evaluation import FILES, evaluate, lines_of, write_results
    from ..evaluation.datasets import files_of, read_dataset
    from ..evaluation.viewing import WorstCases
    from ..files import split_paths
    from ..inference.task_model import labels_of, load_model, require_int8
    from ..outputs import check_output_folder
    from .overwriting import overwriting

    data = read_dataset(Path(args.data), args.form)
    cases = data.of(args.split)[: args.cases or None]
    model = packages_of(args)
    check_output_folder(args.output, FILES, [*split_paths(model), args.data, *files_of(cases)])
    with overwriting(args, [Path(args.output) / name for name in FILES]), load_model(model) as loaded:
        require_int8(loaded)
        if uses_pool(args):
            _run_pool(args, model, data, cases, task)
            return
        choice = choice_of(args, "int8")
        reader = reader_of(args, task)
        worst = WorstCases(labels_of(loaded))
        value = evaluate(loaded, data, cases, choice, options_of(args), args.tolerance, task, reader, worst)
        write_results(value, Path(args.output), worst.scans)
    print_result(
        args,
        value,
        *lines_of(value),
        *(f"  note: {text}" for text in reader.notes),
        f"  wrote {args.output}/evaluation.html, .csv, .json",
    )


def _run_pool(args: argparse.Namespace, model: str, data: DataSet, cases: Sequence[Case], task: Task) -> None:
    """Evaluate over many workers; a journal in the output folder lets the next run go on.

    Raises:
        CasesFailed: some cases could not be evaluated; the results are those of the others.
    """
    from ..cohort.driver import CohortOptions
    from ..cohort.evaluate_work import EvaluateSettings, evaluate_cohort
    from ..cohort.report import table_lines
    from ..errors import CasesFailed
    from ..evaluation.dataset_evaluation import lines_of, write_results
    from ..evaluation.reports.pages import require_templates
    from ..evaluation.statistics import require_scipy
    from ..imaging.volume_files import ReadOptions

    require_scipy()
    require_templates()
    reading = ReadOptions(None, args.allow_gaps, args.allow_tilt, args.nifti_form)

    def settings(digest: str, labels: tuple[str, ...]) -> EvaluateSettings:
        return EvaluateSettings(
            model, digest, choice_of(args, "int8"), options_of(args), reading, str(Path(args.output).absolute()), data.name,
            data.structures, labels, args.tolerance,
        )  # fmt: skip

    resuming = CohortOptions(force=args.force)
    value, result, viewed = evaluate_cohort(model, data, cases, settings, pool_of(args), task, resuming)
    write_results(value, Path(args.output), viewed)
    warnings = dict.fromkeys(text for record in result.records for text in record.get("warnings", []))
    print_result(
        args,
        value,
        *lines_of(value),
        *(f"  note: {text}" for text in (*result.notes, *warnings)),
        *table_lines(result.failed),
        f"  wrote {args.output}/evaluation.html, .csv, .json",
    )
    if result.failed:
        raise CasesFailed(
            f"{len(result.failed)} of {len(result.records)} cases failed.", "The same command repeats those alone."
        )
