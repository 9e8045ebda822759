"""Dice structure by structure: pooled over patches, with the structure that agrees least by name.

A mean hides a lost thalamus. Of a structure below 1 ml a few voxels decide, so that small ones are named apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.spec import ModelSpec

#: Structures of less than this are listed apart, in milliliters.
SMALL_ML = 1.0
#: A structure that the reference finds in fewer voxels does not count in a mean over patches.
LEAST_VOXELS = 100


@dataclass(frozen=True)
class StructureDice:
    """The Dice of one structure over everything that was compared.

    Attributes:
        ml: the larger of both volumes in what was compared; 0 where the size of a voxel is not known.
        voxels: of the reference.
    """

    name: str
    dice: float
    ml: float
    voxels: int

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dice": self.dice, "ml": self.ml}


@dataclass(frozen=True)
class WorstStructures:
    """The structures that agree least: of those of at least 1 ml, and of the smaller ones.

    Attributes:
        large, small: name and Dice; None where there is none of that size.
    """

    large: tuple[str, float] | None = None
    small: tuple[str, float] | None = None

    @classmethod
    def of(cls, structures: Iterable[tuple[str, float | None, float]]) -> WorstStructures:
        """Find them among structures given by name, Dice (None is left out) and milliliters (0: not known, which counts as large)."""
        rows = [(name, dice, 0 < ml < SMALL_ML) for name, dice, ml in structures if dice is not None]
        large, small = (
            min(
                ((name, dice) for name, dice, is_small in rows if is_small is wanted),
                key=lambda row: row[1],
                default=None,
            )
            for wanted in (False, True)
        )
        return cls(large, small)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> WorstStructures:
        """Find them in the ``structures`` of a report: ``name``, ``dice``, ``ml`` and perhaps ``other_ml``."""
        return cls.of((row["name"], row["dice"], max(row["ml"], row.get("other_ml", 0.0))) for row in rows)

    @property
    def first(self) -> tuple[str, float] | None:
        """The worst of at least 1 ml, or of all where all are smaller."""
        return self.large or self.small

    @property
    def text(self) -> str:
        """Both in words, or an empty string: "worst: thalamus 0.8123; below 1 ml: accumbens 0.7012"."""
        parts = [f"worst: {self.large[0]} {self.large[1]:.4f}"] if self.large else []
        parts += (
            [f"{'worst ' if not parts else ''}below {SMALL_ML:g} ml: {self.small[0]} {self.small[1]:.4f}"]
            if self.small
            else []
        )
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            key: None if row is None else {"name": row[0], "dice": row[1]}
            for key, row in (("worst", self.large), ("worst_small", self.small))
        }


class PooledDice:
    """The Dice of each structure over all patches together.

    Structures that the reference finds in fewer than 100 voxels do not count: the patches do not hold them, and the few
    stray voxels of a network at its margins would outweigh the others.

    Args:
        exclusive: label maps are given (N, ...), whose values are channels and 0 is none; otherwise masks (N, channels, ...).
        names: of the channels; one that has none is called by its number.
        voxel_ml: of the patches; 0 where it is not known.
    """

    def __init__(self, exclusive: bool, names: Mapping[int, str] | None = None, voxel_ml: float = 0.0) -> None:
        self._exclusive, self._names, self._voxel_ml = exclusive, names or {}, voxel_ml
        self._sums: dict[int, list[int]] = {}

    def add(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        """Count one patch; ``theirs`` is the reference."""
        if self._exclusive:
            masks = [(c, ours == c, theirs == c) for c in np.union1d(np.unique(ours), np.unique(theirs)) if c > 0]
        else:
            masks = [(c, ours[:, c], theirs[:, c]) for c in range(ours.shape[1])]
        for c, a, b in masks:
            sums = self._sums.setdefault(int(c), [0, 0, 0])
            sums[0] += 2 * int(np.logical_and(a, b).sum())
            sums[1] += int(a.sum()) + int(b.sum())
            sums[2] += int(b.sum())

    @property
    def structures(self) -> list[StructureDice]:
        """The structures that count, in the channels' order."""
        present = {c: sums for c, sums in sorted(self._sums.items()) if sums[2]}
        # Where all are small, as in a small network's patches, they are all there is.
        large = {c: sums for c, sums in present.items() if sums[2] >= LEAST_VOXELS} or present
        return [
            StructureDice(
                self._names.get(c, f"structure {c}"),
                shared / total,
                max(reference, total - reference) * self._voxel_ml,
                reference,
            )
            for c, (shared, total, reference) in large.items()
        ]

    @property
    def value(self) -> float | None:
        """The mean over the structures that count; None if the reference finds none."""
        return mean_of(self.structures)


def mean_of(structures: Sequence[StructureDice]) -> float | None:
    """The mean Dice; None of none."""
    return float(np.mean([item.dice for item in structures])) if structures else None


def network_voxel_ml(spec: ModelSpec) -> float:
    """The milliliters of a voxel in network space; 0 where they depend on the scan."""
    sides = [side for side in spec.geometry.spacing or () if side]
    return math.prod(sides) / 1000 if len(sides) == 3 else 0.0
