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
    }


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
