"""The hippocampus set as the experiments use it; as a script, writes its description for ``train.py prepare``.

python experiments/hippocampus.py [--data DIR] --output hippocampus.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from data_models import DATA, hippocampus_spec  # noqa: E402

FOLDER = DATA / "hippocampus"


def case_names(part: str, folder: Path = FOLDER) -> list[str]:
    """Cases of "train", "validation" or "test"."""
    names: list[str] = json.loads((folder / "split.json").read_text())[part]
    return names


def files(case: str, folder: Path = FOLDER) -> tuple[Path, Path]:
    """Scan and labels."""
    return folder / "images" / f"{case}.nii.gz", folder / "labels" / f"{case}.nii.gz"


def dataset(part: str, count: int | None = None, folder: Path = FOLDER) -> Any:
    """The cases of one part, as ``medquant evaluate`` takes them."""
    from MedQuantINT8Lib.evaluation.datasets import Case, DataSet

    cases = []
    for name in case_names(part, folder)[:count]:
        image, label = files(name, folder)
        cases.append(Case(name, (image,), label, part))
    return DataSet("hippocampus", tuple(cases), {label.value: label.name for label in hippocampus_spec().labels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(FOLDER))
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    target, folder = Path(args.output), Path(args.data)
    cases = []
    for part in ("train", "validation", "test"):
        for name in case_names(part, folder):
            image, label = (os.path.relpath(path, target.parent or ".") for path in files(name, folder))
            cases.append({"name": name, "image": image, "label": label, "split": part})
    structures = {str(label.value): label.name for label in hippocampus_spec().labels}
    target.write_text(json.dumps({"name": "hippocampus", "structures": structures, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
