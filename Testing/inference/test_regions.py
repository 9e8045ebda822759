"""Regions: what a voxel is called that lies in several of them, where the threshold lies, and what is resampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.regions import Regions, activate, logit_cut, probability_cut
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.blending import ScoreSink
from MedQuantINT8Lib.inference.postprocessing import cleaned
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, _filled, slide
from MedQuantINT8Lib.models.spec import Channel, Cleaning, Geometry, Label, ModelSpec, Output, Window
from MedQuantINT8Lib.models.spec_parser import parse_spec


def spec(classes=3, **output):
    regions = Output(**output).regions
    first = 0 if regions and output.get("activation") == "sigmoid" else 1
    labels = tuple(Label(n - first + 1, f"region {n}", n) for n in range(first, classes))
    made = ModelSpec(
        "made", "1", "MR", (Channel("T1"),), Geometry("KJI", "RAS", (1.5, 1.5, 1.5)), (), Window((8, 8, 8), overlap=0.5), Output(**output),
        labels, "none",
    )  # fmt: skip
    return parse_spec(made.to_json())


def balls(size=24, radii=(8, 10, 4)):
    i, j, k = np.ogrid[:size, :size, :size]
    distance = np.sqrt((i - size / 2) ** 2 + (j - size / 2) ** 2 + (k - size / 2) ** 2)
    return np.stack([radius - distance for radius in radii]).astype(np.float32)


def painted(scores, **output):
    return Regions.of(spec(len(scores), activation="sigmoid", **output), np.uint8).paint(
        lambda channel: scores[channel] / 20 + 0.5
    )


def test_a_region_inside_another_stays_and_keeps_its_size():
    scores = balls()
    inside = scores > 0
    by_order, nested = painted(scores), painted(scores, paint="nested")
    assert not (by_order == 1).any(), "the whole is painted over the core that it holds"
    assert np.array_equal(nested == 3, inside[2])
    assert np.array_equal(nested == 1, inside[0] & ~inside[2])
    assert np.array_equal(nested > 0, inside[1])


def test_regions_that_only_touch_are_painted_in_the_order_of_the_labels():
    scores = np.full((2, 4, 4, 8), -1, np.float32)
    scores[0, :, :, :5] = 1
    scores[1, :, :, 4:7] = 1
    assert painted(scores, paint="nested")[0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]


def test_a_threshold_may_count_itself():
    probability = np.array([0.4999999, 0.5, 0.5000001], np.float32)
    assert (probability > probability_cut(Output("sigmoid"), 0)).tolist() == [False, False, True]
    assert (probability > probability_cut(Output("sigmoid", inclusive=True), 0)).tolist() == [False, True, True]
    assert 0 > logit_cut(Output("sigmoid", inclusive=True), 0) > -1e-20 and logit_cut(Output("sigmoid"), 0) == 0
    several = Output("sigmoid", thresholds=(0.2, 0.9))
    assert logit_cut(several, 0) == pytest.approx(-1.386294) and probability_cut(several, 1) == np.float32(0.9)


def test_activations_are_those_of_torch():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).normal(0, 4, (4, 5, 6, 7)).astype(np.float32)
    for name, expected in (
        ("softmax", torch.softmax(torch.from_numpy(scores), 0)),
        ("sigmoid", torch.sigmoid(torch.from_numpy(scores))),
    ):
        made = scores.copy()
        activate(made, name)
        assert np.allclose(made, expected.numpy(), atol=1e-6)


class Scores:
    """An engine whose scores are given functions of the voxel's value."""

    def __init__(self, *rows):
        self._rows = np.array(rows, np.float32)

    def infer(self, batch):
        gain, bias = self._rows.T[:, None, :, None, None, None]
        return batch * gain + bias


def resampled(volume, engine, memory=None, **output):
    made = spec(len(engine._rows), **output)
    return segment(preprocess(volume, made), made, engine, SegmentationOptions(memory_bytes=memory, check_ranges=False))


