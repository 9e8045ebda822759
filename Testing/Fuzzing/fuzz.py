"""Damaged and hostile files before every reader: an answer of the product's own, soon, in little memory, or a finding.

    python Testing/Fuzzing/fuzz.py [READER ...] [--seconds N] [--files N] [--seed N] [--one SEED] [--guided]

Each reader gets files that are whole but for a few seeded changes (bytes turned, cut, doubled, numbers made extreme; in JSON values of other types, deep
nesting, huge numbers), in a process of its own. A finding is an exception that is not the product's own, an answer later than 20 s, more than 2 GB of
memory, or a process that dies. Ends with "N passed, N failed" over the readers; a finding names the seed that makes it again (``--one``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent.parent / "MedQuantINT8")]

LATE_SECONDS, MOST_BYTES = 20, 2 << 30
_CORPUS: dict[str, Any] = {}
Random = np.random.Generator


class TooLate(BaseException):
    """A reader that gave no answer; no reader may catch it."""


# ---- changes


def changed_bytes(data: bytes, random: Random) -> bytes:
    """A few changes of the kinds that files meet: bad copies, bad disks, and people."""
    found = bytearray(data)
    for _ in range(int(random.integers(1, 6))):
        if not found:
            break
        # Headers decide: half of all changes lie within the first 512 bytes.
        at = int(random.integers(0, min(len(found), 512) if random.random() < 0.5 else len(found)))
        match int(random.integers(0, 7)):
            case 0:
                found[at] ^= 1 << int(random.integers(0, 8))
            case 1:
                found[at] = int(random.integers(0, 256))
            case 2:
                del found[at:]
            case 3:
                del found[at : at + int(random.integers(1, 64))]
            case 4:
                found[at:at] = found[at : at + int(random.integers(1, 64))]
            case 5:
                extreme = [struct.pack("<i", v) for v in (-1, 2**31 - 1, -(2**31), 0)] + [
                    struct.pack("<f", v) for v in (float("nan"), float("inf"), 1e30)
                ]
                found[at : at + 4] = extreme[int(random.integers(len(extreme)))]
            case _:
                found[at:at] = bytes(random.integers(0, 256, int(random.integers(1, 32)), dtype=np.uint8))
    return bytes(found)


def changed_json(value: Any, random: Random) -> bytes:
    """A value of another type, or text that is no JSON any more, or is no sane one."""
    from spoiling import spoiled

    match int(random.integers(0, 8)):
        case 0:
            return changed_bytes(json.dumps(value).encode(), random)
        case 1:
            depth = int(random.choice([10, 1000, 100_000]))
            return b"[" * depth + b"]" * depth
        case 2:
            return json.dumps(value).encode().replace(b"1", b"1" + b"0" * int(random.integers(1, 5000)), 1)
        case 3:
            return json.dumps(value).encode("utf-16")
        case _:
            for _ in range(int(random.integers(1, 4))):
                value = spoiled(value, random)
            return json.dumps(value).encode()


# ---- readers: each writes what was changed into a folder, and reads it


def _package_files() -> dict[str, bytes]:
    if "package" not in _CORPUS:
        from MedQuantINT8Lib.resources import resource

        with zipfile.ZipFile(resource("demo.zip")) as archive:
            _CORPUS["package"] = {name: archive.read(name) for name in archive.namelist()}
    return dict(_CORPUS["package"])


def _hashed(files: dict[str, bytes]) -> dict[str, bytes]:
    """With hashes that are right: what is damaged is the content."""
    import hashlib

    model = json.loads(files["model.json"])
    model["files"] = {name: {**entry, "sha256": hashlib.sha256(files[name]).hexdigest()} if isinstance(entry, dict) else hashlib.sha256(files[name]).hexdigest() for name, entry in model["files"].items()}  # fmt: skip
    return {**files, "model.json": json.dumps(model).encode()}


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_model_json(random: Random, folder: Path) -> None:
    from MedQuantINT8Lib.models.package import ModelPackage, peek

    files = _package_files()
    _write(folder, {**files, "model.json": changed_json(json.loads(files["model.json"]), random)})
    try:
        peek(folder)
    finally:
        ModelPackage.load(folder).close()


def read_zip(random: Random, folder: Path) -> None:
    from MedQuantINT8Lib.importers.archives import as_folder
    from MedQuantINT8Lib.models.package import ModelPackage

    made = io.BytesIO()
    kind = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA][int(random.integers(4))]
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, data in _package_files().items():
            archive.writestr(name, data if len(data) < 200_000 else data[:200_000])
        if random.random() < 0.2:
            archive.writestr("bomb", bytes(300 << 20))
    path = folder / "package.zip"
    path.write_bytes(changed_bytes(made.getvalue(), random))
    try:
        with as_folder(path, "model"):
            pass
    finally:
        ModelPackage.load(path).close()


def read_onnx(random: Random, folder: Path) -> None:
    """Damage under a hash that is right: what the package says of itself is no protection."""
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.importers.onnx import draft_spec
    from MedQuantINT8Lib.models.package import ModelPackage

    (folder / "network.onnx").write_bytes(changed_bytes(_small_onnx(), random))
    try:
        draft_spec(folder / "network.onnx", (16, 16, 16))
    finally:
        files = _package_files()
        with ModelPackage.load(
            _write(folder / "package", _hashed({**files, "model.onnx": changed_bytes(files["model.onnx"], random)}))
        ) as package:
            made, options = backend("onnxruntime"), BuildOptions("fp32", package.spec.window.patch_size)
            (folder / "engine").mkdir()
            made.build(package.onnx_path("fp32"), folder / "engine", options)
            made.load(folder / "engine", options).close()


def _small_onnx() -> bytes:
    if "onnx" not in _CORPUS:
        from onnx import TensorProto, helper, numpy_helper

        weight = np.ones((2, 1, 3, 3, 3), np.float32)
        shape = [1, "channels", 16, 16, 16]
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 6),
                helper.make_node("Softmax", ["c"], ["y"], axis=1),
            ],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *shape[2:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, *shape[2:]])],
            [numpy_helper.from_array(weight, "w")],
        )
        _CORPUS["onnx"] = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9
        ).SerializeToString()
    return bytes(_CORPUS["onnx"])


def _image(suffix: str, **options: Any) -> Callable[[Random, Path], None]:
    def read(random: Random, folder: Path) -> None:
        from MedQuantINT8Lib.imaging.volume_files import read_volume

        if suffix not in _CORPUS:
            import SimpleITK as sitk

            image = sitk.GetImageFromArray(np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11))
            image.SetSpacing((0.7, 0.8, 2.5))
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"scan{suffix}"
                sitk.WriteImage(image, str(path), useCompression=bool(options.get("compressed")))
                _CORPUS[suffix] = path.read_bytes()
        path = folder / f"scan{suffix}"
        path.write_bytes(changed_bytes(_CORPUS[suffix], random))
        read_volume(path)

    return read


def read_dicom(random: Random, folder: Path) -> None:
    from dicom_files import write_series
    from MedQuantINT8Lib.imaging.volume_files import read_volume

    paths = write_series(
        folder / "series", [np.full((12, 13), n, np.int16) for n in range(3)], [(0, 0, 2.0 * n) for n in range(3)]
    )
    chosen = paths[int(random.integers(len(paths)))]
    chosen.write_bytes(changed_bytes(chosen.read_bytes(), random))
    read_volume(folder / "series")


def read_checkpoint(random: Random, folder: Path) -> None:
    import torch

    from MedQuantINT8Lib.importers.checkpoints import read_checkpoint as read
    from MedQuantINT8Lib.importers.checkpoints import state_dict_of

    if "checkpoint" not in _CORPUS:
        made = io.BytesIO()
        torch.save({"state_dict": torch.nn.Conv3d(1, 2, 3).state_dict(), "config": {"a": [1, 2], "b": "c"}}, made)
        _CORPUS["checkpoint"] = made.getvalue()
    path = folder / "model.pt"
    path.write_bytes(changed_bytes(_CORPUS["checkpoint"], random))
    state_dict_of(read(path), path.name)


def read_bundle(random: Random, folder: Path) -> None:
    import bundles
    from MedQuantINT8Lib.importers import monai_bundle

    form = list(bundles.FORMS)[int(random.integers(len(bundles.FORMS)))]
    bundles.write_bundle(folder / "bundle", form, 3)
    (folder / "bundle" / "models" / "model.pt").write_bytes(b"")
    path = folder / "bundle" / "configs" / ("inference.json" if random.random() < 0.7 else "metadata.json")
    path.write_bytes(changed_json(json.loads(path.read_text()), random))
    monai_bundle.understand(folder / "bundle")


def read_nnunet(random: Random, folder: Path) -> None:
    import torch

    import nnunet_folders
    from MedQuantINT8Lib.importers import nnunet

    made = nnunet_folders.write_folder(folder, nnunet_folders.plans(), nnunet_folders.dataset(), {})
    (made / "fold_0").mkdir(exist_ok=True)
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer"}, made / "fold_0" / "checkpoint_final.pth")
    path = made / ("plans.json" if random.random() < 0.6 else "dataset.json")
    path.write_bytes(changed_json(json.loads(path.read_text()), random))
    nnunet.understand(made)


def read_auto3dseg(random: Random, folder: Path) -> None:
    import torch

    from MedQuantINT8Lib.importers import auto3dseg
    from spoiling import spoiled

    config = {
        "network": {"_target_": "SegResNetDS", "init_filters": 8, "blocks_down": [1, 1], "in_channels": 1, "out_channels": 3, "spatial_dims": 3, "dsdepth": 1},
        "class_names": ["a", "b"], "roi_size": [32, 32, 32], "resample": True, "resample_resolution": [2.0, 2.0, 2.0], "normalize_mode": "ct",
        "intensity_bounds": [-100.0, 200.0], "modality": "CT", "sigmoid": False, "crop_mode": "none", "image_size_mm": None,
    }  # fmt: skip
    for _ in range(int(random.integers(1, 4))):
        config = spoiled(config, random)
    torch.save({"state_dict": {}, "config": config}, folder / "model.pt")
    auto3dseg.understand(folder / "model.pt")


def read_engine_cache(random: Random, folder: Path) -> None:
    """engine.json of any content may not block the list, nor the removal, of engines."""
    from MedQuantINT8Lib.engines import cache

    os.environ["MEDQUANT_CACHE"] = str(folder / "cache")
    made = cache.make(
        {"model_name": "a", "engine": "b", "options": {}}, lambda place: (place / "network").write_bytes(b"1") and None
    )
    path = next(made.folder.glob("*.json"))
    path.write_bytes(changed_json(json.loads(path.read_text()), random))
    cache.entries()
    cache.clear()
    assert not [p for p in (folder / "cache").iterdir() if not p.name.startswith(".")], "an engine was left"


def read_data_set(random: Random, folder: Path) -> None:
    from MedQuantINT8Lib.evaluation import datasets

    value = {
        "name": "set",
        "structures": {"1": "a"},
        "cases": [{"name": "x", "image": "a.nii.gz", "label": "b.nii.gz", "split": "val"}],
    }
    (folder / "set.json").write_bytes(changed_json(value, random))
    datasets.read_dataset(folder / "set.json")


READERS: dict[str, Callable[[Random, Path], None]] = {
    "model.json": read_model_json,
    "zip": read_zip,
    "onnx": read_onnx,
    "nifti": _image(".nii"),
    "nifti-gz": _image(".nii.gz"),
    "nrrd": _image(".nrrd", compressed=True),
    "mha": _image(".mha"),
    "dicom": read_dicom,
    "checkpoint": read_checkpoint,
    "bundle": read_bundle,
    "nnunet": read_nnunet,
    "auto3dseg": read_auto3dseg,
    "engine-cache": read_engine_cache,
    "data-set": read_data_set,
}


# ---- one reader in its own process


def tried(name: str, seed: int) -> str:
    """What was found with a seed, or an empty string."""
    from MedQuantINT8Lib.errors import MedQuantError

    def late(_number: int, _frame: Any) -> None:
        raise TooLate

    with tempfile.TemporaryDirectory(prefix="medquant-fuzz-") as scratch:
        signal.signal(signal.SIGALRM, late)
        signal.alarm(LATE_SECONDS)
        try:
            READERS[name](np.random.default_rng(seed), Path(scratch))
        except MedQuantError as error:
            if not str(error).strip():
                return f"a {type(error).__name__} without a word"
        except TooLate:
            return f"no answer in {LATE_SECONDS} s\n{traceback.format_exc()}"
        except Exception:
            return traceback.format_exc()
        finally:
            signal.alarm(0)
    return ""


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name: str, seed: int, seconds: float, files: int) -> int:
    """Try seeds until the time is over or so many files were read; prints a line before each, so that one that kills the process is known."""
    # What a reader asks for beyond this ends in a MemoryError, which is to be one of the product's own errors too.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    found, end, number = 0, time.monotonic() + seconds, 0
    while number == 0 or (time.monotonic() < end and number < files):
        print(f"TRY {seed + number}", flush=True)
        before = _resident_bytes()
        if said := tried(name, seed + number):
            print(f"FOUND {json.dumps(said)}", flush=True)
            found += 1
        if _resident_bytes() > MOST_BYTES > before:
            print(f"FOUND {json.dumps('more than 2 GB of memory')}", flush=True)
            found += 1
        number += 1
    return found


class Guided:
    """What the readers ask of a random generator, answered from the bytes that atheris chooses: changes that reach new code are kept."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def integers(self, low: int, high: int | None = None, size: int | None = None, dtype: Any = None) -> Any:
        low, high = (0, low) if high is None else (low, high)
        if size is not None:
            return np.array([self._source.ConsumeIntInRange(low, high - 1) for _ in range(size)], dtype)
        return self._source.ConsumeIntInRange(low, max(low, high - 1))

    def random(self) -> float:
        return float(self._source.ConsumeProbability())

    def choice(self, values: list[Any]) -> Any:
        return values[self.integers(len(values))]


