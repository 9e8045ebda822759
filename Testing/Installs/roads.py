"""Every way to install, each in an environment of its own, as a user installs it: and then the job that it is for.

    python Testing/Installs/roads.py [ROAD ...] [--list] [--newest] [--python VERSION] [--together N]

Builds the wheel once. For each line of the table of extras in docs/install.md, and for each requirements file that Slicer installs, makes a fresh virtual
environment, installs the wheel with exactly those extras, and does the job (``jobs.py``) in an empty folder, outside the repository. Versions are
those of ``constraints.txt``, or the newest of everything with ``--newest``; torch keeps its version there, since its newest takes several GB.
Ends with "N passed, N failed, N skipped"; a Python that is not at hand is skipped, and said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import tensorrt_at_hand  # noqa: E402

ROOT = HERE.parent.parent
RESOURCES = ROOT / "MedQuantINT8" / "Resources"
#: Slicer's own Python first.
SEGMENT_PYTHONS = ("3.12", "3.11", "3.10")
#: The Python for which a CPU build of torch is at hand.
BUILD_PYTHON = "3.11"
#: The oldest cuda-python that is allowed, beside the newest; each is tried without a driver and with one that finds no GPU.
OLDEST_CUDA = "cuda-python==12.8.0"
#: TensorRT's library comes from its maker's own index: its real bindings over stub libraries stand for it.
TENSORRT_BINDINGS = "tensorrt_cu13_bindings==11.4.0.106"


@dataclass(frozen=True)
class Road:
    """One way to install.

    Attributes:
        extras: of the wheel, joined by commas.
        jobs: functions of jobs.py.
        requirements: a file of Resources, installed beside the wheel as Slicer does.
        torch: whether it needs torch, which is installed first.
        also: further requirements that replace a newest version by another, or stand in for what cannot be had.
        driver: a stub of NVIDIA's driver that finds no GPU, instead of none.
        tensorrt: the bindings' stub libraries, and ``import tensorrt`` gives them.
        left_out: packages of the requirements file that cannot be had without their maker's index.
    """

    name: str
    extras: str
    jobs: tuple[str, ...]
    pythons: tuple[str, ...] = SEGMENT_PYTHONS[:1]
    requirements: str = ""
    torch: bool = False
    also: tuple[str, ...] = field(default_factory=tuple)
    driver: bool = False
    tensorrt: bool = False
    left_out: tuple[str, ...] = ()


_SEGMENT = ("nothing_heavy_is_installed", "segment", "dicom")
_BUILD = (BUILD_PYTHON,)
#: What the tests of Slicer's side need beside Slicer's core.
_SLICER_TESTS = ("pytest>=8", "PySide6-Essentials>=6.6", "pydicom>=3")
_TENSORRT = ("cuda-python", TENSORRT_BINDINGS, "onnx")
ROADS = (
    Road("none", "", ("nothing_heavy_is_installed", "segment_without_an_engine")),
    Road("openvino", "openvino", _SEGMENT),
    Road("onnxruntime", "onnxruntime", ("nothing_heavy_is_installed", "segment_without_openvino")),
    Road("segment", "openvino,onnxruntime", _SEGMENT, SEGMENT_PYTHONS),
    Road("quantize", "openvino,onnxruntime,quantize", ("quantize", "segment"), _BUILD, torch=True),
    Road("quantize-alone", "quantize", ("quantize_alone",), _BUILD, torch=True),
    Road("import", "onnxruntime,import", ("import_bundle", "import_nnunet", "export"), _BUILD, torch=True),
    Road("evaluate", "openvino,onnxruntime,evaluate", ("nothing_heavy_is_installed", "evaluate")),
    Road("cluster", "openvino,onnxruntime,cluster", ("nothing_heavy_is_installed", "cluster")),
    Road("viewer", "openvino,onnxruntime,viewer", ("nothing_heavy_is_installed", "viewer")),
    Road("dicom", "openvino,onnxruntime,dicom", ("nothing_heavy_is_installed", "dicom", "dicom_segmentation")),
    Road("gzip", "openvino,onnxruntime,gzip", _SEGMENT),
    Road("completion", "completion", ("completion",)),
    Road("slicer", "openvino,onnxruntime,slicer", ("slicer_scene", "slicer_tests"), SEGMENT_PYTHONS[:2], also=_SLICER_TESTS),
    Road("cuda", "openvino,onnxruntime,cuda", ("cuda_cannot_run_here",)),
    Road("cuda-no-gpu", "openvino,onnxruntime,cuda", ("cuda_cannot_run_here",), driver=True),
    Road("cuda-oldest", "openvino,onnxruntime,cuda", ("cuda_cannot_run_here",), also=(OLDEST_CUDA,)),
    Road("cuda-oldest-no-gpu", "openvino,onnxruntime,cuda", ("cuda_cannot_run_here",), also=(OLDEST_CUDA,), driver=True),
    Road("tensorrt", "openvino,onnxruntime", ("tensorrt_cannot_run_here",), also=_TENSORRT, tensorrt=True),
    Road("tensorrt-no-gpu", "openvino,onnxruntime", ("tensorrt_cannot_run_here",), also=_TENSORRT, tensorrt=True, driver=True),
    Road("tensorrt-rtx", "tensorrt-rtx", ("tensorrt_rtx_cannot_run_here",)),
    Road("tensorrt-rtx-no-gpu", "tensorrt-rtx", ("tensorrt_rtx_cannot_run_here",), driver=True),
    Road("requirements-segment", "", _SEGMENT, requirements="requirements-segment.txt"),
    Road("requirements-cuda", "", ("segment_without_openvino",), requirements="requirements-cuda.txt"),
    Road("requirements-tensorrt", "", ("segment_without_openvino",), requirements="requirements-tensorrt.txt", also=_TENSORRT, tensorrt=True, left_out=("tensorrt",)),
    Road("requirements-tensorrt-rtx", "", ("tensorrt_rtx_cannot_run_here",), requirements="requirements-tensorrt-rtx.txt"),
    Road("requirements-build", "", ("quantize_alone",), _BUILD, requirements="requirements-build.txt", torch=True),
    Road("requirements-import", "", ("import_bundle", "import_nnunet", "export"), _BUILD, requirements="requirements-import.txt", torch=True),
)  # fmt: skip


class Failed(Exception):
    """A step that did not end well; holds what it said."""


def interpreter(version: str) -> str | None:
    """A Python of that version that runs, by its name on the PATH or among pyenv's."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (shutil.which(f"python{version}"), *map(str, sorted(kept.glob(f"{version}.*/bin/python")))):
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return candidate
    return None


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise Failed(f"{' '.join(str(part) for part in command)[:200]}\n{done.stdout[-3000:]}")
    return str(done.stdout)


