"""Segmenting a case: the settings that all cases share, and the work with its three stages."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import choose_backend
from ..errors import InputError, PackageError, StorageError
from ..files import sha256_file
from ..imaging.preprocessing import NetworkInput, preprocess
from ..imaging.segmentation_files import output_files, present_labels, write_segmentation
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions, read_volume
from ..inference import pipeline
from ..inference.engine_choice import EngineChoice
from ..inference.engine_pool import KeepingPool
from ..inference.ensemble import Ensemble
from ..inference.region_run import chosen_labels
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import LoadedModel, description_of, load_model
from ..inference.task_plan import planned_ensembles
from ..models.package import MODEL_JSON
from ..outputs import data_files
from ..progress import Task
from .journal import Plan, Record, input_hash, stamps


@dataclass(frozen=True)
class SegmentSettings:
    """What all cases of a cohort share.

    Attributes:
        model: the packages' paths, joined by commas.
        model_hash: of the packages' files (:func:`model_hash`); a worker that finds another is refused.
        choice, options, reading: as for one scan.
        output: the folder of the outputs.
        ending: of their names, such as ".seg.nrrd".
        structures: names of the structures that are kept; None for all.
    """

    model: str
    model_hash: str
    choice: EngineChoice
    options: SegmentationOptions
    reading: ReadOptions
    output: str
    ending: str = ".seg.nrrd"
    structures: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> SegmentSettings:
        structures = value["structures"]
        return SegmentSettings(
            *shared_arguments(value),
            value["ending"],
            None if structures is None else tuple(structures),
        )

    @property
    def plan(self) -> Plan:
        """What a journal has to be of, so that its cases count."""
        return Plan("segment", {**shared_values(self), "type": self.ending, "structures": _listed(self.structures)})


def shared_arguments(
    value: dict[str, Any],
) -> tuple[str, str, EngineChoice, SegmentationOptions, ReadOptions, str]:
    """The first six arguments of every kind of settings, from their JSON values: ``model`` to ``output``."""
    return (
        value["model"],
        value["model_hash"],
        EngineChoice(**value["choice"]),
        options_from(value["options"]),
        ReadOptions(**value["reading"]),
        value["output"],
    )


def shared_values(settings: Any) -> dict[str, Any]:
    """What decides the labels, whatever is done with them: the model, the engine and how the network and the scans are treated.

    Threads, memory and devices are none of it: a run may go on elsewhere.
    """
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings.options).items()}
    return {
        "model": settings.model_hash,
        "engine": settings.choice.name,
        "precision": settings.choice.precision,
        **{
            k.replace("_", " "): v
            for k, v in options.items()
            if k not in ("memory_bytes", "batch", "margins", "probabilities")
        },
        **{k.replace("_", " "): v for k, v in asdict(settings.reading).items()},
    }


def _listed(names: tuple[str, ...] | None) -> list[str] | str:
    return "all" if names is None else sorted(names)


def options_from(value: dict[str, Any]) -> SegmentationOptions:
    """Options from their JSON values."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return SegmentationOptions(**values)


def model_hash(model: LoadedModel, structures: Sequence[str] | None = None) -> str:
    """The SHA-256 of the packages of a model: of every file's hash and of the descriptions.

    Args:
        structures: that are wanted: of a task, the packages that give them count.
    """
    import hashlib
    import json

    parts: list[Any] = [
        [sorted(member.hashes.items()), sha256_file(member.folder / MODEL_JSON)]
        for ensemble in planned_ensembles(model, structures)
        for member in ensemble.packages
    ]
    if not isinstance(model, Ensemble):
        parts.append(model.spec.to_json())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def input_files(case: dict[str, Any]) -> list[Path]:
    """Every file that a case is read from, its label map included; of a DICOM folder the files in it.

    Raises:
        InputError: a path that is not there.
    """
    paths: list[Path] = []
    masks = [path for _, path in case.get("masks", ())]
    for text in (*case["channels"], *case.get("more_folders", ()), *filter(None, [case.get("labels")]), *masks):
        path = Path(text)
        if path.is_dir():
            paths += sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            paths += [path, *(data_files(path) if path.name.lower().endswith((".mhd", ".nhdr")) else [])]
        else:
            raise InputError(
                f"There is no scan at {path}." if not path.exists() else f"{path} is no file.", "Check it."
            )
    return paths


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
    files = input_files(case)
    before = stamps(files)
    digest = input_hash(files)
    hashed = time.perf_counter()
    if case.get("series"):
        reading = replace(reading, series=case["series"])
    with task.stage("reading"):
        if case.get("more_folders"):
            from ..imaging.dicom_series import read_dicom_folder

            folders = [Path(case["channels"][0]), *map(Path, case["more_folders"])]
            volume = read_dicom_folder(
                folders[0],
                reading.series,
                allow_gaps=reading.allow_gaps,
                allow_tilt=reading.allow_tilt,
                more_folders=folders[1:],
            )
        else:
            volume = read_volume(case["channels"], options=reading, check=task.check)
    reference = read_volume(case["labels"], options=reading, check=task.check) if case.get("labels") else None
    still_same(case, files, before)
    seconds = {"hashing": hashed - began, "reading": time.perf_counter() - hashed}
    record: Record = {"input_sha256": digest, "input_files": before, "seconds": seconds}
    return CaseInput(case, record, volume, None, reference)


def still_same(case: dict[str, Any], files: list[Path], before: list[list[int]]) -> None:
    """Complain if a file was changed, added or taken away since."""
    now = input_files(case)
    changed = next((file for file, old, new in zip(files, before, stamps(now), strict=False) if old != new), None)
    if now != files or changed is not None:
        raise InputError(
            f"{changed or case['channels'][0]} changed while it was read.",
            "Wait until whatever writes it has ended, and run the command again.",
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
        choose_backend(choice.name, choice.precision, choice.device)
        self._model = checked_model(settings.model, settings.model_hash, settings.structures)
        description = description_of(self._model)
        self._labels = chosen_labels(description.labels, settings.structures, description.name)
        self._pool = KeepingPool()

    def read(self, case: dict[str, Any], task: Task) -> CaseInput:
        """Read and preprocess the scan."""
        self._check_output()
        loaded = read_case(case, self._settings.reading, task)
        if not isinstance(self._model, Ensemble) or self._settings.options.roi is not None:
            # Each part of a task, and a region, is preprocessed when its turn comes.
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


def checked_model(model: str, expected: str, structures: Sequence[str] | None) -> LoadedModel:
    """The packages of a model, or a task, loaded, if they are those that the run began with.

    Raises:
        PackageError: they are others.
    """
    loaded = load_model(model)
    if expected and model_hash(loaded, structures) != expected:
        loaded.__exit__(None, None, None)
        raise PackageError(
            f"The model {model} is not the one that the run began with (on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}).",
            "Give every machine the same packages, and leave them alone while a run goes on.",
        )
    return loaded
