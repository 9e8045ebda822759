"""Write the catalogue of public models, MedQuantINT8/Resources/Models.json: python tools/make_catalogue.py

Addresses and SHA-1 of the MONAI bundles are those of the model zoo's models/model_info.json; addresses of
TotalSegmentator's weights are those of its own downloader. SHA-256 of the ONNX files are computed where they are at hand.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "Testing" / "support"))

from data_models import DATA, specs
from MedQuantINT8Lib.resources import resource

_ZOO = "https://github.com/Project-MONAI/model-zoo"
_TOTAL = "https://github.com/wasserth/TotalSegmentator"
_BTCV = ["spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
         "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland"]  # fmt: skip


def bundle(
    name: str,
    title: str,
    task: str,
    modality: str,
    network: str,
    labels: list[str],
    structures: int,
    citation: str,
    **more: Any,
) -> dict[str, Any]:
    version = more.pop("version", None)
    address = f"{_ZOO}/releases/download/hosting_storage_v1/{name}_v{version}.zip" if version else None
    by_hand = (
        ""
        if version
        else f"It is published as a folder of files, not as one file: python -m monai.bundle download {name} --bundle_dir FOLDER."
    )
    return {
        "name": name,
        "title": title,
        "task": task,
        "modality": modality,
        "network": network,
        "form": "bundle",
        "structures": structures,
        "labels": labels,
        "license": "Apache-2.0 (code and weights; see the bundle for its data)",
        "license_url": f"{_ZOO}/blob/dev/models/{name}/LICENSE",
        "homepage": f"{_ZOO}/tree/dev/models/{name}",
        "citation": citation,
        "url": address,
        "by_hand": by_hand,
        **more,
    }


def total(
    number: int,
    part: str,
    subjects: int,
    title: str,
    labels: list[str],
    structures: int,
    release: str = "v2.0.0",
    suffix: str = "",
) -> dict[str, Any]:
    file = f"Dataset{number}_TotalSegmentator_{part}_{subjects}subj{suffix}"
    return {
        "name": f"totalsegmentator_{part}",
        "title": title,
        "task": "TotalSegmentator v2",
        "modality": "CT",
        "network": "nnU-Net",
        "form": "nnunet",
        "structures": structures,
        "labels": labels,
        "license": "Apache-2.0",
        "license_url": f"{_TOTAL}/blob/master/LICENSE",
        "homepage": _TOTAL,
        "citation": "Wasserthal et al., TotalSegmentator, Radiology: Artificial Intelligence 2023; Isensee et al., nnU-Net, Nature Methods 2021",
        "url": f"{_TOTAL}/releases/download/{release}-weights/{file}.zip",
        "resampling": "totalsegmentator",
    }


def near(name: str, file: str, title: str, labels: list[str], release: str = "v2.0.0") -> dict[str, Any]:
    """The network of one of TotalSegmentator's tasks that look in a box."""
    address = f"{_TOTAL}/releases/download/{release}-weights/{file}.zip"
    # TotalSegmentator leaves resampling to nnU-Net here.
    return {**total(0, name, 0, title, labels, len(labels)), "url": address, "resampling": "nnunet"}


