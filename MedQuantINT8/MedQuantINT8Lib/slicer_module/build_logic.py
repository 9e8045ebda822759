"""Making INT8 networks, for Slicer's console and window: models are calibrated on volume nodes, and their engines are built.

Calibrating runs in a process of its own, which may use another Python than Slicer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..imaging.volume_files import ReadOptions
from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions
from ..models.installed import DEMO, models_root
from ..quantization.effort import check_effort
from ..quantization.task_networks import networks_of
from ..resources import resource
from ..worker.jobs import BackgroundJob
from . import scene
from .dependencies import GROUPS
from .logic_base import Progress
from .model_logic import ModelLogic


class BuildLogic(ModelLogic):
    """Calibrates models, and builds their engines for this computer."""

    @staticmethod
    def ownCopyName(model: str) -> str:
        """The name under which the INT8 form of an installed model is kept: its own, but the demo model is not changed."""
        return "my-demo" if model == DEMO else model

    def ownCopyPath(self, model: str) -> str | None:
        """Where the INT8 form of an installed model is written; None for the model itself."""
        name = self.ownCopyName(model)
        return None if name == model else str(models_root() / name / "package")

    def calibrate(
        self,
        volumeNodes: Sequence[Any],
        model: str,
        output: str | None = None,
        method: str = "max",
        patches: int = 20,
        agreement: float = 0.99,
        *,
        scans: Sequence[str] = (),
        fallback: bool = True,
        worstStructure: float = 0.0,
        effort: str = "normal",
        weightBits: int = 8,
        transposed: bool = False,
        reading: ReadOptions = ReadOptions(),
        waitForCompletion: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Quantize a model on volume nodes and scan files, and write it with its INT8 network.

        Args:
            model: name of an installed model or task, or path of a package or task. Of several networks, as of a task or of the folds
                of one training, each is quantized in turn, and all are put in place when the last one is done.
            output: package to write; by default the model itself gets its INT8 network.
            scans: files that are not loaded.
            reading: how these files are read, where they leave a choice.
            fallback: whether layers that INT8 cannot afford may be taken in two halves or go back to floating point.
            worstStructure: the least Dice with FP32 of the structure that agrees least; 0 does not ask.
            effort: how long may be tried: "fast", "normal" or "best".
            weightBits: of the weights in the file: 8, or 4, which an engine expands to 8.
            transposed: whether transposed convolutions are quantized too, which OpenVINO runs in INT8 then.

        Returns:
            What the quantization report says; of several networks "networks", one for each, with its name as "network".
        """
        path = self._modelPath(model)
        networks_of(path)
        if Path(output or path).resolve() == resource("demo.zip").resolve():
            raise InputError("The demo model is part of the program, and stays as it is.", "Give another output.")
        check_effort(effort, weightBits)
        self.checkScans(volumeNodes, scans)
        volumes = [scene.volume_from_node(node) for node in volumeNodes]
        request = {
            "method": method,
            "patches": patches,
            "agreement": agreement,
            "fallback": fallback,
            "worst_structure": worstStructure,
            "effort": effort,
            "weight_bits": weightBits,
            "transposed": transposed,
            "reading": asdict(reading),
        }
        job = self._newBuilder().begin(
            "quantize",
            volumes,
            model=path,
            output=str(output or path),
            scans=[str(scan) for scan in scans],
            imports=GROUPS["build"].modules(),
            **request,
        )
        return self._result(BackgroundJob(job, lambda result: result.report), waitForCompletion, progress)

    def networksOf(self, model: str) -> list[str]:
        """Names of the networks that making a model INT8 quantizes: one, or those of a task or of an ensemble, in turn.

        Raises:
            InputError: no such model, or a task that runs a model that is not installed.
        """
        return [network.name for network in networks_of(self._modelPath(model))]

    @staticmethod
    def checkScans(volumeNodes: Sequence[Any], scans: Sequence[str]) -> None:
        """Whether there is anything to calibrate on.

        Raises:
            InputError: there is neither a volume nor a scan file.
        """
        if not volumeNodes and not scans:
            raise InputError(
                "There is no volume to calibrate on.", "Choose at least one scan like those you will segment."
            )

    def buildEngine(
        self,
        model: str,
        volumeNode: Any = None,
        engine: str = "auto",
        precision: str = "int8",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        *,
        device: str = EngineChoice.device,
        options: SegmentationOptions = SegmentationOptions(),
    ) -> Any:
        """Build the engine of a model for this machine; with a volume it is compared with the simulation.

        Args:
            device, options: as at :meth:`segment`; an engine is built for them.

        Returns:
            The engine's own description: every layer with the precision it runs in; of several networks "networks", one for each.
        """
        volumes = [scene.volume_from_node(volumeNode)] if volumeNode is not None else []
        path = self._modelPath(model)
        choice = self._choice(engine, precision, device)
        job = self._client.begin(
            "build", volumes, model=path, choice=asdict(choice), options=asdict(self.settings.options(options))
        )
        return self._result(BackgroundJob(job, lambda result: result.report), waitForCompletion, progress)
