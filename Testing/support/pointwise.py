"""A network of one kernel that can be computed by hand, what the processor's sliding window makes of it, and whether there is a GPU for it."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.errors import DependencyError, EngineError
from MedQuantINT8Lib.inference.sliding_window import SlidingWindow, slide


def has_gpu():
    try:
        return bool(cuda.gpus())
    except (DependencyError, EngineError, RuntimeError):
        return False


needs_gpu = pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU and cuda-python")

POINTWISE = r"""
extern "C" __global__ void pointwise(const float* x, float* y, int classes, long long voxels, int batch) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= voxels * batch) return;
  long long n = i / voxels, v = i % voxels;
  for (int c = 0; c < classes; ++c) { float d = x[i] - (float)c; y[(n * classes + c) * voxels + v] = -d * d; }
}
"""


class Pointwise:
    """A network that can be computed by hand: the score of class c is -(x - c)^2."""

    dtype = "float32"

    def __init__(self, gpu, classes):
        self.classes, self.fail_at, self.calls = classes, None, 0
        self._kernel = gpu.kernels(POINTWISE, ["pointwise"])["pointwise"]

    def enqueue(self, batch, source, target, stream):
        self.calls += 1
        if self.calls == self.fail_at:
            raise EngineError("The network failed.")
        voxels = int(np.prod(source.shape[2:]))
        grid = (-(-voxels * batch // 256), 1, 1)
        self._kernel(
            grid,
            (256, 1, 1),
            stream,
            source,
            target,
            ctypes.c_int(self.classes),
            ctypes.c_longlong(voxels),
            ctypes.c_int(batch),
        )

    def infer(self, batch):
        return np.concatenate(
            [-((batch - np.float32(c)) * (batch - np.float32(c))) for c in range(self.classes)], axis=1
        )


def on_the_processor(volume, network, plan, window, values, threshold=None):
    """The same by the sliding window of the processor: labels (n0, n1, n2)."""
    labels = np.zeros(volume.shape[1:], np.uint16)
    chosen = np.asarray(values, np.uint16)

    def sink(start, block):
        where = tuple(slice(s, s + n) for s, n in zip(start, block.shape[1:], strict=True))
        if threshold is None:
            labels[where] = chosen[block.argmax(0)]
        else:
            part = np.zeros(block.shape[1:], np.uint16)
            for c, value in enumerate(chosen):
                part[(block[c] > threshold) & (value > 0)] = value
            labels[where] = part

    def infer(batch):
        scores = network.infer(batch)
        return scores if threshold is None else 1 / (1 + np.exp(-np.clip(scores, -60, 60)))

    slide(volume, infer, sink, SlidingWindow(plan, window, network.classes, normalized=threshold is not None))
    return labels


LOPSIDED = r"""
extern "C" __global__ void lopsided(const float* x, float* y, int classes, int p0, int p1, int p2, int batch) {
  long long voxels = (long long)p0 * p1 * p2, i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= voxels * batch) return;
  long long n = i / voxels, v = i % voxels;
  float place = v / (p1 * p2) + 3.0f * (v / p2 % p1) + 7.0f * (v % p2);
  for (int c = 0; c < classes; ++c) {
    float d = x[i] - (float)c;
    y[(n * classes + c) * voxels + v] = -d * d + 0.02f * place * c;
  }
}
"""


class Lopsided(Pointwise):
    """A network that tells a window from its mirror image: the score of class c is -(x - c)^2 + 0.02 c (a + 3 b + 7 d) at voxel (a, b, d)."""

    def __init__(self, gpu, classes):
        self.classes, self.fail_at, self.calls = classes, None, 0
        self._kernel = None if gpu is None else gpu.kernels(LOPSIDED, ["lopsided"])["lopsided"]

    def enqueue(self, batch, source, target, stream):
        self.calls += 1
        sizes = map(ctypes.c_int, (self.classes, *source.shape[2:], batch))
        count = int(np.prod(source.shape[2:])) * batch
        self._kernel((-(-count // 256), 1, 1), (256, 1, 1), stream, source, target, *sizes)

    def infer(self, batch):
        a, b, d = np.indices(batch.shape[2:], np.float32)
        place = np.float32(0.02) * (a + 3 * b + 7 * d)
        steps = np.arange(self.classes, dtype=np.float32)[None, :, None, None, None]
        return (-((batch - steps) ** 2) + steps * place).astype(np.float32)


def mirrored(network, axes):
    """The network's mean over all mirrored forms of its windows, written out."""

    def infer(batch):
        flips = [[a + 2 for a in axes if bits >> a & 1] for bits in range(8) if not bits & ~sum(1 << a for a in axes)]
        return np.mean([np.flip(network.infer(np.flip(batch, flip)), flip) for flip in flips], axis=0)

    return infer
