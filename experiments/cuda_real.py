"""The pretrained networks on real scans with CUDA INT8 on a GPU, against the same INT8 networks simulated in ONNX Runtime.

    python experiments/cuda_real.py make FOLDER [NAME ...]  # a machine with the build road: packages, scans, and what the simulation makes of them
    python experiments/cuda_real.py run FOLDER              # a machine with a GPU: prints a JSON line each, for gpu_page.py

Both sides are ``medquant segment``, in a process of its own, as a user would run it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "benchmarks"), str(ROOT / "MedQuantINT8")]
_PACKAGE, _SCAN, _SIMULATED = "package.zip", "scan.nii.gz", "simulated.nii.gz"


def make(folder: Path, names: list[str]) -> None:
    """Quantize as for docs/results/results.md, and segment the first scan by the simulation."""
    from real_networks import cases, quantized_package

    with tempfile.TemporaryDirectory() as scratch:
        for name, case in cases(Path(scratch)).items():
            if names and name not in names:
                continue
            own = folder / name.replace(" ", "_")
            own.mkdir(parents=True, exist_ok=True)
            made = Path(scratch) / own.name
            made.mkdir()
            package, _ = quantized_package(case, made)
            shutil.copy(case.scans[0], own / _SCAN)
            shutil.make_archive(str(own / Path(_PACKAGE).stem), "zip", package)
            segmented(own, "onnxruntime", own / _SIMULATED)
            print(name, flush=True)


def segmented(own: Path, engine: str, target: Path) -> dict[str, Any]:
    """What ``medquant segment`` tells, and the seconds that it took."""
    from real_networks import medquant

    began = time.perf_counter()
    told = medquant(
        "segment",
        str(own / _PACKAGE),
        str(own / _SCAN),
        "--output",
        str(target),
        "--engine",
        engine,
        "--precision",
        "int8",
    )
    return {**told, "wall_s": time.perf_counter() - began}


def row(own: Path) -> dict[str, Any]:
    """The second of two runs; the first builds the engine and proves it."""
    from MedQuantINT8Lib.imaging.volume_files import read_volume

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "found.nii.gz"
        first, second = (segmented(own, "cuda_int8", target) for _ in range(2))
        found, simulated = (read_volume(path).data[0] for path in (target, own / _SIMULATED))
    description = second["engine"]["description"]
    return {
        "cuda_real": own.name,
        "date": time.strftime("%Y-%m-%d"),
        "device": description["device"],
        "voxels": list(found.shape[::-1]),
        "other_labels": float((found != simulated).mean()),
        "dice": float(
            2 * ((found == simulated) & (found != 0)).sum() / max(1, (found != 0).sum() + (simulated != 0).sum())
        ),
        "verdict": description["verdict"],
        "int8_mac_share": description["int8_mac_share"],
        "window_on_gpu": any("on the GPU" in note for note in second["notes"]),
        "trusted": first["engine"]["fidelity"]["trusted"],
        "first_s": first["wall_s"],
        "second_s": second["wall_s"],
        "network_s": second["seconds"].get("network"),
    }


def main() -> None:
    verb, folder, names = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:]
    if verb == "make":
        make(folder, names)
    else:
        for own in sorted(path for path in folder.iterdir() if (path / _SIMULATED).is_file()):
            print(json.dumps(row(own)), flush=True)


if __name__ == "__main__":
    main()
