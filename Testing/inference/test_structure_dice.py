"""Agreement structure by structure: what counts, which one agrees least, and small ones apart."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib.evaluation.agreement import StructureAgreement
from MedQuantINT8Lib.evaluation.reports.report import agreement_json
from MedQuantINT8Lib.evaluation.reports.summary import lost, structures
from MedQuantINT8Lib.inference.structure_dice import PooledDice, WorstStructures


def test_the_structure_that_agrees_least_is_named_and_small_ones_apart():
    worst = WorstStructures.of(
        [("liver", 0.99, 1500.0), ("thalamus", 0.3, 6.0), ("accumbens", 0.2, 0.5), ("none", None, 0.0)]
    )
    assert worst.first == ("thalamus", 0.3) and worst.small == ("accumbens", 0.2)
    assert worst.text == "worst: thalamus 0.3000; below 1 ml: accumbens 0.2000"
    assert worst.to_json() == {
        "worst": {"name": "thalamus", "dice": 0.3},
        "worst_small": {"name": "accumbens", "dice": 0.2},
    }
    only = WorstStructures.of([("accumbens", 0.2, 0.5)])
    assert only.first == ("accumbens", 0.2) and only.text == "worst below 1 ml: accumbens 0.2000"
    assert WorstStructures.of([("unknown size", 0.5, 0.0)]).large == ("unknown size", 0.5)
    assert WorstStructures().text == "" and WorstStructures().first is None


def test_a_structure_that_int8_loses_is_not_small():
    """What one of the two finds with 6 ml is no matter of a few voxels."""
    assert WorstStructures.of_rows([{"name": "thalamus", "dice": 0.02, "ml": 0.1, "other_ml": 6.0}]).large is not None


@pytest.mark.parametrize("exclusive", [True, False])
def test_dice_is_pooled_over_patches(exclusive):
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 3, (2, 1, 12, 12, 12)), rng.integers(0, 3, (2, 1, 12, 12, 12))
    pooled = PooledDice(exclusive, {1: "one", 2: "two"}, 0.001)
    for a, b in zip(ours, theirs, strict=True):
        if exclusive:
            pooled.add(a, b)
        else:
            pooled.add(np.stack([a == c for c in range(3)], 1), np.stack([b == c for c in range(3)], 1))
    found = {item.name: item for item in pooled.structures}
    for name, c in (("one", 1), ("two", 2)):
        a, b = ours == c, theirs == c
        assert found[name].dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert found[name].ml == pytest.approx(0.001 * max(a.sum(), b.sum())) and found[name].voxels == b.sum()
    assert pooled.value == pytest.approx(np.mean([item.dice for item in found.values()]))


def test_a_table_lists_small_structures_apart_and_names_the_worst():
    rows = [
        StructureAgreement(1, "accumbens", 0.6, 0.4, 0.5),
        StructureAgreement(2, "brain stem", 0.98, 20.0, 20.0),
        StructureAgreement(3, "thalamus", 0.7, 5.0, 6.0),
    ]
    pair = agreement_json("scan", "int8", "fp32", rows)
    assert pair["worst"]["name"] == "thalamus" and pair["worst_small"]["name"] == "accumbens"
    cells = [row[0] if isinstance(row[0], str) else row[0].text for row in structures([pair])[0]["table"].rows]
    assert cells == ["brain stem", "thalamus", "below 1 ml", "accumbens", "mean"]
    assert structures([pair])[0]["worst"] == ["INT8 – FP32, worst: thalamus 0.7000; below 1 ml: accumbens 0.6000."]
    first = lost({"agreement": [pair]})
    assert first["worst"] == "thalamus" and first["small"] == "accumbens" and not first["same"]
