"""A wide last layer is applied once, to blended features: the labels are those of blending each window's scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphs import network, weights
from MedQuantINT8Lib.engines.base import BuildOptions, head_of
from MedQuantINT8Lib.engines.openvino import OpenVINOBackend
from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
from MedQuantINT8Lib.imaging.label_resampling import STEP, Largest
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import head_sink, segmenter
from MedQuantINT8Lib.inference.blending import ScoreSink
from MedQuantINT8Lib.inference.ensemble import MeanEngine
from MedQuantINT8Lib.inference.head_sink import HeadSink
from MedQuantINT8Lib.inference.resampling_sink import ResamplingSink
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
from MedQuantINT8Lib.inference.timed_engine import TimedEngine
from MedQuantINT8Lib.models.pointwise_head import PointwiseHead
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, Mirroring, ModelSpec, Output, Window

FEATURES, CLASSES = 5, 12


class Engine:
    """Features that differ from window to window, and the scores that a head makes of them."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.head = PointwiseHead(
            rng.normal(size=(CLASSES, FEATURES)).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)
        )
        self.given = []

    def infer_features(self, batch):
        self.given.append("features")
        return self._features(batch)

    def _features(self, batch):
        shifted = [np.roll(batch[:, 0], step, 1 + step % 3) for step in range(FEATURES)]
        return np.stack([np.tanh(window - window.mean()) for window in shifted], 1).astype(np.float32)

    def infer(self, batch):
        self.given.append("scores")
        features = self._features(batch)
        bias = self.head.bias[:, None, None, None]
        return (np.einsum("cf,nfijk->ncijk", self.head.weights, features) + bias).astype(np.float32)

    def describe(self): ...

    def close(self): ...


class Whole(Engine):
    """The same, which cannot leave its last layer."""

    def __init__(self):
        super().__init__()
        self._head, self.head = self.head, None

    def infer(self, batch):
        self.head = self._head
        try:
            return super().infer(batch)
        finally:
            self.head = None


def spec(spacing=None, output=Output(), overlap=0.5):
    regions = output.regions
    return ModelSpec(
        name="wide",
        version="1",
        modality="MR",
        channels=(Channel("T1"),),
        geometry=Geometry("KJI", "native", spacing=spacing, interpolation="nnunet" if spacing else "linear"),
        normalization=(),
        window=Window((16, 16, 16), overlap=overlap, placement="nnunet"),
        mirroring=Mirroring((0, 2)),
        output=output,
        labels=tuple(Label(n + regions, f"s{n}", n) for n in range(1 - regions, CLASSES)),
        license="made",
    )


def volume(size=(21, 33, 27)):
    return Volume(np.random.default_rng(0).normal(size=size).astype(np.float32) * 2, np.diag([1.0, 1.2, 1.5, 1.0]))


FINER = (1.6, 1.5, 1.7)
WAYS = {
    "labels": (spec(), {}),
    "scores resampled while windows are blended": (spec(FINER), {}),
    "labels resampled": (spec(FINER, Output(resample="labels")), {}),
    "probabilities of a softmax": (spec(FINER, Output(resample="probabilities")), {}),
    "regions": (spec(None, Output("sigmoid", resample="probabilities")), {}),
    "regions resampled": (spec(FINER, Output("sigmoid", resample="logits")), {}),
    "masks of regions": (spec(FINER, Output("sigmoid", resample="masks")), {}),
    "margins": (spec(FINER), {"margins": True}),
    "probabilities kept": (spec(FINER), {"probabilities": True}),
    "mirrored": (spec(FINER), {"mirroring": True, "batch": 2}),
    "carried in 16 bits, in columns": (spec(), {"memory_bytes": 30_000}),
    "labels resampled, since scores do not fit": (spec(FINER), {"memory_bytes": 30_000}),
}


