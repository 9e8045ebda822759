"""A choice that the user made reaches every place: engine, precision, device, structures and options, whatever is called."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import SimpleITK as sitk

import gpu_computing
import tiny
from MedQuantINT8Lib.cohort.pool import failed
from MedQuantINT8Lib.errors import EngineError, InputError, MedQuantError
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module import segment_logic, segmentation_nodes
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic

pytestmark = pytest.mark.slicer
SCAN = Volume(np.random.default_rng(0).random((8, 9, 10)).astype(np.float32), np.eye(4), "scan")
OPTIONS = SegmentationOptions(overlap=0.3, batch=2)


class Recorder:
    """A worker that notes what it is asked for, and answers with what it is given."""

    def __init__(self):
        self.asked, self.labels = [], np.ones(SCAN.data.shape[1:], np.uint8)

    def begin(self, do, volumes, **request):
        self.asked.append((do, request))
        report = {"voxels": {"1": 720}}
        return SimpleNamespace(
            poll=lambda: True,
            error=None,
            cancelled=False,
            progress=None,
            result=SimpleNamespace(labels=self.labels, arrays=(), report=report),
        )

    def submit(self, model, volume, choice, options, outputs):
        from dataclasses import asdict

        return self.begin("segment", [volume], model=model, choice=asdict(choice), options=asdict(options))

    def close(self):
        pass


@pytest.fixture
def logic():
    made = MedQuantINT8Logic()
    made._client = Recorder()
    yield made


@pytest.fixture
def node():
    scene = mrml.headless_scene()
    yield mrml.volume_node(SCAN, "Scan", scene)
    scene.Clear(0)


@pytest.fixture
def model(tmp_path):
    return str(tiny.package(tmp_path / "made").folder)


def choices_of(logic):
    return [
        (do, request["choice"]["name"], request["choice"]["device"], request["options"]["overlap"])
        for do, request in logic._client.asked
    ]


def test_device_engine_and_options_reach_the_worker(logic, node, model, tmp_path):
    how = {"device": "gpu:1", "options": OPTIONS}
    logic.segment(node, model=model, engine="tensorrt", **how)
    logic.segmentAll(model, engine="tensorrt", **how)
    logic.buildEngine(model, node, "tensorrt", **how)
    logic.compare(node, model, "tensorrt", **how)
    logic.compareAll([node], model, "tensorrt", **how)
    wanted = ["segment", "segment", "build", "compare", "compare"]
    assert choices_of(logic) == [(do, "tensorrt", "gpu:1", 0.3) for do in wanted]


QUANTIZING = {
    "method": "entropy",
    "patches": 3,
    "agreement": 0.9,
    "fallback": False,
    "worstStructure": 0.8,
    "effort": "best",
    "weightBits": 4,
    "transposed": True,
}
#: What the worker calls them.
AT_THE_WORKER = {"worstStructure": "worst_structure", "weightBits": "weight_bits"}


def test_every_choice_of_quantizing_reaches_the_worker(logic, node, model, tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(logic, "_newBuilder", lambda: recorder)
    logic.calibrate([node], model, str(tmp_path / "int8"), **QUANTIZING, waitForCompletion=False)
    ((do, request),) = recorder.asked
    assert do == "quantize" and request["output"] == str(tmp_path / "int8")
    assert {name: request[AT_THE_WORKER.get(name, name)] for name in QUANTIZING} == QUANTIZING
    with pytest.raises(InputError, match="4 bits need learned rounding"):
        logic.calibrate([node], model, effort="fast", weightBits=4)
    with pytest.raises(InputError, match="demo model is part of the program"):
        logic.calibrate([node], "demo")
    assert len(recorder.asked) == 1


def test_the_worker_quantizes_as_it_was_asked(model, tmp_path, monkeypatch):
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization import quantize
    from MedQuantINT8Lib.worker import tasks

    asked = []

    def note(package, sampler, target, calibration, policy, *_rest):
        asked.append((calibration, policy))
        package.save(target)
        return package, SimpleNamespace(to_json=dict)

    monkeypatch.setattr(quantize, "quantize_package", note)
    request = {AT_THE_WORKER.get(name, name): value for name, value in QUANTIZING.items()}
    request |= {"model": model, "output": str(tmp_path / "int8"), "scans": []}
    tasks.quantize(request, [SCAN], SimpleNamespace(task=Task()))
    ((calibration, policy),) = asked
    assert (calibration.method, calibration.patches) == ("entropy", 3)
    assert policy.transposed and (policy.effort, policy.weight_bits) == ("best", 4)
    budget = policy.budget
    assert (budget.agreement, budget.fallback, budget.worst_structure) == (0.9, False, 0.8)


def test_they_reach_the_workers_of_a_folder(logic, model, tmp_path, monkeypatch):
    orders, devices = [], []

    class Pool:
        notes = ()

        def __init__(self, given, **_):
            devices.extend(given)

        def describe(self, cases):
            return {}

        def run(self, order, cases, check):
            orders.append(order)
            return iter(failed(case, "network", "no such engine", 1) for case in cases)

    monkeypatch.setattr(segment_logic, "LocalPool", Pool)
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(SCAN.data[0]), str(tmp_path / "scans" / "a.nrrd"))
    how = {"device": "gpu:1", "options": OPTIONS, "segments": ["bright"], "workers": 2, "waitForCompletion": False}
    job = logic.segmentFolder(str(tmp_path / "scans"), model, str(tmp_path / "out"), "tensorrt", type="mha", **how)
    while not job.poll():
        pass
    assert [(f.name, str(f.error)) for f in job.failures] == [("a", "no such engine")] and job.value == []
    settings = orders[0].settings
    assert devices == ["gpu:1", "gpu:1"] and settings["choice"]["name"] == "tensorrt"
    assert settings["structures"] == ("bright",) and settings["options"]["overlap"] == 0.3
    assert settings["ending"] == ".mha" and settings["choice"]["precision"] == "int8"


def test_a_folder_gets_workers_on_each_of_several_gpus(logic, model, tmp_path, monkeypatch):
    gpu_computing.install(monkeypatch, count=3)
    monkeypatch.setattr(segment_logic, "FolderJob", lambda request, pool, report: pool.describe(9)["devices"])
    how = {"waitForCompletion": False, "type": "mha"}
    for device, workers, expected in (
        ("gpu:all", 1, ["gpu:0", "gpu:1", "gpu:2"]),
        ("gpu:2,0", 2, ["gpu:2", "gpu:0", "gpu:2", "gpu:0"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ):
        job = logic.segmentFolder(str(tmp_path), model, str(tmp_path / "out"), device=device, workers=workers, **how)
        assert job == expected
    with pytest.raises(EngineError, match="no GPU number 5"):
        logic.segmentFolder(str(tmp_path), model, str(tmp_path / "out"), device="gpu:0,5", **how)


def test_several_gpus_are_a_device_of_their_own(logic, monkeypatch):
    for count in (0, 1, 2):
        gpus = [(f"gpu:{n}", f"card {n}") for n in range(count)]
        monkeypatch.setattr("MedQuantINT8Lib.slicer_module.logic_base.gpu_names", lambda gpus=gpus: gpus)
        names = [name for name, _ in logic.devices()]
        assert names == ["auto", "cpu", *(name for name, _ in gpus), *(["gpu:all"] if count > 1 else [])]


def test_a_folder_is_segmented_with_the_structures_that_were_asked_for(logic, model, tmp_path):
    (tmp_path / "scans/below").mkdir(parents=True)
    sitk.WriteImage(sitk.GetImageFromArray(SCAN.data[0]), str(tmp_path / "scans/below/a.nrrd"))
    for segments, present in ((None, True), ([], False)):
        out = tmp_path / f"out {present}"
        written = logic.segmentFolder(str(tmp_path / "scans"), model, str(out), segments=segments)
        assert written == [str(out / "below/a.seg.nrrd")]
        image = sitk.ReadImage(written[0])
        assert sitk.GetArrayFromImage(image).any() == present
        assert ("Segment0_Name" in image.GetMetaDataKeys()) == present
    assert logic.report["engine"]["title"] and logic.report["seconds"]["total"] > 0
    assert logic.segmentFolder(str(tmp_path / "scans"), model, str(out), segments=[]) == []


def test_choices_that_do_not_exist_are_refused_before_any_work(logic, node, model, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(SCAN.data[0]), str(tmp_path / "a.nrrd"))
    for call in (
        lambda **how: logic.segment(node, model=model, **how),
        lambda **how: logic.segmentFolder(str(tmp_path), model, str(tmp_path / "out"), **how),
        lambda **how: logic.buildEngine(model, node, **how),
        lambda **how: logic.compare(node, model, **how),
    ):
        with pytest.raises(InputError, match="toaster"):
            call(device="toaster")
        with pytest.raises(InputError, match="no engine called 'steam'"):
            call(engine="steam")
    with pytest.raises(InputError, match="no precision 'int2'"):
        logic.segment(node, model=model, precision="int2")
    with pytest.raises(InputError, match="does not know 'heart'"):
        logic.segmentFolder(str(tmp_path), model, str(tmp_path / "out"), segments=["heart"])
    assert not logic._client.asked


def test_a_segmentation_that_fails_leaves_the_node_as_it_was(logic, node, model, monkeypatch):
    found = logic.segment(node, model=model)
    assert found.GetSegmentation().GetNumberOfSegments() == 1
    real = segmentation_nodes._add_shared_labelmap

    def broken(*how):
        real(*how)
        raise RuntimeError("no memory")

    monkeypatch.setattr(segmentation_nodes, "_add_shared_labelmap", broken)
    nodes = node.GetScene().GetNumberOfNodes()
    for replace in (True, False):
        with pytest.raises(MedQuantError, match="no memory"):
            logic.segment(node, found, model, replace=replace)
        assert [
            found.GetSegmentation().GetNthSegment(n).GetName()
            for n in range(found.GetSegmentation().GetNumberOfSegments())
        ] == ["bright"]
    with pytest.raises(MedQuantError, match="no memory"):
        logic.segment(node, model=model)
    assert node.GetScene().GetNumberOfNodes() == nodes
    monkeypatch.setattr(segmentation_nodes, "_add_shared_labelmap", real)
    assert logic.undo() is None and found.GetScene() is None and not logic.canUndo


def test_each_process_is_told_to_import_what_it_needs_before_it_begins(node, model, tmp_path, monkeypatch):
    from MedQuantINT8Lib.slicer_module.dependencies import GROUPS

    logic = MedQuantINT8Logic("/one/python", "/another/python")
    assert logic.pythonOf("segment") == logic.pythonOf("tensorrt") == "/one/python"
    assert logic.pythonOf("build") == logic.pythonOf("import") == "/another/python"
    recorder = Recorder()
    monkeypatch.setattr(logic, "_newBuilder", lambda: recorder)
    logic.calibrate([node], model, str(tmp_path / "int8"), waitForCompletion=False)
    logic.installModel(source=model, waitForCompletion=False)
    logic.installModel(source=str(tmp_path), waitForCompletion=False)
    imports = [request["imports"] for _do, request in recorder.asked]
    assert imports == [GROUPS["build"].modules(), {}, GROUPS["import"].modules()]
