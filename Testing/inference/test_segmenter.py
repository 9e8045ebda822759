"""The segment road: whole volumes, memory decisions, regions, several channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.errors import MedQuantError, PackageError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers.onnx import draft_spec, import_onnx
from MedQuantINT8Lib.inference import pipeline
from MedQuantINT8Lib.inference.engine_choice import EngineChoice
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.pipeline import foreground_by_network


def network(path, channels=1, classes=2, spatial=("a", "b", "c")):
    """One 3x3x3 convolution: class 1 is bright, class 0 is not; its size is open unless ``spatial`` says otherwise."""
    weight = np.zeros((classes, channels, 3, 3, 3), np.float32)
    weight[1:, :, 1, 1, 1] = 1
    bias = np.zeros(classes, np.float32)
    bias[0] = 0.5
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, *spatial])
        for n, c in (("x", channels), ("y", classes))
    ]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", kernel_shape=[3, 3, 3], pads=[1] * 6)]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


def network_of_labels(path, tail):
    """The same, ending in the number of the class; ``tail`` turns scores "y" into "labels"."""
    model = onnx.load(network(path))
    model.graph.node.extend(tail)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("labels", TensorProto.UINT8, None))
    shape = model.graph.output[0].type.tensor_type.shape
    for name in ("n", "a", "b", "c"):
        shape.dim.add().dim_param = name
    onnx.save(model, str(path))
    return path


def spec(**changes):
    base = ModelSpec(
        name="bright",
        version="1",
        modality="MR",
        channels=(Channel("T1"),),
        geometry=Geometry("KJI", "RAS"),
        normalization=(Normalization("minmax"),),
        window=Window((16, 16, 16), multiples=(4, 4, 4)),
        output=Output(),
        labels=(Label(5, "bright", 1),),
        license="Apache-2.0",
    )
    return replace(base, **changes)


def run(package, volume, **options):
    return pipeline.segment(
        package, volume, EngineChoice("openvino", "fp32"), SegmentationOptions(**options), Task()
    ).result


@pytest.mark.parametrize("softmax", [False, True])
def test_a_network_that_gives_labels_is_imported_with_its_scores(tmp_path, blob, softmax):
    tail = [helper.make_node("Softmax", ["y"], ["p"], axis=1)] if softmax else []
    tail += [
        helper.make_node("ArgMax", ["p" if softmax else "y"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    path = network_of_labels(tmp_path / "labels.onnx", tail)
    assert draft_spec(path, (16, 16, 16)).output_channels == 2
    package = import_onnx(path, spec(), tmp_path / "labels")
    model = onnx.load(package.onnx_path("fp32"))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim][1] == 2
    volume, _ = blob(np.diag([1.0, 1.2, 2.0, 1.0]), (30, 21, 18))
    scores = import_onnx(network(tmp_path / "n.onnx"), spec(), tmp_path / "scores")
    np.testing.assert_array_equal(run(package, volume).labels, run(scores, volume).labels)


def test_a_network_that_takes_its_best_along_another_axis_is_refused(tmp_path):
    path = network_of_labels(tmp_path / "n.onnx", [helper.make_node("ArgMax", ["y"], ["labels"], axis=2, keepdims=0)])
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, str(path))
    with pytest.raises(PackageError, match="labels and no scores"):
        import_onnx(path, spec(), tmp_path / "p")


def test_a_whole_volume_runs_in_one_piece(tmp_path, blob):
    volume, mask = blob(np.diag([1.0, 1.2, 2.0, 1.0]), (30, 21, 18))
    whole = import_onnx(
        network(tmp_path / "n.onnx"),
        spec(window=Window((16, 16, 16), multiples=(4, 4, 4), whole_volume=True)),
        tmp_path / "whole",
    )
    windows = import_onnx(network(tmp_path / "n.onnx"), spec(), tmp_path / "windows")
    first, second = run(whole, volume), run(windows, volume)
    assert first.windows == 1 and second.windows > 1
    assert np.array_equal(first.labels == 5, mask) and np.array_equal(first.labels, second.labels)


def test_the_seconds_of_a_scan_are_its_own_where_a_task_goes_on(tmp_path, blob):
    package = import_onnx(network(tmp_path / "n.onnx"), spec(), tmp_path / "p")
    volume, task = blob(np.eye(4), (20, 20, 20))[0], Task()
    with task.stage("before"):
        pass
    for _ in range(3):
        seconds = pipeline.segment(
            package, volume, EngineChoice("openvino", "fp32"), SegmentationOptions(), task
        ).seconds
        assert (
            "before" not in seconds and sum(v for k, v in seconds.items() if k != "total") <= seconds["total"] * 1.001
        )


def test_a_fixed_network_cannot_claim_whole_volumes(tmp_path):
    with pytest.raises(PackageError, match="whole volume"):
        import_onnx(
            network(tmp_path / "n.onnx", spatial=(16, 16, 16)),
            spec(window=Window((16, 16, 16), whole_volume=True)),
            tmp_path / "p",
        )


def test_scores_or_labels_are_resampled_as_memory_allows_and_the_report_says_which(tmp_path, blob):
    volume, mask = blob(np.diag([1.0, 1.0, 3.0, 1.0]))
    package = import_onnx(
        network(tmp_path / "n.onnx"), spec(geometry=Geometry("KJI", "RAS", spacing=(1.5, 1.5, 1.5))), tmp_path / "p"
    )
    plenty, little = run(package, volume), run(package, volume, memory_bytes=1000)
    assert "class scores were resampled" in plenty.notes[-1]
    assert any("labels, not class scores" in note for note in little.notes) and any(
        "16-bit" in note for note in little.notes
    )
    for result in (plenty, little):
        assert 2 * ((result.labels > 0) & mask).sum() / ((result.labels > 0).sum() + mask.sum()) > 0.9


def test_not_enough_memory_is_said_before_the_work(tmp_path, blob, monkeypatch):
    volume, _ = blob(np.eye(4))
    package = import_onnx(network(tmp_path / "n.onnx"), spec(), tmp_path / "p")
    monkeypatch.setattr("MedQuantINT8Lib.inference.segmenter.available_memory", lambda: 1000)
    with pytest.raises(MedQuantError, match=r"needs .* GB of memory"):
        run(package, volume)


@pytest.mark.parametrize("resampled", [False, True])
def test_regions_overlap_and_later_ones_are_painted_over(tmp_path, blob, resampled):
    volume, mask = blob(np.diag([1.0, 1.0, 2.0, 1.0]))
    regions = spec(
        output=Output("sigmoid", activated=True),
        labels=(Label(2, "everything", 0), Label(9, "bright", 1)),
        geometry=Geometry("KJI", "RAS", spacing=(1.3, 1.0, 1.0) if resampled else None),
    )
    network_input = preprocess(volume, regions)

    class Engine:
        def infer(self, batch):
            return np.concatenate([np.full_like(batch, 0.9), batch], axis=1)

    found = segment(network_input, regions, Engine()).labels
    assert set(np.unique(found)) == {2, 9}
    assert 2 * ((found == 9) & mask).sum() / ((found == 9).sum() + mask.sum()) > (0.9 if resampled else 0.999)


def test_two_channels_are_given_in_order(tmp_path):
    data = np.random.default_rng(0).random((2, 18, 17, 20)).astype(np.float32)
    package = import_onnx(
        network(tmp_path / "n.onnx", channels=2),
        spec(channels=(Channel("a"), Channel("b")), normalization=()),
        tmp_path / "p",
    )
    found = run(package, Volume(data, np.eye(4)))
    assert np.array_equal(found.labels == 5, data.sum(axis=0) > 0.5)


def test_foreground_can_be_found_by_the_network(fp32_package, phantom):
    volume, truth = phantom
    network_input = preprocess(volume, fp32_package.spec)
    found = foreground_by_network(fp32_package, Task())(network_input)
    assert found.shape == network_input.data.shape[1:]
    back = network_input.restore(found.astype(np.uint8)) > 0
    assert 2 * (back & (truth > 0)).sum() / (back.sum() + (truth > 0).sum()) > 0.85


def test_only_the_largest_part_of_a_structure_stays_as_monai_does_it():
    from monai.transforms import KeepLargestConnectedComponent
    from scipy import ndimage

    from MedQuantINT8Lib.inference.postprocessing import cleaned
    from MedQuantINT8Lib.models.spec import Cleaning

    rng = np.random.default_rng(0)
    labels = ((rng.random((20, 24, 22)) < 0.25) * rng.integers(1, 4, (20, 24, 22))).astype(np.uint8)
    for chosen in ((), (1, 3)):
        expected = KeepLargestConnectedComponent(applied_labels=list(chosen) or None, is_onehot=False)(
            labels[None].copy()
        )[0]
        found = cleaned(labels.copy(), (Cleaning("largest", chosen),))
        assert np.array_equal(found, np.asarray(expected))
        for label in (1, 2, 3):
            before, after = (ndimage.label(a == label, np.ones((3, 3, 3)))[1] for a in (labels, found))
            assert before > 1 and after == (before if chosen and label not in chosen else 1)
    assert np.array_equal(cleaned(labels.copy(), ()), labels)
