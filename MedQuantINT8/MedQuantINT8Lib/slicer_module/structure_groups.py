"""Groups of structures by their names, so that a hundred of them can be chosen from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..translation import tr as _

#: Words of names by group; a structure belongs to the first group that has one of its words.
_WORDS = {
    "bones": (
        "vertebra vertebrae rib ribs sternum sacrum hip femur humerus scapula clavicula clavicle skull bone bones patella tibia fibula "
        "tarsal metatarsal radius ulna carpal metacarpal phalanges mandible costal cartilages"
    ),
    "muscles": "gluteus iliopsoas autochthon muscle muscles quadriceps sartorius thigh psoas",
    "vessels": (
        "aorta vein veins artery arteries vena cava iliac portal splenic brachiocephalic subclavian carotid trunk vessel vessels celiac"
    ),
    "brain": (
        "brain cerebral cerebellum cortex thalamus caudate putamen pallidum hippocampus amygdala accumbens dc stem lateral 3rd 4th "
        "gyrus sulcus lobule white gray grey matter insula cuneus operculum csf vermis ventral"
    ),
    "lungs": "lung lungs lobe trachea airway airways bronchus",
    "heart": "heart atrium atrial ventricle myocardium appendage",
    "lesions": "tumor tumour lesion lesions cancer cyst edema necrosis nodule metastasis enhancing",
    "organs": (
        "liver spleen kidney kidneys pancreas stomach gallbladder esophagus oesophagus duodenum bowel colon bladder prostate adrenal "
        "gland thyroid uterus"
    ),
}
_SETS = {group: frozenset(words.split()) for group, words in _WORDS.items()}


def _titles() -> dict[str, str]:
    return {
        "organs": _("Organs"),
        "vessels": _("Vessels"),
        "bones": _("Bones"),
        "muscles": _("Muscles"),
        "lungs": _("Lungs and airways"),
        "heart": _("Heart"),
        "brain": _("Brain"),
        "lesions": _("Lesions"),
        "left": _("Left side"),
        "right": _("Right side"),
    }


def structure_groups(names: Sequence[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """The groups that hold some of the names but not all of them.

    Returns:
        Title and names of each group, by the group's own name.
    """
    members: dict[str, set[str]] = {}
    for name in names:
        words = frozenset(re.findall(r"[a-z0-9]+", name.lower()))
        group = next((group for group, known in _SETS.items() if words & known), None)
        for wanted in (group, *(side for side in ("left", "right") if side in words)):
            if wanted is not None:
                members.setdefault(wanted, set()).add(name)
    count = len(set(names))
    return {
        group: (title, frozenset(members[group]))
        for group, title in _titles().items()
        if group in members and len(members[group]) < count
    }


def matching(names: Sequence[str], text: str) -> list[str]:
    """Those of the names that hold every word of a text."""
    words = text.lower().split()
    return [name for name in names if all(word in name.lower() for word in words)]