def guided(name: str, seconds: float) -> None:
    """Coverage-guided fuzzing of one reader by atheris; ends the process at the first finding, whose input libFuzzer writes down."""
    import atheris

    from MedQuantINT8Lib.errors import MedQuantError

    with atheris.instrument_imports(include=["MedQuantINT8Lib"]):
        # What a reader needs is imported when it first runs.
        tried(name, 0)

    def one(data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="medquant-fuzz-") as scratch:
            with contextlib.suppress(MedQuantError):
                READERS[name](Guided(atheris.FuzzedDataProvider(data)), Path(scratch))  # type: ignore[arg-type]

    limits = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={LATE_SECONDS}",
        f"-rss_limit_mb={MOST_BYTES >> 20}",
        "-max_len=4096",
    ]
    atheris.Setup([sys.argv[0], *limits], one)
    atheris.Fuzz()


def run(name: str, seed: int, seconds: float, files: int) -> tuple[int, list[str]]:
    """How many files a reader was given, and what was found."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        name,
        "--work",
        "--seed",
        str(seed),
        "--seconds",
        str(seconds),
        "--files",
        str(files),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=seconds + 300,
    )
    last, count, findings = seed, 0, []
    for line in done.stdout.splitlines():
        if line.startswith("TRY "):
            last, count = int(line[4:]), count + 1
        elif line.startswith("FOUND "):
            findings.append(f"--one {last}: {json.loads(line[6:])}")
    if done.returncode not in (0, 1):
        findings.append(f"--one {last}: the process died ({done.returncode}): {done.stderr.strip()[-600:]}")
    return count, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together (default: %(default)s)")
    parser.add_argument(
        "--files", type=int, default=1 << 30, help="for each reader at most (default: as many as time allows)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first (default: %(default)s)")
    parser.add_argument("--one", type=int, help="try this seed alone, and show what it does")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--guided", action="store_true", help="one reader, guided by coverage (needs the package atheris)"
    )
    args = parser.parse_args()
    if unknown := set(args.readers) - set(READERS):
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    if args.work:
        return int(work(args.readers[0], args.seed, args.seconds, args.files) > 0)
    chosen = args.readers or list(READERS)
    if args.guided:
        guided(chosen[0], args.seconds)
        return 0
    if args.one is not None:
        for name in chosen:
            print(f"{name}: {tried(name, args.one) or 'an answer of the product'}")
        return 0
    failed = 0
    for name in chosen:
        count, findings = run(name, args.seed, args.seconds / len(chosen), args.files)
        failed += bool(findings)
        print(f"{'FAILED' if findings else 'passed'}  {name}: {count} files", flush=True)
        for finding in findings[:5]:
            print(f"    python Testing/Fuzzing/fuzz.py {name} {finding}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
