"""The trained networks where it gets hard: other scans than the calibration's, 4-bit weights, another engine.

    python experiments/robustness.py WEIGHTS [--cases N] [--networks NAME ...]
    python experiments/robustness.py WEIGHTS --cost

WEIGHTS is what train.py wrote. Writes docs/results/robustness.json and .md. Calibrated on 20 training scans as they are; then the test
scans are changed as another scanner, sequence or grid would change them, and FP32 and real INT8 (OpenVINO) are held against the manual
labels. --cost measures what looking at the ranges adds to runs. What weights of 4 bits lose is measured by four_bits.py, on the same page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from evaluate import CALIBRATION_SCANS, quantized  # noqa: E402
from hippocampus import case_names, files  # noqa: E402
from scaled import PATCH, SCALED  # noqa: E402

TARGET = ROOT / "docs" / "results" / "robustness.json"


def _field(shape: tuple[int, ...], strength: float) -> np.ndarray:
    """A smooth bias field: one side bright, the other dark, on two axes."""
    k, j = (np.linspace(-1, 1, n) for n in shape[-3:-1])
    return np.exp(strength * (k[:, None, None] + 0.5 * j[None, :, None])).astype(np.float32)


def changed(change: Callable[[np.ndarray, Any], np.ndarray]) -> Callable[[Any, int], Any]:
    def apply(volume: Any, seed: int) -> Any:
        values = volume.data.astype(np.float32)
        return replace(volume, data=change(values, np.random.default_rng(seed)).astype(np.float32))

    return apply


def _blurred(values: np.ndarray, factor: int) -> np.ndarray:
    """Slices as thick as ``factor`` of the scan's: their mean, repeated."""
    thick = np.stack([values[:, n : n + factor].mean(1) for n in range(0, values.shape[1], factor)], 1)
    return np.repeat(thick, factor, 1)[:, : values.shape[1]]


SHIFTS: dict[str, Callable[[Any, int], Any]] = {
    "as calibrated": lambda volume, seed: volume,
    "intensities x 10 + 500": changed(lambda v, r: 10 * v + 500),
    "gamma 0.5": changed(lambda v, r: np.sqrt(np.maximum(v - v.min(), 0) / np.ptp(v))),
    "gamma 2": changed(lambda v, r: (np.maximum(v - v.min(), 0) / np.ptp(v)) ** 2),
    "contrast flipped": changed(lambda v, r: v.max() - v),
    "noise, half a deviation": changed(lambda v, r: v + 0.5 * v.std() * r.normal(size=v.shape)),
    "noise, two deviations": changed(lambda v, r: v + 2 * v.std() * r.normal(size=v.shape)),
    "bias field, factor e": changed(lambda v, r: v * _field(v.shape, 0.5)),
    "slices 3 mm thick": changed(lambda v, r: _blurred(v, 3)),
    "one voxel in 500 at 5 times the maximum": changed(
        lambda v, r: np.where(r.random(v.shape) < 0.002, 5 * v.max(), v)
    ),
}
#: What no normalisation takes away: values of the network's input, after its own preprocessing.
INPUT_SHIFTS: dict[str, float] = {"input x 2 after normalization": 2.0, "input x 4 after normalization": 4.0}


