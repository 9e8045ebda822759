"""Runs a cohort: what is done already is left out, the others are handed to the workers, and the journal says how each ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError, MedQuantError
from ..files import finish_interrupted, sha256_file, storage_errors
from ..imaging.volume_files import scan_name
from ..progress import Task
from ..system import machine
from .case_files import input_files, input_hash, stamps
from .cases import ScanCase
from .journal import DONE, FAILED, JOURNAL, Journal, Plan, Record, locked, start_over
from .pool import CasePool, Order

_HASHING_THREADS = 4


@dataclass(frozen=True)
class CohortOptions:
    """How a cohort is run.

    Attributes:
        resume: True to go on with a journal that must be there, False to refuse one, None to go on where there is one.
        force: begin anew, and replace whatever is there.
    """

    resume: bool | None = None
    force: bool = False


@dataclass(frozen=True)
class CohortResult:
    """How a cohort ended.

    Attributes:
        records: of every case, in the order of the cases.
        already: ids of those that were done before.
        notes: what a user should know of the run.
    """

    records: tuple[Record, ...]
    already: frozenset[str]
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record["state"] == FAILED]


def run_cohort(
    folder: Path,
    plan: Plan,
    order: Order,
    cases: Sequence[ScanCase],
    pool: CasePool,
    task: Task,
    on_case: Callable[[Record, bool], None] = lambda *_: None,
    options: CohortOptions = CohortOptions(),
) -> CohortResult:
    """Run every case that is not done yet.

    Args:
        on_case: called with the record of each case as it ends, and with whether it was done before.

    Raises:
        InputError: the journal in the folder is of another plan, or an output would replace something that is not the cohort's.
        StorageError: the journal cannot be written.
        Cancelled: the task was canceled; what is done stays done.
    """
    with locked(folder):
        if options.force:
            start_over(folder)
        journal = Journal(folder)
        _check_journal(journal, plan, options)
        notes: list[str] = []
        done = _done_before(journal, cases, notes, task)
        _check_outputs(folder, journal, order, cases, force=options.force)
        todo = [asdict(case) for case in cases if case.id not in done]
        journal.begin(plan, [case.id for case in cases], {"where": pool.describe(len(todo)), "machine": machine()})
        for name in done:
            on_case(journal.records[name], True)
        with task.stage("segmenting", len(cases)):
            task.begin(len(cases), len(done))
            for record in pool.run(order, todo, task.check) if todo else ():
                journal.add(record)
                on_case(journal.records[record["id"]], False)
                task.step()
        journal.close()
        # A run that was killed may have left a temporary folder beside an output.
        for place in sorted({(folder / case.id).parent for case in cases}):
            finish_interrupted(place)
    records = tuple(journal.records[case.id] for case in cases)
    engines = sorted({f"{r['engine']['name']} {r['engine']['precision']}" for r in records if r.get("engine")})
    notes += pool.notes
    if len(engines) > 1:
        notes.append(f"the cases were run by several engines: {', '.join(engines)}")
    return CohortResult(records, frozenset(done), tuple(notes))


def _check_journal(journal: Journal, plan: Plan, options: CohortOptions) -> None:
    if journal.plan is None:
        if options.resume:
            raise InputError(
                f"There is no journal in {journal.folder} to go on with.", "Leave --resume out to begin there."
            )
        return
    if options.resume is False:
        raise InputError(
            f"{journal.path} is there already, with {len(journal.records)} case(s).",
            "Choose another output, or give --force to begin anew.",
        )
    if differences := journal.plan.differences(plan):
        if not journal.records:
            # A run that ended before its first case, as for want of an engine, binds nobody.
            journal.forget()
            return
        raise InputError(
            f"The journal {journal.path} is of another run: {'; '.join(differences)}.",
            "Choose another output, run as then, or give --force to begin anew.",
        )


def _done_before(journal: Journal, cases: Sequence[ScanCase], notes: list[str], task: Task) -> set[str]:
    """Return the cases that are done and still whole: the same scan, and the output as it was written."""
    ended = [case for case in cases if journal.records.get(case.id, {}).get("state") == DONE]
    if not ended:
        return set()

    def why_not(case: ScanCase) -> str:
        task.check()
        record = journal.records[case.id]
        return _scan_differs(case, record) or _output_differs(journal.folder, record)

    with task.stage("looking at what is done", len(ended)), ThreadPoolExecutor(_HASHING_THREADS) as executor:
        done = set()
        for case, reason in zip(ended, executor.map(why_not, ended), strict=True):
            if reason:
                notes.append(f"{case.id} was repeated: {reason}")
            else:
                done.add(case.id)
            task.step()
    return done


def _scan_differs(case: ScanCase, record: Record) -> str:
    try:
        files = input_files(asdict(case))
        if stamps(files) == record.get("input_files") or input_hash(files) == record.get("input_sha256"):
            return ""
    except (OSError, MedQuantError):
        # That it cannot be read is said by the worker, as of any other case.
        pass
    return "its scan is another one now"


def _output_differs(folder: Path, record: Record) -> str:
    if "output" not in record:
        return ""
    path = folder / record["output"]
    for name, digest in record["output_sha256"].items():
        file = path.with_name(name)
        try:
            if sha256_file(file) != digest:
                return _set_aside(path)
        except FileNotFoundError:
            return "its output is gone"
        except OSError as error:
            return f"its output cannot be read: {error.strerror}"
    return ""


def _set_aside(path: Path) -> str:
    """Keep an output that somebody changed, as by correcting it; one that is damaged is nobody's work."""
    from ..imaging.volume_files import read_volume

    try:
        read_volume(path)
    except MedQuantError:
        return "its output was damaged"
    stem = scan_name(path)
    ending, number = path.name[len(stem) :], 1
    while (aside := path.with_name(f"{stem}-changed-{number}{ending}")).exists():
        number += 1
    with storage_errors(aside):
        path.rename(aside)
    return f"its output was changed since, and is kept as {aside.name}"


def _check_outputs(folder: Path, journal: Journal, order: Order, cases: Sequence[ScanCase], *, force: bool) -> None:
    """Refuse to replace what no run of this journal has written."""
    ending = order.settings.get("ending")
    if ending is None:
        return
    inputs = {os.path.realpath(path) for case in cases for path in case.paths}
    foreign = []
    for case in cases:
        if os.path.realpath(folder / (case.id + ending)) in inputs:
            raise InputError(
                f"The output {folder / (case.id + ending)} would replace a scan.", "Choose another output folder."
            )
        if not force and case.id not in journal.claimed:
            with suppress(OSError):
                if (path := folder / (case.id + ending)).exists():
                    foreign.append(path)
    if foreign:
        more = f" and {len(foreign) - 1} more file(s)" if len(foreign) > 1 else ""
        raise InputError(
            f"{foreign[0]}{more} would be replaced, and no run that {folder / JOURNAL} tells of has written it.",
            "Choose another output, or give --force to replace it.",
        )
