"""Does the agreement of held-out scans hold for new ones? Writes docs/results/held_out.json and .md.

    python experiments/held_out.py

The hippocampus U-Net is calibrated on a few training scans, several times with others, nothing goes back to float. What is then said of
its agreement (each scan held out in turn) is compared with the agreement on test scans that it has never seen. INT8 is simulated (ONNX Runtime).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from data_models import hippocampus_spec  # noqa: E402
from hippocampus import case_names, files  # noqa: E402

TARGET = ROOT / "docs" / "results" / "held_out.json"
SCANS, DRAWS, TEST = (2, 4), 3, 12


def study() -> list[dict[str, Any]]:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.models import onnx_graph as graph
    from MedQuantINT8Lib.models import qdq
    from MedQuantINT8Lib.progress import Task
    from MedQuantINT8Lib.quantization.activation_ranges import collect_histograms, scales_from
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.fold_networks import Calibrated
    from MedQuantINT8Lib.quantization.fp32_network import Fp32Network
    from MedQuantINT8Lib.quantization.held_out import measure_held_out
    from MedQuantINT8Lib.quantization.measurer import Measurer
    from MedQuantINT8Lib.quantization.qdq_placement import place, require_quantizer
    from MedQuantINT8Lib.quantization.quantize import OPSET, QuantizationPolicy, policy_reasons

    spec = hippocampus_spec()
    patch = spec.window.patch_size
    name = "hippocampus_unet"
    fp32 = graph.at_opset(graph.load_network(ROOT / "Testing" / "Networks" / f"{name}.onnx"), OPSET, name)
    graph.name_nodes(fp32)
    train, test = ([files(case)[0] for case in case_names(part)] for part in ("train", "test"))

    def sampler(paths: list[Path]) -> PatchSampler:
        sources = [lambda path=path: read_volume(path) for path in paths]
        return PatchSampler(sources, spec, patch, CalibrationOptions(patches=len(paths)))

    new = sampler(test[:TEST])
    windows = [new.windows(index, 1)[0][0] for index in range(TEST)]
    measurers = [Measurer(fp32, [window], spec) for window in windows]
    placed = place(
        require_quantizer(), graph.fixed_shape(fp32, patch), windows[0], policy_reasons(fp32, QuantizationPolicy())
    )
    tensors = list(qdq.activation_tensors(placed))
    rows = []
    for count in SCANS:
        for draw in range(DRAWS):
            chosen = np.random.default_rng((count, draw)).choice(len(train), count, replace=False)
            calibration = sampler([train[index] for index in chosen])
            histograms = collect_histograms(fp32, tensors, calibration, len(calibration), patch, Task())
            options = CalibrationOptions(patches=count)
            int8 = graph.require_onnx().ModelProto()
            int8.CopyFrom(placed)
            qdq.set_activation_scales(int8, scales_from(histograms, options))
            said = measure_held_out(
                Calibrated(Fp32Network(fp32, patch), int8, histograms, options), calibration, spec, Task()
            )
            seen = [value for m in measurers if (value := m.measure(int8).agreement) is not None]
            enough = said.enough
            rows.append(
                {
                    "scans": count,
                    "said": said.agreement,
                    "next": None
                    if said.spread is None or said.spread.next_low is None
                    else [said.spread.next_low, said.spread.next_high],
                    "own": float(np.mean([scan.own_ranges for scan in said.scans])),
                    "enough": None if enough is None else enough.scans,
                    "new": float(np.mean(seen)),
                    "new_scans": seen,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def page(value: dict[str, Any]) -> str:
    machine = value["machine"]
    lines = [
        "# Held-out scans beside new ones",
        "",
        f"Made by `experiments/held_out.py`; do not edit. The hippocampus U-Net, calibrated by max on training scans drawn anew for each row, no layer in float, simulated INT8; then {TEST} test",
        f"scans. {machine['processor']}, {machine['cores']} cores; {value['date']}.",
        "",
        "| calibration scans | agreement on them | said: held out in turn | said: the next scan lies between | new scans, mean | lowest | highest | new scans between | scans that would be enough |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in value["rows"]:
        between, inside = "–", "–"
        if row["next"] is not None:
            low, high = row["next"]
            between = f"{low:.4f} and {high:.4f}"
            inside = f"{sum(low <= seen <= high for seen in row['new_scans'])} of {len(row['new_scans'])}"
        lines.append(
            f"| {row['scans']} | {row['own']:.4f} | {row['said']:.4f} | {between} | {row['new']:.4f} | {min(row['new_scans']):.4f} | {max(row['new_scans']):.4f} | {inside} | {row['enough'] or 'over 200'} |"
        )
    said, own = (float(np.mean([abs(row[key] - row["new"]) for row in value["rows"]])) for key in ("said", "own"))
    lines += [
        "",
        f"From the agreement of new scans the held-out figure is {said:.4f} away on average, that of the calibration scans {own:.4f}. The calibration scans are ones that the network was trained on, the new ones are not.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.system import machine

    value = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": study()}
    TARGET.write_text(json.dumps(value, indent=1) + "\n")
    TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
