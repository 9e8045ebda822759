"""Descriptions (model.json) of the pretrained networks that lie beside the project, for tests and results.

Nothing of the networks is part of the project; what is written here is how each wants its input, from the notes that
come with them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "MedQuantINT8"))

from MedQuantINT8Lib.models.spec import (  # noqa: E402
    Channel,
    Code,
    Geometry,
    Label,
    ModelSpec,
    Normalization,
    Output,
    Terminology,
    Window,
)

DATA = Path(os.environ.get("MEDQUANT_DATA", ROOT.parent / "shared" / "data"))

_ANATOMY = Code("SCT", "123037004", "Anatomical Structure")
_BRAIN = Terminology(_ANATOMY, Code("SCT", "12738006", "Brain"))

BRAIN18 = (
    ("cerebral white matter", 44, 45),
    ("cerebral cortex",),
    ("lateral ventricle", 51, 52),
    ("inferior lateral ventricle", 49, 50),
    ("cerebellum white matter", 40, 41),
    ("cerebellum cortex", 38, 39),
    ("thalamus", 59, 60),
    ("caudate", 36, 37),
    ("putamen", 57, 58),
    ("pallidum", 55, 56),
    ("3rd ventricle", 4),
    ("4th ventricle", 11),
    ("brain stem", 35),
    ("hippocampus", 47, 48),
    ("amygdala", 31, 32),
    ("accumbens", 23, 30),
    ("ventral DC", 61, 62),
)
#: Network class to TotalSegmentator's label value.
OBELISK_TO_TOTAL = {1: 1, 2: 7, 3: 3, 4: 4, 5: 15, 6: 5, 7: 6, 8: 14}


def _palette(count: int) -> list[tuple[int, int, int]]:
    import colorsys

    return [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(n / count, 0.6, 0.9)) for n in range(count)]  # type: ignore[misc]


def _labels(*names: str) -> tuple[Label, ...]:
    return tuple(
        Label(n + 1, name, n + 1, color)
        for n, (name, color) in enumerate(zip(names, _palette(len(names)), strict=True))
    )


def _mr(
    name: str,
    geometry: Geometry,
    normalization: Normalization,
    window: Window,
    labels: tuple[Label, ...],
    source: str,
    output: Output = Output(),
) -> ModelSpec:
    return ModelSpec(
        name=name,
        version="1.0.0",
        modality="MR",
        channels=(Channel("T1"),),
        geometry=geometry,
        normalization=(normalization,),
        window=window,
        output=output,
        labels=labels,
        license="MIT",
        source_url=f"https://github.com/{source}",
        citation=source,
    )


_LIA = Geometry("IJK", "LIA", spacing=(1.0, 1.0, 1.0))
_MINMAX = Normalization("minmax")
_P2_98 = Normalization("percentile", low=2, high=98)
#: Eight large windows on a 256 x 256 x 256 head: a MeshNet looks 46 voxels far, so many small ones would cost more.
_MESH = Window((144, 144, 144), overlap=0.2)
_BRAIN_LABEL = (Label(1, "brain", 0, (220, 160, 120), _BRAIN),)


def specs() -> dict[str, ModelSpec]:
    """Description of each network by its file's stem."""
    deepbrain = Geometry("IJK", "RAS", size=(128, 128, 128))
    by_maximum = Normalization("minmax", low=0.0)
    whole = Window((128, 128, 128), overlap=0.0)
    probability = Output("sigmoid", activated=True)
    return {
        "brain18_meshnet30": _mr(
            "brain18_meshnet30", _LIA, _MINMAX, _MESH, _labels(*(row[0] for row in BRAIN18)), "neuroneural/brainchop"
        ),
        "brain18_meshnet": _mr(
            "brain18_meshnet", _LIA, _MINMAX, _MESH, _labels(*(row[0] for row in BRAIN18)), "neuroneural/brainchop"
        ),
        "brain3_meshnet20": _mr(
            "brain3_meshnet20", _LIA, _P2_98, _MESH, _labels("white matter", "grey matter"), "neuroneural/brainchop"
        ),
        "brain3_meshnet5": _mr(
            "brain3_meshnet5", _LIA, _MINMAX, _MESH, _labels("white matter", "grey matter"), "neuroneural/brainchop"
        ),
        "brain_mask_mindgrab": _mr(
            "brain_mask_mindgrab", _LIA, _P2_98, _MESH, _labels("brain"), "neuroneural/brainchop"
        ),
        "brain_mask_deepbrain_v1": _mr(
            "brain_mask_deepbrain_v1", deepbrain, by_maximum, whole, _BRAIN_LABEL, "iitzco/deepbrain", probability
        ),
        "brain_mask_deepbrain_v2": _mr(
            "brain_mask_deepbrain_v2", deepbrain, by_maximum, whole, _BRAIN_LABEL, "iitzco/deepbrain", probability
        ),
        # Its own program names the first three maps; the whole head fills the cube, from the center of the outermost voxels on.
        "head_hippodeep": _mr(
            "head_hippodeep",
            Geometry("IJK", "LAS", size=(64, 64, 64), anchor="corners"),
            Normalization("zscore"),
            Window((64, 64, 64), overlap=0.0),
            tuple(
                replace(label, channel=label.channel - 1)
                for label in _labels("intracranial", "cortex", "cerebrum", "map 3")
            ),
            "bthyreau/hippodeep_pytorch",
            probability,
        ),
        "brain_torchio_4mm": _mr(
            "brain_torchio_4mm",
            Geometry("IJK", "RAS", spacing=(4.0, 4.0, 4.0)),
            Normalization("zscore", mask="above_mean"),
            Window((48, 60, 48), overlap=0.25),
            _labels("brain"),
            "fepegar/torchio-data",
        ),
        "abdomen_ct_obelisk": ModelSpec(
            name="abdomen_ct_obelisk",
            version="1.0.0",
            modality="CT",
            channels=(Channel("CT"),),
            geometry=Geometry("IJK", "LAI", size=(144, 144, 144)),
            normalization=(),
            window=Window((144, 144, 144), overlap=0.0),
            output=Output(),
            labels=_labels(
                "spleen", "pancreas", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "duodenum"
            ),
            license="MIT",
            source_url="https://github.com/mattiaspaul/OBELISK",
            citation="mattiaspaul/OBELISK",
        ),
    }


def hippocampus_spec() -> ModelSpec:
    """The small U-Net that tools/training trains on the Medical Segmentation Decathlon's hippocampus set."""
    return ModelSpec(
        name="hippocampus_unet",
        version="1.0.0",
        modality="MR",
        channels=(Channel("T1"),),
        geometry=Geometry("KJI", "RAS"),
        normalization=(Normalization("zscore"),),
        window=Window((48, 64, 48), multiples=(4, 4, 4), overlap=0.5),
        labels=_labels("anterior hippocampus", "posterior hippocampus"),
        output=Output(),
        license="Apache-2.0 (weights); data CC BY-SA 4.0",
        citation="Medical Segmentation Decathlon, Task04",
        source_url="http://medicaldecathlon.com",
    )
