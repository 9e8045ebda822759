"""``medquant quantize``: calibrate a model on scans and make its INT8 network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import number, whole
from .common import Add, add_command, add_force, add_model, add_reading_options, packages_of, reader_of
from .terminal import print_result

if TYPE_CHECKING:
    from ..progress import Task
    from ..quantization.calibration import CalibrationOptions
    from ..quantization.quantize import QuantizationPolicy


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    share = number(0, 1)
    command = add_command(
        add,
        "quantize",
        run,
        "calibrate on scans and make the INT8 network",
        "quantize spleen --calibrate scan1.nii.gz scan2.nii.gz",
        "quantize spleen --calibrate a.nii.gz --labels a_labels.nii.gz",
    )
    add_model(command)
    command.add_argument(
        "--calibrate", nargs="+", required=True, metavar="SCAN", help="scans (channels of one scan joined by commas)"
    )
    command.add_argument("--output", "-o", help="package to write (default: the model itself gets its INT8 network)")
    add_force(command)
    command.add_argument("--method", default="max", help="max, entropy, percentile or mse (default: %(default)s)")
    command.add_argument(
        "--percentile", type=number(50, 100), default=99.99, help="for --method percentile (default: %(default)s)"
    )
    command.add_argument(
        "--patches", type=whole(1, 1_000_000), default=20, help="in total over all scans (default: %(default)s)"
    )
    command.add_argument(
        "--foreground", type=share, default=0.6, help="share of patches around foreground (default: %(default)s)"
    )
    command.add_argument(
        "--foreground-by",
        choices=["intensity", "network"],
        default="intensity",
        help="find it by brightness or by a first FP32 pass (default: %(default)s)",
    )
    command.add_argument("--air", type=share, default=0.1, help="share of patches in air (default: %(default)s)")
    command.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of the draw (default: %(default)s)")
    command.add_argument("--keep", nargs="*", default=[], metavar="LAYER", help="layers to keep in high precision")
    command.add_argument(
        "--transposed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="quantize the inputs of transposed convolutions too (default: yes)",
    )
    command.add_argument("--keep-first", action="store_true", help="keep the first convolution in high precision")
    command.add_argument("--keep-head", action="store_true", help="keep the last convolution in high precision")
    command.add_argument(
        "--agreement",
        type=share,
        default=0.99,
        help="least Dice of simulated INT8 with FP32 on the scans; below it layers run as two INT8 halves, and last in float (default: %(default)s)",
    )
    command.add_argument(
        "--worst-structure",
        type=share,
        default=0.0,
        metavar="DICE",
        help="least Dice with FP32 of the structure that agrees least, such as 0.97 (default: not asked)",
    )
    command.add_argument("--labels", nargs="+", help="label maps of the scans, one each, with the model's label values")
    command.add_argument(
        "--dice-lost",
        type=share,
        default=0.005,
        help="most mean Dice to --labels that INT8 may lose (default: %(default)s)",
    )
    command.add_argument(
        "--no-fallback",
        action="store_true",
        help="only measure the loss: no layer is taken in halves or goes back to float",
    )
    command.add_argument(
        "--effort",
        choices=["fast", "normal", "best"],
        default="normal",
        help="how long may be tried: fast rounds weights to nearest, normal learns rounding where the agreement is too low, "
        "best learns it in any case (default: %(default)s)",
    )
    command.add_argument(
        "--weight-bits",
        type=int,
        choices=[8, 4],
        default=8,
        help="bits of the weights in the file; 4 are expanded to INT8 in an engine (default: %(default)s)",
    )
    command.add_argument(
        "--without-engine",
        action="store_true",
        help="quantize a network that no engine of this machine can run in INT8",
    )
    add_reading_options(command)


@dataclass(frozen=True)
class _Choices:
    """How a package is quantized."""

    calibration: CalibrationOptions
    policy: QuantizationPolicy


def run(args: argparse.Namespace, task: Task) -> None:
    """Quantize the model, or each network of a task, and say what stayed in float and how INT8 agrees with FP32."""
    from ..models.task_package import is_task
    from ..quantization.accuracy_guard import Budget
    from ..quantization.calibration import CalibrationOptions
    from ..quantization.effort import check_effort
    from ..quantization.quantize import QuantizationPolicy

    calibration = CalibrationOptions(args.method, args.patches, args.percentile, args.foreground, args.air, args.seed)
    calibration.check()
    budget = Budget(args.agreement, args.dice_lost, not args.no_fallback, worst_structure=args.worst_structure)
    policy = QuantizationPolicy(
        transposed=args.transposed,
        first=args.keep_first,
        head=args.keep_head,
        keep=tuple(args.keep),
        budget=budget,
        effort=args.effort,
        weight_bits=args.weight_bits,
    )
    check_effort(policy.effort, policy.weight_bits)
    choices = _Choices(calibration, policy)
    model = packages_of(args)
    if is_task(model):
        from .quantize_task import quantize_task

        print_result(args, *quantize_task(args, task, model, lambda *paths: _quantize(args, task, choices, *paths)))
        return
    model = packages_of(args, one=True)
    value, lines = _quantize(args, task, choices, model, args.output or model)
    print_result(args, value, *lines)


def _quantize(
    args: argparse.Namespace, task: Task, choices: _Choices, model: str, target: str, scans: Sequence[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Quantize one package into ``target``; what there is to say of it as JSON, and as lines for people.

    Args:
        scans: to calibrate on, in place of those of the command.
    """
    from ..errors import InputError
    from ..imaging.volume_files import scan_paths
    from ..outputs import check_output_package
    from ..quantization.pipeline import quantize
    from ..resources import resource
    from .overwriting import overwriting

    scans = args.calibrate if scans is None else scans
    inputs = [path for scan in (*scans, *(args.labels or [])) for path in scan_paths(scan)]
    if Path(target).resolve() == resource("demo.zip").resolve():
        raise InputError("The demo model is part of the program, and stays as it is.", "Give --output.")
    check_output_package(target, inputs, itself=model)
    reader = reader_of(args, task)
    with overwriting(args, _replaced_by_quantizing(Path(target), Path(model))):
        package, report = quantize(
            model,
            [scan_paths(s) for s in scans],
            target,
            choices.calibration,
            choices.policy,
            task,
            by_network=args.foreground_by == "network",
            labels=args.labels or [],
            reader=reader,
            engine_required=not args.without_engine,
        )
    float_layers = [layer for layer in report.layers if not layer.quantized]
    return {"package": str(target), "calibration": package.calibration(), "notes": reader.notes}, [
        f"wrote {target}: {report.int8_bytes / 1e6:.2f} MB instead of {report.fp32_bytes / 1e6:.2f} MB ({report.size_ratio:.3f}), "
        f"{100 * report.int8_mac_share:.1f} % of multiply-accumulates in INT8, agreement with FP32 {_agreement(report)} (simulated)",
        *(f"  {line}" for line in report.held_out.lines()),
        *_rounding_lines(report),
        *_guard_lines(report.guard),
        *_work_lines(report),
        *(f"  in high precision: {layer.name}: {layer.reason}" for layer in float_layers),
        *(f"warning: {text}" for text in report.warnings),
        *(f"note: {text}" for text in reader.notes),
    ]