@pytest.mark.parametrize("way", WAYS)
def test_labels_are_those_of_blended_scores(way):
    model, options = WAYS[way]
    data = preprocess(volume(), model)
    engine, whole = Engine(), Whole()
    ours = segment(data, model, engine, SegmentationOptions(**options))
    theirs = segment(data, model, whole, SegmentationOptions(**options))
    assert set(engine.given) == {"features"} and set(whole.given) == {"scores"}
    differing = (ours.labels != theirs.labels).mean()
    # Scores are sums in another order: labels differ in ties alone. In 16 bits what is carried is rounded, and another number of columns fits.
    assert differing < (0.01 if "memory_bytes" in options else 1e-9), differing
    assert len(np.unique(ours.labels)) > 5
    if ours.margins is not None:
        assert np.abs(ours.margins.astype(int) - theirs.margins).max() <= 1
    if ours.probabilities is not None:
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5)


def test_margins_are_noted_of_a_few_planes_of_scores_at_a_time(monkeypatch):
    """Scores of whole blocks take memory that was not reckoned with."""
    planes, real = [], ResamplingSink.room
    monkeypatch.setattr(ResamplingSink, "room", lambda sink, at, size: (planes.append(size), real(sink, at, size))[1])
    monkeypatch.setattr(HeadSink, "_hand_on", None)
    model = spec(FINER)
    segment(preprocess(volume(), model), model, Engine(), SegmentationOptions(margins=True))
    assert planes and max(min(size) for size in planes) <= STEP


def test_scores_of_blended_features_are_blended_scores_but_for_rounding():
    """The largest difference that sums in another order make, as the documentation has it: a few units in the last of 24 bits."""
    from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide
    from MedQuantINT8Lib.inference.windows import plan_windows

    engine, model = Engine(), spec(overlap=0.75)
    plan = plan_windows((21, 33, 27), model.window, (16, 16, 16))
    ours, theirs = ScoreSink(CLASSES, (21, 33, 27)), ScoreSink(CLASSES, (21, 33, 27))
    data = volume().data
    by_features = SlidingWindow(plan, model.window, FEATURES, normalized=True)
    slide(data, engine.infer_features, HeadSink(engine.head, ours, plan.order[0]), by_features)
    slide(data, engine.infer, theirs, SlidingWindow(plan, model.window, CLASSES, normalized=True))
    assert np.abs(ours.scores - theirs.scores).max() < 1e-6 * np.abs(theirs.scores).max()


def test_air_that_is_not_run_and_means_of_windows_probabilities_take_each_windows_scores():
    engine = Engine()
    segment(preprocess(volume(), spec()), spec(), engine, SegmentationOptions(skip_air=True))
    by_window = spec(None, Output("sigmoid"))
    segment(preprocess(volume(), by_window), by_window, engine)
    assert set(engine.given) == {"scores"}


def test_a_head_of_other_channels_than_the_models_is_not_used():
    fewer = replace(spec(), labels=spec().labels[:-2])
    assert segmenter._head_apart(Engine(), fewer, SegmentationOptions()) is None


@pytest.mark.parametrize("slowest", [0, 1, 2])
@pytest.mark.parametrize(("tile", "strip"), [(1 << 20, 1 << 23), (4 * CLASSES * 30, 4 * CLASSES * 200), (1, 1)])
def test_tiles_and_strips_of_any_size_make_up_the_whole(slowest, tile, strip, monkeypatch):
    monkeypatch.setattr(head_sink, "_TILE_BYTES", tile)
    monkeypatch.setattr(head_sink, "_STRIP_BYTES", strip)
    head = Engine().head
    features = np.random.default_rng(2).normal(size=(FEATURES, 7, 9, 11)).astype(np.float32)
    expected = np.einsum("cf,fijk->cijk", head.weights, features) + head.bias[:, None, None, None]
    kept, strips = ScoreSink(CLASSES, (7, 9, 11)), ScoreSink(CLASSES, (7, 9, 11))
    HeadSink(head, kept, slowest)((0, 0, 0), features)

    def hand_on(start, block):
        assert start[slowest] == 0 and block.shape[1 + slowest] == features.shape[1 + slowest]
        strips(start, block)

    HeadSink(head, hand_on, slowest)((0, 0, 0), features)
    for sink in (kept, strips):
        np.testing.assert_allclose(sink.scores, expected, rtol=1e-5, atol=1e-5)


