"""``medquant segment`` of many scans: what all cases share, and what a worker does with one, in three stages."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import choose_backend
from ..engines.base import needs_gpu
from ..errors import MedQuantError, StorageError
from ..files import sha256_file
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.segmentation_files import output_files, present_labels, write_segmentation
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions, read_volume
from ..inference import pipeline
from ..inference.engine_pool import KeepingPool
from ..inference.ensemble import Ensemble
from ..inference.region_run import chosen_labels
from ..inference.task_model import description_of
from ..progress import Task
from .case_files import unchanged_files
from .case_settings import CaseSettings, checked_model
from .journal import Plan, Record


@dataclass(frozen=True)
class SegmentSettings(CaseSettings):
    """What all cases of a cohort share.

    Attributes:
        ending: of the outputs' names, such as ".seg.nrrd".
        structures: names of the structures that are kept; None for all.
    """

    ending: str = ".seg.nrrd"
    structures: tuple[str, ...] | None = None

    @staticmethod
    def from_json(value: dict[str, Any]) -> SegmentSettings:
        """Return the settings from their JSON values."""
        structures = value["structures"]
        return SegmentSettings(
            *CaseSettings.shared_arguments(value),
            value["ending"],
            None if structures is None else tuple(structures),
        )

    @property
    def plan(self) -> Plan:
        """What a journal has to be of, so that its cases count."""
        return Plan("segment", {**self.shared_plan, "type": self.ending, "structures": _listed(self.structures)})


def _listed(names: tuple[str, ...] | None) -> list[str] | str:
    return "all" if names is None else sorted(names)


@dataclass
class CaseInput:
    """A case that was read: its volume, what the network takes, and what the journal says of the files."""

    case: dict[str, Any]
    record: Record
    volume: Volume
    network_input: NetworkInput | None
    reference: Any = None


def read_case(case: dict[str, Any], reading: ReadOptions, task: Task) -> CaseInput:
    """Read the scan of a case, with the hash of its files.

    Raises:
        InputError: it cannot be read, or changed while it was.
    """
    began = time.perf_counter()
    with unchanged_files(case) as record:
        hashed = time.perf_counter()
        if case.get("series"):
            reading = replace(reading, series=case["series"])
        with task.stage("reading"):
            volume = _read_volume(case, reading, task)
        reference = read_volume(case["labels"], options=reading, check=task.check) if case.get("labels") else None
    record["seconds"] = {"hashing": hashed - began, "reading": time.perf_counter() - hashed}
    return CaseInput(case, record, volume, None, reference)


def _read_volume(case: dict[str, Any], reading: ReadOptions, task: Task) -> Volume:
    """Read the scan of a case; a DICOM series may lie in several folders."""
    if not case.get("more_folders"):
        return read_volume(case["channels"], options=reading, check=task.check)
    from ..imaging.dicom_series import read_dicom_folder

    return read_dicom_folder(
        Path(case["channels"][0]),
        reading.series,
        allow_gaps=reading.allow_gaps,
        allow_tilt=reading.allow_tilt,
        more_folders=[Path(folder) for folder in case["more_folders"]],
    )


class SegmentWork:
    """Segments cases with one model on one device.

    Raises:
        PackageError: the packages are not those that the run began with.
        EngineError: there is no such engine here.
    """

    def __init__(self, settings: SegmentSettings) -> None:
        self._settings = settings
        choice = settings.choice
        self._on_gpu = needs_gpu(choose_backend(choice.name, choice.precision, choice.device))
        self._model = checked_model(settings.model, settings.model_hash, settings.structures)
        description = description_of(self._model)
        self._labels = chosen_labels(description.labels, settings.structures, description.name)
        self._pool = KeepingPool()

    def warm_up(self) -> None:
        """Load the engine while the first case is read. What fails here is said of that case."""
        if self._settings.options.roi is None:
            with suppress(MedQuantError):
                pipeline.load_ahead(self._model, self._settings.choice, self._settings.options, self._pool)

    def read(self, case: dict[str, Any], task: Task) -> CaseInput:
        """Read the scan, and preprocess it where the processor does that."""
        self._check_output()
        loaded = read_case(case, self._settings.reading, task)
        if self._on_gpu or not isinstance(self._model, Ensemble) or self._settings.options.roi is not None:
            # A scan goes up to a GPU as it lies in memory; each part of a task, and a region, is preprocessed when its turn comes.
            return loaded
        began = time.perf_counter()
        with task.stage("preprocessing"):
            loaded.network_input = preprocess(loaded.volume, self._model.first.spec)
        loaded.record["seconds"]["preprocessing"] = time.perf_counter() - began
        return loaded

    def run(self, loaded: CaseInput, task: Task) -> tuple[CaseInput, pipeline.SegmentationRun]:
        """Run the network, and bring the labels back onto the scan's grid."""
        settings = self._settings
        run = pipeline.segment(
            self._model,
            loaded.volume,
            settings.choice,
            replace(settings.options, structures=settings.structures),
            task,
            pool=self._pool,
            network_input=loaded.network_input,
        )
        # What lies in network space is let go of before the next case needs the room.
        loaded.network_input = run.network_input = None
        return loaded, run

    def finish(self, result: tuple[CaseInput, pipeline.SegmentationRun], task: Task) -> Record:
        """Write the label map; what the journal says of the case."""
        loaded, run = result
        settings, labels = self._settings, run.result.labels
        began = time.perf_counter()
        self._check_output()
        name = loaded.case["id"] + settings.ending
        path = Path(settings.output) / name
        with task.stage("writing"):
            write_segmentation(path, labels, run.result.ijk_to_ras, self._labels)
        voxels = present_labels(labels, self._labels) if self._labels else {}
        ml = loaded.volume.grid.voxel_ml
        engine = run.engine
        seconds = {
            **loaded.record["seconds"],
            **{k: v for k, v in run.seconds.items() if k not in (*loaded.record["seconds"], "total")},
            "writing": time.perf_counter() - began,
        }
        warnings = list(dict.fromkeys([*run.result.notes, *filter(None, [engine["note"]])]))
        record: Record = {
            **loaded.record,
            "output": name,
            "output_sha256": {file.name: sha256_file(file) for file in output_files(path) if file.exists()},
            "engine": {key: engine[key] for key in ("name", "precision", "cached")},
            "windows": run.result.windows,
            "ml": {label.name: round(voxels[label.value] * ml, 4) for label in self._labels},
            "out_of_range": bool((run.ranges or {}).get("warning")),
            "warnings": warnings,
            "seconds": seconds,
        }
        if loaded.reference is not None:
            record["dice"] = self._dice(labels, loaded)
        return record

    def _check_output(self) -> None:
        """Complain if the output folder is gone: it is not made again in the middle of a run."""
        if not Path(self._settings.output).is_dir():
            raise StorageError(
                f"The output folder {self._settings.output} is gone.", "Bring it back, and run the command again."
            )

    def _dice(self, labels: Any, loaded: CaseInput) -> dict[str, float | None]:
        from ..evaluation.agreement import agreement
        from ..imaging.label_map_checks import check_same_place, label_values

        check_same_place(loaded.reference, loaded.volume)
        reference = np.rint(loaded.reference.data[0]).astype(np.int64)
        rows = agreement(labels, reference, self._labels, loaded.volume.grid.voxel_ml, label_values(loaded.reference))
        return {row.name: row.dice for row in rows}

    def close(self) -> None:
        """Close the engines and the packages."""
        self._pool.clear()
        self._model.__exit__(None, None, None)
