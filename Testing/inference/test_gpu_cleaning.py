"""Parts of structures by the GPU's kernels, run on the processor over a stand-in driver, beside the processor's: equal voxel by voxel."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import gpu_computing
import kernels_on_processor
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.inference import gpu_cleaning, gpu_kernels, gpu_road_check, segmenter
from MedQuantINT8Lib.inference.gpu_cleaning import GpuCleaning
from MedQuantINT8Lib.inference.gpu_preparation import deferred
from MedQuantINT8Lib.inference.gpu_road_check import CheckEngine, ProcessVerdicts, check_patch_size, check_volume
from MedQuantINT8Lib.inference.postprocessing import cleaned
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.spec import Cleaning
from road_models import road_spec


@pytest.fixture
def driver(monkeypatch):
    if kernels_on_processor.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(gpu_road_check, "_OF_THIS_PROCESS", ProcessVerdicts())
    monkeypatch.setattr(gpu_cleaning, "_TRUSTED", {})
    return gpu_computing.install_kernels(monkeypatch)


def there(labels, steps, voxel_mm3=1.0):
    """The label map after the steps on the GPU, and how many it did."""
    with cuda.Gpu(0) as gpu:
        stream, buffer = gpu.stream(), gpu.allocate(labels.shape, labels.dtype)
        buffer.upload(labels, stream)
        done = GpuCleaning(steps, voxel_mm3).clean(gpu, buffer, stream)
        result = np.empty_like(labels)
        buffer.download(result, stream)
        buffer.free()
        stream.free()
    return result, done


def spots(shape, values, dtype, share=0.35, seed=0):
    """Voxels of some values among background, in parts of all sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array(values, dtype), shape)
    labels[rng.random(shape) > share] = 0
    return labels


STEPS = {
    "the largest of each": Cleaning(),
    "by faces": Cleaning(connectivity=1),
    "by edges": Cleaning(connectivity=2),
    "three of each": Cleaning(count=3, connectivity=1),
    "all that are equal": Cleaning(connectivity=1, count=2, equal="all"),
    "of some": Cleaning(labels=(2, 7, 300), connectivity=2),
    "of what is not there": Cleaning(labels=(9,)),
    "together": Cleaning(labels=(1, 2), together=True, connectivity=1),
    "all together": Cleaning(together=True),
    "small ones": Cleaning("remove_small", size=4, connectivity=1),
    "small ones by volume": Cleaning("remove_small", volume=7.5, connectivity=2),
    "small ones together": Cleaning("remove_small", labels=(1, 7), size=9, together=True),
}