def study(name: str, weights: Path, cases: int) -> dict[str, Any]:
    from MedQuantINT8Lib.engines import BuildOptions, backend
    from MedQuantINT8Lib.evaluation.agreement import agreement, mean_dice
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.range_check import Probe, RangeCheck, limits_of
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment

    calibration = [read_volume(files(case)[0]) for case in case_names("train")[:CALIBRATION_SCANS]]
    pairs = [files(case) for case in case_names("test")[:cases]]
    test, truth = (
        [read_volume(image) for image, _ in pairs],
        [read_volume(label).data[0].astype(np.uint8) for _, label in pairs],
    )
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        made, _ = quantized(name, weights, Path(scratch), calibration)
        engines = {}
        for engine, precision in (
            ("openvino", "fp32"),
            ("openvino", "int8"),
            ("onnxruntime", "fp32"),
            ("onnxruntime", "int8"),
        ):
            folder = Path(tempfile.mkdtemp(dir=scratch))
            wanted = BuildOptions(precision, PATCH)
            backend(engine).build(made.onnx_path(precision), folder, wanted)
            engines[engine, precision] = backend(engine).load(folder, wanted)
        probe = Probe(made.onnx_path("fp32"), PATCH, limits_of(made))

        def scores(inputs: list[Any], key: tuple[str, str]) -> tuple[list[float], list[Any]]:
            found = [segment(i, made.spec, engines[key], SegmentationOptions()).labels for i in inputs]
            return [
                mean_dice(agreement(f, t, made.spec.labels)) or 0.0 for f, t in zip(found, truth, strict=True)
            ], found

        shifts = []
        for shift in (*SHIFTS, *INPUT_SHIFTS):
            inputs = [
                preprocess(SHIFTS.get(shift, SHIFTS["as calibrated"])(v, n), made.spec) for n, v in enumerate(test)
            ]
            if shift in INPUT_SHIFTS:
                inputs = [replace(i, data=np.float32(INPUT_SHIFTS[shift]) * i.data) for i in inputs]
            fp32, theirs = scores(inputs, ("openvino", "fp32"))
            int8, ours = scores(inputs, ("openvino", "int8"))
            checks = [RangeCheck(None, probe.shares(centre(i.data)), 1) for i in inputs]
            between = [mean_dice(agreement(a, b, made.spec.labels)) for a, b in zip(ours, theirs, strict=True)]
            shifts.append(
                {
                    "shift": shift,
                    "fp32": float(np.mean(fp32)),
                    "int8": float(np.mean(int8)),
                    "lost": float(np.mean(np.array(fp32) - np.array(int8))),
                    "agreement": float(np.mean([b for b in between if b is not None] or [1.0])),
                    "worst_share": float(np.mean([c.worst[1] for c in checks])),
                    "mean_share": float(np.mean([c.mean for c in checks])),
                    "warned": int(sum(bool(c.warning) for c in checks)),
                }
            )
            print(name, shifts[-1], flush=True)
        plain = [preprocess(v, made.spec) for v in test]
        batch = centre(plain[0].data)[None]
        portability = {}
        for key in engines:
            values, found = scores(plain, key)
            same = (
                [float((a != b).mean()) for a, b in zip(found, scores(plain, ("openvino", "int8"))[1], strict=True)]
                if key[1] == "int8"
                else None
            )
            portability["-".join(key)] = {
                "dice": float(np.mean(values)),
                "other_labels": float(np.mean(same)) if same else None,
                "ms": _milliseconds(engines[key], batch),
            }
        sizes = {p: made.onnx_path(p).stat().st_size for p in ("fp32", "int8")}
        for engine in engines.values():
            engine.close()
    return {"network": name, "cases": len(test), "shifts": shifts, "engines": portability, "bytes": sizes}


#: Voxels of the made volumes that runs are timed on, small to large.
COST_SIZES = ((96, 96, 96), (160, 160, 160), (256, 256, 200))