#: What TotalSegmentator's five networks find, in the order of their label values; the values of the whole are numbered in this order, too.
_SIDES = ("left", "right")
_LOBES = [("upper", "left"), ("lower", "left"), ("upper", "right"), ("middle", "right"), ("lower", "right")]
_PARTS = {
    "organs": [
        "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
        *(f"lung_{lobe}_lobe_{side}" for lobe, side in _LOBES),
        "esophagus", "trachea", "thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate", "kidney_cyst_left",
        "kidney_cyst_right",
    ],
    "vertebrae": [
        "sacrum", *(f"vertebrae_{level}" for level in ("S1", *(f"{k}{n}" for k, most in (("L", 5), ("T", 12), ("C", 7)) for n in range(most, 0, -1)))),
    ],
    "cardiac": [
        "heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right", "subclavian_artery_left",
        "common_carotid_artery_right", "common_carotid_artery_left", "brachiocephalic_vein_left", "brachiocephalic_vein_right",
        "atrial_appendage_left", "superior_vena_cava", "inferior_vena_cava", "portal_vein_and_splenic_vein",
        *(f"iliac_{vessel}_{side}" for vessel in ("artery", "vena") for side in _SIDES),
    ],
    "muscles": [
        *(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula", "femur", "hip") for side in _SIDES), "spinal_cord",
        *(f"gluteus_{size}_{side}" for size in ("maximus", "medius", "minimus") for side in _SIDES),
        *(f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas") for side in _SIDES), "brain", "skull",
    ],
    "ribs": [*(f"rib_{side}_{n}" for side in _SIDES for n in range(1, 13)), "sternum", "costal_cartilages"],
}  # fmt: skip
_WHOLE = [name for names in _PARTS.values() for name in names]
_NETWORKS = {part: f"totalsegmentator_part{number}_{part}" for number, part in enumerate(_PARTS, 1)}


def _named(names: list[str], wanted: list[str] | None = None) -> list[dict[str, Any]]:
    """Names of a network's label values, from 1 on; only those that are wanted."""
    return [{"value": n, "name": name} for n, name in enumerate(names, 1) if wanted is None or name in wanted]


def total_task(
    name: str, title: str, structures: list[str], parts: list[dict[str, Any]], find: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """An entry that runs other entries together, as TotalSegmentator's task of that name does."""
    license, home = "Apache-2.0", _TOTAL
    cite = more.pop("citation", total(0, "", 0, "", [], 0)["citation"])
    spec = {
        "schema": "medquant-task",
        "schema_version": "1.0",
        "name": name,
        "version": "2",
        "modality": "CT",
        "channels": [{"name": "CT"}],
        "structures": _named(structures),
        "parts": parts,
        "find": find,
        "license": license,
        "citation": cite,
        "source_url": home,
        "title": title,
    }
    return {
        "name": name,
        "title": title,
        "task": "TotalSegmentator v2",
        "modality": "CT",
        "network": "nnU-Net",
        "form": "task",
        "structures": len(structures),
        "labels": structures if len(structures) < 9 else more.pop("labels"),
        "license": license,
        "license_url": f"{_TOTAL}/blob/master/LICENSE",
        "homepage": home,
        "citation": cite,
        "url": None,
        "spec": spec,
        **more,
    }


def two_stage(name: str, title: str, crop: list[str], structures: list[str], citation: str) -> dict[str, Any]:
    """A task of TotalSegmentator that looks in a box of 20 mm around what the 6 mm network finds."""
    find = {
        "name": "coarse",
        "installed": "totalsegmentator_total_6mm",
        "labels": _named(_WHOLE, crop),
        "structures": crop,
        "margin_mm": 20,
    }
    part = {
        "name": name,
        "installed": f"totalsegmentator_{name}",
        "labels": _named(structures),
        "within": "coarse",
    }
    return total_task(name, title, structures, [part], [find], citation=citation)


def tasks() -> list[dict[str, Any]]:
    many = ["spleen", "kidneys", "liver", "lungs", "vertebrae", "heart", "aorta", "ribs"]
    parts = [
        {"name": part, "installed": _NETWORKS[part], "labels": _named(names), "within": "coarse"}
        for part, names in _PARTS.items()
    ]
    coarse = {
        "name": "coarse", "installed": "totalsegmentator_total_3mm", "labels": _named(_WHOLE), "box_of": "chosen", "margin_mm": 20,
        "nothing_found": "whole_scan",
    }  # fmt: skip
    fast = [{"name": "all", "installed": "totalsegmentator_total_3mm", "labels": _named(_WHOLE)}]
    cite = "Wasserthal et al., TotalSegmentator, Radiology: Artificial Intelligence 2023"
    return [
        total_task("total", "117 structures of the body at 1.5 mm, by five networks", _WHOLE, parts, [coarse], labels=many),
        total_task("total_fast", "117 structures of the body at 3 mm, by one network", _WHOLE, fast, [], labels=many),
        two_stage("liver_vessels", "Vessels and tumors of the liver, near it", ["liver"], ["liver_vessels", "liver_tumor"],
                  f"Simpson et al., Medical Segmentation Decathlon, arXiv 1902.09063; {cite}"),
        two_stage("cerebral_bleed", "Bleeding in the brain, near it", ["brain"], ["intracerebral_hemorrhage"], cite),
        two_stage("hip_implant", "Hip implants, near femur and hip", ["femur_left", "femur_right", "hip_left", "hip_right"], ["hip_implant"], cite),
    ]  # fmt: skip


def onnx(name: str, title: str, task: str, network: str, source: str, weights: str) -> dict[str, Any]:
    spec = specs()[name]
    path = DATA / "networks" / f"{name}.onnx"
    return {
        "name": name,
        "title": title,
        "task": task,
        "modality": spec.modality,
        "network": network,
        "form": "onnx",
        "structures": len(spec.labels),
        "labels": [label.name for label in spec.labels],
        "license": "MIT",
        "license_url": f"https://github.com/{source}/blob/master/LICENSE",
        "homepage": f"https://github.com/{source}",
        "citation": source,
        "url": None,
        "by_hand": f"Its repository holds the weights as {weights}, not as ONNX: export them (opset 17 or later).",
        "size_bytes": path.stat().st_size if path.exists() else None,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None,
        "spec": spec.to_json(),
    }


def models() -> list[dict[str, Any]]:
    brainchop, deepbrain = "neuroneural/brainchop", "iitzco/deepbrain"
    return [
        bundle("spleen_ct_segmentation", "Spleen in CT", "MSD Task09", "CT", "U-Net", ["spleen"], 1,
               "Kerfoot et al. 2019, doi:10.1007/978-3-030-12029-0_40", version="0.3.7", sha1="1bec4fbc4d445088383f181c28a86212632eaeb3"),
        bundle("swin_unetr_btcv_segmentation", "13 abdominal organs in CT", "BTCV", "CT", "SwinUNETR", _BTCV, 13,
               "Tang et al., CVPR 2022; Hatamizadeh et al. 2022", version="0.3.9", sha1="90aad6320190c85d5e6e78d8023f2b2519ea4efc"),
        bundle("wholeBody_ct_segmentation", "104 structures of the whole body in CT", "TotalSegmentator", "CT", "SegResNet",
               ["spleen", "kidneys", "liver", "lungs", "vertebrae", "ribs", "muscles", "vessels"], 104,
               "Wasserthal et al. 2023; Myronenko 2018", version="0.1.9"),
        bundle("wholeBrainSeg_Large_UNEST_segmentation", "133 structures of the brain in T1 MR", "Whole Brain", "MR", "UNesT",
               ["cerebral cortex by region", "hippocampus", "thalamus", "cerebellum"], 133, "Yu et al., UNesT, arXiv 2209.14378",
               version="0.2.1", sha1="4445a597c63dd9e501b97f04909bf9181dc8808e", needs_trust=True),
        bundle("vista3d", "117 structures of the body in CT, automatic road", "VISTA3D", "CT", "VISTA3D",
               ["liver", "spleen", "pancreas", "kidneys", "bones", "tumours of five organs"], 117, "He et al., VISTA3D, arXiv 2406.05285",
               license="NVIDIA NCLS v1 for the weights: not for commercial use"),
        total(291, "part1_organs", 1559, "24 organs", ["spleen", "kidneys", "gallbladder", "liver", "stomach", "pancreas", "lungs"], 24),
        total(292, "part2_vertebrae", 1532, "Vertebrae", ["sacrum", "vertebrae"], 26),
        total(293, "part3_cardiac", 1559, "Heart and vessels", ["heart", "aorta", "brachiocephalic veins", "inferior vena cava"], 18),
        total(294, "part4_muscles", 1559, "Muscles and bones", ["humerus", "scapula", "clavicula", "femur", "hip", "gluteus"], 23),
        total(295, "part5_ribs", 1559, "Ribs", ["ribs", "sternum", "costal cartilages"], 26),
        total(297, "total_3mm", 1559, "All 117 structures at 3 mm, fast", ["all of TotalSegmentator's"], 117, "v2.0.4", "_v204"),
        total(298, "total_6mm", 1559, "All 117 structures at 6 mm, coarse", ["all of TotalSegmentator's"], 117),
        near("liver_vessels", "Dataset008_HepaticVessel", "Vessels and tumors in a scan cut to the liver", ["liver_vessels", "liver_tumor"], "v2.4.0"),
        near("cerebral_bleed", "Dataset150_icb_v0", "Bleeding in a scan cut to the brain", ["intracerebral_hemorrhage"]),
        near("hip_implant", "Dataset260_hip_implant_71subj", "Implants in a scan cut to femur and hip", ["hip_implant"]),
        *tasks(),
        onnx("brain18_meshnet30", "18 tissues of the brain in T1 MR", "brainchop", "MeshNet", brainchop, "a TensorFlow.js model"),
        onnx("brain18_meshnet", "18 tissues of the brain in T1 MR, smaller", "brainchop", "MeshNet", brainchop, "a TensorFlow.js model"),
        onnx("brain3_meshnet20", "Grey and white matter in T1 MR", "brainchop", "MeshNet", brainchop, "a TensorFlow.js model"),
        onnx("brain3_meshnet5", "Grey and white matter in T1 MR, smallest", "brainchop", "MeshNet", brainchop, "a TensorFlow.js model"),
        onnx("brain_mask_mindgrab", "Brain mask in T1 MR", "brainchop", "MeshNet", brainchop, "a TensorFlow.js model"),
        onnx("brain_mask_deepbrain_v1", "Brain mask in T1 MR", "deepbrain", "U-Net", deepbrain, "a TensorFlow graph"),
        onnx("brain_mask_deepbrain_v2", "Brain mask in T1 MR, larger", "deepbrain", "U-Net", deepbrain, "a TensorFlow graph"),
        onnx("brain_torchio_4mm", "Brain mask in T1 MR at 4 mm", "torchio", "U-Net", "fepegar/torchio-data", "a PyTorch checkpoint"),
        onnx("abdomen_ct_obelisk", "8 abdominal organs in CT", "OBELISK", "U-Net", "mattiaspaul/OBELISK", "a PyTorch checkpoint"),
    ]  # fmt: skip


def catalogue() -> dict[str, Any]:
    return {"schema": "medquant-models", "schema_version": "1.0", "models": models()}


if __name__ == "__main__":
    text = json.dumps(catalogue(), indent=2, ensure_ascii=False) + "\n"
    resource("phantom_unet.onnx").with_name("Models.json").write_text(text, encoding="utf-8")
