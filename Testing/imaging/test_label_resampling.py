"""Labels on the scan's grid equal those of resampling every class and taking the largest, but where two scores are equal."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
from MedQuantINT8Lib.imaging.label_resampling import LabelResampling, Largest, interpolated
from MedQuantINT8Lib.imaging.network_input import NetworkInput
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.regions import Regions
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.spec import Crop, Fit, Geometry, SplineResampling
from MedQuantINT8Lib.thread_pool import Threads
from scans import GEOMETRIES, spec_with

SPACINGS = {
    "monai": Geometry("IJK", "RAS", spacing=(2.4, 1.3, 3.0), anchor="monai"),
    "centers": Geometry("KJI", "LPS", spacing=(3.0, 1.1, 2.0)),
    "torch": Geometry("KJI", "RAS", size=(20, 31, 27), resize="torch"),
    "corners": Geometry("IJK", "PIR", size=(20, 31, 27), resize="torch", anchor="corners"),
    "nnU-Net": Geometry("KJI", "native", spacing=(2.5, 2.0, 1.7), anchor="edges", interpolation="nnunet"),
    "nnU-Net by slices": Geometry("KJI", "native", spacing=(9.0, 1.5, 1.7), anchor="edges", interpolation="nnunet"),
    "nnU-Net turned last": Geometry("KJI", "RAS", spacing=(9.0, 1.5, 1.7), anchor="edges", interpolation="nnunet", reorient="last"),
}  # fmt: skip


def fitted(geometry, *fits):
    """A model with steps of cropping or padding after resampling."""
    spec = spec_with(geometry=geometry, fits=fits)
    return replace(spec, order=(*spec.steps, *(["fit"] * len(fits)))) if fits else spec


def smooth_scores(rng, classes, shape, scale=6.0):
    """Scores that have structures: a few waves a class, of float32."""
    axes = np.meshgrid(*[np.linspace(0, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    scores = np.zeros((classes, *shape), np.float32)
    for score in scores:
        for _ in range(3):
            waves = [np.sin(rng.uniform(2, 14) * axis + rng.uniform(0, 6)) for axis in axes]
            score += scale * waves[0] * waves[1] * waves[2]
    return scores


def plain(network_input: NetworkInput, monkeypatch, work):
    """What ``work`` gives where every class is resampled."""
    with monkeypatch.context() as context:
        context.setattr(NetworkInput, "back_axes", lambda self: None)
        return work(network_input)


def margins(network_input, scores):
    """By how much the largest resampled score leads, (K, J, I) on the grid before what came before resampling."""
    resampled = np.stack([network_input._place(network_input._back(score)) for score in scores])
    ordered = np.sort(resampled, axis=0)
    return ordered[-1] - ordered[-2]


@pytest.mark.parametrize("name", list(SPACINGS))
@pytest.mark.parametrize("classes", [2, 7])
def test_the_largest_score_wins_as_if_every_class_were_resampled(name, classes, blob, monkeypatch):
    rng = np.random.default_rng(classes)
    volume, _ = blob(GEOMETRIES["oblique"])
    for fits in ((), (Fit("pad_multiple", (8, 8, 8)),)):
        network_input = preprocess(volume, fitted(SPACINGS[name], *fits))
        assert network_input.back_axes() is not None
        assert not fits or all(n % 8 == 0 for n in network_input.data.shape[1:])
        scores = smooth_scores(rng, classes, network_input.data.shape[1:])
        values = np.arange(classes, dtype=np.uint8)[::-1].copy()
        ours = network_input.restore_from_scores(scores, values)
        expected = plain(network_input, monkeypatch, lambda it, s=scores, v=values: it.restore_from_scores(s, v))
        different = ours != expected
        assert len(np.unique(expected)) == classes and different.mean() < 1e-3
        assert (margins(network_input, scores)[different] < 1e-4).all()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["monai", "nnU-Net by slices"])
def test_regions_are_cut_and_painted_as_if_every_class_were_resampled(name, nested, blob, monkeypatch):
    volume, _ = blob(GEOMETRIES["oblique"])
    network_input = preprocess(volume, spec_with(geometry=SPACINGS[name]))
    scores = smooth_scores(np.random.default_rng(1), 3, network_input.data.shape[1:])
    regions = Regions((0, 2, 1), np.array([3, 1, 2], np.uint8), np.array([0.5, -0.25, 1.0], np.float32), nested)
    ours = network_input.restore_regions(scores, regions)
    expected = plain(network_input, monkeypatch, lambda it: it.restore_regions(scores, regions))
    near = np.zeros(ours.shape, bool)
    for channel, cut in zip(regions.channels, regions.cuts, strict=True):
        near |= np.abs(network_input._place(network_input._back(scores[channel])) - cut) < 1e-4
    assert set(np.unique(ours)) == {0, 1, 2, 3} and not (ours != expected)[~near].any()


def test_label_maps_come_back_as_if_every_mask_were_resampled(blob, monkeypatch):
    volume, _ = blob(GEOMETRIES["oblique"])
    for name in ("monai", "torch", "nnU-Net"):
        network_input = preprocess(volume, spec_with(geometry=SPACINGS[name]))
        scores = smooth_scores(np.random.default_rng(2), 5, network_input.data.shape[1:])
        labels = np.array([0, 3, 4, 9, 7], np.uint16)[scores.argmax(axis=0)]
        ours = network_input.restore(labels)
        expected = plain(network_input, monkeypatch, lambda it, given=labels: it.restore(given))
        assert ours.dtype == expected.dtype and (ours != expected).mean() < 2e-3


def test_splines_of_a_higher_order_and_boxes_cut_out_later_are_done_plainly(blob):
    volume, _ = blob(GEOMETRIES["oblique"])
    cubic = replace(SPACINGS["nnU-Net"], score_spline=SplineResampling(3))
    assert preprocess(volume, spec_with(geometry=cubic)).back_axes() is None
    cut = preprocess(volume, fitted(SPACINGS["monai"], Fit("crop", (12, 12, 12))))
    assert cut.back_axes() is None
    assert preprocess(volume, spec_with(geometry=Geometry("KJI", "RAS"))).back_axes() is None
    assert preprocess(volume, spec_with(geometry=SPACINGS["monai"], crop=Crop("threshold", 50.0, 3))).back_axes()


def test_slabs_give_what_the_whole_gives():
    rng = np.random.default_rng(3)
    shape, new = (23, 17, 19), (61, 40, 33)
    scores = rng.normal(size=(4, *shape)).astype(np.float32)
    axes = tuple(
        AxisInterpolation.linear(o / n * (np.arange(n) + 0.5) - 0.5, o) for o, n in zip(shape, new, strict=True)
    )
    values = np.array([4, 1, 2, 3], np.uint8)
    with Threads(2) as threads:
        whole = LabelResampling(axes, Largest(values))
        whole.take(scores, 0, threads)
        slabs = LabelResampling(axes, Largest(values))
        for end in (4, 5, 15, 22, 23):
            first = slabs.first_needed
            slabs.take(scores[:, first:end], first, threads)
    assert np.array_equal(whole.result, slabs.result) and (whole.result > 0).all()
    blocks = [axis.pieces(64)[0] for axis in axes]
    resampled = np.stack([interpolated(score, blocks) for score in scores])
    assert (whole.result == values[resampled.argmax(axis=0)]).mean() > 0.9999


def test_blocks_with_one_class_left_are_filled_without_arithmetic(monkeypatch):
    """Counted: of two well separated halves only the blocks at their border are interpolated."""
    counted = itertools.count()
    monkeypatch.setattr(
        "MedQuantINT8Lib.imaging.label_resampling.interpolated",
        lambda scores, block: (next(counted), interpolated(scores, block))[1],
    )
    scores = np.zeros((30, 40, 40, 40), np.float32)
    scores[3, :20], scores[17, 20:] = 9, 9
    axes = tuple(AxisInterpolation.linear(np.linspace(0, 39, 90), 40) for _ in range(3))
    resampling = LabelResampling(axes, Largest(np.arange(30, dtype=np.uint8)))
    with Threads(1) as threads:
        resampling.take(scores, 0, threads)
    blocks = len(axes[0].pieces(10)) ** 3
    assert set(np.unique(resampling.result)) == {3, 17} and 0 < next(counted) <= blocks / 3


@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_scores_that_are_no_numbers_are_said_so(wrong):
    scores = np.zeros((3, 4, 4, 4), np.float32)
    scores[slice(None) if wrong < 0 else 1] = wrong
    axes = tuple(AxisInterpolation.linear(np.linspace(0, 3, 8), 4) for _ in range(3))
    resampling = LabelResampling(axes, Largest(np.arange(3, dtype=np.uint8)))
    with Threads(1) as threads, np.errstate(invalid="ignore"), pytest.raises(EngineError, match="no numbers"):
        resampling.take(scores, 0, threads)


def test_infinite_scores_of_both_signs_leave_classes_in():
    scores = np.random.default_rng(2).normal(size=(12, 4, 4, 4)).astype(np.float32)
    scores[5, :2], scores[5, 2:], scores[7, :2], scores[7, 2:] = np.inf, -np.inf, -np.inf, np.inf
    axes = tuple(AxisInterpolation.linear(np.linspace(0, 3, 8), 4) for _ in range(3))
    resampling = LabelResampling(axes, Largest(np.arange(12, dtype=np.uint8)))
    with Threads(1) as threads, np.errstate(invalid="ignore"):
        resampling.take(scores, 0, threads)
    assert set(np.unique(resampling.result)) <= set(range(12))


@pytest.mark.parametrize("certain", [True, False])
def test_where_structures_meet_only_those_that_can_win_are_interpolated(certain, monkeypatch):
    """Counted: neither of two structures is large all over a block in which they meet, and still the other classes are left out."""
    counted = []
    monkeypatch.setattr(
        "MedQuantINT8Lib.imaging.label_resampling.interpolated",
        lambda scores, block: (counted.append(scores.size), interpolated(scores, block))[1],
    )
    rng, classes, shape = np.random.default_rng(6), 40, (31, 28, 33)
    scores = rng.normal(-9, 0.2, (classes, *shape)).astype(np.float32)
    nearest = np.square(np.indices(shape)[:, None] - rng.uniform(0, 30, (3, 12, 1, 1, 1))).sum(axis=0).argmin(axis=0)
    for number in range(12):
        scores[3 * number][nearest == number] += 9 if certain else 0.3
    axes = tuple(AxisInterpolation.linear(np.linspace(-0.3, size - 0.7, 3 * size), size) for size in shape)
    values = rng.permutation(classes).astype(np.uint8)
    resampling = LabelResampling(axes, Largest(values))
    with Threads(2) as threads:
        resampling.take(scores, 0, threads)
    whole = [axis.pieces(64)[0] for axis in axes]
    resampled = np.stack([interpolated(score, whole) for score in scores])
    assert (resampling.result == values[resampled.argmax(axis=0)]).mean() > (0.9999 if certain else 0.999)
    assert (sum(counted) < 0.3 * scores.size) == certain


def test_an_axis_counted_from_its_other_end_is_the_same_axis():
    rng = np.random.default_rng(4)
    values = rng.normal(size=11).astype(np.float32)
    axis = AxisInterpolation.linear(np.sort(rng.uniform(-1, 12, 40)), 11)

    def sampled(axis, values):
        return np.concatenate([piece.weights @ values[piece.old] for piece in axis.pieces(4)])

    positions = np.interp(np.clip(axis.low + axis.share, 0, 10), np.arange(11), values)
    assert np.allclose(sampled(axis, values), positions, atol=1e-6)
    assert np.allclose(sampled(axis.flipped(), values[::-1])[::-1], sampled(axis, values), atol=1e-6)
    assert np.allclose(sampled(axis.within(3, 20), np.pad(values, (3, 6))), sampled(axis, values), atol=1e-6)


def test_the_whole_of_a_volume_s_scores_never_exists_while_it_is_blended(tmp_path):
    """With a memory budget that all scores would exceed several times, scores and not labels are resampled."""
    from MedQuantINT8Lib.inference.score_reduction import BlendingMemory, ScorePath, ScoreReduction
    from MedQuantINT8Lib.inference.windows import plan_windows

    data = np.random.default_rng(5).normal(size=(1, 60, 50, 200)).astype(np.float32)
    volume = Volume(data, np.diag([1.0, 1.0, 1.0, 1.0]))
    spec = spec_with(geometry=Geometry("KJI", "RAS", spacing=(1.5, 1.5, 1.5)))
    network_input = preprocess(volume, spec)
    window = replace(spec.window, patch_size=(16, 16, 16), overlap=0.5)
    plan = plan_windows(network_input.data.shape[1:], window, (16, 16, 16))
    budget = spec.output_channels * network_input.data[0].size * 4 * 3 // 5
    memory = BlendingMemory.within(budget, budget, plan, spec.output_channels)
    path = ScorePath.of(spec, network_input, memory, plan)
    assert memory.columns == 1 and path.resample_scores and path.streamed is not None
    reduction = ScoreReduction(spec, plan.volume_shape, path)
    scores = smooth_scores(np.random.default_rng(6), spec.output_channels, plan.volume_shape)
    most, axis = 0, path.streamed.slowest
    for begin in range(0, plan.volume_shape[axis], 8):
        others = [range(0, size, 8) if n != axis else (begin,) for n, size in enumerate(plan.volume_shape)]
        for start in itertools.product(*others):
            index = tuple(slice(s, s + 8) for s in start)
            reduction.receiver(start, scores[(slice(None), *index)].copy())
            most = max(most, reduction.receiver._scores.nbytes)
    assert most < scores.nbytes / 3
    ours = reduction.labels(network_input)
    assert np.array_equal(ours, network_input.restore_from_scores(scores, reduction.values))
