"""Public pretrained networks against manual labels of whole brains: FP32 and INT8, each scan held out in turn.

    python experiments/labelled.py [--networks NAME ...] [--cases CASE ...] [--agreement DICE] [--torch] [--target JSON]
    python experiments/labelled.py --page [JSON ...]

Calibrated on the other two scans as the product does it by default; the guard works as in the product. INT8 is real, in OpenVINO; with
--torch it is simulated by PyTorch in the form that OpenVINO computes, which a GPU does in a minute or two. Writes
docs/results/labelled.json and .md; rows that are there are kept. The labels are "provided by Neuromorphometrics, Inc. (http://Neuromorphometrics.com/) under academic subscription" on OASIS scans
(CC BY-NC): figures only, nothing of them is shipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent / "benchmarks"),
    str(HERE.parent / "Testing" / "support"),
    str(ROOT / "MedQuantINT8"),
]

from data_models import DATA, specs  # noqa: E402
from method_networks import with_pairs  # noqa: E402
from real_networks import _labelled, cases  # noqa: E402
from run_days import dated, days_of, today  # noqa: E402

TARGET = ROOT / "docs" / "results" / "labelled.json"
#: The Dice that a network may lose.
BAR = 0.002
CASES, NETWORKS = ("1000", "1001", "1003"), ("brain18_meshnet30", "brain18_meshnet")


def row(name: str, case: str, agreement: float) -> dict[str, Any]:
    """A network quantized without a scan, and its Dice to the labels of that scan in FP32 and INT8, both in OpenVINO."""
    from MedQuantINT8Lib.evaluation.dataset_evaluation import evaluate
    from MedQuantINT8Lib.evaluation.datasets import Case, DataSet
    from MedQuantINT8Lib.importers.onnx import import_onnx
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.ensemble import Ensemble
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions
    from MedQuantINT8Lib.quantization.pipeline import quantize
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        spec, scan, labels, others = described(name, case, scratch)
        import_onnx(DATA / "networks" / f"{name}.onnx", spec, scratch / "model").close()
        options, policy = CalibrationOptions(), QuantizationPolicy(budget=Budget(agreement))
        made, report = quantize(str(scratch / "model"), others, str(scratch / "int8"), options, policy, Task())
        data = DataSet(
            "brain_labelled", (Case(case, (scan,), labels),), {label.value: label.name for label in spec.labels}
        )
        found = evaluate(
            Ensemble([made]),
            data,
            data.cases,
            EngineChoice("openvino", "int8"),
            SegmentationOptions(),
            1.0,
            Task(),
        )
        structures = found["summary"]["structures"]
        return {
            **of_report(name, case, agreement, report),
            "dice": {p: found["summary"]["overall"]["dice"][p]["mean"] for p in ("fp32", "int8")},
            "nsd": {p: found["summary"]["overall"]["nsd"][p]["mean"] for p in ("fp32", "int8")},
            "structures": {s: {p: v["dice"][p]["mean"] for p in ("fp32", "int8")} for s, v in structures.items()},
            "seconds": found["seconds"],
        }


def described(name: str, case: str, scratch: Path) -> tuple[Any, Path, Path, list[str]]:
    """A network's description for stripped brains, the scan and its labels, and the scans to calibrate on."""
    # Stripped brains want another normalisation than whole heads: as the table of real networks has it.
    stripped = cases(scratch)["brain18_meshnet30 (labeled scan)"].spec
    spec = replace(specs()[name], normalization=stripped.normalization, window=stripped.window)
    scan, labels = _labelled(scratch, case)
    return spec, scan, labels, [str(_labelled(scratch, other)[0]) for other in CASES if other != case]


def of_report(name: str, case: str, agreement: float, report: Any) -> dict[str, Any]:
    """What a row says of quantizing."""
    from MedQuantINT8Lib.models.layers import work_shares

    return {
        "network": name,
        "case": case,
        "agreement": agreement,
        "kept": sorted(report.guard.returned),
        "halves": len(report.guard.halves),
        "work": work_shares(report.layers),
        "int8_mac_share": report.int8_mac_share,
        "said": report.agreement,
    }


