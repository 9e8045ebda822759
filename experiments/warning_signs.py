"""What predicts that a new scan agrees less with FP32? Writes docs/results/warning_signs.json and .md.

    python experiments/warning_signs.py [--networks NAME ...]
    python experiments/warning_signs.py --page

Each network is calibrated on a few scans, nothing goes back to float. New scans, as they are and changed as another scanner or sequence
would change them, are cut into windows, which FP32 and simulated INT8 (ONNX Runtime) run. What is known of some windows
(the signs) is compared with the agreement in all the others (the truth).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Testing" / "support"), str(ROOT / "MedQuantINT8")]

from data_models import DATA, hippocampus_spec, specs  # noqa: E402
from hippocampus import case_names, files  # noqa: E402
from robustness import SHIFTS  # noqa: E402

TARGET = ROOT / "docs" / "results" / "warning_signs.json"
#: Windows of a scan: the first ones give the signs, the others the truth.
LOOKED = 2
#: A scan loses where its agreement is this much below that of the calibration scans.
LOSS = 0.01
CHANGES = ("as calibrated", "gamma 0.5", "gamma 2", "noise, half a deviation", "bias field, factor e", "one voxel in 500 at 5 times the maximum")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A network with its scans.

    Attributes:
        patch: of the windows.
    """

    network: Path
    spec: Any
    calibrate: Sequence[Path]
    scans: Sequence[Path]
    patch: tuple[int, int, int]
    method: str = "max"
    windows: int = 8


def settings() -> dict[str, Setting]:
    """The networks of the experiment by name."""
    from MedQuantINT8Lib.models.spec import Normalization

    described, networks = specs(), DATA / "networks"
    heads = {name: DATA / "brain" / f"t1_head_{name}.nii.gz" for name in "abc"}
    stripped = {name: DATA / "brain_labelled" / f"{name}_t1_stripped.nii.gz" for name in ("1000", "1001", "1003")}
    by_quantile = (Normalization("percentile", low=0, high=99.9),)
    side = (48, 48, 48)
    train, test = ([files(case)[0] for case in case_names(part)] for part in ("train", "test"))
    result = {
        "hippocampus_unet": Setting(
            ROOT / "Testing" / "Networks" / "hippocampus_unet.onnx",
            hippocampus_spec(),
            train[:2],
            test[:8],
            (32, 32, 32),
        )
    }
    for name in ("brain18_meshnet30", "brain18_meshnet"):
        for left in ("1000", "1001"):
            result[f"{name}, without {left}"] = Setting(
                networks / f"{name}.onnx",
                replace(described[name], normalization=by_quantile),
                [path for case, path in stripped.items() if case != left],
                [stripped[left]],
                side,
                "percentile",
                6,
            )
    for name, method in (("brain3_meshnet20", "mse"), ("brain3_meshnet5", "max"), ("brain_mask_mindgrab", "max")):
        result[name] = Setting(
            networks / f"{name}.onnx", described[name], [heads["b"]], [heads["a"], heads["c"]], side, method, 6
        )
    torchio = described["brain_torchio_4mm"]
    result["brain_torchio_4mm"] = Setting(
        networks / "brain_torchio_4mm.onnx", torchio, [heads["b"]], [heads["a"], heads["c"]], torchio.window.patch_size
    )
    return result


