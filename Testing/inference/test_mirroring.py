"""Averaging over mirrored windows: on the processor, by the GPU's kernels, and what users and packages may ask for."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.errors import Cancelled, InputError, PackageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import segmenter
from MedQuantINT8Lib.inference.gpu_network_labels import Reduction
from MedQuantINT8Lib.inference.gpu_sliding_window import GpuSlidingWindow
from MedQuantINT8Lib.inference.mirroring import MirroredInference, flips_along, mirror_axes_of
from MedQuantINT8Lib.inference.sliding_window import as_inference
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.spec import Label, Mirroring, Normalization, Window
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.progress import Task
from pointwise import Lopsided, mirrored, on_the_processor

PATCH = (8, 6, 4)


def spec(axes=(0, 1, 2), on=False):
    plain = phantom_spec()
    return replace(
        plain,
        geometry=replace(plain.geometry, spacing=None),
        normalization=(Normalization("linear", low=0.0, high=1.0),),
        labels=(Label(1, "one", 1), Label(2, "two", 2)),
        window=Window(PATCH, overlap=0.5),
        mirroring=Mirroring(axes, on),
        crop=replace(plain.crop, kind="none"),
    )


def volume():
    return Volume(np.random.default_rng(4).normal(1, 1, (1, 11, 10, 13)).astype(np.float32), np.eye(4), "noise")


class Engine:
    """A network on the processor that notes how many patches each call has."""

    def __init__(self):
        self.network, self.calls = Lopsided(None, 3), []

    def infer(self, batch):
        self.calls.append(len(batch))
        return self.network.infer(batch)

    def describe(self): ...

    def close(self): ...


class Ahead:
    """A network with batches under way, whose scores are valid for a short time only."""

    ahead = 2

    def __init__(self, infer):
        self._infer, self._scores = infer, deque()

    def submit(self, batch):
        assert len(self._scores) <= self.ahead
        self._scores.append(self._infer(batch))

    def collect(self):
        return self._scores.popleft()

    def drain(self):
        self._scores.clear()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("axes", [(1,), (0, 2), (0, 1, 2)])
def test_scores_are_the_mean_over_all_mirrored_forms(axes, batch_size):
    network = Lopsided(None, 3)
    windows = [np.random.default_rng(n).normal(size=(2, 1, *PATCH)).astype(np.float32) for n in range(3)]
    for inner in (as_inference(network.infer), Ahead(network.infer)):
        inference = MirroredInference(inner, axes, batch_size, lambda: None)
        scores = []
        for number, batch in enumerate(windows):
            inference.submit(batch)
            if number >= inference.ahead:
                scores.append(inference.collect())
        scores += [inference.collect() for _ in range(inference.ahead)]
        for ours, batch in zip(scores, windows, strict=True):
            np.testing.assert_allclose(ours, mirrored(network, axes)(batch), rtol=1e-5, atol=1e-5)


def test_a_volume_is_segmented_with_mirrored_windows_that_share_calls():
    plain, ours, by_hand = Engine(), Engine(), Engine()
    by_hand.infer = mirrored(by_hand.network, (0, 1, 2))
    options = segmenter.SegmentationOptions(mirroring=True, batch=8)
    result = segmenter.segment_volume(volume(), spec(), lambda _: ours, options)
    once = segmenter.segment_volume(volume(), spec(), lambda _: plain)
    expected = segmenter.segment_volume(volume(), spec(), lambda _: by_hand)
    assert np.mean(result.labels != expected.labels) < 1e-3 and np.mean(result.labels != once.labels) > 0.01
    assert set(ours.calls) == {8} and len(ours.calls) == result.windows == once.windows
    assert result.patches == 8 * once.patches == sum(ours.calls)
    assert any("8 mirrored forms" in note for note in result.notes) and not any("mirror" in n for n in once.notes)


def test_mirroring_can_be_cancelled_between_the_calls_of_one_window():
    engine, task = Engine(), Task()
    infer = engine.infer

    def cancelling(batch):
        if len(engine.calls) == 3:
            task.cancel()
        return infer(batch)

    engine.infer = cancelling
    with pytest.raises(Cancelled):
        segmenter.segment_volume(volume(), spec(on=True), lambda _: engine, task=task)
    assert len(engine.calls) < 8


def test_axes_are_those_of_the_package_or_of_the_user():
    assert mirror_axes_of(spec((0, 2)), None) == () and mirror_axes_of(spec((2, 0), on=True), None) == (0, 2)
    assert mirror_axes_of(spec((0, 2)), True) == (0, 2) and mirror_axes_of(spec((0, 2), on=True), False) == ()
    assert mirror_axes_of(spec((0, 2)), (2,)) == (2,) and flips_along((0, 2)) == [(), (0,), (2,), (0, 2)]
    for choice, axes, message in (
        (True, (), "allows no mirroring"),
        ((1,), (0, 2), "axis 1; it allows the axes 0, 2"),
        ((0,), (), "it allows no axis"),
        ("yes", (0,), "cannot be 'yes'"),
        ((True,), (0,), "cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            mirror_axes_of(spec(axes), choice)


def test_a_package_cannot_mirror_along_an_axis_twice_or_across_slices():
    assert parse_spec(spec((2, 0), on=True).to_json()).mirroring == Mirroring((2, 0), True)
    assert parse_spec({k: v for k, v in spec().to_json().items() if k != "mirroring"}).mirroring == Mirroring()
    for changes in ({"axes": [0, 0]}, {"axes": [3]}, {"axes": [0], "on": 1}):
        with pytest.raises(PackageError, match="mirroring"):
            parse_spec({**spec().to_json(), "mirroring": changes})
    flat = replace(spec((0,)), window=Window((1, 6, 4)))
    with pytest.raises(PackageError, match="one voxel long"):
        parse_spec(flat.to_json())


@pytest.fixture
def computing_gpu(monkeypatch):
    """A GPU whose kernels are compiled for the processor."""
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    gpu_computing.install(monkeypatch)
    monkeypatch.setattr(cuda.Gpu, "kernels", lambda gpu, source, names: kernels_on_processor.kernels(source, names))
    with cuda.Gpu(0) as gpu:
        yield gpu


@pytest.mark.parametrize(("axes", "threshold"), [((), None), ((0, 1, 2), None), ((1, 2), 0.4)])
def test_the_gpus_kernels_cut_and_blend_mirrored_windows(computing_gpu, axes, threshold):
    window = Window(PATCH, overlap=0.5)
    scan = volume().data
    plan = plan_windows(scan.shape[1:], window, PATCH)
    network = Lopsided(computing_gpu, 3)
    values = np.array([7, 5, 2], np.uint16)
    expected = on_the_processor(scan, Reference(network, axes, threshold), plan, window, values, threshold)
    runner = GpuSlidingWindow(computing_gpu, network, 1, 3, plan, window, 3, flips_along(axes))
    labels = runner.run(scan, Reduction(values, threshold))
    runner.close()
    assert (labels != expected).mean() < 1e-3 and len(np.unique(labels)) > 2


class Reference:
    """What the GPU adds up: means of scores, or, for regions, of each form's probabilities."""

    def __init__(self, network, axes, threshold):
        self.classes, self._network, self._axes, self._threshold = network.classes, network, axes, threshold

    def infer(self, batch):
        if self._threshold is None:
            return mirrored(self._network, self._axes)(batch)

        class Probabilities:
            infer = staticmethod(lambda b: 1 / (1 + np.exp(-np.clip(self._network.infer(b), -60, 60))))

        mean = mirrored(Probabilities, self._axes)(batch)
        return np.log(mean / (1 - mean))
