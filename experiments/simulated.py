"""MeshNets and their like on whole heads, quantized by the library and simulated by torch, on a GPU where there is one.

    python experiments/simulated.py [NAME ...] [--effort fast|normal|best] [--stand-ins FOLDER] [--output FILE.json]

The library's own guard makes the INT8 network, as ``medquant quantize`` does, in the form that OpenVINO computes; only what runs networks is torch (:mod:`torch_runtime`), since
whole heads take a processor many minutes each. Where ModelOpt is not installed, convolutions get their Q/DQ pairs by the library's own rule for those that ModelOpt leaves
out, which is the same rule for these networks. FP32 and INT8 then segment a head that calibration did not see, whole. Stand-ins are made by ``experiments/stand_ins.py``.
Without --output, writes docs/results/simulated.json and .md; with it, only that file, which ``--page FILE.json`` makes the page of.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import torch_runtime

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "Testing" / "support"), str(ROOT / "MedQuantINT8"), str(HERE)]

from MedQuantINT8Lib.quantization import qdq_placement  # noqa: E402


def _placed(_: Any, model: Any, patch: Any, reasons: dict[str, str], *, few_channels: bool = True) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {node.name for node in copy.graph.node if node.op_type == "Conv" and node.name not in reasons}
    qdq_placement._quantize_convolutions(copy, names)
    return copy


if importlib.util.find_spec("modelopt") is None:
    qdq_placement.place, qdq_placement.require_quantizer = _placed, lambda: None

import stand_ins  # noqa: E402
from data_models import BRAIN18, DATA, specs  # noqa: E402
from MedQuantINT8Lib.imaging.preprocessing import preprocess  # noqa: E402
from MedQuantINT8Lib.imaging.volume import Volume  # noqa: E402
from MedQuantINT8Lib.imaging.volume_files import read_volume  # noqa: E402
from MedQuantINT8Lib.models import onnx_graph as graph  # noqa: E402
from MedQuantINT8Lib.models.engine_form import SYMMETRIC, EngineForm  # noqa: E402
from MedQuantINT8Lib.models.package import FP32, ModelPackage, write_package  # noqa: E402
from MedQuantINT8Lib.models.spec import ModelSpec, Normalization  # noqa: E402
from MedQuantINT8Lib.progress import ProgressEvent, Task  # noqa: E402
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler  # noqa: E402
from MedQuantINT8Lib.quantization.latency import EngineStopwatch  # noqa: E402
from MedQuantINT8Lib.quantization.quantize import (  # noqa: E402
    QuantizationPolicy,
    calibration_patch,
    quantize_package,
)

TARGET = ROOT / "docs" / "results" / "simulated.json"
#: What OpenVINO computes.
FORM = EngineForm(zero_points=True)
EFFORTS = ("fast", "normal", "best")
PATCHES, _LABELED = 10, " (labeled scan)"
NAMES = (
    "brain3_meshnet5",
    "brain3_meshnet20",
    "brain18_meshnet",
    "brain18_meshnet" + _LABELED,
    "brain18_meshnet30",
    "brain18_meshnet30" + _LABELED,
    "brain_mask_mindgrab",
    *stand_ins.STAND_INS,
)


class _NoClock(EngineStopwatch):
    """Says in which form the engine would compute, and times nothing."""

    def __init__(self) -> None:
        super().__init__((), (0, 0, 0))

    @property
    def form(self) -> EngineForm:
        return FORM

    def __call__(self, model: Any) -> float:
        return 0.0


class _Stages:
    """Prints each stage as it begins: of a run that is stopped the last one is known."""

    def __init__(self) -> None:
        self._stage, self._began = "", time.perf_counter()

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage != self._stage:
            self._stage = event.stage
            print(f"{time.perf_counter() - self._began:.0f} s: {event.stage}", flush=True)


@dataclass(frozen=True)
class Case:
    """A network, what it is calibrated on, and a scan with labels or without that is segmented."""

    network: Path
    spec: ModelSpec
    calibrate: list[Callable[[], Volume]]
    scan: Callable[[], Volume]
    labels: Callable[[], Volume] | None = None


def case_of(name: str, folder: Path) -> Case:
    """Return the case of a name of :data:`NAMES`.

    Args:
        folder: of the stand-ins.
    """

    def head(letter: str) -> Callable[[], Volume]:
        return lambda: read_volume(DATA / "brain" / f"t1_head_{letter}.nii.gz")

    def stripped(case: str) -> Callable[[], Volume]:
        return lambda: stand_ins.scan_of_case(case)

    others, apart = [stripped(case) for case in stand_ins.TRAINED_ON], stand_ins.KEPT_APART
    if name in stand_ins.STAND_INS:
        network = stand_ins.STAND_INS[name]
        groups, spec = stand_ins.structures(network), stand_ins.spec_of(network)
        file = folder / f"{name}.onnx"
    else:
        stem = name.removesuffix(_LABELED)
        groups, spec, file = [list(row[1:]) for row in BRAIN18], specs()[stem], DATA / "networks" / f"{stem}.onnx"
        if not name.endswith(_LABELED):
            return Case(file, spec, [head("b"), head("c")], head("a"))
        spec = replace(spec, normalization=(Normalization("percentile", low=0, high=99.9),))
    return Case(file, spec, others, stripped(apart), lambda: stand_ins.classes_of_case(apart, groups))


def measured(case: Case, effort: str) -> Iterator[dict[str, Any]]:
    """Quantize a case, and compare INT8 with FP32, and both with labels, on its scan; the row comes after each of both."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        write_package(Path(scratch) / "fp32", case.spec, {FP32: case.network})
        package, options = ModelPackage.load(Path(scratch) / "fp32"), CalibrationOptions(patches=PATCHES)
        sampler = PatchSampler(case.calibrate, case.spec, calibration_patch(package), options)
        policy = QuantizationPolicy(effort=effort)
        task = Task(_Stages())
        quantized, report = quantize_package(
            package, sampler, Path(scratch) / "int8", options, policy, task, _NoClock()
        )
        seconds = time.perf_counter() - began
        int8, fp32 = graph.load_network(quantized.onnx_path("int8")), graph.load_network(case.network)
    value = report.to_json()
    row = {key: value[key] for key in ("work", "int8_mac_share", "size_ratio", "agreement", "guard")}
    row["learned"] = value["learned_rounding"] and len(value["learned_rounding"]["layers"])
    row = {"effort": effort, "seconds": seconds, **row}
    yield row
    yield row | _on_the_scan(case, fp32, int8)


