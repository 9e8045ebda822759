"""Segmenting many scans from start to end: the same for the command line and for Slicer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..files import split_paths
from ..imaging.segmentation_files import LABEL_MAP_EXTENSIONS
from ..imaging.volume_files import ReadOptions
from ..inference.engine_choice import EngineChoice
from ..inference.region_run import chosen_labels
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import description_of, load_model
from ..progress import Task
from .case_settings import model_hash
from .driver import CohortOptions, CohortResult, run_cohort
from .journal import Record
from .pool import CasePool, Order
from .report import write_results
from .segment_work import SegmentSettings
from .sources import SourceOptions, Sources, find_cases


@dataclass(frozen=True)
class CohortRequest:
    """Everything that a caller chose of a cohort.

    Attributes:
        model: the packages' paths, joined by commas.
        sources, list_file: where the scans are (:func:`.sources.find_cases`).
        folder: of the outputs.
        ending: of their names, such as "seg.nrrd".
        structures: names of the structures that are segmented; None for those of the options, or all.
        reading: how scans are read; its series is the one to take of DICOM folders.
        suffixes: of the channels in a BIDS folder.
    """

    model: str
    sources: tuple[str, ...]
    folder: Path
    choice: EngineChoice
    options: SegmentationOptions = SegmentationOptions()
    reading: ReadOptions = ReadOptions()
    list_file: str | None = None
    ending: str = "seg.nrrd"
    structures: tuple[str, ...] | None = None
    suffixes: tuple[str, ...] = ()
    resuming: CohortOptions = CohortOptions()


def segment_cohort(
    request: CohortRequest,
    pool: CasePool,
    task: Task,
    on_case: Callable[[Record, bool], None] = lambda *_: None,
    on_sources: Callable[[Sources], None] = lambda _: None,
) -> CohortResult:
    """Segment every scan that is not done yet; write the outputs, the journal, ``cohort.csv`` and ``cohort.html``.

    Args:
        on_case: called with the record of each case as it ends, and with whether it was done before.
        on_sources: called once it is known what the cases are.

    Raises:
        InputError: no scan, an output that would replace one, a journal of another run.
        StorageError: the journal or the tables cannot be written.
    """
    ending = checked_ending(request)
    folder = request.folder.absolute()
    for path in split_paths(request.model):
        if Path(path).is_dir() and folder.resolve().is_relative_to(Path(path).resolve()):
            raise InputError(f"The output {request.folder} lies in the model {path}.", "Choose another output folder.")
    structures = request.options.structures if request.structures is None else request.structures
    with load_model(request.model) as model:
        spec = description_of(model)
        chosen_labels(spec.labels, structures, spec.name)
        digest = model_hash(model, structures)
    with task.stage("looking for scans"):
        series = request.reading.series or ""
        search = SourceOptions(len(spec.channels), request.suffixes, series, (str(folder),), task.check)
        sources = find_cases(request.sources, request.list_file, search)
    on_sources(sources)
    reading = ReadOptions(None, request.reading.allow_gaps, request.reading.allow_tilt, request.reading.nifti_form)
    options = replace(request.options, structures=None)
    settings = SegmentSettings(request.model, digest, request.choice, options, reading, str(folder), ending, structures)
    order = Order("segment", settings.to_json())
    result = run_cohort(folder, settings.plan, order, sources.cases, pool, task, on_case, request.resuming)
    return write_results(folder, f"{spec.title or spec.name}: {len(sources.cases)} cases", result, sources.skipped)


def checked_ending(request: CohortRequest) -> str:
    """Return the ending of the outputs' names, with its dot.

    Raises:
        InputError: no segmentation is written as that, or the outputs would be taken for scans by the next run.
    """
    ending = f".{request.ending.lower().lstrip('.')}"
    if ending not in (".seg.nrrd", *LABEL_MAP_EXTENSIONS):
        raise InputError(
            f"{request.ending!r} is no type that a segmentation can be written as.",
            f"Give seg.nrrd or one of {', '.join(kind[1:] for kind in LABEL_MAP_EXTENSIONS)}.",
        )
    if ending != ".seg.nrrd" and any(_is_same_folder(source, request.folder) for source in request.sources):
        raise InputError(
            f"Label maps of type {ending[1:]} in {request.folder} would be taken for scans by the next run.",
            "Give another folder, or the type seg.nrrd.",
        )
    return ending


def _is_same_folder(source: str, output: Path) -> bool:
    try:
        return Path(source).samefile(output)
    except (OSError, ValueError):
        return False
