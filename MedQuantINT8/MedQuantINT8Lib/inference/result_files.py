"""What a segmentation is written as: any number of files at once, all checked before the work, and written together or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import replacing, storage_errors, sync
from ..imaging.dicom_segmentation import DICOM_KINDS, Algorithm, DicomKind, check_source, write_dicom_segmentation
from ..imaging.dicom_source import DicomSource, load_source, require_highdicom
from ..imaging.label_map_files import data_file_name, write_label_map
from ..imaging.measurements import STATISTICS_EXTENSIONS, Measurement, measure, statistics_text
from ..imaging.pictures import segmentation_picture
from ..imaging.segmentation_files import (
    LABEL_MAP_EXTENSIONS,
    check_output_path,
    mask_names,
    output_files,
    output_kind,
    write_into,
    write_masks,
)
from ..imaging.volume import Volume
from ..models.spec import Label
from ..outputs import check_output_file
from ..progress import Task
from .ensemble import Ensemble
from .margins import ONE
from .segmentation_run import SegmentationRun
from .segmenter import SegmentationOptions
from .task_model import LoadedModel, description_of

_PICTURE = ".png"


@dataclass(frozen=True)
class OutputOptions:
    """The files that a segmentation is written as, for the command line, the worker and Slicer alike.

    Attributes:
        segmentations: paths of ``.seg.nrrd``, label maps, ``.dcm``, and folders for one mask a structure; a text that ends in a separator
            is a folder in any case.
        dicom_segmentation: the kind of ``.dcm``: "binary" (None means that) or "labelmap".
        statistics: a ``.csv`` or ``.json`` with the measurements of each structure.
        margins: a label map's type, for by how much each voxel's label won, 0 to 1 in float32.
        picture: a ``.png`` of three slices.
    """

    segmentations: tuple[str, ...] = ()
    dicom_segmentation: DicomKind | None = None
    statistics: str | None = None
    margins: str | None = None
    picture: str | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> OutputOptions:
        """Return the options that ``asdict`` gave, after a way through JSON."""
        return cls(**{**values, "segmentations": tuple(values.get("segmentations", ()))})

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def __bool__(self) -> bool:
        return bool(self.segmentations or self.statistics or self.margins or self.picture)

    @property
    def needs_dicom(self) -> bool:
        """Whether one of the files refers to the DICOM images of the scan."""
        return any(output_kind(path) == "dicom" for path in self.segmentations)

    def with_margins(self, options: SegmentationOptions) -> SegmentationOptions:
        """Return the options of a run that keeps what these outputs need of it."""
        return replace(options, margins=options.margins or self.margins is not None)

    def files(self, labels: Sequence[Label]) -> list[Path]:
        """Return all files that will be written; a folder of masks has one for each of the labels.

        Raises:
            InputError: a type that cannot be written.
        """
        single = [Path(path) for path in (self.statistics, self.picture) if path is not None]
        margins = [Path(self.margins)] if self.margins is not None else []
        margins += [path.with_name(name) for path in margins if (name := data_file_name(path.name))]
        return [*(file for path in self.segmentations for file in output_files(path, labels)), *single, *margins]

    def check(
        self, labels: Sequence[Label], inputs: Iterable[str | os.PathLike[str] | None] = (), scan: Sequence[str] = ()
    ) -> None:
        """Refuse, before any work starts, what cannot be written.

        Args:
            labels: the structures of the model, or those of them that are kept.
            inputs: every file and folder that is read.
            scan: the paths of the scan's channels, if it comes from files.

        Raises:
            InputError: a type that is not known, two outputs that are one file, an output that is an input, a choice that reaches no
                file, or a DICOM segmentation of a scan that is not DICOM.
            StorageError: a folder that cannot be made or written.
            DependencyError: a DICOM segmentation is asked for and highdicom is not installed.
        """
        inputs = list(inputs)
        self._check_types()
        _refuse_twice(self.files(labels))
        for path in self.segmentations:
            check_output_path(path, inputs, labels)
        for single in (self.statistics, self.picture, self.margins):
            if single is not None:
                companion = data_file_name(Path(single).name) if single == self.margins else None
                check_output_file(single, inputs, tuple(filter(None, [companion])))
        if self.needs_dicom:
            require_highdicom()
            if scan:
                self._check_scan(scan)

    def _check_types(self) -> None:
        for path, extensions, what in (
            (self.statistics, STATISTICS_EXTENSIONS, "the measurements"),
            (self.picture, (_PICTURE,), "the picture"),
            (self.margins, LABEL_MAP_EXTENSIONS, "the margins"),
        ):
            if path is not None and (not path.lower().endswith(extensions) or path.lower().endswith(".seg.nrrd")):
                raise InputError(
                    f"{path} has no type that {what} can be written as.",
                    f"End the name in {' or '.join(extensions) if len(extensions) < 3 else ', '.join(extensions)}.",
                )
        if self.dicom_segmentation is not None:
            if self.dicom_segmentation not in DICOM_KINDS:
                raise InputError(
                    f"There is no kind of DICOM segmentation {self.dicom_segmentation!r}.",
                    f"Choose {' or '.join(DICOM_KINDS)}.",
                )
            if not self.needs_dicom:
                raise InputError(
                    f"The kind of DICOM segmentation ({self.dicom_segmentation}) was chosen, but no output is one.",
                    "Give an output that ends in .dcm, or leave the kind out.",
                )

    def _check_scan(self, scan: Sequence[str]) -> None:
        first = Path(scan[0])
        if first.exists() and not first.is_dir() and not _is_dicom(first):
            raise InputError(
                f"{first} is not DICOM: a DICOM segmentation refers to the images that it was made from.",
                "Give the DICOM folder of the scan, or write .seg.nrrd or .nii.gz.",
            )
        for path in self.segmentations:
            if output_kind(path) == "dicom" and first.is_dir() and _same(Path(path).absolute().parent, first):
                raise InputError(
                    f"{path} would lie among the images of the scan, as one series more in that folder.",
                    "Choose another folder for it.",
                )


@dataclass(frozen=True)
class Result:
    """A segmentation that is to be written.

    Attributes:
        volume: the scan.
        label_map: array (K, J, I) on its grid.
        labels: the structures that are kept; other values of the label map are left out of every file.
        algorithm: what made it.
        margins: as :mod:`.margins` keeps them, where they are to be written.
        source: the scan's DICOM images, where a file refers to them.
        channels: names of the channels, for the measurements.
    """

    volume: Volume
    label_map: NDArray[Any]
    labels: tuple[Label, ...]
    algorithm: Algorithm
    margins: NDArray[np.uint8] | None = None
    source: DicomSource | None = None
    channels: tuple[str, ...] = ()


def prepare(options: OutputOptions, volume: Volume, labels: Sequence[Label]) -> DicomSource | None:
    """Return the DICOM images that the outputs refer to, checked once more now that the scan was read; None where none does.

    Raises:
        InputError: the scan was not read from DICOM, or its images lack what a reference needs.
    """
    if not options.needs_dicom:
        return None
    source = load_source(volume)
    check_source(source, labels, options.dicom_segmentation or "binary")
    return source


def result_of(
    run: SegmentationRun, model: LoadedModel, labels: tuple[Label, ...], source: DicomSource | None
) -> Result:
    """Return what there is to write of a run.

    Args:
        labels: the structures that are kept.
        source: as :func:`prepare` gave it.
    """
    channels = tuple(channel.name for channel in description_of(model).channels)
    return Result(run.volume, run.result.labels, labels, algorithm_of(model, run), run.result.margins, source, channels)


def algorithm_of(model: LoadedModel, run: SegmentationRun) -> Algorithm:
    """Return what a DICOM segmentation says of a run: the networks, and by what engine and in what precision they were run."""
    spec, engine = description_of(model), run.engine
    networks = (
        [f"{package.spec.name} {package.spec.version}" for package in model.packages]
        if isinstance(model, Ensemble)
        else [f"{spec.name} {spec.version}", *(part["name"] for part in run.parts)]
    )
    parameters = {
        "network": "+".join(networks),
        "precision": str(engine["precision"]),
        "engine": str(engine["title"]),
        "engine version": str(engine["description"]["version"]),
        "INT8 share of multiply-accumulates": f"{engine['description']['int8_mac_share']:.3f}",
    }
    return Algorithm(spec.title or spec.name, spec.version, parameters)


def write_results(options: OutputOptions, result: Result, task: Task) -> tuple[list[dict[str, Any]], list[str]]:
    """Write all files, and put them in their places together when the last one is whole and on the disk.

    Returns:
        What was written, one entry an output (``path``, ``kind``, and the ``files`` of a folder); and notes for the user.

    Raises:
        StorageError: one of them cannot be written; then none is.
        Cancelled: as Task says; then none is.
    """
    written: list[dict[str, Any]] = []
    notes: list[str] = []
    with ExitStack() as places:
        folders: list[Path] = []

        def place(path: str | os.PathLike[str]) -> Path:
            task.check()
            places.enter_context(_without_empty_folders(Path(path)))
            scratch = places.enter_context(replacing(path))
            folders.append(scratch.parent)
            return scratch

        kept = _kept(result)
        for path in options.segmentations:
            kind = output_kind(path)
            entry: dict[str, Any] = {"path": str(Path(path)), "kind": kind}
            with storage_errors(path):
                if kind == "masks":
                    names = mask_names(result.labels)
                    scratch = place(Path(path) / names[0])
                    write_masks(scratch.parent, kept, result.volume.ijk_to_ras, result.labels, task.check)
                    entry["files"] = names
                elif kind == "dicom":
                    assert result.source is not None, "outputs are prepared before they are written"
                    how = options.dicom_segmentation or "binary"
                    notes += write_dicom_segmentation(
                        place(path), kept, result.labels, result.source, result.algorithm, how
                    )
                    entry["dicom_segmentation"] = how
                else:
                    write_into(place(path), kept, result.volume.ijk_to_ras, result.labels)
            written.append(entry)
        if options.statistics is not None:
            text = statistics_text(Path(options.statistics).suffix.lower(), _measured(result, kept), _about(result))
            _write_text(place(options.statistics), text)
            written.append({"path": options.statistics, "kind": "statistics"})
        if options.margins is not None:
            _write_margins(place(options.margins), result)
            written.append({"path": options.margins, "kind": "margins"})
        if options.picture is not None:
            picture = place(options.picture)
            with storage_errors(options.picture):
                picture.write_bytes(segmentation_picture(result.volume, kept, result.labels))
            written.append({"path": options.picture, "kind": "picture"})
        task.check()
        # A disk that is full is found while nothing is in its place yet.
        for folder in folders:
            for file in folder.iterdir():
                with storage_errors(file):
                    sync(file)
    return written, notes


def _kept(result: Result) -> NDArray[Any]:
    """Return the label map with 0 in place of what is not among the labels; itself where that changes nothing."""
    highest = int(result.label_map.max(initial=0))
    value_map = np.zeros(highest + 1, result.label_map.dtype)
    for label in result.labels:
        value_map[label.value : label.value + 1] = label.value
    if np.array_equal(value_map, np.arange(highest + 1)):
        return result.label_map
    kept = np.empty_like(result.label_map)
    for plane, target in zip(result.label_map, kept, strict=True):
        target[...] = value_map[plane]
    return kept


def _measured(result: Result, kept: NDArray[Any]) -> list[Measurement]:
    return measure(result.volume, kept, result.labels, result.channels)


def _about(result: Result) -> dict[str, Any]:
    algorithm = result.algorithm
    return {
        "schema": "medquant-statistics",
        "schema_version": "1.0",
        "scan": Path(result.volume.name).name,
        "model": algorithm.name,
        "model_version": algorithm.version,
        **dict(algorithm.parameters),
    }


def _write_text(path: Path, text: str) -> None:
    with storage_errors(path):
        path.write_text(text, encoding="utf-8")


def _write_margins(path: Path, result: Result) -> None:
    if result.margins is None:
        raise InputError("This segmentation has no margins to write.", "Leave the file of margins out.")
    values = np.empty(result.margins.shape, np.float32)
    np.divide(result.margins, np.float32(ONE), out=values)
    with storage_errors(path):
        write_label_map(path, values, result.volume.ijk_to_ras)


@contextmanager
def _without_empty_folders(path: Path) -> Iterator[None]:
    """Remove folders again that were made for a file which was then not written."""
    missing = []
    folder = path.absolute().parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _refuse_twice(files: Sequence[Path]) -> None:
    """Refuse two outputs that are one file, on a disk that does not tell upper from lower case as well, or one inside of the other."""
    seen: dict[str, Path] = {}
    for file in files:
        key = os.path.realpath(file).casefold()
        if key in seen:
            raise InputError(
                f"Two outputs are one file: {seen[key]} and {file}.", "Give each output a name of its own."
            )
        seen[key] = file
    for file in files:
        for parent in Path(os.path.realpath(file)).parents:
            if (key := str(parent).casefold()) in seen:
                raise InputError(
                    f"The output {seen[key]} cannot be a file and the folder of {file}.", "Give it another name."
                )


def _is_dicom(path: Path) -> bool:
    with suppress(OSError), open(path, "rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM" or path.suffix.lower() in (".dcm", ".ima")
    return False


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
