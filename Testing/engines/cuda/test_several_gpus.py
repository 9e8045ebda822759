"""Windows of one scan spread over real GPUs: one opened several times, and all that there are. Skips without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference import gpu_spread, segmenter
from MedQuantINT8Lib.inference.gpu_preparation import deferred
from MedQuantINT8Lib.inference.gpu_road_check import CheckEngine, ProcessVerdicts, check_patch_size, check_volume
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.inference.spread_engine import SpreadEngine
from MedQuantINT8Lib.models.spec import Geometry
from pointwise import needs_gpu
from road_models import road_spec
from scans import GEOMETRIES


def segmented(numbers, spec, volume, dtype="float16", patch=None, averages=False):
    """The labels of a volume by the network of the check on GPUs of these numbers."""
    engines = [CheckEngine(cuda.Gpu(number), dtype, spec, averages) for number in numbers]
    network_input = preprocess(volume, spec)
    for engine in engines:
        engine.road_verdicts = ProcessVerdicts()
        engine.gpu.enter()
        engine.look_at(network_input.data)
    window = replace(spec.window, patch_size=patch or check_patch_size(network_input.shape[1:], spec))
    engine = engines[0] if len(engines) == 1 else SpreadEngine(engines)
    spec = replace(spec, window=window)
    result = segmenter.segment(deferred(volume, spec, preprocess), spec, engine, SegmentationOptions(batch=3))
    for engine in engines:
        engine.gpu.enter()
        engine.close()
        engine.gpu.close()
    spread = [note for note in result.notes if "spread over" in note]
    assert len(spread) == (len(numbers) > 1) and not any("not spread" in note for note in spread), result.notes
    assert not any(note.startswith("warning") for note in result.notes), result.notes
    return result.labels


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "name", ["MONAI's", "nnU-Net", "cropped, many labels", "labels brought back", "regions by window"]
)
def test_one_gpu_opened_twice_and_three_times(name, dtype):
    spec = road_spec(name)
    volume = replace(check_volume(spec), ijk_to_ras=GEOMETRIES["oblique and flipped"])
    expected = segmented([0], spec, volume, dtype)
    assert len(np.unique(expected)) >= 3
    for numbers in ([0, 0], [0, 0, 0]):
        np.testing.assert_array_equal(segmented(numbers, spec, volume, dtype), expected)


@needs_gpu
def test_a_scan_of_many_voxels_on_all_gpus(monkeypatch):
    spec = replace(road_spec("cropped, many labels"), geometry=Geometry("KJI", "LPS", spacing=(1.5, 1.5, 1.5)))
    data = np.kron(check_volume(spec).data[0], np.ones((8, 6, 6), np.int16))[:300, :320, :400]
    volume = Volume(data[None], np.diag([-0.9, -0.9, 1.0, 1.0]))
    expected = segmented([0], spec, volume, patch=(96, 96, 96))
    numbers = [info.index for info in cuda.gpus()]
    several = numbers if len(numbers) > 1 else [0, 0]
    np.testing.assert_array_equal(segmented(several, spec, volume, patch=(96, 96, 96)), expected)
    np.testing.assert_array_equal(
        segmented(several, spec, volume, patch=(96, 96, 96), averages=True).shape, volume.data.shape[1:]
    )
    # Scores that wait in several rounds.
    monkeypatch.setattr(gpu_spread, "_MOST_STORED", 300 << 20)
    np.testing.assert_array_equal(segmented(several, spec, volume, patch=(96, 96, 96)), expected)


@needs_gpu
def test_runs_leave_nothing_on_the_gpu_and_agree(monkeypatch):
    """Counted, not measured: others may use the GPU at the same time."""
    spec, opened = road_spec("nnU-Net by slices"), {"DeviceBuffer": 0, "Stream": 0, "Event": 0}

    def counted(cls):
        create, free = cls.__init__, cls.free

        def created(self, *arguments, **options):
            create(self, *arguments, **options)
            opened[cls.__name__] += 1
            self.counts = True

        def freed(self):
            opened[cls.__name__] -= self.__dict__.pop("counts", False)
            free(self)

        monkeypatch.setattr(cls, "__init__", created)
        monkeypatch.setattr(cls, "free", freed)

    for cls in (cuda.DeviceBuffer, cuda.Stream, cuda.Event):
        counted(cls)
    expected = segmented([0, 0], spec, check_volume(spec))
    for _ in range(10):
        np.testing.assert_array_equal(segmented([0, 0], spec, check_volume(spec)), expected)
        assert opened == dict.fromkeys(opened, 0)