@pytest.mark.parametrize("shape", [(7, 19, 23), (1, 30, 31), (25, 1, 40), (12, 33, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_parts_are_the_processor_s(driver, step, shape):
    for dtype, values in (("uint8", (1, 2, 7)), ("uint16", (1, 2, 7, 300))):
        for share in (0.15, 0.35, 0.9):
            labels = spots(shape, values, dtype, share)
            result, done = there(labels, [step], 2.5)
            assert done == 1
            np.testing.assert_array_equal(result, cleaned(labels.copy(), [step], 2.5))
    assert not driver.memory


def test_long_and_twisted_parts_are_one(driver):
    labels = np.zeros((5, 31, 33), np.uint8)
    for plane in (0, 2, 4):
        labels[plane, ::2] = 1
        labels[plane, 1::4, -1] = labels[plane, 3::4, 0] = 1
    labels[1, 0, 0] = labels[3, -1, -1] = 1
    labels[2, 1, 5] = 3
    for step in (Cleaning(connectivity=1), Cleaning("remove_small", size=2, connectivity=1)):
        result, _ = there(labels, [step])
        np.testing.assert_array_equal(result, cleaned(labels.copy(), [step]))
    assert (result == 1).sum() == (labels == 1).sum() and not (result == 3).any()


def test_more_parts_than_there_is_room_for_are_listed_again(driver, monkeypatch):
    monkeypatch.setattr(gpu_cleaning, "_ROOM", 3)
    labels = spots((6, 20, 20), (1, 2), "uint8", 0.2)
    result, _ = there(labels, [Cleaning(connectivity=1)])
    np.testing.assert_array_equal(result, cleaned(labels.copy(), [Cleaning(connectivity=1)]))


def test_a_gpu_that_finds_other_parts_leaves_them_to_the_processor(driver, monkeypatch):
    text = gpu_kernels.components_source()
    monkeypatch.setattr(
        gpu_cleaning, "components_source", lambda: text.replace("over = n < 3 ? n - 1 : -1", "over = 0")
    )
    labels = spots((6, 20, 20), (1, 2), "uint8")
    result, done = there(labels, [Cleaning(connectivity=1)])
    assert done == 0
    np.testing.assert_array_equal(result, labels)


SCAN = (Cleaning(), Cleaning("remove_small", size=6, connectivity=1))
NETWORK = (replace(Cleaning(), where="network"),)
MODELS = {
    "on the scan's grid": ("linear by centers", SCAN),
    "with holes at the end": ("linear by centers", (*SCAN, Cleaning("fill_holes", connectivity=1))),
    "with holes at the beginning": ("linear by centers", (Cleaning("fill_holes", connectivity=1), *SCAN)),
    "in network space": ("labels brought back", NETWORK),
    "in both": ("many labels brought back", (*NETWORK, *SCAN)),
}


def run(engine, volume, spec, gpu):
    network_input = preprocess(volume, spec)
    engine.look_at(network_input.data)
    patch = check_patch_size(network_input.data.shape[1:], spec)
    spec = replace(spec, window=replace(spec.window, patch_size=patch))
    if gpu:
        network_input = deferred(volume, spec, preprocess)
    else:
        engine.gpu_network = None
    return segmenter.segment(network_input, spec, engine, SegmentationOptions(batch=2))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_cleaning_gives_the_processor_s_labels(driver, name):
    road, steps = MODELS[name]
    spec = replace(road_spec(road), cleaning=steps)
    volume = check_volume(spec)
    with cuda.Gpu(0) as gpu:
        result = run(CheckEngine(gpu, "float32", spec), volume, spec, gpu=True)
        expected = run(CheckEngine(gpu, "float32", spec), volume, spec, gpu=False)
        plain = run(CheckEngine(gpu, "float32", spec), volume, replace(spec, cleaning=()), gpu=True)
    on_gpu = any("parts of structures were looked for on the GPU" in note for note in result.notes)
    assert on_gpu == (name not in ("with holes at the beginning", "in network space"))
    assert any("on the GPU" in note for note in result.notes)
    assert (result.labels != plain.labels).any() and (result.labels != expected.labels).mean() < 2e-4
    assert not driver.memory


def test_without_memory_for_parts_the_processor_cleans(driver, monkeypatch):
    spec = replace(road_spec("labels brought back"), cleaning=(*NETWORK, *SCAN))
    volume = check_volume(spec)
    real = cuda.Gpu.allocate

    def allocate(gpu, shape, dtype):
        if len(shape) == 1 and shape[0] > 20_000 and np.dtype(dtype) == np.int32:
            raise GpuMemoryError("The GPU has not enough free memory to hold parts.")
        return real(gpu, shape, dtype)

    with cuda.Gpu(0) as gpu:
        expected = run(CheckEngine(gpu, "float32", spec), volume, spec, gpu=True)
        monkeypatch.setattr(cuda.Gpu, "allocate", allocate)
        result = run(CheckEngine(gpu, "float32", spec), volume, spec, gpu=True)
    assert not any("parts of structures" in note for note in result.notes)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert not driver.memory


def test_every_kernel_has_a_name():
    written = re.findall(r"__global__ void (\w+?)(?:_##SUFFIX)?\(", gpu_kernels.components_source())
    assert {name.removesuffix("_u8").removesuffix("_u16") for name in gpu_kernels.COMPONENT_NAMES} == set(written)
