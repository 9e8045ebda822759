"""A small network in INT8 whose scales are far too coarse for it: what two INT8 halves are to mend."""

from __future__ import annotations

import numpy as np

from tiny import convolutions, quantized, random_weights

SIZE = 12
SHAPE = (SIZE,) * 3
#: A range of this scale holds every tensor of the networks below.
WIDE = 0.5


def network(widths=(1, 16, 16, 4)):
    """A network of three convolutions, and the same in INT8 with scales far too coarse for it."""
    weights, biases = random_weights(widths, 3)
    fp32 = convolutions({name: weight / 10 for name, weight in weights.items()}, biases, SIZE)
    return fp32, quantized(fp32, WIDE)


def patch(seed=0):
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def error(output, expected):
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))
