"""The networks timed on a GPU: the study's seven, and SegResNet with the 32 filters most people train it with (the study's size means 48)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "MedQuantINT8")]
from MedQuantINT8Lib.importers.networks import STUDY, Size, StudyNetwork  # noqa: E402


def _segresnet32(patch: Size) -> Any:
    from monai.networks.nets import SegResNet

    return SegResNet(3, 32, 1, 105, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))


TIMED: dict[str, StudyNetwork] = {
    **STUDY,
    "segresnet32": replace(STUDY["segresnet"], name="segresnet32", title="SegResNet, 32 filters", build=_segresnet32),
}