def cost(weights: Path) -> list[dict[str, Any]]:
    """Whole runs of the U-Net on made volumes, with and without looking at ranges in turn, the engine loaded; seconds."""
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference import pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.engine_pool import KeepingPool
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        scan = read_volume(files(case_names("train")[0])[0])
        made, _ = quantized("unet", weights, Path(scratch), [scan])
        pool, choice = KeepingPool(), EngineChoice("openvino", "int8")
        for size in COST_SIZES:
            tiled = np.tile(scan.data[0], [-(-n // have) for n, have in zip(size, scan.data.shape[1:], strict=True)])
            volume = Volume(tiled[tuple(slice(n) for n in size)][None].copy(), np.eye(4), "made")
            times: dict[bool, list[float]] = {True: [], False: []}
            windows = []
            for number in range(4):
                for look in (True, False):
                    run = pipeline.segment(
                        made, volume, choice, SegmentationOptions(check_ranges=look), Task(), pool=pool
                    )
                    if number:
                        times[look].append(run.seconds["total"])
                    if look:
                        windows.append([run.ranges["windows"], run.seconds["ranges"]])
            rows.append(
                {
                    "size": size,
                    "windows": run.result.windows,
                    "looked_at": windows,
                    "with_s": float(np.median(times[True])),
                    "without_s": float(np.median(times[False])),
                }
            )
            print(rows[-1], flush=True)
        pool.clear()
    return rows


def centre(data: np.ndarray) -> np.ndarray:
    """A patch of the network's size around the middle."""
    starts = [max(0, (n - p) // 2) for n, p in zip(data.shape[1:], PATCH, strict=True)]
    inside = data[(slice(None), *(slice(s, s + p) for s, p in zip(starts, PATCH, strict=True)))]
    return np.pad(inside, [(0, 0), *((0, p - n) for n, p in zip(inside.shape[1:], PATCH, strict=True))])


def _milliseconds(engine: Any, batch: np.ndarray, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        engine.infer(batch)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[1:]))


def _dice_cell(s: dict[str, Any], r: dict[str, Any]) -> str:
    return f"{s['fp32']:.3f} / {s['int8']:.3f} ({s['agreement']:.3f}){' !' if s['warned'] > r['cases'] / 2 else ''}"


def _by_shift(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any], dict[str, Any]], str]) -> list[str]:
    """A table with a row for each kind of scan and a column for each network."""
    from MedQuantINT8Lib.importers.networks import STUDY

    lines = [
        "| scans | " + " | ".join(STUDY[r["network"]].title for r in rows) + " |",
        "| --- |" + " ---: |" * len(rows),
    ]
    for number, first in enumerate(rows[0]["shifts"]):
        lines.append(f"| {first['shift']} | {' | '.join(cell(r['shifts'][number], r) for r in rows)} |")
    return lines


def _four_bit_lines(value: dict[str, Any]) -> list[str]:
    from MedQuantINT8Lib.importers.networks import STUDY

    rows = value.get("four_bits", [])
    if not rows:
        return []
    lines = [
        "",
        "## Weights of 4 bits",
        "",
        f"Made by `experiments/four_bits.py` ({value['four_bits_date']}); the networks were trained anew for it. Packages of `medquant quantize --weight-bits 4`: weights of 4 bits learned on "
        f"calibration patches, activations INT8, run by OpenVINO as INT8; mean Dice to manual labels over {rows[0]['cases']} test cases. To nearest: each output channel's weights rounded to "
        "15 steps, activations FP32. The whole file counts, as it lies in a package's folder. In a `.zip` it is smaller, above all where training of minutes left "
        "many weights next to nothing: the columns compare it with FP32's file as it is, and with FP32's in a `.zip`. Seconds are those of learning on two cores (SwinUNETR: eight) with the search of before; VISTA3D's are of today's, beside other work. SwinUNETR's and SegResNet's rows are wholly of before.",
        "",
        "| network | Dice FP32 | Dice INT8 | Dice 4 bits | INT8 loses | 4 bits lose | 4 bits to nearest lose | work in INT8 | file INT8 / FP32 | file 4 bits / FP32 | in a zip: 4 bits / FP32's file | / FP32 in a zip | learning, s |",
        "| --- |" + " ---: |" * 12,
    ]
    for r in rows:
        fp32, int8, int4 = (r[k]["dice"] for k in ("fp32", "int8", "int4"))
        sizes = [r[k]["bytes"] / r["fp32"]["bytes"] for k in ("int8", "int4")]
        lines.append(
            f"| {STUDY[r['network']].title} | {fp32:.4f} | {int8:.4f} | {int4:.4f} | {fp32 - int8:+.4f} | {fp32 - int4:+.4f} | {fp32 - r['nearest']['dice']:+.4f} "
            f"| {100 * r['int4']['int8_share']:.1f} % | {sizes[0]:.3f} | {sizes[1]:.3f} | {' | '.join(_in_a_zip(r))} | {r['int4']['learning_s']:.0f} |"
        )
    if before := [STUDY[r["network"]].title for r in rows if "zipped" not in r["int4"]]:
        lines += ["", f"Measured before constants that are no weights were packed as well: {', '.join(before)}."]
    if before := [STUDY[r["network"]].title for r in rows if "zipped" in r["int4"] and "zipped" not in r["int8"]]:
        lines += [
            "",
            f"Of {', '.join(before)} INT8's own columns and the seconds are from before the inputs of transposed convolutions ran in INT8, which they do in the networks of 4 bits.",
        ]
    if missing := [STUDY[n].title for n in SCALED if n not in {r["network"] for r in rows}]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return lines


def _in_a_zip(row: dict[str, Any]) -> list[str]:
    """The zipped file of 4 bits over FP32's file, and over FP32's zipped file."""
    zipped = row["int4"].get("zipped")
    if zipped is None or "zipped" not in row["fp32"]:
        return ["–", "–"]
    return [f"{zipped / row['fp32'][key]:.3f}" for key in ("bytes", "zipped")]


def page(value: dict[str, Any]) -> str:
    from MedQuantINT8Lib.importers.networks import STUDY

    machine, rows = value["machine"], value["networks"]
    lines = [
        "# Where it gets hard: other scans, 4 bits, another engine",
        "",
        "Made by `experiments/robustness.py`; do not edit. The narrowed networks of [trained.md](trained.md), calibrated by `max` on "
        f"{CALIBRATION_SCANS} training scans, no layer put back; mean Dice to manual labels over {rows[0]['cases']} test cases.",
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])}); {value['date']}; other work ran beside.",
        "",
        "## Calibrated on one kind of scan, run on another",
        "",
        "Dice FP32 / real INT8 (OpenVINO). In brackets the Dice between the two; `!` where a run warns for most cases that values leave the calibrated ranges.",
        "",
        *_by_shift(rows, _dice_cell),
        "",
        "Share of values beyond the calibrated range, percent: in the worst tensor / mean of all tensors.",
        "",
        *_by_shift(rows, lambda s, r: f"{100 * s['worst_share']:.2f} / {100 * s['mean_share']:.3f}"),
    ]
    if costs := value.get("cost"):
        lines += [
            "",
            "What looking costs: the U-Net on made volumes, 64 x 64 x 64 windows, engine loaded, runs with and without in turn (median of 3 after the first).",
            "",
            "| voxels | windows | of them looked at, first run / later | looking, s, first run / later | whole run without, s | with, s |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for c in costs:
            first, later = c["looked_at"][0], c["looked_at"][-1]
            lines.append(
                f"| {' x '.join(map(str, c['size'][::-1]))} | {c['windows']} | {first[0]} / {later[0]} | {first[1]:.3f} / {later[1]:.3f} | {c['without_s']:.2f} | {c['with_s']:.2f} |"
            )
    lines += _four_bit_lines(value)
    lines += [
        "",
        "## The same INT8 package in two engines",
        "",
        "OpenVINO computes in integers; ONNX Runtime simulates (FP32 arithmetic on rounded values), which is slow and is what engines are held against. Milliseconds for one patch of 64 x 64 x 64.",
        "",
        "| network | Dice OpenVINO INT8 | Dice ONNX Runtime INT8 | voxels with another label | ms OpenVINO FP32 / INT8 | ms ONNX Runtime FP32 / INT8 simulated |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        e = r["engines"]
        lines.append(
            f"| {STUDY[r['network']].title} | {e['openvino-int8']['dice']:.4f} | {e['onnxruntime-int8']['dice']:.4f} | {100 * e['onnxruntime-int8']['other_labels']:.4f} % "
            f"| {e['openvino-fp32']['ms']:.1f} / {e['openvino-int8']['ms']:.1f} | {e['onnxruntime-fp32']['ms']:.1f} / {e['onnxruntime-int8']['ms']:.1f} |"
        )
    if missing := [STUDY[n].title for n in SCALED if n not in {r["network"] for r in rows}]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.system import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--networks", nargs="+", choices=list(SCALED), default=list(SCALED))
    parser.add_argument("--cases", type=int, default=20, help="test cases (default: %(default)s)")
    parser.add_argument("--cost", action="store_true", help="only measure what looking at the ranges takes")
    args = parser.parse_args()
    value = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    rows = {r["network"]: r for r in value.get("networks", [])}

    def write(**more: Any) -> None:
        nonlocal value
        value = {**value, "machine": machine(), "date": time.strftime("%Y-%m-%d"), **more}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        if rows:
            TARGET.with_suffix(".md").write_text(page(value))

    if args.cost:
        write(cost=cost(Path(args.weights)))
        return
    for name in args.networks:
        rows[name] = study(name, Path(args.weights), args.cases)
        write(networks=[rows[n] for n in SCALED if n in rows])


if __name__ == "__main__":
    main()
