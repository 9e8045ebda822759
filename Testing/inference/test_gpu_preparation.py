"""Scans brought to network space by the GPU's kernels, run on the processor over a stand-in driver, beside the processor's own preprocessing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.inference.gpu_arrays import GpuArrays
from MedQuantINT8Lib.inference.gpu_preparation import DeferredInput, deferred
from MedQuantINT8Lib.inference.gpu_road_check import check_volume
from MedQuantINT8Lib.models.spec import Channel, Crop, Fit, Geometry, Normalization, SplineResampling
from road_models import ROADS, road_spec
from scans import GEOMETRIES


@pytest.fixture
def gpu(monkeypatch):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    driver = gpu_computing.install_kernels(monkeypatch)
    with cuda.Gpu(1) as opened:
        yield opened
    assert not driver.memory


def downloaded(gpu, buffer):
    array, stream = np.empty(buffer.shape, buffer.dtype), gpu.stream()
    buffer.download(array, stream)
    stream.synchronize()
    return array


def check(gpu, volume, spec, bound=2e-5):
    """The scan in network space from the GPU is the processor's, within a share of its range."""

    def never(*arguments):
        raise AssertionError("the processor did it")

    network_input, expected = deferred(volume, spec, never), preprocess(volume, spec)
    assert isinstance(network_input, DeferredInput)
    assert (network_input.grid, network_input.original) == (expected.grid, expected.original)
    assert network_input.steps == expected.steps and network_input.axis_order == expected.axis_order
    buffer = network_input.on_gpu(gpu)
    assert buffer.shape == network_input.shape == expected.data.shape and buffer.dtype == np.float32
    array = downloaded(gpu, buffer)
    buffer.free()
    assert np.ptp(expected.data) > 0
    np.testing.assert_allclose(array, expected.data, rtol=0, atol=bound * np.ptp(expected.data))


_NNUNET = {"anchor": "edges", "interpolation": "nnunet"}
GEOMETRIES_IN = {
    "kept": Geometry("IJK", "PIR"),
    "native": Geometry("KJI", "native"),
    "one axis": Geometry("KJI", "RAS", spacing=(None, None, 2.1)),
    "TotalSegmentator's": Geometry("KJI", "RAS", spacing=(1.5, 1.5, 1.5), anchor="corners", interpolation="bspline"),
    "MONAI by extent": Geometry("IJK", "LPS", spacing=(1.4, 2.3, 0.8), anchor="monai_extent"),
    "torch's corners": Geometry("IJK", "RAS", size=(21, 33, 48), resize="torch", anchor="corners"),
    "torch's area": Geometry("IJK", "RAS", size=(21, 33, 18), resize="torch", interpolation="area"),
    "torch's nearest": Geometry("KJI", "RAS", size=(60, 33, 18), resize="torch", interpolation="nearest"),
    "linear in slices": Geometry("KJI", "native", spacing=(7.0, 1.5, 1.7), **_NNUNET, spline=SplineResampling(1, order_z=1)),
    "whole cubic": Geometry("KJI", "native", spacing=(7.0, 1.5, 1.7), **_NNUNET, spline=SplineResampling(3, separate_z=False)),
}  # fmt: skip


@pytest.mark.parametrize("scan", ["anisotropic", "oblique and flipped"])
@pytest.mark.parametrize("name", [*(road for road in ROADS if road != "turned last"), *GEOMETRIES_IN])
def test_a_scan_in_network_space_is_the_processor_s(gpu, name, scan):
    spec = road_spec(name) if name in ROADS else replace(road_spec("linear by centers"), geometry=GEOMETRIES_IN[name])
    check(gpu, replace(check_volume(spec), ijk_to_ras=GEOMETRIES[scan]), spec)


NORMALIZATIONS = {
    "window": Normalization("window", low=-100, high=400),
    "window without clipping": Normalization("window", low=-100, high=400, clip=False),
    "minmax": Normalization("minmax"),
    "minmax, one end": Normalization("minmax", low=-10),
    "percentile": Normalization("percentile", low=0.5, high=99.5),
    "zscore": Normalization("zscore"),
    "zscore of a mean": Normalization("zscore", mean=12.0),
    "zscore nonzero": Normalization("zscore", mask="nonzero"),
    "zscore above the mean": Normalization("zscore", mask="above_mean"),
    "nnunet_ct": Normalization("nnunet_ct", low=-200, high=800, mean=77.0, std=133.0),
    "linear": Normalization("linear", low=3.0, high=-2.0),
    "clip above": Normalization("clip", high=200),
    "clip_percentile": Normalization("clip_percentile", low=2, high=90),
    "threshold": Normalization("threshold", low=50, fill=-7),
    "threshold from above": Normalization("threshold", high=50, fill=7),
    "truncate": Normalization("truncate"),
    "spread": Normalization("spread"),
}


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_intensities_are_the_processor_s(gpu, name, dtype):
    spec = replace(road_spec("linear by centers"), geometry=Geometry("KJI", "LPS"))
    scan = check_volume(spec)
    data = scan.data.astype(dtype) + (
        np.float32(0.25) * np.sin(np.arange(scan.data.size)).reshape(scan.data.shape) if dtype == "float32" else 0
    )
    data[..., :4] = 0
    steps = (NORMALIZATIONS[name],)
    if name == "truncate":
        steps = (NORMALIZATIONS["zscore"], Normalization("linear", low=0, high=10.0), *steps)
    bound = 0.05 if name == "truncate" else 1e-5
    # A value at the border of a threshold, or of a whole number, may fall to its other side.
    check(gpu, replace(scan, data=data.astype(dtype)), replace(spec, normalization=steps), bound)


