"""``medquant compare`` over many workers: each scan is run in FP32 and INT8 by processes of a worker; the driver puts the report together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.comparison import ScanComparison, check_reference, compare_scan, comparison_json, distinct_names
from ..evaluation.own_process import run_command, segment_commands
from ..evaluation.reports.viewer import ViewerScan
from ..evaluation.viewing import viewer_pair
from ..imaging.volume_files import ScanReader, scan_paths
from ..inference.task_model import labels_of
from ..models.package import ModelPackage
from ..progress import Task
from .case_files import unchanged_files
from .case_settings import CaseSettings, checked_model
from .cases import ScanCase, safe_id, with_unique_ids
from .driver import CohortOptions, CohortResult, run_cohort
from .journal import DONE, Plan, Record
from .pool import CasePool, Order
from .viewed import CASE_BYTES, ViewedCases, ViewedWriter


@dataclass(frozen=True)
class CompareSettings(CaseSettings):
    """What all scans of a comparison share.

    Attributes:
        flags: arguments of the commands that segment a scan, beside engine, precision and device.
    """

    flags: tuple[str, ...]

    @staticmethod
    def from_json(value: dict[str, Any]) -> CompareSettings:
        """Return the settings from their JSON values."""
        return CompareSettings(*CaseSettings.shared_arguments(value), tuple(value["flags"]))

    @property
    def plan(self) -> Plan:
        """What a journal has to be of, so that its cases count."""
        return Plan("compare", self.shared_plan)


class CompareWork:
    """Runs a scan in both precisions, each in a process of its own, so that time and memory are those of a user's command."""

    def __init__(self, settings: CompareSettings) -> None:
        self._settings = settings
        # Loaded to know its labels, and that it is the one that the run began with; engines lie in the processes.
        with checked_model(settings.model, settings.model_hash, None) as model:
            self._labels = labels_of(model)
        self._viewed = ViewedWriter(settings.output)

    def read(self, case: dict[str, Any], task: Task) -> tuple[dict[str, Any], Record]:
        """Look whether the reference fits the scan."""
        reader = ScanReader(self._settings.reading, task.check)
        with unchanged_files(case) as record:
            if case["labels"]:
                check_reference(case["channels"][0], case["labels"], self._labels, reader)
        return case, {**record, "warnings": reader.notes}

    def run(self, loaded: tuple[dict[str, Any], Record], task: Task) -> Record:
        """Run both precisions, and compare."""
        case, record = loaded
        settings = self._settings
        reader = ScanReader(settings.reading, task.check)

        def run_scan(scan: str, precision: str, output: Path) -> dict[str, Any]:
            choice = settings.choice.beside(precision)
            flags = [*settings.flags, "--threads", str(choice.threads)]
            build, segment = segment_commands(settings.model, scan, choice, flags, output)
            run_command(build, task.check)
            return run_command(segment, task.check)

        scan = ",".join(case["channels"])
        compared = compare_scan(case["id"], scan, case["labels"] or None, self._labels, run_scan, reader, task.check)
        notes = [note for note in reader.notes if note not in record["warnings"]]
        maps, mean = compared.label_maps, compared.scan.agreements[0]["mean_dice"]
        viewed = self._viewed.offer(
            case["id"],
            0.0 if mean is None else 1.0 - mean,
            lambda: viewer_pair(compared.volume, maps["fp32"], maps["int8"], self._labels, CASE_BYTES),
        )
        notes += filter(None, [viewed.pop("viewer_warning", "")])
        comparison = asdict(compared.scan)
        return {**record, **viewed, "warnings": [*record["warnings"], *notes], "comparison": comparison}

    def finish(self, result: Record, task: Task) -> Record:
        """Return what the journal says of the scan."""
        return result

    def close(self) -> None:
        """Nothing is loaded."""


def compare_cohort(
    package: ModelPackage,
    scans: Sequence[str],
    references: Sequence[str],
    settings: CompareSettings,
    pool: CasePool,
    task: Task,
    resuming: CohortOptions = CohortOptions(),
) -> tuple[dict[str, Any], CohortResult, list[ViewerScan]]:
    """Compare scans over the workers of a pool, with a journal in the folder of the report.

    Args:
        scans, references: as :func:`..evaluation.comparison.compare_scans` takes them.

    Returns:
        The report of the scans that could be compared; how each scan ended; and what the page's viewer shows of the worst.

    Raises:
        InputError: no scan could be compared.
    """
    names = distinct_names(scans)
    cases = with_unique_ids(
        [
            ScanCase(
                safe_id(*Path(name).parts[1 if Path(name).is_absolute() else 0 :]),
                tuple(scan_paths(scan)),
                labels=references[index] if index < len(references) else "",
            )
            for index, (name, scan) in enumerate(zip(names, scans, strict=True))
        ]
    )
    # The reader of one scan takes its first channel for the picture, as without workers.
    order = Order("compare", settings.to_json())
    worst = ViewedCases(settings.output)
    result = run_cohort(Path(settings.output), settings.plan, order, cases, pool, task, worst.take, resuming)
    compared = []
    for name, record in zip(names, result.records, strict=True):
        if record["state"] == DONE:
            compared.append(_named(ScanComparison(**record["comparison"]), record["id"], name))
    if not compared:
        first = result.failed[0]
        raise InputError(f"No scan could be compared. {first['id']}: {first['error']}", "See cohort.jsonl.")
    viewed = worst.scans({case.id: name for case, name in zip(cases, names, strict=True)})
    return comparison_json(package, compared), result, viewed


def _named(comparison: ScanComparison, case: str, name: str) -> ScanComparison:
    """Return a comparison under the report's name of its scan, which may hold what no case's name does."""
    if case == name:
        return comparison
    pictures = [{**picture, "title": picture["title"].replace(case, name, 1)} for picture in comparison.pictures]
    return ScanComparison(
        [{**run, "scan": name} for run in comparison.runs],
        [{**item, "scan": name} for item in comparison.agreements],
        pictures,
    )