def simulated_row(name: str, case: str, agreement: float) -> dict[str, Any]:
    """As :func:`row`, with every network run by PyTorch, and Q/DQ pairs placed without ModelOpt."""
    from MedQuantINT8Lib.evaluation.agreement import agreement as compared
    from MedQuantINT8Lib.evaluation.agreement import mean_dice
    from MedQuantINT8Lib.evaluation.surface_distance import surface_agreement
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models.engine_form import EngineForm
    from MedQuantINT8Lib.models.package import FP32, ModelPackage, write_package
    from MedQuantINT8Lib.quantization import candidates, quantize
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.latency import EngineStopwatch
    from torch_runtime import use_torch

    use_torch()
    candidates.place = lambda _, model, patch, reasons, few_channels=True: with_pairs(model, patch.shape[1:])
    quantize.require_quantizer = lambda: None
    form = EngineForm(zero_points=True)

    class Untimed(EngineStopwatch):
        """Says the form that OpenVINO computes; times would be of another machine."""

        def __init__(self) -> None:
            super().__init__((), (0, 0, 0))

        form = property(lambda self: EngineForm(zero_points=True))  # type: ignore[assignment]

        def __call__(self, model: Any) -> float:
            return 0.0

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        spec, scan, labels, others = described(name, case, scratch)
        write_package(scratch / "model", spec, {FP32: DATA / "networks" / f"{name}.onnx"})
        package = ModelPackage.load(scratch / "model")
        options, policy = CalibrationOptions(), quantize.QuantizationPolicy(budget=Budget(agreement))
        volumes = [lambda path=path: read_volume(path) for path in others]
        sampler = PatchSampler(volumes, spec, quantize.calibration_patch(package), options)
        made, report = quantize.quantize_package(
            package, sampler, scratch / "int8", options, policy, stopwatch=Untimed()
        )
        print(name, case, "quantized", report.agreement, flush=True)
        volume, truth = read_volume(scan), read_volume(labels).data[0].astype(np.uint8)
        network_input = preprocess(volume, spec)
        result: dict[str, Any] = {"dice": {}, "nsd": {}, "structures": {label.name: {} for label in spec.labels}}
        maps = {}
        for precision in ("fp32", "int8"):
            model = graph.load_network(made.onnx_path(precision))
            model = form.of(model) if precision == "int8" else model
            engine = TorchEngine(graph.fixed_shape(model, spec.window.patch_size))
            maps[precision] = segment(network_input, spec, engine, SegmentationOptions()).labels
            rows = compared(maps[precision], truth, spec.labels, annotated=set(np.unique(truth).tolist()))
            result["dice"][precision] = mean_dice(rows)
            for found in rows:
                result["structures"][found.name][precision] = found.dice
            surfaces = [
                surface_agreement(maps[precision] == label.value, truth == label.value, (1.0, 1.0, 1.0), 1.0)
                for label in spec.labels
            ]
            result["nsd"][precision] = float(np.mean([found.nsd for found in surfaces if found is not None]))
        to_fp32 = compared(maps["int8"], maps["fp32"], spec.labels)
        result["to_fp32"] = mean_dice(to_fp32)
        return {**of_report(name, case, agreement, report), **result, "simulated": True}


class TorchEngine:
    """An engine for a run of :func:`..inference.segmenter.segment`."""

    def __init__(self, model: Any) -> None:
        from torch_runtime import TorchSession

        self._session = TorchSession(model.SerializeToString())

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._session.get_inputs()[0].name: batch})[0])

    def close(self) -> None:
        """Nothing has to be given back."""