def wheel(folder: Path) -> Path:
    """The project's wheel, built from what git tracks, so that nothing that only lies about gets into it."""
    source = folder / "source"
    for name in run(["git", "ls-files", "-z"], cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source])
    return next(folder.glob("medquantint8-*.whl"))


def travel(road: Road, version: str, python: str, built: Path, folder: Path, newest: bool) -> None:
    """Install and do the jobs.

    Raises:
        Failed: a step failed.
    """
    constraints = [] if newest else ["-c", ROOT / "constraints.txt"]
    environment = folder / "env"
    run([python, "-m", "venv", environment])
    inside = environment / "bin" / "python"
    pip: list[str | Path] = [inside, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile"]
    if road.torch:
        run([*pip, "-c", ROOT / "constraints.txt", "torch"])
    run([*pip, *constraints, f"{built}[{road.extras}]" if road.extras else str(built)])
    if road.requirements:
        lines = [
            line
            for line in (RESOURCES / road.requirements).read_text().splitlines()
            if line.split(">")[0] not in road.left_out
        ]
        run([*pip, *constraints, *lines])
    if road.also:
        run([*pip, *road.also])
    libraries = []
    if road.driver:
        libraries.append(tensorrt_at_hand.stub_driver(folder / "driver"))
    if road.tensorrt:
        libraries.append(tensorrt_at_hand.stub_libraries(TENSORRT_BINDINGS.split("==")[1], folder / "tensorrt"))
        place = run([inside, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]).strip()
        (Path(place) / "tensorrt").mkdir()
        (Path(place) / "tensorrt" / "__init__.py").write_text(
            "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
        )
    # Not in the repository and not beside its modules: only what was installed may be found.
    work = folder / "work"
    work.mkdir()
    for name in ("Installs/jobs.py", "support/bundles.py"):
        shutil.copyfile(HERE.parent / name, work / Path(name).name)
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "MEDQUANT_DATA", "MEDQUANT_MODELS", "MEDQUANT_CACHE")
    }
    home = {
        "HOME": str(folder / "home"),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "OMP_NUM_THREADS": "2",
        # For the one job that runs tests of the repository on what was installed.
        "MEDQUANT_REPOSITORY": str(ROOT),
    }
    (folder / "home").mkdir()
    run([inside, "jobs.py", *road.jobs], cwd=work, env={**clean, **home})


def tried(road: Road, version: str, built: Path, folder: Path, newest: bool) -> str:
    """Travel a road and say in a line how that went; "passed", "FAILED" or "SKIPPED"."""
    began, python = time.monotonic(), interpreter(version)
    if python is None:
        print(f"SKIPPED {road.name} (Python {version} is not at hand)", flush=True)
        return "SKIPPED"
    folder.mkdir()
    try:
        travel(road, version, python, built, folder, newest)
    except Failed as error:
        print(f"FAILED  {road.name}, Python {version}: {error}", flush=True)
        return "FAILED"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"passed  {road.name}, Python {version}, {time.monotonic() - began:.0f} s", flush=True)
    return "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roads", nargs="*", metavar="ROAD", help="only these (default: all)")
    parser.add_argument("--list", action="store_true", help="print the roads")
    parser.add_argument(
        "--newest", action="store_true", help="the newest version of everything that pyproject.toml allows"
    )
    parser.add_argument("--python", action="append", help="only this version, such as 3.12; may be given several times")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="environments made at once (default: 1)")
    args = parser.parse_args()
    known = {road.name: road for road in ROADS}
    if unknown := set(args.roads) - set(known):
        parser.error(f"no road {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if args.list:
        print("\n".join(f"{road.name:28}{road.extras or road.requirements:40}{', '.join(road.jobs)}" for road in ROADS))
        return 0
    with tempfile.TemporaryDirectory(prefix="medquant-roads-") as scratch, ThreadPoolExecutor(args.together) as pool:
        built = wheel(Path(scratch))
        each = [
            pool.submit(tried, road, version, built, Path(scratch) / f"{road.name}-{version}", args.newest)
            for road in [known[name] for name in args.roads] or ROADS
            for version in road.pythons
            if not args.python or version in args.python
        ]
        outcomes = [result.result() for result in each]
    passed, failed, skipped = (outcomes.count(word) for word in ("passed", "FAILED", "SKIPPED"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
