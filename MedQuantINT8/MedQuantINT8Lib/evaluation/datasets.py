"""Labelled data sets: a small JSON of our own (:data:`..cli.evaluate.JSON_FORM`), and the folder forms of the public ones."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, one_line
from ..files import read_json
from ..imaging.volume import Volume
from ..imaging.volume_files import read_volume, scan_files, scan_name

BTCV = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
    "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One labelled scan.

    Attributes:
        label: a label map; or masks by structure (TotalSegmentator).
        split: "train", "val", "test", or "" where the data set does not say.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | Mapping[str, Path]
    split: str = ""


@dataclass(frozen=True)
class DataSet:
    """``structures``: names by label value; empty for a label map whose values are the model's own."""

    name: str
    cases: tuple[Case, ...]
    structures: dict[int, str] = field(default_factory=dict)

    def of(self, split: str) -> tuple[Case, ...]:
        """Cases of a split; all for "all".

        Raises:
            InputError: there are none.
        """
        cases = tuple(case for case in self.cases if split in ("all", case.split))
        if not cases:
            known = sorted({case.split for case in self.cases} - {""})
            raise InputError(
                f"{self.name} has no cases of the split {split!r}.",
                f"It has {', '.join(known) or 'no splits: use --split all'}.",
            )
        return cases


def files_of(cases: Sequence[Case]) -> list[Path]:
    """Return every file that the cases are read from."""
    paths: list[Path] = []
    for case in cases:
        paths += [*case.image, *([case.label] if isinstance(case.label, Path) else case.label.values())]
    return paths


def read_dataset(path: Path, form: str = "auto") -> DataSet:
    """Return a data set from its JSON file or folder.

    Raises:
        InputError: it has no form that is known, a file is missing, or a case is in two splits.
    """
    if not path.exists():
        raise InputError(f"There is no data set at {path}.", "Check the path.")
    kind = _detect(path) if form == "auto" else form
    if kind not in FORMS:
        raise InputError(f"{path} has no form that is known here.", f"Name it with --form: {', '.join(FORMS)}.")
    try:
        data = FORMS[kind](path)
    except KeyError as error:
        reason = f"it lacks {error}"
    except json.JSONDecodeError as error:
        reason = f"its JSON file cannot be read: {error}"
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        reason = one_line(error).rstrip(".")
    else:
        _check(data)
        return data
    raise InputError(f"{path} is no data set of the form {kind}: {reason}.", "See medquant evaluate --help.")


def _detect(path: Path) -> str:
    if path.is_file():
        return "json"
    if (path / "dataset.json").is_file():
        return "msd"
    if next(path.glob("*/segmentations"), None):
        return "totalsegmentator"
    if (path / "img").is_dir() and (path / "label").is_dir():
        return "btcv"
    return "wholebrain" if next(path.glob("*_labels.*"), None) or next(path.glob("labels/*"), None) else ""


def _check(data: DataSet) -> None:
    if not data.cases:
        raise InputError(f"{data.name} holds no labeled case.", "Check the folder and --form.")
    splits: dict[str, str] = {}
    images: dict[tuple[Path, ...], str] = {}
    for case in data.cases:
        if (other := images.setdefault(case.image, case.name)) != case.name:
            raise InputError(
                f"{data.name}: the cases {other} and {case.name} have the same scan {case.image[0].name}.",
                "Correct the data set's description.",
            )
        if splits.setdefault(case.name, case.split) != case.split:
            raise InputError(
                f"{data.name}: the case {case.name} is in two splits.", "Correct the data set's description."
            )
        files = [case.label] if isinstance(case.label, Path) else list(case.label.values())
        for file in [*case.image, *files]:
            if not file.exists():
                raise InputError(
                    f"{data.name}: {case.name}: there is no file {file}.", "Correct the data set's description."
                )
    # Results are kept by name: two cases of one name would be one.
    if twice := [name for name, count in Counter(case.name for case in data.cases).items() if count > 1]:
        raise InputError(
            f"{data.name}: there are several cases called {twice[0]}.", "Give each case a name of its own."
        )


def _json(path: Path) -> DataSet:
    value = read_json(path)
    cases = []
    for row in value["cases"]:
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        if not isinstance(row["name"], str) or not isinstance(split := row.get("split", ""), str):
            raise TypeError("a case's name and split are texts")
        cases.append(Case(row["name"], tuple(path.parent / i for i in images), path.parent / row["label"], split))
    names = {int(v): str(n) for v, n in value.get("structures", {}).items()}
    return DataSet(str(value.get("name", path.stem)), tuple(cases), names)


def _msd(folder: Path) -> DataSet:
    """Medical Segmentation Decathlon: dataset.json with "training" pairs (tasks of one modality; the others lie in 4-D files)."""
    value = read_json(folder / "dataset.json")
    cases = []
    for row in value["training"]:
        image, label = folder / row["image"], folder / row["label"]
        cases.append(Case(scan_name(image), (image,), label))
    names = {int(v): n for v, n in value["labels"].items() if int(v)}
    return DataSet(value.get("name", folder.name), tuple(cases), names)