def _on_the_scan(case: Case, fp32: Any, int8: Any) -> dict[str, Any]:
    prepared = preprocess(case.scan(), case.spec)
    # Whole boxes of 8: nothing else is known of what pools read.
    margins = [(0, -n % 8) for n in prepared.data.shape[1:]]
    volume = np.pad(np.asarray(prepared.data, np.float32), [(0, 0), *margins])
    exact = _labels(fp32, volume)
    names = {label.channel: label.name for label in case.spec.labels}
    truth = None
    if case.labels is not None:
        drawn = np.rint(case.labels().data[0]).astype(np.int32)
        truth = np.pad(prepared.labels_in_network_space(drawn), margins)
    result: dict[str, Any] = {}
    for key, form in (("scan", FORM), ("scan_symmetric", SYMMETRIC)):
        found = _labels(form.of(int8), volume)
        dice = _dice(found, exact, names)
        worst = min(dice, key=lambda structure: dice[structure])
        result[key] = {"agreement": float(np.mean(list(dice.values()))), "worst": [worst, dice[worst]]}
        if truth is not None:
            result[key] |= {
                "dice_fp32": float(np.mean(list(_dice(exact, truth, names).values()))),
                "dice_int8": float(np.mean(list(_dice(found, truth, names).values()))),
            }
    return result


def _labels(model: Any, volume: np.ndarray) -> np.ndarray:
    shape = (volume.shape[1], volume.shape[2], volume.shape[3])
    return torch_runtime.TorchSession(graph.fixed_shape(model, shape).SerializeToString()).labels(volume)


def _dice(ours: np.ndarray, theirs: np.ndarray, names: dict[int, str]) -> dict[str, float]:
    """The Dice of each structure that the second one shows."""
    found = {}
    for channel, name in names.items():
        first, second = ours == channel, theirs == channel
        if second.any():
            found[name] = 2 * int((first & second).sum()) / (int(first.sum()) + int(second.sum()))
    return found


