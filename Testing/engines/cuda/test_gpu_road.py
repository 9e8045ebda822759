"""The way of a volume through a real GPU beside the processor's: every geometry and kind of output, large scans, many runs. Skips without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import segmenter
from MedQuantINT8Lib.inference.gpu_cleaning import GpuCleaning
from MedQuantINT8Lib.inference.gpu_preparation import deferred
from MedQuantINT8Lib.inference.gpu_road_check import CheckEngine, ProcessVerdicts, check_patch_size, check_volume
from MedQuantINT8Lib.inference.postprocessing import cleaned
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.spec import Cleaning, Geometry, Normalization
from pointwise import needs_gpu
from road_models import ROADS, road_spec
from scans import GEOMETRIES


@pytest.fixture(scope="module")
def gpu():
    with cuda.Gpu() as opened:
        yield opened


def segmented(gpu, dtype, spec, volume, *, there, patch=None, mirroring=None, averages=False):
    """The labels of a volume by the network of the check: on the GPU, or with its scores on the processor."""
    engine = CheckEngine(gpu, dtype, spec, averages)
    engine.road_verdicts = ProcessVerdicts()
    network_input = preprocess(volume, spec)
    engine.look_at(network_input.data)
    if there:
        network_input = deferred(volume, spec, preprocess)
    else:
        engine.gpu_network = None
    window = replace(spec.window, patch_size=patch or check_patch_size(network_input.shape[1:], spec))
    options = SegmentationOptions(batch=3, mirroring=mirroring)
    result = segmenter.segment(network_input, replace(spec, window=window), engine, options)
    assert any("on the GPU" in note for note in result.notes) == there, result.notes
    assert not any(note.startswith("warning") for note in result.notes), result.notes
    engine.close()
    return result.labels


@needs_gpu
@pytest.mark.parametrize("geometry", ["axial", "flipped", "oblique and flipped", "sagittal"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", list(ROADS))
def test_a_gpu_gives_the_processor_s_labels(gpu, name, dtype, geometry):
    spec = road_spec(name)
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES[geometry])
    there, here = (segmented(gpu, dtype, spec, volume, there=on_gpu) for on_gpu in (True, False))
    assert there.dtype == here.dtype and len(np.unique(here)) >= 3 and (there != here).mean() < 2e-4


@needs_gpu
@pytest.mark.parametrize("name", ["MONAI's", "nnU-Net", "nnU-Net by slices", "torch", "padded afterwards", "zoomed"])
def test_a_scan_in_network_space_is_the_processor_s(gpu, name):
    zoomed = Geometry("KJI", "RAS", spacing=(1.5, 1.5, 1.5), anchor="corners", interpolation="bspline")
    spec = road_spec("linear by centers" if name == "zoomed" else name)
    steps = (Normalization("clip_percentile", low=0.5, high=99.5), Normalization("zscore", mask="nonzero"))
    spec = replace(spec, normalization=steps, geometry=zoomed if name == "zoomed" else spec.geometry)
    if spec.order:
        spec = replace(spec, order=(*spec.order[:-1], "normalize", spec.order[-1]))
    expected = preprocess(check_volume(spec), spec).data
    buffer, stream = deferred(check_volume(spec), spec, preprocess).on_gpu(gpu), gpu.stream()
    array = np.empty(buffer.shape, buffer.dtype)
    buffer.download(array, stream)
    stream.synchronize()
    buffer.free()
    stream.free()
    np.testing.assert_allclose(array, expected, rtol=0, atol=3e-5 * np.ptp(expected))


@needs_gpu
def test_a_scan_of_many_voxels_and_classes(gpu):
    """Places in the ring and in the label map of more than a few million voxels."""
    spec = road_spec("cropped, many labels")
    spec = replace(spec, geometry=Geometry("KJI", "LPS", spacing=(1.5, 1.5, 1.5)))
    small = check_volume(spec).data[0]
    data = np.kron(small, np.ones((8, 6, 6), np.int16))[:300, :320, :400]
    volume = Volume(data[None], np.diag([-0.9, -0.9, 1.0, 1.0]))
    there, here = (
        segmented(gpu, "float16", spec, volume, there=on_gpu, patch=(96, 96, 96)) for on_gpu in (True, False)
    )
    assert len(np.unique(here)) > 10 and (there != here).mean() < 2e-4


@needs_gpu
@pytest.mark.parametrize("name", ["MONAI's", "regions by window"])
def test_mirrored_windows_are_averaged_before_they_are_resampled(gpu, name):
    spec = road_spec(name)
    spec = replace(spec, mirroring=replace(spec.mirroring, axes=(0, 2)))
    there, here = (
        segmented(gpu, "float16", spec, check_volume(spec), there=on_gpu, mirroring=True) for on_gpu in (True, False)
    )
    assert (there != here).mean() < 2e-4


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["MONAI's", "regions by window"])
def test_the_mean_of_several_networks(gpu, name, dtype):
    spec = road_spec(name)
    there, here = (
        segmented(gpu, dtype, spec, check_volume(spec), there=on_gpu, averages=True) for on_gpu in (True, False)
    )
    assert (there != here).mean() < 2e-4


def parts(shape, values, dtype):
    """Blobs and single voxels of some structures, in parts of all sizes."""
    rng = np.random.default_rng(3)
    waves = sum(np.sin(rng.uniform(0.1, 0.5) * axis + rng.uniform(0, 6)) for axis in np.indices(shape, np.float32))
    labels = np.digitize(waves, np.linspace(-1.5, 2.2, len(values) + 1))
    labels[rng.random(shape) < 0.01] = 1
    return np.array([0, *values, 0], dtype)[labels]


@needs_gpu
@pytest.mark.parametrize("kind", ["largest", "remove_small"])
@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_parts_of_structures_are_the_processor_s(gpu, connectivity, kind):
    for dtype, values in (("uint8", range(1, 9)), ("uint16", (1, 2, 300, 301))):
        labels = parts((90, 130, 150), values, dtype)
        steps = [
            Cleaning(kind, connectivity=connectivity, count=2, size=9),
            Cleaning(kind, labels=(1, 2), together=True, connectivity=connectivity, size=40, equal="all"),
        ]
        stream, buffer = gpu.stream(), gpu.allocate(labels.shape, labels.dtype)
        buffer.upload(labels, stream)
        assert GpuCleaning(steps, 1.0).clean(gpu, buffer, stream) == len(steps)
        result = np.empty_like(labels)
        buffer.download(result, stream)
        stream.synchronize()
        buffer.free()
        stream.free()
        assert (result != labels).any()
        np.testing.assert_array_equal(result, cleaned(labels.copy(), steps))


@needs_gpu
@pytest.mark.slow
def test_two_hundred_runs_take_no_memory_and_agree(gpu):
    spec = road_spec("nnU-Net by slices")
    expected = segmented(gpu, "float16", spec, check_volume(spec), there=True)
    before = gpu.free_bytes
    for _ in range(200):
        assert np.array_equal(segmented(gpu, "float16", spec, check_volume(spec), there=True), expected)
    assert gpu.free_bytes >= before - (1 << 21)
