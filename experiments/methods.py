"""What each method of quantization does for a network, alone and together with others, on scans that calibration did not see.

    python experiments/methods.py [--weights WEIGHTS] [NAME ...]

NAME is one of the ten pretrained networks, or of the seven trained ones whose weights train.py wrote to WEIGHTS. Every layer of a network
is treated the same way, INT8 is simulated, and no guard chooses. Figures are the mean Dice with FP32 over structures and that of the
structure that agrees least. Writes docs/results/methods.json and .md after each figure; those that are there are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "MedQuantINT8"), str(ROOT / "Testing" / "support")]

from data_models import specs  # noqa: E402
from evaluate import package  # noqa: E402
from hippocampus import case_names, files  # noqa: E402
from method_networks import METHODS, SLOW, Networks  # noqa: E402
from resisting import all_cases  # noqa: E402
from run_days import dated, days_of, today  # noqa: E402
from scaled import PATCH, SCALED  # noqa: E402

TARGET = ROOT / "docs" / "results" / "methods.json"
#: Networks that want stripped brains are measured on those of the labeled scans.
_STRIPPED = ("brain18_meshnet30", "brain18_meshnet")
#: Voxels along each side of calibration patches, and of the window that is measured, where a network takes any size. Networks of one size of
#: input, and those that see a whole head, have that.
_PATCH, _SIDE = (80, 80, 80), 112
PATCHES, TRAINED_SCANS, TRAINED_WINDOWS = 4, 20, 4


@dataclass(frozen=True)
class Setting:
    """A network with what it is calibrated on and the windows (C, A0, A1, A2) of other scans that it is measured on.

    Attributes:
        all_windows: gives the patches of "ranges from all windows of the scans"; None where the first patches are all that there are.
    """

    name: str
    network: Any
    spec: Any
    sampler: Any
    patch: tuple[int, int, int]
    windows: list[np.ndarray]
    all_windows: Callable[[], list[np.ndarray]] | None


def _most_tissue(data: np.ndarray, side: int) -> np.ndarray:
    """The window of a volume (C, A0, A1, A2) with most voxels above its mean."""
    sides = [min(side, n) for n in data.shape[1:]]
    corners = list(np.ndindex(*((n - s) // 16 + 1 for n, s in zip(data.shape[1:], sides, strict=True))))

    def window(corner: tuple[int, ...]) -> np.ndarray:
        return data[(slice(None), *(slice(16 * c, 16 * c + s) for c, s in zip(corner, sides, strict=True)))]

    mean = float(data.mean())
    best = max(corners, key=lambda corner: float((window(corner)[0, ::4, ::4, ::4] > mean).mean()))
    return np.ascontiguousarray(window(best))


def _tiles(volumes: list[np.ndarray], patch: tuple[int, int, int]) -> list[np.ndarray]:
    """Windows side by side that fill the volumes (C, A0, A1, A2), but for those of air alone."""
    tiles = []
    for data in volumes:
        missing = [(0, max(0, p - n)) for p, n in zip(patch, data.shape[1:], strict=True)]
        padded = np.pad(data, [(0, 0), *missing], constant_values=float(data.min()))
        for corner in np.ndindex(*(-(-n // p) for n, p in zip(padded.shape[1:], patch, strict=True))):
            begin = [min(c * p, n - p) for c, p, n in zip(corner, patch, padded.shape[1:], strict=True)]
            tile = padded[(slice(None), *(slice(b, b + p) for b, p in zip(begin, patch, strict=True)))]
            if tile.max() > data.mean():
                tiles.append(np.ascontiguousarray(tile))
    return tiles


def pretrained(name: str, scratch: Path) -> Setting:
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    case = all_cases(scratch)[f"{name} (labeled scan)" if name in _STRIPPED else name]
    fp32 = graph.load_network(case.network)
    free = case.spec.geometry.size is None and not all(graph.network_shape(fp32).spatial)
    patch = _PATCH if free else case.spec.window.patch_size
    sources = [lambda scan=scan: read_volume(scan) for scan in case.calibrate]
    overlap = 0.25 if free else case.spec.window.overlap
    spec = replace(case.spec, window=replace(case.spec.window, overlap=overlap))
    sampler = PatchSampler(sources, case.spec, patch, CalibrationOptions(patches=PATCHES))
    data = np.asarray(preprocess(read_volume(case.scans[0]), case.spec).data)
    whole = data.shape[1:] == tuple(patch)
    if free or whole:
        window = _most_tissue(data, _SIDE if free else max(patch))
    else:
        window = next(iter(PatchSampler([lambda: read_volume(case.scans[0])], case.spec, patch, CalibrationOptions())))

    def all_windows() -> list[np.ndarray]:
        return _tiles([np.asarray(preprocess(source(), case.spec).data) for source in sources], patch)

    return Setting(name, fp32, spec, sampler, patch, [window], None if whole else all_windows)


def trained(name: str, weights: Path, scratch: Path) -> Setting:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler

    source = package(name, weights, scratch)
    spec = replace(source.spec, window=replace(source.spec.window, overlap=0.0))

    def sampler(part: str, count: int) -> PatchSampler:
        scans = [files(case)[0] for case in case_names(part)[:count]]
        volumes = [lambda scan=scan: read_volume(scan) for scan in scans]
        return PatchSampler(volumes, spec, PATCH, CalibrationOptions(patches=count))

    windows = [sample.patch for sample in sampler("test", TRAINED_WINDOWS).first_samples(TRAINED_WINDOWS)]
    fp32 = graph.load_network(source.onnx_path("fp32"))
    many = sampler("train", TRAINED_SCANS)
    return Setting(name, fp32, spec, sampler("train", PATCHES), PATCH, windows, lambda: list(many))


def measure(setting: Setting, rows: dict[str, Any], save: Callable[[], None]) -> None:
    """Add the figures of each method that are not there yet."""
    from MedQuantINT8Lib.quantization.fp32_network import Fp32Network
    from MedQuantINT8Lib.quantization.measurer import Measurer

    networks = Networks(setting)
    measurer = Measurer(
        Fp32Network(networks.fp32, setting.windows[0].shape[1:]), setting.windows, setting.spec, voxel_ml=1e-3
    )
    # What runs the network most often comes last, so that a stop loses least.
    for method, make in sorted(METHODS.items(), key=lambda item: item[0] in SLOW):
        if method in rows:
            continue
        began = time.perf_counter()
        network = make(networks)
        if network is None:
            rows[method] = None
        else:
            found = measurer.measure(network)
            rows[method] = {"agreement": found.agreement, "worst": found.worst_dice, "error": found.relative_error}
        rows["about"] = rows.get("about", {}) | networks.about
        rows["date"] = today()
        print(setting.name, method, rows[method], f"{time.perf_counter() - began:.0f} s", flush=True)
        save()


def _cell(rows: dict[str, Any], method: str) -> str:
    if method not in rows:
        return ""
    row = rows[method]
    return "–" if not row or row["agreement"] is None else f"{row['agreement']:.4f} ({row['worst']:.4f})"


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.importers.networks import STUDY

    groups = {
        "The seven trained networks": [n for n in SCALED if n in value["rows"]],
        "Pretrained networks": [n for n in specs() if n in value["rows"]],
    }
    lines = [
        "# Methods of quantization, alone and together",
        "",
        "Made by `experiments/methods.py`; do not edit. What each method alone makes of plain INT8, and several together: the mean Dice with FP32 over structures, in brackets the structure that",
        "agrees least. All layers of a network are treated the same way, INT8 is simulated, and no guard chooses; what the guard makes of it layer by layer, with real engines, stands in",
        f"[Networks that resist INT8](resisting.md). Plain is symmetric INT8, weights rounded to nearest, ranges the largest magnitudes of {PATCHES} patches. Trained networks are measured on {TRAINED_WINDOWS} test",
        f"scans. Pretrained ones are calibrated on one or two scans and measured on one window of another scan, that with most tissue: {_SIDE} voxels a side, or the network's own size; of the 18-class networks",
        f"it is a stripped brain. A dash: the method finds nothing to change; empty: not measured. {value['date']}.",
    ]
    for name in groups["The seven trained networks"]:
        about = value["rows"][name]["about"]
        if (numbers := (about.get("patches"), about.get("windows"))) not in ((None, None), (PATCHES, TRAINED_WINDOWS)):
            lines += ["", f"{STUDY[name].title}: {numbers[0]} patches, {numbers[1]} test scans."]
    missing = [name for name in (*SCALED, *specs()) if name not in value["rows"]]
    if missing:
        lines += ["", f"Not measured so far: {', '.join(missing)}."]
    for title, names in groups.items():
        if not names:
            continue
        titles = [STUDY[n].title if n in STUDY else n.removeprefix("brain_mask_") for n in names]
        lines += ["", f"## {title}", "", "| method | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(names)]
        for method in METHODS:
            cells = [_cell(value["rows"][name], method) for name in names]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + _findings(value)


def _findings(value: dict[str, Any]) -> str:
    """What the figures say, counted from them."""
    rows = value["rows"]
    lines = ["", "## What each does to the error", ""]
    lines += [
        "Over all networks that a method changes: the part of plain INT8's relative error of the scores that is left (median, least, most), and how many networks agree better with FP32 than in plain INT8.",
        "Ranges by error of the scores look at them only where labels meet, and clip what is far from there.",
        "",
        "| method | networks | error left, median | least | most | agree better |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    better_of: dict[str, tuple[int, int]] = {}
    for method in list(METHODS)[1:]:
        pairs = [(r["plain"], r[method]) for r in rows.values() if r.get("plain") and r.get(method)]
        if not pairs:
            continue
        left = [new["error"] / max(old["error"], 1e-12) for old, new in pairs]
        better = sum((new["agreement"] or 0) > (old["agreement"] or 0) for old, new in pairs)
        better_of[method] = better, len(pairs)
        lines.append(
            f"| {method} | {len(pairs)} | {np.median(left):.2f} | {min(left):.2f} | {max(left):.2f} | {better} |"
        )
    counts = [r["about"]["absorbed"] for r in rows.values() if "absorbed" in r.get("about", {})]
    channels, never, deviations = (sum(c[n] for c in counts) for n in range(3))
    windows, scores = (
        better_of.get(f"ranges {what}", (0, 0)) for what in ("from all windows of the scans", "by error of the scores")
    )
    lines += [
        "",
        "## What is not in the product",
        "",
        f"- **High biases absorbed** into the next layers. Where a channel lies above 0 before its ReLU (leaky ReLU, PReLU, ELU) on all calibration patches, its least value can go into the next layers' biases, exactly but for borders that are filled up with zeros. Of {channels} channels before such a curve of {len(counts)} networks {never} never fall to 0, and {deviations} lie three deviations above it{': there is nothing to absorb' if not never + deviations else ''}.",
        f"- **Ranges from all windows** of the scans instead of {PATCHES} patches: {windows[0]} of {windows[1]} networks agree better; a wider range is a coarser one.{_gains(rows, 'ranges from all windows of the scans')} The product draws 20 patches by default.",
        f"- **Ranges by the error of the scores**: each tensor's range is that of least square error of the network's output where FP32's labels meet, when it alone is quantized: {scores[0]} of {scores[1]} networks agree better. It runs the network some hundred times, and what a range has to give up for its largest values, halves and scales for each channel keep.",
    ]
    return "\n".join(lines) + "\n"


def _gains(rows: dict[str, Any], method: str) -> str:
    """The networks whose agreement rises by more than 0.02, in words."""
    gains = [
        f"{name} from {r['plain']['agreement']:.4f} to {r[method]['agreement']:.4f}"
        for name, r in rows.items()
        if r.get("plain") and r.get(method) and (r[method]["agreement"] or 0) > (r["plain"]["agreement"] or 0) + 0.02
    ]
    return f" Much better: {', '.join(gains)}, which see little of a head in so few patches." if gains else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all)")
    parser.add_argument("--weights", help="what train.py wrote, for the trained networks")
    parser.add_argument("--torch", action="store_true", help="run networks by PyTorch, on a GPU where there is one")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON file (default: %(default)s)")
    parser.add_argument(
        "--page", nargs="*", metavar="JSON", help="take in the rows of other files, and measure nothing"
    )
    args = parser.parse_args()
    if args.torch:
        from torch_runtime import use_torch

        use_torch()
    target: Path = args.target
    own: dict[str, Any] = {}

    def kept(path: Path) -> dict[str, Any]:
        return dated(json.loads(path.read_text())) if path.exists() else {}

    def save() -> None:
        # Another run may have added networks.
        rows = kept(target) | own
        value = {"date": days_of(rows.values()), "rows": rows}
        target.write_text(json.dumps(value, indent=1) + "\n")
        target.with_suffix(".md").write_text(page(value))

    if args.page is not None:
        for path in args.page:
            own |= kept(Path(path))
        save()
        return
    for name in args.names or [*(SCALED if args.weights else ()), *specs()]:
        if name in SCALED and not args.weights:
            parser.error(f"{name} is a trained network: give its --weights")
        with tempfile.TemporaryDirectory() as scratch:
            setting = (
                trained(name, Path(args.weights), Path(scratch)) if name in SCALED else pretrained(name, Path(scratch))
            )
            own[name] = kept(target).get(name, {})
            measure(setting, own[name], save)


if __name__ == "__main__":
    main()
