"""Segmenting, for Slicer's console and window: one volume node, all of a scene, a folder, a sequence; and taking it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

from ..cohort.driver import CohortOptions
from ..cohort.local_pool import LocalPool
from ..cohort.segment import CohortRequest, checked_ending
from ..engines.cuda.several import gpus_of
from ..errors import InputError
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions
from ..inference.engine_choice import EngineChoice
from ..inference.result_files import OutputOptions
from ..inference.segmenter import SegmentationOptions
from ..models.spec import Label
from ..models.task_package import is_task
from ..worker.jobs import BackgroundJob, BatchJob, Pollable
from ..worker.submitted_job import WorkerResult
from . import scene, sequences
from .folder_job import FolderJob
from .forecast import Forecast, forecast, seen_part
from .logic_base import LogicBase, Progress
from .region_nodes import region_of_interest
from .results import RunResult, run_result, voxel_ml
from .run_records import keep_run
from .undo import SegmentationUndo


@dataclass(frozen=True)
class SegmentRequest:
    """Everything that a caller of :meth:`SegmentLogic.segment` chose, checked.

    Attributes:
        model: paths of the packages, joined by commas.
        labels: the structures that are kept.
        choice: the engine, its precision and its device.
        options: how the sliding window is run, which structures are segmented, and in which box.
        replace: whether the segmentation node loses the segments that it has.
        surface: whether the closed surface is made as well.
        terminology: name of the list of terms that segments are shown with; empty for Slicer's own.
        outputs: the files that are written as well.
    """

    model: str
    labels: tuple[Label, ...]
    choice: EngineChoice
    options: SegmentationOptions
    replace: bool
    surface: bool
    terminology: str = ""
    outputs: OutputOptions = OutputOptions()


def _chosen(
    options: SegmentationOptions, labels: Sequence[Label] | None, roi: Any, volumeNode: Any = None
) -> SegmentationOptions:
    """Return the options with the structures and the box that the caller chose; what was not chosen stays as the options say."""
    if labels is not None:
        options = changed(options, structures=tuple(label.name for label in labels))
    if roi is not None:
        options = changed(options, roi=region_of_interest(roi, volumeNode))
    return options


def _refuse_outputs(options: dict[str, Any]) -> None:
    if options.get("outputs"):
        raise InputError(
            "Files of one name cannot hold the segmentations of several scans.", "Call segment() for each."
        )


class SegmentLogic(LogicBase):
    """Segments volume nodes, and takes the last segmentation back.

    Args:
        python: the Python that segments; None for the caller's own.
    """

    def __init__(self, python: str | None) -> None:
        super().__init__(python)
        self._undo = SegmentationUndo()
        #: What the last run brought; None before the first.
        self.result: RunResult | None = None

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
        device: str = EngineChoice.device,
        replace: bool = False,
        surface: bool = False,
        terminology: str = "",
        options: SegmentationOptions = SegmentationOptions(),
        progress: Progress | None = None,
        roi: Any = None,
        outputs: OutputOptions = OutputOptions(),
    ) -> Any:
        """Segment a volume node.

        Args:
            volumeNode: a scalar volume node, or a list with one for each channel of the network.
            segmentationNode: to put the result into; by default a new node. Its segments are kept unless ``replace``.
            model: name of an installed model or task, or path of a package or task (several packages joined by commas are averaged).
            engine: a name of :meth:`engines`, or "auto".
            precision: "int8", "fp32", or "auto" for the faster of the two.
            segments: names of the structures to segment; by default all. A task runs only the parts that have them.
            waitForCompletion: if False, a job comes back at once; its ``value`` is the segmentation node.
            device: a name of :meth:`devices`.
            surface: make the closed surface as well.
            terminology: a name of :meth:`terminologies`, in which Segment Editor shows the segments; the codes stay the model's.
            progress: called with each report while waiting.
            roi: the box that is segmented, outside of which is background: a markups ROI node, whose box along R, A and S is taken, or
                six numbers in millimeters: the least and the largest R, A and S.
            outputs: files to write as well (docs/outputs.md), checked before the work; what is there is replaced. A DICOM segmentation
                needs a volume that was loaded from DICOM.

        Returns:
            The segmentation node, or the job. What the worker said of the run is in ``report``, with the files under "outputs".

        Raises:
            InputError: no volume, no model, a structure that the model does not know.
            MedQuantError: whatever goes wrong in the worker.
        """
        nodes = list(volumeNode) if isinstance(volumeNode, list | tuple) else [volumeNode]
        volume = scene.volume_from_node(nodes[0], nodes[1:])
        path = self._modelPath(model)
        labels = self._labels(path, segments)
        scene.check_terminology(terminology)
        options = self.settings.options(_chosen(options, None if segments is None else labels, roi, nodes[0]))
        if outputs.needs_dicom:
            volume = changed(volume, dicom_files=scene.dicom_files(nodes[0]))
        choice = self._choice(engine, precision, device)
        request = SegmentRequest(path, labels, choice, options, replace, surface, terminology, outputs)
        job = self._segmentJob(nodes[0], volume, segmentationNode, request)
        return self._result(job, waitForCompletion, progress)

    def _segmentJob(
        self, volumeNode: Any, volume: Volume, segmentationNode: Any, request: SegmentRequest
    ) -> BackgroundJob:
        """Start the run in the worker; the job adds its result to the scene when it has come."""

        def check() -> None:
            self._stillThere(volumeNode, "The volume")
            if segmentationNode is not None:
                self._stillThere(segmentationNode, "The segmentation")

        def finish(result: WorkerResult) -> Any:
            self.report = result.report
            voxels = {int(value): count for value, count in result.report["voxels"].items()}
            with self._undo.changing(segmentationNode) as change:
                change.node = scene.add_segmentation(
                    result.labels,
                    request.labels,
                    volumeNode,
                    segmentationNode,
                    replace=request.replace,
                    surface=request.surface,
                    voxels=voxels,
                    terminology=request.terminology,
                )
            notes = list(result.report.get("notes", []))
            self.result = run_result(change.node, request.labels, voxels, voxel_ml(volumeNode), notes)
            if request.options.structures is None or not is_task(request.model):
                # Of a task, a part of the work tells nothing of the whole.
                seen = int(seen_part(volume, request.options).data[0].size)
                keep_run(request.model, request.choice, result.report, seen, request.options)
            return change.node

        job = self._client.submit(request.model, volume, request.choice, request.options, request.outputs)
        return BackgroundJob(job, finish, check)

    def process(
        self, inputVolume: Any, outputSegmentation: Any, model: str, waitForCompletion: bool = True, **options: Any
    ) -> Any:
        """:meth:`segment` in the form of Slicer's module template."""
        return self.segment(inputVolume, outputSegmentation, model, waitForCompletion=waitForCompletion, **options)

    def segmentAll(
        self, model: str, waitForCompletion: bool = True, progress: Progress | None = None, **options: Any
    ) -> Any:
        """Segment every scan of the scene (label maps are none); the segmentation nodes.

        One that fails does not stop the rest; the job's ``failures`` tell which and why.
        """
        _refuse_outputs(options)
        mrmlScene = scene.headless_scene()
        nodes = [
            mrmlScene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
            for n in range(mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
        ]
        scans = [node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode")]
        if not scans:
            raise InputError("The scene holds no volume.", "Load a scan first.")
        self._labels(self._modelPath(model), options.get("segments"))
        pieces = [
            (node.GetName(), partial(self.segment, node, model=model, waitForCompletion=False, **options))
            for node in scans
        ]
        return self._result(BatchJob(pieces), waitForCompletion, progress)

    def segmentFolder(
        self,
        folder: str,
        model: str,
        output: str,
        engine: str = "auto",
        precision: str = "int8",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        *,
        segments: Sequence[str] | None = None,
        device: str = EngineChoice.device,
        options: SegmentationOptions = SegmentationOptions(),
        reading: ReadOptions = ReadOptions(),
        type: str = "seg.nrrd",
        workers: int = 1,
        force: bool = False,
        roi: Any = None,
    ) -> Any:
        """Segment every scan of a folder and of those below it into files; the paths that were written.

        It does what ``medquant segment MODEL FOLDER --output OUTPUT`` does (docs/cohorts.md): DICOM series are found by their UID, results
        are named by where the scans lie, a scan that fails does not stop the rest (the job's ``failures`` say which and why), and a run
        that was stopped goes on where it was, by the journal in ``output``. Nothing is loaded into the scene. What engine, precision,
        segments, device, options and roi mean is said at :meth:`segment`.

        Args:
            reading: how the files are read, where they leave a choice.
            type: of the outputs: "seg.nrrd", "nii.gz", "nrrd" or "mha".
            workers: processes on the device, each with its own engine; on each of its GPUs where it is several.
            force: begin anew, and replace what lies in ``output``.

        Raises:
            InputError: no scan, no model, a structure that the model does not know, a journal of another run.
            EngineError: one of several GPUs is not there.
        """
        path = self._modelPath(model)
        wanted = None if segments is None else tuple(label.name for label in self._labels(path, segments))
        request = CohortRequest(
            path,
            (str(folder),),
            Path(output),
            self._choice(engine, precision, device),
            self.settings.options(_chosen(options, None, roi)),
            reading,
            ending=type,
            structures=wanted,
            resuming=CohortOptions(force=force),
        )
        checked_ending(request)
        devices = [one for _ in range(max(1, workers)) for one in gpus_of(device)]
        job = FolderJob(request, LocalPool(devices, python=self._python), self._report)
        return self._result(job, waitForCompletion, progress)

    def segmentSequence(
        self,
        sequenceNode: Any,
        model: str,
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """Segment every frame of a sequence of volumes; the sequence node of the segmentations.

        If a sequence browser plays the scan, it plays the segmentations with it.
        """
        _refuse_outputs(options)
        frames = sequences.frames_of(sequenceNode)
        self._labels(self._modelPath(model), options.get("segments"))
        segmentations: list[Any] = []

        def frame(number: int) -> Pollable:
            mrmlScene = sequenceNode.GetScene()
            frame_node = mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "frame")
            frame_node.CopyContent(frames[number])
            job = self.segment(frame_node, model=model, waitForCompletion=False, **options)
            return sequences.FrameJob(
                job, frame_node, sequenceNode, segmentations, sequenceNode.GetNthIndexValue(number)
            )

        batch = sequences.SequenceJob(
            [(f"frame {n + 1}", partial(frame, n)) for n in range(len(frames))], sequenceNode, segmentations
        )
        return self._result(batch, waitForCompletion, progress)

    @staticmethod
    def terminologies() -> list[str]:
        """Names of the lists of terms that Slicer has loaded; its own list of anatomy comes first."""
        return scene.terminology_names()

    def forecast(
        self,
        volumeNode: Any,
        model: str,
        engine: str = "auto",
        precision: str = "int8",
        *,
        segments: Sequence[str] | None = None,
        device: str = EngineChoice.device,
        options: SegmentationOptions = SegmentationOptions(),
        roi: Any = None,
    ) -> Forecast:
        """What :meth:`segment` with these arguments will be, as far as it is known; nothing is started.

        Raises:
            InputError: no volume, no model, a structure that the model does not know, a region that was not placed or lies outside.
        """
        volume, path = scene.volume_from_node(volumeNode), self._modelPath(model)
        labels = None if segments is None else self._labels(path, segments)
        asked = self.settings.options(_chosen(options, labels, roi, volumeNode))
        return forecast(path, volume, self._choice(engine, precision, device), asked)

    def undo(self) -> Any | None:
        """Take the last segmentation back; see :class:`.undo.SegmentationUndo`."""
        self.result = None
        return self._undo.undo()

    @property
    def canUndo(self) -> bool:
        return self._undo.possible

    # ---- within

    def _report(self, report: dict[str, Any]) -> None:
        self.report = report

    def _labels(self, path: str, segments: Sequence[str] | None) -> tuple[Label, ...]:
        labels = self._spec(path).labels
        if segments is None:
            return labels
        known = {label.name for label in labels}
        if unknown := [name for name in segments if name not in known]:
            raise InputError(f"The model does not know {unknown[0]!r}.", f"It finds: {', '.join(sorted(known))}.")
        return tuple(label for label in labels if label.name in set(segments))
