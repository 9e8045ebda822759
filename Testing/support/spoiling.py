"""Files of other programs with a value of a wrong type in them."""

from __future__ import annotations

from typing import Any

import numpy as np


def spoiled(value: Any, random: np.random.Generator, depth: int = 0) -> Any:
    """A copy of a value of JSON with one value in it replaced by one of another type."""
    strangers = [None, True, -1, 1e99, float("nan"), "text", [], {}, [[1]], {"a": [1]}, 10**400]
    if not isinstance(value, dict | list | tuple) or not value or random.random() < 0.15 * depth:
        return strangers[int(random.integers(len(strangers)))]
    changed = dict(value) if isinstance(value, dict) else list(value)
    keys = list(changed) if isinstance(changed, dict) else range(len(changed))
    key = list(keys)[int(random.integers(len(changed)))]
    changed[key] = spoiled(changed[key], random, depth + 1)
    return changed