def test_what_is_resampled_decides_the_labels():
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(6, 6, 6))
    data = np.kron(coarse, np.ones((4, 4, 4))).astype(np.float32)[None]
    volume = Volume(data, np.eye(4), "blocks")
    engine = Scores((0, 0), (9, -2), (-1, 0.2))
    found = {
        way: resampled(volume, engine, resample=way).labels for way in ("logits", "probabilities", "masks", "labels")
    }
    assert len({labels.tobytes() for labels in found.values()}) == 4
    default = resampled(volume, engine)
    assert np.array_equal(default.labels, found["logits"]), "a package that does not say means logits"
    scarce = resampled(volume, engine, memory=1 << 10, resample="probabilities")
    assert any("labels, not class scores" in note for note in scarce.notes) and np.array_equal(
        scarce.labels, found["masks"]
    )
    asked = resampled(volume, engine, resample="labels")
    assert any("nearest" in note for note in asked.notes)


class WindowOnGpu:
    """The GPU's sliding window in NumPy, as its kernels are described: scores are summed up, divided for regions, and reduced."""

    def __init__(self, gpu, network, channels, classes, plan, window, batch, flips, grid_labels, *, keep_rows):
        assert grid_labels is None
        self._infer, self._classes, self._plan, self._window = network.infer, classes, plan, window

    def run(self, data, reduction, task=None, finish=None, keep=None):
        assert finish is None and keep is None

        def infer(batch):
            scores = self._infer(batch)
            return 1 / (1 + np.exp(-scores)) if reduction.sigmoid else scores

        sink = ScoreSink(self._classes, self._plan.volume_shape)
        slide(data, infer, sink, SlidingWindow(self._plan, self._window, self._classes, normalized=True))
        if reduction.threshold is None:
            return reduction.values[sink.scores.argmax(0)]
        labels = np.zeros(sink.scores.shape[1:], np.uint16)
        for score, value in zip(sink.scores, reduction.values, strict=True):
            labels[score > np.float32(reduction.threshold)] = value
        return labels

    def close(self): ...


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("resample", [None, "logits", "probabilities"])
def test_the_gpu_is_told_the_same_as_the_processor_does(activation, resample, inclusive, monkeypatch):
    from MedQuantINT8Lib.inference import gpu_sliding_window as gpu_window

    # Whole numbers: some scores are exactly at the threshold.
    data = np.random.default_rng(2).integers(-2, 3, (1, 12, 11, 10)).astype(np.float32)
    volume = Volume(data, np.diag([1.5, 1.5, 1.5, 1.0]), "steps")
    engine = Scores((1, 0), (-1, 0), (2, -1))
    settings = {"activation": activation, "resample": resample, "inclusive": inclusive}
    here = resampled(volume, engine, **settings)
    monkeypatch.setattr(gpu_window, "GpuSlidingWindow", WindowOnGpu)
    engine.gpu, engine.gpu_network = None, engine
    there = resampled(volume, engine, **settings)
    assert any("on the GPU" in note for note in there.notes) and np.array_equal(there.labels, here.labels)
    for other in ({"paint": "nested"}, {"thresholds": (0.2, 0.5, 0.9)}, {"decision": "largest", "resample": "logits"}):
        if activation == "sigmoid":
            assert not any("on the GPU" in note for note in resampled(volume, engine, **{**settings, **other}).notes)


@pytest.mark.parametrize("resample", ["logits", "probabilities"])
def test_regions_of_blended_logits_are_those_of_their_probabilities(resample):
    data = np.random.default_rng(2).normal(size=(1, 20, 20, 20)).astype(np.float32)
    engine = Scores((3, 0), (-2, 1))
    labels = {}
    for spacing in ((1.0,) * 3, (1.5,) * 3):
        volume = Volume(data, np.diag([*spacing, 1.0]), "noise")
        labels[spacing] = resampled(
            volume, engine, activation="sigmoid", resample=resample, thresholds=(0.3, 0.8), inclusive=True
        ).labels
    score = data[0]
    first, second = score * 3 >= np.log(0.3 / 0.7), 1 - 2 * score >= np.log(0.8 / 0.2)
    assert np.array_equal(labels[(1.5,) * 3], np.where(second, 2, first))
    assert (labels[(1.0,) * 3] != labels[(1.5,) * 3]).any()


