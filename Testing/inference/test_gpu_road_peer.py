"""The peer of benchmarks/gpu_road.py in PyTorch does the same work as this project's road: the labels are the same."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment_volume
from MedQuantINT8Lib.models.spec import Geometry, Label, Normalization, Output, Window
from places import ROOT
from road_models import road_spec

torch = pytest.importorskip("torch")
CLASSES, PATCH = 5, (16, 16, 16)


class Scores:
    """The score of class c is -(5 x - c)^2, in NumPy and in PyTorch."""

    def infer(self, batch):
        return np.concatenate([-((5 * batch - np.float32(c)) ** 2) for c in range(CLASSES)], axis=1)

    def describe(self):
        """It is no engine of a package."""


@pytest.mark.parametrize("by_voxel", [True, False], ids=["scores by voxel", "scores by class"])
@pytest.mark.parametrize("by_class", [True, False], ids=["class by class", "at once"])
def test_pytorch_s_road_gives_the_labels_of_this_project_s(by_class, by_voxel, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("gpu_road_peer", None)
    import gpu_road_peer

    scan = np.random.default_rng(0).integers(-160, 400, (24, 40, 36)).astype(np.int16)
    scan = np.repeat(np.repeat(scan[::4, ::4, ::4], 4, 0).repeat(4, 1), 4, 2)[:24, :40, :36].copy()
    spec = replace(
        road_spec("linear by centers"),
        geometry=Geometry("KJI", "LPS", spacing=(1.5, 1.5, 1.5), anchor="edges"),
        normalization=(Normalization("window", low=-160.0, high=400.0),),
        labels=tuple(Label(n, f"s{n}", n) for n in range(1, CLASSES)),
        output=Output(),
        window=Window(PATCH, overlap=0.5),
    )
    volume = Volume(scan[None], np.diag([-0.8, -0.8, 1.0, 1.0]))
    expected = segment_volume(volume, spec, lambda _: Scores(), SegmentationOptions(skip_air=False))

    def network(x):
        return torch.cat([-((5 * x - c) ** 2) for c in range(CLASSES)], dim=1)

    road = gpu_road_peer.TorchRoad(
        network, CLASSES, (16, 21, 19), PATCH, 2, (-160.0, 400.0), device="cpu", dtype=torch.float32
    )
    road.labels_of = gpu_road_peer.labels_by_class if by_class else gpu_road_peer.labels_at_once
    road.scores_by_voxel = by_voxel
    labels, seconds = road.run(scan)
    assert road.plan.count == expected.windows and list(seconds)[1] == "windows"
    assert labels.shape == expected.labels.shape and len(np.unique(labels)) == CLASSES
    assert (labels != expected.labels).mean() < 1e-3


def test_pieces_are_all_of_a_scan(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("gpu_road_peer", None)
    import gpu_road_peer

    for count in (1, 7, 400):
        assert np.concatenate([np.arange(count)[piece] for piece in gpu_road_peer._pieces(count)]).tolist() == list(
            range(count)
        )
