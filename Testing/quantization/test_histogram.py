"""Calibration ranges: streaming histograms and the four methods."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.quantization.histogram import ActivationHistogram, activation_range


def histogram_of(*arrays: np.ndarray) -> ActivationHistogram:
    made = ActivationHistogram()
    for array in arrays:
        made.add(array.astype(np.float32))
    return made


def error_of(values: np.ndarray, amax: float) -> float:
    scale = amax / 127
    return float(np.square(values - np.clip(np.rint(values / scale), -127, 127) * scale).mean())


def test_counts_survive_a_growing_range():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, s, 5000) for s in (0.1, 1, 30, 2)]
    made = histogram_of(*parts)
    everything = np.abs(np.concatenate(parts))
    assert made.counts.sum() == everything.size
    assert made.maximum == pytest.approx(everything.max(), rel=1e-6)
    assert activation_range(made, "percentile", 99.9) == pytest.approx(np.percentile(everything, 99.9), rel=0.03)


def test_order_of_patches_does_not_matter_much():
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, s, 20000) for s in (1, 5, 3)]
    first, second = histogram_of(*parts), histogram_of(*reversed(parts))
    # Entropy looks at every 16th of 2048 bins, whose width depends on the first patch.
    for method, tolerance in (("max", 1e-6), ("percentile", 0.05), ("mse", 0.05), ("entropy", 0.2)):
        assert activation_range(first, method) == pytest.approx(activation_range(second, method), rel=tolerance)


def test_max_keeps_the_rarest_value_and_percentile_does_not():
    values = np.concatenate([np.random.default_rng(2).normal(0, 1, 100000), [500.0]])
    made = histogram_of(values)
    assert activation_range(made, "max") == 500
    assert activation_range(made, "percentile", 99.9) < 5


def test_mse_is_at_least_as_good_as_every_other_method():
    rng = np.random.default_rng(3)
    for values in (
        rng.normal(0, 1, 50000),
        rng.laplace(0, 1, 50000),
        np.concatenate([rng.normal(0, 1, 50000), rng.normal(0, 40, 50)]),
    ):
        made = histogram_of(values)
        best = error_of(values, activation_range(made, "mse"))
        assert best <= 1.02 * min(error_of(values, activation_range(made, m)) for m in ("max", "entropy", "percentile"))


def test_entropy_clips_long_tails_and_keeps_uniform_ranges():
    rng = np.random.default_rng(4)
    assert activation_range(histogram_of(rng.uniform(-1, 1, 200000)), "entropy") > 0.9
    tail = np.concatenate([rng.normal(0, 1, 200000), rng.uniform(60, 100, 20)])
    assert activation_range(histogram_of(tail), "entropy") < 50


def test_nothing_but_zeros_gives_a_usable_range():
    assert activation_range(histogram_of(np.zeros(100)), "entropy") == 1.0


def test_unknown_methods_and_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="entrophy"):
        activation_range(histogram_of(np.ones(10)), "entrophy")
    with pytest.raises(InputError, match="not finite"):
        histogram_of(np.array([1.0, np.inf]))