def test_a_softmax_may_have_a_threshold():
    data = np.random.default_rng(3).normal(size=(1, 12, 12, 12)).astype(np.float32)
    volume = Volume(data, np.diag([1.5, 1.5, 1.5, 1.0]), "noise")
    found = resampled(volume, Scores((0, 0), (2, 0), (-2, 0)), decision="threshold", threshold=0.7).labels
    share = np.exp(np.stack([0 * data[0], 2 * data[0], -2 * data[0]]))
    share /= share.sum(0)
    assert np.array_equal(found, np.where(share[2] > 0.7, 2, share[1] > 0.7))


def test_sigmoids_may_be_decided_by_the_largest():
    data = np.random.default_rng(4).normal(size=(1, 12, 12, 12)).astype(np.float32)
    volume = Volume(data, np.diag([1.5, 1.5, 1.5, 1.0]), "noise")
    found = resampled(
        volume, Scores((0, 0), (2, 0), (-2, 0.5)), activation="sigmoid", decision="largest", resample="probabilities"
    ).labels
    assert np.array_equal(found, np.stack([0 * data[0], 2 * data[0], 0.5 - 2 * data[0]]).argmax(0))


def test_cleaning_keeps_removes_and_fills():
    labels = np.zeros((3, 9, 12), np.uint8)
    labels[1, 1:6, 1:6] = 1
    labels[:, 3, 3] = 0
    labels[1, 6, 6], labels[1, 1:3, 8:11], labels[1, 7, 10] = 1, 1, 2
    assert (cleaned(labels.copy(), [Cleaning("largest", (1,))]) == 1).sum() == 25
    assert (cleaned(labels.copy(), [Cleaning("largest", (1,), connectivity=1)]) == 1).sum() == 24
    assert (cleaned(labels.copy(), [Cleaning("largest", (1,), count=2)]) == 1).sum() == 31
    assert not (cleaned(labels.copy(), [Cleaning("largest", together=True)]) == 2).any()
    small = cleaned(labels.copy(), [Cleaning("remove_small", size=2, connectivity=1)])
    assert (small == 1).sum() == 30 and not (small == 2).any()
    filled = cleaned(labels.copy(), [Cleaning("fill_holes", (1,), connectivity=1)])
    assert filled[1, 3, 3] == 0, "the hole is open above and below"
    closed = np.ones((5, 5, 5), np.uint8)
    closed[2, 2, 2], closed[0] = 2, 0
    assert cleaned(closed.copy(), [Cleaning("fill_holes", (1,))])[2, 2, 2] == 1
    assert cleaned(closed.copy(), [Cleaning("fill_holes", (2,))])[2, 2, 2] == 2


@pytest.mark.parametrize(
    ("output", "cleaning", "match"),
    [
        ({"activation": "sigmoid", "thresholds": (0.5,)}, (), "1 thresholds for 3"),
        ({"resample": "logits"}, (Cleaning(where="network"),), "in network space"),
        ({}, (Cleaning(connectivity=4),), "must be 1, 2 or 3"),
        ({}, (Cleaning(volume=3.0),), "'volume' only where the kind is remove_small"),
        ({}, (Cleaning("remove_small", together=True, whole=True),), "'whole' only where"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(output, cleaning, match):
    with pytest.raises(PackageError, match=match):
        parse_spec(
            replace(
                spec(),
                output=Output(**output),
                cleaning=cleaning,
                labels=spec(3, **{k: v for k, v in output.items() if k == "activation"}).labels,
            ).to_json()
        )


def test_padding_takes_voxels_as_torch_does():
    torch = pytest.importorskip("torch")
    line = torch.arange(5.0)[None, None]
    for name, mode in (("edge", "replicate"), ("reflect", "reflect"), ("wrap", "circular")):
        expected = torch.nn.functional.pad(line, (3, 4), mode=mode)[0, 0].long().numpy()
        assert np.array_equal(_filled(np.arange(-3, 9), 5, name), expected)
