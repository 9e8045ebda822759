"""What all cases of a run share: the model and its hash, the engine, and how scans are read and segmented."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import PackageError
from ..files import sha256_file
from ..imaging.volume_files import ReadOptions
from ..inference.engine_choice import EngineChoice
from ..inference.ensemble import Ensemble
from ..inference.segmenter import SegmentationOptions
from ..inference.task_model import LoadedModel, load_model
from ..inference.task_plan import planned_ensembles
from ..models.package import MODEL_JSON


@dataclass(frozen=True)
class CaseSettings:
    """The settings of every kind of work; each kind adds its own.

    Attributes:
        model: the packages' paths, joined by commas.
        model_hash: of the packages' files (:func:`model_hash`); a worker that finds another is refused.
        choice, options, reading: as for one scan.
        output: the folder of the outputs.
    """

    model: str
    model_hash: str
    choice: EngineChoice
    options: SegmentationOptions
    reading: ReadOptions
    output: str

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, as they travel to a worker."""
        return asdict(self)

    @staticmethod
    def shared_arguments(value: dict[str, Any]) -> tuple[str, str, EngineChoice, SegmentationOptions, ReadOptions, str]:
        """Return the arguments that every kind has, ``model`` to ``output``, from the JSON values of the settings."""
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value["options"].items()}
        return (
            value["model"],
            value["model_hash"],
            EngineChoice(**value["choice"]),
            SegmentationOptions(**options),
            ReadOptions(**value["reading"]),
            value["output"],
        )

    @property
    def shared_plan(self) -> dict[str, Any]:
        """What decides the labels, whatever is done with them: the model, the engine and how the network and the scans are treated.

        Threads, memory and devices are none of it: a run may go on elsewhere.
        """
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()}
        return {
            "model": self.model_hash,
            "engine": self.choice.name,
            "precision": self.choice.precision,
            **{
                k.replace("_", " "): v
                for k, v in options.items()
                if k not in ("memory_bytes", "batch", "margins", "probabilities")
            },
            **{k.replace("_", " "): v for k, v in asdict(self.reading).items()},
        }


def model_hash(model: LoadedModel, structures: Sequence[str] | None = None) -> str:
    """Return the SHA-256 of the packages of a model: of every file's hash and of the descriptions.

    Args:
        structures: that are wanted: of a task, the packages that give them count.
    """
    parts: list[Any] = [
        [sorted(member.hashes.items()), sha256_file(member.folder / MODEL_JSON)]
        for ensemble in planned_ensembles(model, structures)
        for member in ensemble.packages
    ]
    if not isinstance(model, Ensemble):
        parts.append(model.spec.to_json())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def checked_model(model: str, expected: str, structures: Sequence[str] | None) -> LoadedModel:
    """Load the packages of a model, or a task, if they are those that the run began with.

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
