"""Class scores to labels on the scan's grid: one pass over blocks beside resampling every class.

    python benchmarks/label_resampling.py            both sizes of the documentation
    python benchmarks/label_resampling.py --classes 25 --old 267 273 273 --new 400 512 512

Scores are smooth blobs with noise, of about the certainty of a trained network; with --random they are noise alone, the worst
case, in which no class can be left out. Resampling every class is timed on a few classes and multiplied, as the output says.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from MedQuantINT8Lib.imaging.axis_interpolation import AxisInterpolation
from MedQuantINT8Lib.imaging.label_resampling import LabelResampling, Largest
from MedQuantINT8Lib.imaging.volume import Grid, resample
from MedQuantINT8Lib.system import machine
from MedQuantINT8Lib.thread_pool import Threads

SIZES = ((118, (133, 137, 137), (400, 512, 512)), (25, (267, 273, 273), (400, 512, 512)))
_TIMED_CLASSES = 3


def blobs(classes: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Scores (C, n0, n1, n2): background, and a ball a class whose surface is some voxels wide."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij")
    scores = np.zeros((classes, *shape), np.float32)
    for score in scores[1:]:
        center, radius = rng.uniform(0, 1, 3) * shape, rng.uniform(0.06, 0.16) * shape[0]
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)))
        score[...] = np.clip(radius - distance, -15, 15)
    return scores + rng.normal(0, 0.3, scores.shape).astype(np.float32)


def measure(classes: int, old: tuple[int, int, int], new: tuple[int, int, int], *, random: bool = False) -> dict:
    """Seconds of both ways, and in how many voxels of a few classes they differ."""
    scores = np.random.default_rng(0).normal(size=(classes, *old)).astype(np.float32) if random else blobs(classes, old)
    values = np.arange(classes, dtype=np.uint8)
    axes = [AxisInterpolation.linear(o / n * (np.arange(n) + 0.5) - 0.5, o) for o, n in zip(old, new, strict=True)]
    began = time.perf_counter()
    with Threads() as threads:
        resampling = LabelResampling((axes[0], axes[1], axes[2]), Largest(values))
        resampling.take(scores, 0, threads)
    ours = time.perf_counter() - began
    scale = np.array(new[::-1]) / np.array(old[::-1])
    coarse, fine = np.diag([*scale, 1.0]), np.eye(4)
    coarse[:3, 3] = (scale - 1) / 2
    few = scores[:_TIMED_CLASSES]
    began = time.perf_counter()
    best = resample(few[0], Grid(old[::-1], coarse), Grid(new[::-1], fine), "linear")
    labels = np.zeros(new, np.uint8)
    for value, score in enumerate(few[1:], 1):
        sampled = resample(score, Grid(old[::-1], coarse), Grid(new[::-1], fine), "linear")
        labels[sampled > best] = value
        np.maximum(best, sampled, out=best)
    a_class = (time.perf_counter() - began) / _TIMED_CLASSES
    with Threads() as threads:
        check = LabelResampling((axes[0], axes[1], axes[2]), Largest(values[:_TIMED_CLASSES]))
        check.take(few, 0, threads)
    return {
        "classes": classes,
        "scores": "noise" if random else "blobs",
        "from": old,
        "to": new,
        "seconds": round(ours, 2),
        "every_class_seconds": round(a_class * classes, 1),
        "timed_classes": _TIMED_CLASSES,
        "other_labels": int((check.result != labels).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--old", type=int, nargs=3)
    parser.add_argument("--new", type=int, nargs=3)
    parser.add_argument("--random", action="store_true")
    args = parser.parse_args()
    sizes = ((args.classes, tuple(args.old), tuple(args.new)),) if args.classes else SIZES
    rows = [measure(*size, random=args.random) for size in sizes]
    print(json.dumps({"machine": machine(), "numpy": np.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