def margins(scores: np.ndarray, activation: str) -> np.ndarray:
    """By how much each voxel's label wins, in the scores' own unit; (N, classes, ...) to (N, ...) or (N, classes, ...)."""
    if activation != "softmax":
        return np.abs(scores)
    two = np.partition(scores, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def expected_loss(scores: np.ndarray, labels: np.ndarray, activation: str, error: float) -> float:
    """The share of its own structures' voxels that INT8 is expected to label otherwise than FP32, from its margins alone.

    A voxel changes its label where a normal error of the typical size exceeds its margin.
    """
    from scipy.stats import norm

    return float(norm.sf(margins(scores, activation) / error).sum() / max(1, 2 * int((labels > 0).sum())))


def differences(scores: np.ndarray, exact: np.ndarray, activation: str) -> np.ndarray:
    """How far INT8's winning margin is from the same margin in FP32."""
    if activation != "softmax":
        return scores - exact
    order = np.argsort(scores, axis=1)[:, -2:]
    ours, theirs = np.take_along_axis(scores, order, 1), np.take_along_axis(exact, order, 1)
    return np.asarray((ours[:, 1] - ours[:, 0]) - (theirs[:, 1] - theirs[:, 0]))


class Networks:
    """FP32 and simulated INT8 of a package, with the probe of its ranges."""

    def __init__(self, package: Any, patch: tuple[int, int, int]) -> None:
        from MedQuantINT8Lib.engines.fidelity import labels_of
        from MedQuantINT8Lib.engines.onnxruntime import session
        from MedQuantINT8Lib.inference.range_check import Probe, limits_of
        from MedQuantINT8Lib.models import onnx_graph as graph

        self.spec = package.spec
        self._runs = {}
        for precision in ("fp32", "int8"):
            model = graph.fixed_shape(graph.load_network(package.onnx_path(precision)), patch)
            self._runs[precision] = session(model.SerializeToString(), precision)
        self.probe = Probe(package.onnx_path("fp32"), patch, limits_of(package))
        self.labels = labels_of(package.spec.output)

    def scores(self, precision: str, window: np.ndarray) -> np.ndarray:
        run = self._runs[precision]
        return np.asarray(run.run(None, {run.get_inputs()[0].name: window[None]})[0])

    def pooled(self) -> Any:
        from MedQuantINT8Lib.inference.structure_dice import PooledDice

        return PooledDice(self.spec.output.activation == "softmax")


def windows_of(volume: Any, setting: Setting) -> list[np.ndarray]:
    """The windows of a scan that have most to see, in the order in which the product looks at them."""
    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.inference.range_check import _patch, _starts
    from MedQuantINT8Lib.inference.windows import plan_windows

    data = preprocess(volume, setting.spec).data
    window = replace(setting.spec.window, overlap=0.25, overlaps=None)
    plan = plan_windows(data.shape[1:], window, setting.patch)
    return [np.ascontiguousarray(_patch(data, plan, start)) for start in _starts(data, plan)[: setting.windows]]


def typical_error(networks: Networks, windows: Sequence[np.ndarray]) -> float:
    """The root mean square of the margins' errors on calibration scans."""
    activation = networks.spec.output.activation
    squares = [
        np.square(differences(networks.scores("int8", w), networks.scores("fp32", w), activation)).mean()
        for w in windows
    ]
    return float(np.sqrt(np.mean(squares)))


def look(networks: Networks, windows: Sequence[np.ndarray], error: float) -> dict[str, float | None]:
    """The signs that the first windows give, and the agreement in the others."""
    activation = networks.spec.output.activation
    looked, truth = networks.pooled(), networks.pooled()
    first = windows[:LOOKED] if len(windows) > LOOKED else windows[:1]
    rest = windows[len(first) :] or windows
    shares, near, squares, reference = [], [], 0.0, 0.0
    for window in first:
        int8, fp32 = networks.scores("int8", window), networks.scores("fp32", window)
        looked.add(networks.labels(int8), networks.labels(fp32))
        shares.append(networks.probe.shares(window))
        near.append(expected_loss(int8, networks.labels(int8), activation, error))
        squares += float(np.square(int8 - fp32).sum())
        reference += float(np.square(fp32).sum())
    for window in rest:
        truth.add(networks.labels(networks.scores("int8", window)), networks.labels(networks.scores("fp32", window)))
    tensors = {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}
    return {
        "agreement": truth.value,
        "worst": min((item.dice for item in truth.structures), default=None),
        "canary": looked.value,
        "near": float(np.mean(near)),
        "error": float(np.sqrt(squares / max(reference, 1e-30))),
        "clipped_worst": max(tensors.values()),
        "clipped_mean": float(np.mean(list(tensors.values()))),
    }


def study(name: str, setting: Setting) -> dict[str, Any]:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.importers.onnx import import_onnx
    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDQUANT_CACHE"] = f"{folder}/engines"
        package = import_onnx(setting.network, setting.spec, Path(folder) / "model")
        volumes: list[Callable[[], Any]] = [lambda path=path: read_volume(path) for path in setting.calibrate]  # type: ignore[misc]
        options = CalibrationOptions(setting.method, 8)
        sampler = PatchSampler(volumes, package.spec, setting.patch, options)
        policy = QuantizationPolicy(budget=Budget(fallback=False))
        made, report = quantize_package(package, sampler, Path(folder) / "int8", options, policy)
        networks = Networks(made, setting.patch)
        own = [windows_of(read_volume(path), setting) for path in setting.calibrate]
        error = typical_error(networks, [window for windows in own for window in windows[:LOOKED]])
        calibrated = [look(networks, windows, error) for windows in own]
        rows = []
        for path in setting.scans:
            for change in CHANGES if len(setting.scans) < 5 else CHANGES[:4]:
                volume = SHIFTS[change](read_volume(path), 0)
                rows.append({"scan": path.stem, "change": change, **look(networks, windows_of(volume, setting), error)})
                print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    held_out = report.held_out.to_json()
    return {"network": name, "error": error, "calibrated": calibrated, "held_out": held_out, "rows": rows}


SIGNS = {
    "canary": "agreement of two windows in FP32",
    "near": "loss expected from margins",
    "error": "error of the scores in two windows",
    "clipped_worst": "values beyond the range, worst tensor",
    "clipped_mean": "the same, mean over tensors",
}


def expected_of(network: dict[str, Any]) -> Any:
    """What the product expects of the network: its agreement on scans that it was measured on, and the deviation of a window."""
    from MedQuantINT8Lib.inference.second_look import Expected

    held_out = network.get("held_out")
    if held_out is None:
        return Expected(float(np.mean([scan["agreement"] for scan in network["calibrated"]])))
    windows = [value for scan in held_out["scans"] for value in scan["windows"]]
    deviation = float(np.std(windows, ddof=1)) if len(windows) > 2 else Expected.deviation
    return Expected(held_out["agreement"], deviation)


def separation(values: Sequence[float], losing: Sequence[bool]) -> float | None:
    """How often a scan that loses has the larger value than one that does not: 1 tells them apart, 0.5 says nothing."""
    first = np.array([v for v, loses in zip(values, losing, strict=True) if loses])
    second = np.array([v for v, loses in zip(values, losing, strict=True) if not loses])
    if not first.size or not second.size:
        return None
    return float((first[:, None] > second).mean() + 0.5 * (first[:, None] == second).mean())


def page(value: dict[str, Any]) -> str:
    machine = value["machine"]
    lines = [
        "# What predicts that a scan agrees less with FP32",
        "",
        "Made by `experiments/warning_signs.py`; do not edit. Each network is calibrated on one or two scans, nothing goes back to float, INT8 is simulated. New scans, as they are and",
        "changed (gamma, noise, bias field, single bright voxels), are cut into windows: two of them give the signs, the others the agreement with FP32. A scan loses where that is more than",
        f"{LOSS} below what was measured at quantization. {machine['processor']}, {machine['cores']} cores; {value['date']}.",
        "",
        "How well a sign tells scans that lose from those that do not (1: always, 0.5: by chance, 0: the wrong way round):",
        "",
        "| network | expected agreement | scans | of these lose | "
        + " | ".join(SIGNS.values())
        + " | warned of those that lose | of the others |",
        "| --- |" + " ---: |" * (len(SIGNS) + 5),
    ]
    for network in value["networks"]:
        expected = expected_of(network)
        rows = [row for row in network["rows"] if row["agreement"] is not None and row["canary"] is not None]
        losing = [row["agreement"] < expected.agreement - LOSS for row in rows]
        cells = []
        for sign in SIGNS:
            found = separation([-row[sign] if sign == "canary" else row[sign] for row in rows], losing)
            cells.append("–" if found is None else f"{found:.2f}")
        warned = [row["canary"] < expected.least(LOOKED) for row in rows]
        right = sum(w and loses for w, loses in zip(warned, losing, strict=True))
        lines.append(
            f"| {network['network']} | {expected.agreement:.4f} | {len(rows)} | {sum(losing)} | {' | '.join(cells)} | {right} of {sum(losing)} | {sum(warned) - right} of {len(rows) - sum(losing)} |"
        )
    lines += [
        "",
        "Values beyond the calibrated range, which were all that a run looked at, say next to nothing: a head with a few voxels of five times its maximum has 0.2 % of a tensor's values beyond",
        "its range and loses 0.07, another has 57 % beyond and loses 0.01. What INT8's own margins make expect tells noisy scans from clean ones in some networks, and points the wrong way in",
        "others: a network may be sure of what it gets wrong. Two windows in FP32 see the loss itself, as far as two windows can: the more are looked at, the surer.",
        "",
        "| network | scan | changed | agreement | of two windows | loss expected from margins | beyond the range, worst |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for network in value["networks"]:
        for row in network["rows"]:
            if row["agreement"] is not None and row["canary"] is not None:
                lines.append(
                    f"| {network['network']} | {row['scan'].removesuffix('.nii')} | {row['change']} | {row['agreement']:.4f} | {row['canary']:.4f} | {row['near']:.4f} | {100 * row['clipped_worst']:.2f} % |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    from MedQuantINT8Lib.system import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(settings()))
    parser.add_argument("--page", action="store_true", help="only write the page of what is there")
    args = parser.parse_args()
    value = json.loads(TARGET.read_text()) if TARGET.exists() else {"networks": []}
    found = {row["network"]: row for row in value["networks"]}
    for name in () if args.page else args.networks or settings():
        began = time.perf_counter()
        found[name] = study(name, settings()[name])
        print(name, f"{time.perf_counter() - began:.0f} s", flush=True)
        value = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "networks": list(found.values())}
        TARGET.write_text(json.dumps(value, indent=1) + "\n")
    TARGET.with_suffix(".md").write_text(page(value))


if __name__ == "__main__":
    main()