def _btcv(folder: Path) -> DataSet:
    """Beyond the Cranial Vault: img/img0001.nii.gz beside label/label0001.nii.gz, 13 organs."""
    cases = []
    for image in scan_files(folder / "img"):
        number = scan_name(image).removeprefix("img")
        label = next((p for p in scan_files(folder / "label") if scan_name(p) == f"label{number}"), None)
        if label is not None:
            cases.append(Case(scan_name(image), (image,), label))
    return DataSet("BTCV", tuple(cases), {n + 1: name for n, name in enumerate(BTCV)})


def _total(folder: Path) -> DataSet:
    """TotalSegmentator V2: s0001/ct.nii.gz with a mask for each structure in s0001/segmentations; meta.csv names the splits."""
    splits = {}
    if (folder / "meta.csv").is_file():
        text = (folder / "meta.csv").read_text(encoding="utf-8-sig")
        for row in csv.DictReader(text.splitlines(), delimiter=";" if ";" in text.partition("\n")[0] else ","):
            splits[row.get("image_id", "")] = row.get("split", "")
    cases = []
    for scan in sorted(folder.glob("*/ct.nii*")):
        masks = {scan_name(p).replace("_", " "): p for p in scan_files(scan.parent / "segmentations")}
        cases.append(Case(scan.parent.name, (scan,), masks, splits.get(scan.parent.name, "")))
    return DataSet("TotalSegmentator V2", tuple(cases))


#: What may follow the name of a subject in the name of its scan, as in sub1_t1.
_SIGNS = ("_", "-", ".")


def _only(name: str, scans: list[Path], label: Path) -> Path:
    """Return the one scan of a label map.

    Raises:
        InputError: there is none, or there are several.
    """
    if len(scans) != 1:
        reason = f"there are several: {', '.join(path.name for path in scans)}" if scans else "there is none"
        raise InputError(
            f"{label.name} needs one scan called {name}, but {reason}.",
            "Give each label map one scan, or describe the data set by a JSON file.",
        )
    return scans[0]


def _brain(folder: Path) -> DataSet:
    """Whole Brain: NAME.nii.gz (or NAME_t1.nii.gz and the like) beside NAME_labels.nii.gz, or images/ beside labels/; label_names.csv
    (value, name) if there is one."""
    cases = []
    if (folder / "labels").is_dir():
        images = scan_files(folder / "images")
        for label in scan_files(folder / "labels"):
            name = scan_name(label)
            cases.append(Case(name, (_only(name, [p for p in images if scan_name(p) == name], label),), label))
    else:
        files = {path: scan_name(path) for path in scan_files(folder)}
        labels = {path: stem.removesuffix("_labels") for path, stem in files.items() if stem.endswith("_labels")}
        scans: dict[str, list[Path]] = {name: [] for name in labels.values()}
        for path, stem in files.items():
            # A scan belongs to the longest name that it begins with as a whole: sub10 is no scan of sub1.
            of = [name for name in scans if stem == name or stem.startswith(tuple(name + sign for sign in _SIGNS))]
            if path not in labels and of:
                scans[max(of, key=len)].append(path)
        for label, name in labels.items():
            exact = [path for path in scans[name] if files[path] == name]
            cases.append(Case(name, (_only(name, exact or scans[name], label),), label))
    names = {}
    if (folder / "label_names.csv").is_file():
        for row in csv.reader((folder / "label_names.csv").read_text(encoding="utf-8-sig").splitlines()):
            if len(row) >= 2 and row[0].strip().isdigit() and int(row[0]):
                names[int(row[0])] = row[1].strip()
    return DataSet("Whole Brain", tuple(cases), names)


FORMS: dict[str, Callable[[Path], DataSet]] = {
    "json": _json,
    "msd": _msd,
    "btcv": _btcv,
    "totalsegmentator": _total,
    "wholebrain": _brain,
}


def label_map(
    case: Case, data: DataSet, values: Mapping[str, int], reader: Callable[[Any], Volume] = read_volume
) -> NDArray[np.uint16]:
    """Return the case's labels (K, J, I) with the model's values.

    Args:
        reader: how the files are read.
        values: the model's label value by the structure's name (lower case).

    Raises:
        InputError: a label map with values that are no label, or no structure in common with the model.
    """
    if isinstance(case.label, Path):
        raw = np.rint(reader(case.label).data[0]).astype(np.int64)
        if raw.min() < 0 or raw.max() > 65535:
            raise InputError(
                f"{case.label} is no label map: it has values from {raw.min()} to {raw.max()}.",
                "Correct the data set's description.",
            )
        if not data.structures:
            return raw.astype(np.uint16)
        table = np.zeros(max(int(raw.max()), *data.structures) + 1, np.uint16)
        for value, name in data.structures.items():
            table[value] = values.get(name.lower(), 0)
        return table[raw]
    labels: Any = None
    for name, path in case.label.items():
        if name.lower() not in values:
            continue
        mask = reader(path).data[0] > 0.5
        labels = np.zeros(mask.shape, np.uint16) if labels is None else labels
        labels[mask] = values[name.lower()]
    if labels is None:
        raise InputError(
            f"{data.name}: {case.name} has no structure that the model knows.",
            "Check that model and data set belong together.",
        )
    return labels