def test_openvino_leaves_a_wide_head_to_blending_and_infers_scores_with_it(tmp_path):
    import onnx
    from onnx import helper

    from MedQuantINT8Lib.engines.onnxruntime import session

    size = (16, 16, 16)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["f"], name="body", pads=[1] * 6),
        helper.make_node("Relu", ["f"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "h", "b"], ["y"], name="head"),
    ]
    model = network(nodes, weights(w=(4, 1, 3, 3, 3), h=(9, 4, 1, 1, 1), b=(9,)), classes=9, size=size, out_size=size)
    onnx.save(model, str(tmp_path / "n.onnx"))
    batch = np.random.default_rng(0).normal(size=(1, 1, *size)).astype(np.float32)
    expected = session(model.SerializeToString(), "fp32").run(None, {"x": batch})[0]
    backend, options = OpenVINOBackend(), BuildOptions("fp32", size, batch=2)
    backend.build(tmp_path / "n.onnx", tmp_path, options)
    engine = TimedEngine(MeanEngine([backend.load(tmp_path, options)]), calls := [])
    head = head_of(engine)
    assert head is not None and (head.classes, head.features) == (9, 4)
    assert engine.infer_features(batch).shape == (1, 4, *size)
    np.testing.assert_allclose(engine.infer(batch), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    last = engine.describe().layers[-1]
    assert (last.sources, last.precision, last.int8, last.macs) == (("head",), "f32", False, 2 * 36 * 16**3)
    engine.close()


def test_several_engines_have_no_head_in_common():
    assert head_of(MeanEngine([Engine(), Engine()])) is None and head_of(MeanEngine([Engine()])) is not None


@pytest.mark.parametrize("slowest", [0, 1, 2])
@pytest.mark.parametrize("cut", [True, False], ids=["two blocks a slab", "one block a slab"])
def test_scores_go_to_the_scan_a_few_planes_at_a_time(slowest, cut, monkeypatch):
    """The labels are those of scores that are given in whole blocks, and fewer planes of scores exist than a block has."""
    shape = [9, 11, 13]
    shape[slowest] = 47
    head, rng = Engine().head, np.random.default_rng(3)
    features = rng.normal(size=(FEATURES, *shape)).astype(np.float32)
    scores = np.einsum("cf,fijk->cijk", head.weights, features) + head.bias[:, None, None, None]
    axes = tuple(AxisInterpolation.linear(np.linspace(-0.4, n - 0.6, int(2.7 * n)), n) for n in shape)
    sinks = [ResamplingSink(tuple(shape), CLASSES, axes, Largest(np.arange(CLASSES)), slowest) for _ in range(2)]
    planes = []
    monkeypatch.setattr(
        sinks[0], "room", lambda *at: (planes.append(sinks[0]._planes), ResamplingSink.room(sinks[0], *at))[1]
    )
    by_features = HeadSink(head, sinks[0], slowest)
    middle = (slowest + 1) % 3
    for begin, end in ((0, 4), (4, 29), (29, 47)):
        for first, last in ((0, 5), (5, shape[middle])) if cut else ((0, shape[middle]),):
            place = [slice(None)] * 4
            place[1 + slowest], place[1 + middle] = slice(begin, end), slice(first, last)
            start = [0, 0, 0]
            start[slowest], start[middle] = begin, first
            by_features(tuple(start), features[tuple(place)])
            sinks[1](tuple(start), scores[tuple(place)].astype(np.float32))
    assert (sinks[0].resampled == sinks[1].resampled).mean() > 0.9999 and (sinks[0].resampled > 0).any()
    assert max(planes) <= 2 * sinks[0].slab_planes + 1 < 25