def test_schemes_of_auto3dseg_and_steps_of_some_channels(gpu):
    spec = replace(
        road_spec("MONAI's"),
        channels=(Channel("CT"), Channel("PET")),
        normalization=(
            Normalization("zscore", channels=(0,)), Normalization("sigmoid", channels=(0,)),
            Normalization("spread", channels=(1,)), Normalization("tanh", high=3.0, channels=(1,)),
        ),
    )  # fmt: skip
    check(gpu, replace(check_volume(spec), ijk_to_ras=GEOMETRIES["flipped"]), spec)


@pytest.mark.parametrize("order", ["before", "after"])
def test_crops_and_pads_before_and_after_resampling(gpu, order):
    spec = road_spec("linear by centers")
    fits = (Fit("pad", (40, 90, 60), pad_value=-3.0), Fit("crop", (30, 50, None)), Fit("pad_multiple", (16, 16, 16)))
    crop = Crop("threshold", 100.0, margin=2, beyond="pad", multiples=(7, 7, 7), pad_value=5.0)
    usual = ("crop", "reorient", "resample", "normalize")
    steps = (
        (*usual, "fit", "fit", "fit")
        if order == "after"
        else ("reorient", "fit", "fit", "fit", "crop", "normalize", "resample")
    )
    spec = replace(spec, fits=fits, crop=crop, order=steps)
    check(gpu, replace(check_volume(spec), ijk_to_ras=GEOMETRIES["flipped"]), spec)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int32", "float64"])
def test_every_kind_of_voxel_is_read_as_it_lies(gpu, dtype):
    spec = road_spec("nnU-Net")
    scan = check_volume(spec)
    check(gpu, replace(scan, data=(scan.data // 16 % 100).astype(dtype)), spec)


def test_percentiles_are_numpy_s(gpu):
    rng = np.random.default_rng(0)
    arrays = GpuArrays(gpu)
    for values in (
        rng.normal(size=(7, 11, 13)),
        rng.integers(-3, 4, (5, 4, 3)),
        -rng.exponential(1e-30, (6, 6, 6)),
        np.full((2, 2, 2), -7.5),
        np.zeros((3, 3, 3)),
    ):
        values = values.astype(np.float32)
        which = (0.0, 0.5, 37.7, 50.0, 99.5, 100.0)
        expected = np.percentile(values.astype(np.float64), which)
        np.testing.assert_allclose(arrays.percentiles(arrays.upload(values), which), expected, rtol=1e-12, atol=0)
    arrays.close()


def test_what_only_the_processor_does_is_left_to_it(gpu):
    spec = road_spec("MONAI's")
    volume = check_volume(spec)
    for changes in (
        # By slices, and turned afterwards: SimpleITK's spline, which is mirrored at the border.
        {"geometry": road_spec("turned last").geometry},
        {"normalization": (Normalization("zscore", mask="nonzero_filled"),), "normalize_in": "input"},
        {"geometry": Geometry("IJK", "RAS", spacing=(2.0, 2.0, 2.0), interpolation="bspline", anchor="monai")},
        {"geometry": Geometry("IJK", "RAS", spacing=(2.0, 2.0, 2.0), outside="zeros")},
        {"fits": (Fit("pad", (90, 90, 90), padding="reflect"),), "order": (*spec.steps, "fit")},
    ):
        other = replace(spec, **changes)
        network_input = deferred(volume, other, preprocess)
        assert not isinstance(network_input, DeferredInput)
        np.testing.assert_array_equal(network_input.data, preprocess(volume, other).data)
    later = deferred(volume, spec, preprocess)
    np.testing.assert_array_equal(later.data, preprocess(volume, spec).data)
    with pytest.raises(InputError, match="everywhere"):
        deferred(replace(volume, data=volume.data * 0), spec, preprocess)


def test_a_scan_that_does_not_fit_leaves_nothing_behind(gpu, monkeypatch):
    spec = road_spec("nnU-Net")
    real = cuda.Gpu.allocate

    def allocate(gpu, shape, dtype):
        if len(shape) == 3 and shape[0] == 30:
            raise cuda.GpuMemoryError("no room")
        return real(gpu, shape, dtype)

    volume = check_volume(spec)
    monkeypatch.setattr(cuda.Gpu, "allocate", allocate)
    monkeypatch.setattr(
        "MedQuantINT8Lib.inference.gpu_arrays.GpuArrays.upload", lambda self, array: self.allocate((30, 1, 1))
    )
    with pytest.raises(cuda.GpuMemoryError):
        deferred(volume, spec, preprocess).on_gpu(gpu)


@pytest.mark.parametrize("name", ["linear by centers", "MONAI's", "cropped, many labels", "nnU-Net"])
def test_linear_interpolation_goes_in_one_pass(gpu, name, monkeypatch):
    spec = road_spec(name)
    passes, plain = [], GpuArrays.resample_laid_out
    monkeypatch.setattr(GpuArrays, "resample_laid_out", lambda *given: (passes.append(plain(*given)), passes[-1])[1])
    buffer = deferred(check_volume(spec), spec, preprocess).on_gpu(gpu)
    buffer.free()
    assert [found is not None for found in passes] == [name != "nnU-Net"]
