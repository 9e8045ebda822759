"""``medquant evaluate`` over many workers: each case is run in FP32 and INT8 and scored where it was run; the driver puts the rows together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..engines import choose_backend
from ..errors import InputError
from ..evaluation.dataset_evaluation import (
    CaseScores,
    LabeledScan,
    dice_lost,
    evaluation_json,
    read_labeled,
    run_case,
    score_case,
    shared_labels,
)
from ..evaluation.datasets import Case, DataSet
from ..evaluation.reports.viewer import ViewerScan
from ..evaluation.viewing import viewer_case
from ..imaging.volume_files import ScanReader
from ..inference.engine_pool import KeepingPool
from ..inference.segmentation_run import SegmentationRun
from ..inference.task_model import description_of, labels_of, load_model
from ..progress import Task
from .case_files import unchanged_files
from .case_settings import CaseSettings, checked_model, model_hash
from .cases import ScanCase, safe_id, with_unique_ids
from .driver import CohortOptions, CohortResult, run_cohort
from .journal import DONE, Plan, Record
from .pool import CasePool, Order
from .viewed import ViewedCases, ViewedWriter


@dataclass(frozen=True)
class EvaluateSettings(CaseSettings):
    """What all cases of an evaluation share.

    Attributes:
        data: name of the data set, for messages.
        values: the data set's structures by the values of its label maps; empty where these are the model's own.
        labels: names of the model's structures that are scored.
        tolerance: of the surface Dice, in millimeters.
    """

    data: str
    values: Mapping[int, str]
    labels: tuple[str, ...]
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, as they travel to a worker."""
        # Keys of JSON objects are texts.
        return {**asdict(self), "values": [[value, name] for value, name in self.values.items()]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> EvaluateSettings:
        """Return the settings from their JSON values."""
        return EvaluateSettings(
            *CaseSettings.shared_arguments(value),
            value["data"],
            {int(number): name for number, name in value["values"]},
            tuple(value["labels"]),
            value["tolerance"],
        )

    @property
    def plan(self) -> Plan:
        """What a journal has to be of, so that its cases count."""
        own = {"data set": self.data, "structures": list(self.labels), "tolerance": self.tolerance}
        return Plan("evaluate", {**self.shared_plan, **own})


class EvaluateWork:
    """Runs cases in FP32 and in INT8, and scores them against their labels."""

    def __init__(self, settings: EvaluateSettings) -> None:
        self._settings = settings
        choice = settings.choice
        choose_backend(choice.name, choice.precision, choice.device)
        self._model = checked_model(settings.model, settings.model_hash, None)
        self._labels = [label for label in labels_of(self._model) if label.name in settings.labels]
        self._pool = KeepingPool()
        self._viewed = ViewedWriter(settings.output)

    def read(self, case: dict[str, Any], task: Task) -> tuple[dict[str, Any], Record, LabeledScan]:
        """Read the scan and its labels."""
        data = DataSet(self._settings.data, (), dict(self._settings.values))
        masks = {name: Path(path) for name, path in case["masks"]}
        labels: Path | dict[str, Path] = masks or Path(case["labels"])
        own = Case(case["id"], tuple(map(Path, case["channels"])), labels)
        reader = ScanReader(self._settings.reading, task.check)
        with unchanged_files(case) as record, task.stage("reading"):
            scan = read_labeled(own, data, self._labels, reader)
        return case, {**record, "warnings": reader.notes}, scan

    def run(
        self, loaded: tuple[dict[str, Any], Record, LabeledScan], task: Task
    ) -> tuple[Record, LabeledScan, dict[str, SegmentationRun]]:
        """Run both networks."""
        _, record, scan = loaded
        settings = self._settings
        runs = run_case(self._model, scan.volume, settings.choice, settings.options, self._pool, task.check)
        return record, scan, runs

    def finish(self, result: tuple[Record, LabeledScan, dict[str, SegmentationRun]], task: Task) -> Record:
        """Score the case; what the journal says of it."""
        record, scan, runs = result
        began = time.perf_counter()
        scored = score_case(scan, runs, self._labels, self._settings.tolerance)
        maps = {**{p.upper(): run.result.labels for p, run in runs.items()}, "labels": scan.truth}
        viewed = self._viewed.offer(
            scan.case,
            dice_lost(scored.rows, scan.case),
            lambda: viewer_case(scan.volume, maps, labels_of(self._model)),
        )
        if "viewer_warning" in viewed:
            record = {**record, "warnings": [*record["warnings"], viewed.pop("viewer_warning")]}
        return {
            **record,
            **viewed,
            "engine": {"name": scored.engine["int8"]["name"], "precision": "int8"},
            "rows": scored.rows,
            "by_precision": {"seconds": scored.seconds, "engine": scored.engine},
            "seconds": {"writing": time.perf_counter() - began},
        }

    def close(self) -> None:
        """Close the engines and the packages."""
        self._pool.clear()
        self._model.__exit__(None, None, None)


def evaluate_cohort(
    model: str,
    data: DataSet,
    cases: Sequence[Case],
    settings: Callable[[str, tuple[str, ...]], EvaluateSettings],
    pool: CasePool,
    task: Task,
    resuming: CohortOptions = CohortOptions(),
) -> tuple[dict[str, Any], CohortResult, list[ViewerScan]]:
    """Evaluate a data set over the workers of a pool, with a journal in the folder of the results.

    Args:
        settings: makes the settings of the model's hash and the structures that are scored.

    Returns:
        What :func:`..evaluation.dataset_evaluation.evaluate` returns, of the cases that could be run; how each case ended; and what the
        page's viewer shows of the worst.

    Raises:
        InputError: model and data set have nothing in common, or no case could be run.
    """
    with load_model(model) as loaded:
        labels = shared_labels(labels_of(loaded), data)
        own = settings(model_hash(loaded), tuple(label.name for label in labels))
        name = description_of(loaded).name
    scans = with_unique_ids([_scan_case(case) for case in cases])
    order = Order("evaluate", own.to_json())
    worst = ViewedCases(own.output)
    result = run_cohort(Path(own.output), own.plan, order, scans, pool, task, worst.take, resuming)
    scored = [
        _scores(case, record) for case, record in zip(cases, result.records, strict=True) if record["state"] == DONE
    ]
    if not scored:
        first = result.failed[0]
        raise InputError(f"No case could be evaluated. {first['id']}: {first['error']}", "See cohort.jsonl.")
    value = evaluation_json(name, data, labels, own.tolerance, scored)
    value["failed"] = {record["id"]: record["error"] for record in result.failed}
    names = {scan.id: case.name for scan, case in zip(scans, cases, strict=True)}
    return value, result, worst.scans(names)


def _scan_case(case: Case) -> ScanCase:
    label = case.label
    return ScanCase(
        safe_id(*case.name.split("/")),
        tuple(map(str, case.image)),
        labels=str(label) if isinstance(label, Path) else "",
        masks=() if isinstance(label, Path) else tuple((name, str(path)) for name, path in label.items()),
    )


def _scores(case: Case, record: Record) -> CaseScores:
    """Return the scores of a case out of its record, by the data set's own name of it."""
    rows = [{**row, "case": case.name} for row in record["rows"]]
    return CaseScores(case.name, rows, record["by_precision"]["seconds"], record["by_precision"]["engine"])
