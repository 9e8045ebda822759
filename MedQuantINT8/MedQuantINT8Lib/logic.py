"""What Slicer's Python console and the module's window call: nodes in, nodes out.

Names are camelCase, as Slicer's are. Segmentations run in a resident worker process, so that the application stays
responsive and the engine stays loaded; what makes engines runs in the caller's process. No Qt in here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import catalogue, mrml, runs
from .client import Job, WorkerClient, WorkerResult
from .ensemble import load_ensemble
from .errors import InputError
from .evaluation import agreement, mean_dice
from .model import ModelPackage
from .model_spec import Label
from .progress import ProgressEvent, Task
from .runs import EngineChoice
from .segmenter import SegmentationOptions

Progress = Callable[[ProgressEvent], None]


@dataclass
class SegmentationJob:
    """A segmentation that runs in the background. Call :meth:`poll` from a timer until it returns True."""

    logic: MedQuantINT8Logic
    job: Job
    volumeNode: Any
    segmentationNode: Any
    labels: tuple[Label, ...]
    options: dict[str, Any]
    done: bool = False

    def poll(self) -> bool:
        """Take up what the worker said. When it is done, the segmentation node is filled.

        Raises:
            MedQuantError: what went wrong; nothing of the scene was changed.
        """
        if not self.done and self.job.poll():
            self.done = True
            if self.job.error is not None:
                raise self.job.error
            assert self.job.result is not None
            self.segmentationNode = self.logic._toScene(self, self.job.result)
        return self.done

    @property
    def progress(self) -> ProgressEvent | None:
        return self.job.progress

    def cancel(self) -> None:
        self.job.cancel()


class MedQuantINT8Logic:
    """Segments volume nodes with INT8 engines, and makes such engines.

    Args:
        python: the Python that the worker runs on; by default the caller's own.
    """

    def __init__(self, python: str | None = None) -> None:
        self._client = WorkerClient(python) if python else WorkerClient()

    def close(self) -> None:
        """End the worker."""
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """Installed models: name, title, modality, structures, and whether they hold an INT8 network."""
        found = []
        for name, paths in catalogue.installed().items():
            with ModelPackage.load(paths[0]) as package:
                spec = package.spec
                found.append(
                    {
                        "name": name,
                        "title": spec.title or spec.name,
                        "modality": spec.modality,
                        "labels": [label.name for label in spec.labels],
                        "int8": package.has("model.int8.onnx"),
                        "paths": [str(path) for path in paths],
                    }
                )
        return found

    def engines(self) -> dict[str, Any]:
        """Engines by name: whether each can run here, and why not."""
        return dict(runs.doctor()["engines"])

    def segment(
        self,
        volumeNode: Any,
        segmentationNode: Any = None,
        model: str | None = None,
        engine: str = "auto",
        precision: str = "int8",
        segments: Sequence[str] | None = None,
        waitForCompletion: bool = True,
        *,
        replace: bool = False,
        surface: bool = False,
        options: SegmentationOptions = SegmentationOptions(),
        progress: Progress | None = None,
    ) -> Any:
        """Segment a volume node.

        Args:
            volumeNode: a scalar volume node, or one for each channel of the network.
            segmentationNode: to put the result into; by default a new node. Its segments are kept unless ``replace``.
            model: name of an installed model, or path of a package (several joined by commas are averaged).
            segments: names of the structures to keep; by default all.
            waitForCompletion: if False, a :class:`SegmentationJob` comes back at once.
            surface: make the closed surface as well.
            progress: called with each report while waiting.

        Returns:
            The segmentation node, or the job.

        Raises:
            InputError: no volume, no model, a structure that the model does not know.
            MedQuantError: whatever goes wrong in the worker.
        """
        nodes = list(volumeNode) if isinstance(volumeNode, list | tuple) else [volumeNode]
        volume = mrml.volume_from_node(nodes[0], nodes[1:])
        path = self._modelPath(model)
        labels = self._labels(path, segments)
        choice = EngineChoice(engine, precision)  # type: ignore[arg-type]
        job = SegmentationJob(
            self,
            self._client.submit(path, volume, choice, options),
            nodes[0],
            segmentationNode,
            labels,
            {"replace": replace, "surface": surface},
        )
        if not waitForCompletion:
            return job
        job.job.wait(Task(progress))
        job.poll()
        return job.segmentationNode

    def process(self, inputVolume: Any, outputSegmentation: Any, model: str, waitForCompletion: bool = True, **options: Any) -> Any:
        """:meth:`segment` in the form of Slicer's module template."""
        return self.segment(inputVolume, outputSegmentation, model, waitForCompletion=waitForCompletion, **options)

    def segmentAll(self, model: str, progress: Progress | None = None, **options: Any) -> list[Any]:
        """Segment every scan of the scene (label maps are none); returns the segmentation nodes."""
        scene = mrml.headless_scene()
        nodes = [scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode") for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))]
        scans = [node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode")]
        if not scans:
            raise InputError("The scene holds no volume.", "Load a scan first.")
        return [self.segment(node, model=model, progress=progress, **options) for node in scans]

    def calibrate(
        self,
        volumeNodes: Sequence[Any],
        model: str,
        output: str | None = None,
        method: str = "max",
        patches: int = 20,
        agreement: float = 0.99,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Quantize a model on volume nodes that are loaded, and write it with its INT8 network.

        Args:
            output: package to write; by default the model itself gets its INT8 network.

        Returns:
            What the quantization report says.
        """
        from .calibration import CalibrationOptions, PatchSampler
        from .quantization import QuantizationPolicy, calibration_patch, quantize_package
        from .sensitivity import Budget

        task = Task(progress)
        path = catalogue.resolve_one(self._modelPath(model))
        options = CalibrationOptions(method, patches)
        with ModelPackage.load(path) as package:
            patch = calibration_patch(package)
            sources = [lambda node=node: mrml.volume_from_node(node) for node in volumeNodes]
            sampler = PatchSampler(sources, package.spec, patch, options, task=task)  # type: ignore[arg-type]
            policy = QuantizationPolicy(budget=Budget(agreement))
            made, report = quantize_package(package, sampler, output or path, options, policy, task, runs.engine_stopwatch(patch))
            made.close()
        return report.to_json()

    def buildEngine(
        self, model: str, volumeNode: Any = None, engine: str = "auto", precision: str = "int8", progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build the engine of a model for this machine; with a volume it is held against the simulation.

        Returns:
            The engine's own description: every layer with the precision it runs in.
        """
        volume = mrml.volume_from_node(volumeNode) if volumeNode is not None else None
        with ModelPackage.load(catalogue.resolve_one(self._modelPath(model))) as package:
            choice = EngineChoice(engine, precision)  # type: ignore[arg-type]
            prepared = runs.build(package, choice, SegmentationOptions(), volume, Task(progress))
            described = prepared.describe().to_json()
            prepared.close()
        return {**described, "note": prepared.note, "fidelity": prepared.fidelity.to_json() if prepared.fidelity else None}

    def compare(self, volumeNode: Any, model: str, engine: str = "auto", progress: Progress | None = None) -> dict[str, Any]:
        """FP32 beside INT8 on a volume node: times, agreement by structure, and where the two differ.

        Returns:
            ``seconds`` of each, ``meanDice``, ``structures`` (Dice and millilitres of each), and ``differenceNode``: a
            segmentation node of the voxels that differ, or None if none do.
        """
        volume = mrml.volume_from_node(volumeNode)
        path = self._modelPath(model)
        labels = self._labels(path, None)
        found: dict[str, WorkerResult] = {}
        for precision in ("fp32", "int8"):
            choice = EngineChoice(engine, precision)  # type: ignore[arg-type]
            found[precision] = self._client.segment(path, volume, choice, SegmentationOptions(), Task(progress))
        first, second = found["fp32"].labels, found["int8"].labels
        rows = agreement(second, first, labels, volume.grid.voxel_ml)
        return {
            "seconds": {precision: result.report["seconds"]["total"] for precision, result in found.items()},
            "meanDice": mean_dice(rows),
            "structures": [row.to_json() for row in rows],
            "differenceNode": _differences(first, second, volumeNode),
        }

    def _modelPath(self, model: str | None) -> str:
        if not model:
            raise InputError("No model was chosen.", f"Installed are: {', '.join(catalogue.installed()) or 'none (see medquant models)'}.")
        found = catalogue.resolve(str(model))
        if not Path(found.split(",")[0]).exists():
            raise InputError(f"There is no model {model!r}.", "Give the name of an installed model, or the path of a package.")
        return found

    def _labels(self, path: str, segments: Sequence[str] | None) -> tuple[Label, ...]:
        with load_ensemble(path) as ensemble:
            labels = ensemble.first.spec.labels
        if segments is None:
            return labels
        known = {label.name for label in labels}
        if unknown := [name for name in segments if name not in known]:
            raise InputError(f"The model does not know {unknown[0]!r}.", f"It finds: {', '.join(sorted(known))}.")
        return tuple(label for label in labels if label.name in set(segments))

    def _toScene(self, job: SegmentationJob, result: WorkerResult) -> Any:
        if job.volumeNode.GetScene() is None:
            raise InputError("The volume was deleted while it was segmented.", "Load it again.")
        return mrml.add_segmentation(result.labels, job.labels, job.volumeNode, job.segmentationNode, **job.options)


def _differences(first: NDArray[Any], second: NDArray[Any], volumeNode: Any) -> Any:
    differ = (first != second).astype(np.uint8)
    if not differ.any():
        return None
    name = f"{volumeNode.GetName()}: INT8 differs from FP32"
    return mrml.add_segmentation(differ, (Label(1, "differs", 1, (230, 60, 60)),), volumeNode, name=name)