def _replaced_by_quantizing(target: Path, model: Path) -> list[Path]:
    """What a package loses that is written anew: all of another package; of its own only an INT8 network, and what is no part of it."""
    from ..models.package import CALIBRATION, INT8, KNOWN_FILES, MODEL_JSON, peek

    if not (target.exists() and model.exists() and target.samefile(model)):
        return [target]
    if not target.is_dir():
        return [target] if INT8 in peek(target)[1] else []
    kept_names = {MODEL_JSON, *KNOWN_FILES} - {INT8, CALIBRATION}
    return [path for path in target.iterdir() if path.name not in kept_names]


def _rounding_lines(report: Any) -> list[str]:
    """What learned rounding did, for people."""
    lines = []
    if report.rounding is not None:
        lines.append(f"  {report.rounding.sentence}")
    if report.weight_bits == 4:
        lines.append(f"  weights of 4 bits in {len(report.four_bit_layers)} layer(s), of 8 in the others")
    return lines


def _guard_lines(result: Any) -> list[str]:
    """What the accuracy guard did, for people."""
    lines = [f"  on calibration patches {result.after.worst.text}"] if result.after.worst.text else []
    if result.in_other_form is not None:
        lines.append(
            f"  measured with {result.form.title}; with {result.other_form.title}, as engines of another kind compute it, the agreement is {_dice(result.in_other_form.agreement)}"
        )
    if result.dice_fp32 is not None:
        lines.append(
            f"mean Dice to the labels: FP32 {_dice(result.dice_fp32)}, INT8 {_dice(result.after.dice)} (simulated)"
        )
    steps = [
        f"runs {len(result.halves)} layer(s) as two INT8 halves" if result.halves else "",
        f"put {len(result.returned)} layer(s) back to float" if result.returned else "",
    ]
    if any(steps):
        lines.append(
            f"the guard {' and '.join(filter(None, steps))}: agreement {_dice(result.before.agreement)} before, {_dice(result.agreement)} after"
        )
    if result.cost_ms is not None:
        lines.append(f"  which costs {result.cost_ms:.1f} ms of {result.milliseconds[-1]:.1f} ms a window")
    if result.judged and not result.kept:
        lines.append(
            "warning: the budget does not hold: see 'guard' in calibration.json. Try --method, more scans, or --keep."
        )
    return lines


def _agreement(report: Any) -> str:
    """The agreement to trust, and of what it is."""
    if report.agreement is None:
        return _dice(report.guard.agreement)
    if not report.held_out.held_out:
        return f"{_dice(report.agreement)} on the calibration scan itself"
    return f"{_dice(report.agreement)} on held-out scans, {_dice(report.guard.agreement)} on calibration patches"


def _work_lines(report: Any) -> list[str]:
    """How the work is shared where layers run as two INT8 halves, and which do, for people."""
    lines = (
        [
            f"convolutions of a concatenation that run as one for each part, whose ranges are very unlike: {', '.join(report.split)}"
        ]
        if report.split
        else []
    )
    if not report.guard.halves:
        return lines
    work = {kind: f"{100 * share:.1f} %" for kind, share in report.to_json()["work"].items()}
    return [
        *lines,
        f"work of the network as it runs: {work['plain']} plain INT8, {work['halves']} in two INT8 halves, {work['float']} in float",
        *(f"  in two INT8 halves: {name}: {why}" for name, why in report.guard.halves.items()),
    ]


def _dice(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
