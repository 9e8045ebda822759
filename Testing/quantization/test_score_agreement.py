"""What networks are judged by: whole regions, and the label map that a run paints of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.models.spec import Label, Output
from MedQuantINT8Lib.quantization.score_agreement import ScoreAgreement, largest_classes

HEAD, BRAIN = (Label(1, "head", 0), Label(2, "brain", 1))
REGIONS = replace(phantom_spec(), labels=(HEAD, BRAIN), output=Output("sigmoid", activated=True))


def balls(*radii):
    """Probabilities (1, regions, 32, 32, 32) of balls around the middle."""
    k, j, i = np.ogrid[:32, :32, :32]
    distance = np.sqrt((k - 16) ** 2 + (j - 16) ** 2 + (i - 16) ** 2)
    return np.stack([(distance < radius).astype(np.float32) for radius in radii])[None]


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_of_regions_that_overlap_the_painted_label_map_counts_where_it_agrees_less():
    agreement = ScoreAgreement(REGIONS)
    ours, theirs = balls(14, 12.4), balls(14, 12)
    agreement.add(ours, theirs)
    shells = [scores[0, 0] * (1 - scores[0, 1]) > 0 for scores in (ours, theirs)]
    brain = dice(ours[0, 1] > 0, theirs[0, 1] > 0)
    assert [item.name for item in agreement.structures] == ["head", "brain"]
    assert agreement.structures[0].dice == pytest.approx(dice(*shells)) and dice(*shells) < 0.95
    assert agreement.value == pytest.approx((dice(*shells) + brain) / 2)


def test_whole_regions_count_where_the_map_hides_what_differs():
    """The head differs where the brain is painted over it."""
    ours, theirs = balls(14, 12), balls(14, 12)
    ours[0, 0, 10:20, 10:20, 10:20] = 0
    agreement = ScoreAgreement(REGIONS)
    agreement.add(ours, theirs)
    assert agreement.structures[0].dice == pytest.approx(dice(ours[0, 0] > 0, theirs[0, 0] > 0))
    assert agreement.structures[0].dice < 1 == agreement.structures[1].dice


def test_classes_are_compared_as_they_are():
    spec = replace(phantom_spec(), labels=(Label(7, "bright", 1),))
    scores = np.random.default_rng(0).normal(size=(1, 2, 16, 16, 16)).astype(np.float32)
    agreement = ScoreAgreement(spec)
    agreement.add(scores, scores[:, ::-1])
    assert agreement.value == 0.0 and [item.name for item in agreement.structures] == ["bright"]


@pytest.mark.parametrize("classes", [2, 14, 300])
def test_of_equal_scores_the_first_class_is_taken_as_everywhere(classes):
    scores = np.random.default_rng(classes).integers(0, 5, (2, classes, 6, 5, 4)).astype(np.float32)
    labels = largest_classes(scores)
    assert np.array_equal(labels, scores.argmax(1)) and labels.dtype.itemsize == (1 if classes < 256 else 2)