def page(value: dict[str, Any]) -> str:
    """Return the page of all rows."""
    lines = [
        "# Networks of 50 and 104 classes on whole heads, in simulation",
        "",
        f"Made by `experiments/simulated.py`; do not edit. INT8 is made by the library's own guard (budget 0.99) and simulated by torch on {value['device']}, in the form that OpenVINO computes;",
        f"FP32 and INT8 segment whole a head that neither training nor calibration saw. Times are of one processor core beside that GPU, which other jobs shared. {value['date']}. Real engines on other networks: [networks that resist](resisting.md).",
        "The stand-ins have the shape of public MeshNets whose weights are not at hand (104 and 50 classes, dilations 1 to 16, ELU and ReLU), and were trained for two and a half minutes on two labeled scans",
        "(`experiments/stand_ins.py`), so that their own Dice to the labels is low. What counts here: no layer runs in floating point, INT8 agrees with FP32, and the labels lose nothing. A layer in two INT8 halves takes twice the work.",
        "",
        "| network | effort | work in plain INT8 | in halves | in float | agreement on patches before, after | on held-out scans | on the scan | worst structure | on the scan, symmetric form | Dice to labels FP32 | lost in INT8 | layers in halves | file | quantized in s |",
        "| --- | --- |" + " ---: |" * 6 + " --- |" + " ---: |" * 6,
    ]
    for key, row in value["rows"].items():
        guard, scan = row["guard"], row.get("scan")
        known = scan is not None and scan.get("dice_fp32") is not None
        cells = [
            key.rpartition(", ")[0],
            row["effort"],
            *(f"{100 * row['work'][kind]:.1f} %" for kind in ("plain", "halves", "float")),
            f"{guard['agreement_before']:.4f}, {guard['agreement']:.4f}",
            f"{row['agreement']:.4f}",
            f"{scan['agreement']:.4f}" if scan else "–",
            f"{scan['worst'][0]} {scan['worst'][1]:.4f}" if scan else "–",
            f"{row['scan_symmetric']['agreement']:.4f}" if scan else "–",
            f"{scan['dice_fp32']:.4f}" if known else "–",
            f"{scan['dice_fp32'] - scan['dice_int8']:+.4f}" if known else "–",
            str(len(guard["halves"])),
            f"{row['size_ratio']:.3f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _key(name: str, row: dict[str, Any]) -> str:
    return f"{name}, {row['effort']}"


def main() -> None:
    import torch

    torch_runtime.use_torch()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all that are there)")
    parser.add_argument("--effort", choices=EFFORTS, default="normal")
    parser.add_argument("--stand-ins", type=Path, default=HERE / "stand-ins", help="folder of stand-ins")
    parser.add_argument("--output", type=Path, help="file for the rows, in place of those in docs/results")
    parser.add_argument(
        "--page", type=Path, nargs="+", help="take these files' rows into docs/results, and measure nothing"
    )
    args = parser.parse_args()
    target = args.output or TARGET
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a processor"
    known = json.loads(target.read_text()) if target.exists() else {"rows": {}}
    for file in args.page or ():
        other = json.loads(file.read_text())
        known["rows"] |= {_key(row.get("network", key), row): row for key, row in other["rows"].items()}
        device = other["device"]
    for name in () if args.page else args.names or NAMES:
        case = case_of(name, args.stand_ins)
        if not case.network.exists():
            print(f"{name}: {case.network} is not there", flush=True)
            continue
        known |= {"device": device, "date": time.strftime("%Y-%m-%d")}
        for row in measured(case, args.effort):
            known["rows"][_key(name, row)] = {"network": name, **row}
            target.write_text(json.dumps(known, indent=1) + "\n")
            print(name, json.dumps(row)[:300], flush=True)
    if not args.output:
        value = {"device": device, "date": time.strftime("%Y-%m-%d")} | known
        value["rows"] = {
            key: value["rows"][key]
            for name in NAMES
            for key in (f"{name}, {e}" for e in EFFORTS)
            if key in value["rows"]
        }
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
        TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
