"""What Slicer's Python console and the module's window call: nodes in, nodes out.

Names are camelCase, as Slicer's are. All work is done in a resident worker process, so that the application stays
responsive and the engine stays loaded. Every method that works takes ``waitForCompletion``: True blocks and returns the
result, False returns a job to poll from a timer (:mod:`..worker.jobs`). No Qt in here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..devices import check_device
from ..engines import backend, backend_names
from ..engines.availability import examine_engines
from ..engines.cuda.setup_hints import gpu_names
from ..errors import InputError
from ..evaluation.boundary import VOLUME_CHANGE
from ..files import split_paths, there
from ..imaging.volume import Volume
from ..imaging.volume_files import ReadOptions, result_names, scan_files
from ..inference.engine_choice import EngineChoice
from ..inference.segmenter import SegmentationOptions
from ..models.installed import installed_models, resolve, resolve_one
from ..models.package import INT8, peek
from ..models.spec import Label, ModelSpec
from ..progress import ProgressEvent
from ..system import cpu_name
from ..worker.client import WorkerClient, WorkerResult
from ..worker.jobs import BackgroundJob, BatchJob, Pollable
from . import modality_check, scene, sequences
from .build_logic import BuildLogic
from .comparison import Comparison, add_differences, add_table
from .undo import SegmentationUndo

Progress = Callable[[ProgressEvent], None]
PRECISIONS = ("auto", "int8", "fp16", "fp32")


@dataclass(frozen=True)
class SegmentRequest:
    """Everything that a caller of :meth:`MedQuantINT8Logic.segment` chose, checked.

    Attributes:
        model: paths of the packages, joined by commas.
        labels: the structures that are kept.
        choice: the engine, its precision and its device.
        options: how the sliding window is run.
        replace: whether the segmentation node loses the segments that it has.
        surface: whether the closed surface is made as well.
    """

    model: str
    labels: tuple[Label, ...]
    choice: EngineChoice
    options: SegmentationOptions
    replace: bool
    surface: bool


def _choice(engine: str, precision: str, device: str) -> EngineChoice:
    """Return the choice of engine that the caller made, checked.

    Raises:
        InputError: an engine, a precision or a device that does not exist.
    """
    if engine not in ("auto", *backend_names()):
        raise InputError(
            f"There is no engine called {engine!r}.", f"Choose auto or one of {', '.join(backend_names())}."
        )
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}.", f"Choose one of {', '.join(PRECISIONS)}.")
    return EngineChoice(engine, precision, device=check_device(device))  # type: ignore[arg-type]


class MedQuantINT8Logic(BuildLogic):
    """Segments volume nodes with INT8 engines, and makes such engines.

    Args:
        python: the Python that segments; by default the caller's own.
        buildPython: the Python that makes INT8 networks, which needs torch and ModelOpt; by default the same. Naming another
            environment keeps those gigabytes out of Slicer.
    """

    def __init__(self, python: str | None = None, buildPython: str | None = None) -> None:
        BuildLogic.__init__(self, python, buildPython)
        self._client = WorkerClient(python)
        self._undo = SegmentationUndo()
        self.report: dict[str, Any] = {}

    def close(self) -> None:
        """End the workers."""
        self._client.close()
        self._endBuilder()

    # ---- what there is

    @staticmethod
    def models() -> list[dict[str, Any]]:
        """Installed models: name, title, modality, structures, channels, and whether they hold an INT8 network."""
        descriptions = []
        for name, paths in installed_models().items():
            spec, files = peek(paths[0])
            descriptions.append(
                {
                    "name": name,
                    "title": spec.title or spec.name,
                    "modality": spec.modality,
                    "channels": [channel.name for channel in spec.channels],
                    "labels": [label.name for label in spec.labels],
                    "license": spec.license,
                    "int8": INT8 in files,
                    "paths": [str(path) for path in paths],
                }
            )
        return descriptions

    def engines(self) -> dict[str, Any]:
        """Engines by name: whether each can run here, and why not."""
        return examine_engines()

    def advise(self, volumeNode: Any, model: str) -> str:
        """A warning if the scan seems to be of another modality than the model was made for; else an empty string."""
        volume = scene.volume_from_node(volumeNode)
        return modality_check.modality_warning(volumeNode, volume, self._spec(self._modelPath(model)))

    def devices(self) -> list[tuple[str, str]]:
        """Where engines can run: name for ``device=``, and what it is."""
        return [("auto", "whatever is fastest"), ("cpu", cpu_name()), *gpu_names()]

    def engineTitles(self) -> list[tuple[str, str]]:
        """All engines this version knows, with titles; whether they can run is only found out when one is used."""
        return [(name, backend(name).title) for name in backend_names()]

    # ---- segment

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
        options: SegmentationOptions = SegmentationOptions(),
        progress: Progress | None = None,
    ) -> Any:
        """Segment a volume node.

        Args:
            volumeNode: a scalar volume node, or a list with one for each channel of the network.
            segmentationNode: to put the result into; by default a new node. Its segments are kept unless ``replace``.
            model: name of an installed model, or path of a package (several joined by commas are averaged).
            engine: a name of :meth:`engines`, or "auto".
            precision: "int8", "fp32", or "auto" for the faster of the two.
            segments: names of the structures to keep; by default all.
            waitForCompletion: if False, a job comes back at once; its ``value`` is the segmentation node.
            device: a name of :meth:`devices`.
            surface: make the closed surface as well.
            progress: called with each report while waiting.

        Returns:
            The segmentation node, or the job. What the worker said of the run is in ``report``.

        Raises:
            InputError: no volume, no model, a structure that the model does not know.
            MedQuantError: whatever goes wrong in the worker.
        """
        nodes = list(volumeNode) if isinstance(volumeNode, list | tuple) else [volumeNode]
        volume = scene.volume_from_node(nodes[0], nodes[1:])
        path = self._modelPath(model)
        labels = self._labels(path, segments)
        request = SegmentRequest(path, labels, _choice(engine, precision, device), options, replace, surface)
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
            with self._undo.changing(segmentationNode) as changed:
                changed.node = scene.add_segmentation(
                    result.labels,
                    request.labels,
                    volumeNode,
                    segmentationNode,
                    replace=request.replace,
                    surface=request.surface,
                    voxels=voxels,
                )
            return changed.node

        job = self._client.submit(request.model, volume, request.choice, request.options)
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
    ) -> Any:
        """Segment every scan file of a folder into ``output/NAME.seg.nrrd``; the paths that were written.

        Nothing is loaded into the scene. Files that are there already are left out, so that a batch can go on. What engine,
        precision, segments, device and options mean is said at :meth:`segment`. Scans whose names differ by their type alone
        keep it in the name of their result.

        Args:
            reading: how the files are read, where they leave a choice.
        """
        scans = [path for path in scan_files(folder) if not path.name.lower().endswith(".seg.nrrd")]
        if not scans:
            raise InputError(f"There is no scan in {folder}.", "Choose a folder with NIfTI, NRRD or MetaImage files.")
        path = self._modelPath(model)
        wanted = None if segments is None else [label.name for label in self._labels(path, segments)]
        request = {
            "model": path, "choice": asdict(_choice(engine, precision, device)), "options": asdict(options), "segments": wanted, "reading": asdict(reading)
        }  # fmt: skip
        pieces: list[tuple[str, Callable[[], Pollable]]] = []
        for scan, name in zip(scans, result_names(scans), strict=True):
            target = Path(output) / f"{name}.seg.nrrd"
            if not target.exists():
                pieces.append((scan.name, partial(self._segmentFile, scan, target, request)))
        return self._result(BatchJob(pieces), waitForCompletion, progress)

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

    def undo(self) -> Any | None:
        """Take the last segmentation back; see :class:`.undo.SegmentationUndo`."""
        return self._undo.undo()

    @property
    def canUndo(self) -> bool:
        return self._undo.possible

    # ---- build

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
        """Build the engine of a model for this machine; with a volume it is held against the simulation.

        Args:
            device, options: as at :meth:`segment`; an engine is built for them.

        Returns:
            The engine's own description: every layer with the precision it runs in.
        """
        volumes = [scene.volume_from_node(volumeNode)] if volumeNode is not None else []
        path = resolve_one(self._modelPath(model))
        choice = _choice(engine, precision, device)
        job = self._client.begin("build", volumes, model=path, choice=asdict(choice), options=asdict(options))
        return self._result(BackgroundJob(job, lambda result: result.report), waitForCompletion, progress)

    # ---- compare

    def compare(
        self,
        volumeNode: Any,
        model: str,
        engine: str = "auto",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        options: SegmentationOptions = SegmentationOptions(),
        volumeChange: float = VOLUME_CHANGE,
        *,
        device: str = EngineChoice.device,
    ) -> Any:
        """FP32 beside INT8 on a volume node: a :class:`.comparison.Comparison`.

        Its nodes come into the scene with :meth:`showDifferences` and :meth:`differencesTable`.

        Args:
            volumeChange: structures whose volume changes by more than this are pointed out, in percent.
            device: as at :meth:`segment`.
        """
        volume = scene.volume_from_node(volumeNode)
        path = self._modelPath(model)
        spec = self._spec(path)
        choice = _choice(engine, "int8", device)
        job = self._client.begin(
            "compare", [volume], model=path, choice=asdict(choice), options=asdict(options), volume_change=volumeChange
        )

        def finish(result: WorkerResult) -> Comparison:
            return Comparison(volumeNode, spec, result.arrays, result.report)

        check = partial(self._stillThere, volumeNode, "The volume")
        return self._result(BackgroundJob(job, finish, check), waitForCompletion, progress)

    def compareAll(
        self,
        volumeNodes: Sequence[Any],
        model: str,
        engine: str = "auto",
        waitForCompletion: bool = True,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """:meth:`compare` for several volumes, with its further arguments; a list of comparisons."""
        if not volumeNodes:
            raise InputError("There is no volume to compare on.", "Choose at least one.")
        pieces = [
            (node.GetName(), partial(self.compare, node, model, engine, waitForCompletion=False, **options))
            for node in volumeNodes
        ]
        return self._result(BatchJob(pieces), waitForCompletion, progress)

    def showDifferences(self, comparison: Comparison) -> Any | None:
        """A segmentation node of the regions where INT8 differs from FP32, or None if there is none."""
        self._stillThere(comparison.volumeNode, "The volume")
        return add_differences(comparison)

    def differencesTable(self, comparison: Comparison) -> Any:
        """A table node of the regions where INT8 differs from FP32."""
        self._stillThere(comparison.volumeNode, "The volume")
        return add_table(comparison)

    # ---- within

    def _segmentFile(self, scan: Path, target: Path, request: dict[str, Any]) -> Pollable:
        job = self._client.begin("segment_file", [], scan=str(scan), output=str(target), **request)

        def finish(result: WorkerResult) -> str:
            self.report = result.report
            return str(target)

        return BackgroundJob(job, finish)

    def _modelPath(self, model: str | None) -> str:
        if not model:
            raise InputError(
                "No model was chosen.",
                f"Installed are: {', '.join(installed_models()) or 'none (see medquant models)'}.",
            )
        path = resolve(str(model))
        if not there(split_paths(path)[0]):
            raise InputError(
                f"There is no model {model!r}.", "Give the name of an installed model, or the path of a package."
            )
        return path

    def _spec(self, path: str) -> ModelSpec:
        return peek(split_paths(path)[0])[0]

    def _labels(self, path: str, segments: Sequence[str] | None) -> tuple[Label, ...]:
        labels = self._spec(path).labels
        if segments is None:
            return labels
        known = {label.name for label in labels}
        if unknown := [name for name in segments if name not in known]:
            raise InputError(f"The model does not know {unknown[0]!r}.", f"It finds: {', '.join(sorted(known))}.")
        return tuple(label for label in labels if label.name in set(segments))

    @staticmethod
    def _stillThere(node: Any, what: str) -> None:
        if node.GetScene() is None:
            raise InputError(
                f"{what} was deleted, or its scene was closed, while the work went on.", "Load it and start again."
            )