def page(value: dict[str, Any]) -> str:
    lines = [
        "# Networks against labels: for which INT8 loses nothing",
        "",
        "Made by `experiments/labelled.py`; do not edit.",
        "",
        *_all_networks(value),
        "",
        "## Whole brains, scan by scan",
        "",
        "Public networks on T1 brains of OASIS at 1 mm, 17 structures; labels provided by Neuromorphometrics, Inc. (http://Neuromorphometrics.com/) under academic subscription, CC BY-NC.",
        "Each scan held out in turn, calibrated on the other two as `medquant quantize` does by default. Simulated: Q/DQ computed in single precision,",
        f"in the form that OpenVINO computes; real: OpenVINO. {value['date']}. Before layers could run in two INT8 halves (24 November), the guard gave nearly all of these networks back to floating point at 0.99; at 0.96 brain18_meshnet30 lost 0.0204 on the first brain.",
        "",
        "| network | scan | INT8 | guard: least agreement | said for new scans | layers in two halves | in float | Dice FP32 | Dice INT8 | lost | surface Dice at 1 mm FP32 / INT8 | work in INT8 | structure that loses most |",
        "| --- | --- | --- |" + " ---: |" * 9 + " --- |",
    ]
    for r in value["rows"]:
        d, n = r["dice"], r["nsd"]
        lost = {
            s: v["fp32"] - v["int8"]
            for s, v in r["structures"].items()
            if v["fp32"] is not None and v["int8"] is not None
        }
        worst = max(lost, key=lambda s: lost[s])
        said = r.get("said")
        cells = [
            r["network"],
            r["case"],
            "simulated" if r.get("simulated") else "real",
            f"{r['agreement']:g}",
            "–" if said is None else f"{said:.4f}",
            str(r.get("halves", "–")),
            str(len(r["kept"])),
            f"{d['fp32']:.4f}",
            f"{d['int8']:.4f}",
            f"{d['fp32'] - d['int8']:+.4f}",
            f"{n['fp32']:.4f} / {n['int8']:.4f}",
            f"{100 * r['int8_mac_share']:.0f} %",
            f"{worst}: {lost[worst]:+.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _all_networks(value: dict[str, Any]) -> list[str]:
    """The table of all networks with labels: the mean loss with its interval, and whether it is shown to be below the bar."""
    from MedQuantINT8Lib.importers.networks import STUDY

    rows: list[list[Any]] = []
    for r in json.loads(TARGET.with_name("trained.json").read_text())["rows"]:
        dice = r["summary"]["dice"]
        d = dice["difference"]
        rows.append([STUDY[r["network"]].title, f"{r['cases']} hippocampi", "manual", dice["fp32"]["mean"], dice["int8"]["mean"], d["mean"], d["low"], d["high"], 100 * r["int8_share"]])  # fmt: skip
    for name, r in json.loads(TARGET.with_name("resisting.json").read_text())["rows"].items():
        one = r["row"]
        if one["dice_fp32"] is None or r["effort"] != "normal":
            continue
        kind = "another network's" if "obelisk" in name else "manual"
        rows.append([name, f"{one['scans']} scan(s)", kind, one["dice_fp32"], one["dice_int8"], one["dice_fp32"] - one["dice_int8"], None, None, 100 * r["int8_mac_share"]])  # fmt: skip
    for name in NETWORKS:
        own = [r for r in value["rows"] if r["network"] == name and r["agreement"] == 0.99]
        if not own:
            continue
        lost = [r["dice"]["fp32"] - r["dice"]["int8"] for r in own]
        fp32, int8 = (float(np.mean([r["dice"][p] for r in own])) for p in ("fp32", "int8"))
        share = 100 * float(np.mean([r["int8_mac_share"] for r in own]))
        scans = f"{len(own)} brains" + (", simulated" if any(r.get("simulated") for r in own) else "")
        rows.append([name, scans, "manual", fp32, int8, float(np.mean(lost)), min(lost), max(lost), share])
    simulated = TARGET.with_name("simulated.json")
    for key, r in json.loads(simulated.read_text())["rows"].items() if simulated.exists() else ():
        scan = r.get("scan", {})
        if r["effort"] == "normal" and scan.get("dice_fp32") is not None:
            title = key.rpartition(", ")[0]
            rows.append([title, "1 brain, simulated", "manual", scan["dice_fp32"], scan["dice_int8"], scan["dice_fp32"] - scan["dice_int8"], None, None, 100 * r["int8_mac_share"]])  # fmt: skip
    lines = [
        f"A network loses nothing that counts here where the mean Dice to the labels falls by at most {BAR:g}, which is shown where the 95 % interval (bootstrap over the scans) ends below that. Of two or",
        "three scans there is no such interval: the least and the most that one of them loses stand there. Lost: FP32 minus INT8; negative: INT8 is better.",
        "",
        "| network | on | labels | Dice FP32 | Dice INT8 | lost | from, to | work in INT8 | at most 0.002 lost |",
        "| --- | --- | --- |" + " ---: |" * 5 + " --- |",
    ]
    for title, scans, kind, fp32, int8, mean, low, high, share in rows:
        if share < 1:
            verdict = "nothing runs in INT8"
        elif mean > BAR:
            verdict = "no"
        elif high is None:
            verdict = "yes, without an interval"
        elif "brains" in scans and high <= BAR:
            verdict = "yes, on each of them"
        else:
            verdict = "yes" if high <= BAR else f"on average; not up to {high:.4f}"
        interval = "–" if high is None else f"{low:+.4f} to {high:+.4f}"
        lines.append(
            f"| {title} | {scans} | {kind} | {fp32:.4f} | {int8:.4f} | {mean:+.4f} | {interval} | {share:.0f} % | {verdict} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument(
        "--agreement", type=float, default=0.99, help="of the guard (default: %(default)s, as in the product)"
    )
    parser.add_argument("--torch", action="store_true", help="simulate by PyTorch, on a GPU where there is one")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON file (default: %(default)s)")
    parser.add_argument(
        "--page", nargs="*", metavar="JSON", help="take in the rows of other files, and measure nothing"
    )
    args = parser.parse_args()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def take(path: Path) -> None:
        if path.exists():
            rows.update({(r["network"], r["case"], r["agreement"]): r for r in dated(json.loads(path.read_text()))})

    def save() -> None:
        value = {"date": days_of(rows.values()), "rows": [rows[key] for key in sorted(rows)]}
        args.target.write_text(json.dumps(value, indent=1) + "\n")
        if args.target == TARGET:
            TARGET.with_suffix(".md").write_text(page(value))

    take(args.target)
    if args.page is not None:
        for path in args.page:
            take(Path(path))
        save()
        return
    for name in args.networks:
        for case in args.cases:
            key = name, case, args.agreement
            rows[key] = {"date": today(), **(simulated_row(*key) if args.torch else row(*key))}
            print(json.dumps(rows[key])[:400], flush=True)
            save()


if __name__ == "__main__":
    main()
