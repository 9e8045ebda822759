"""What the commands share: how a command states itself, arguments that several have, and what those arguments mean.

Nothing of the library is imported here but when a command runs: every command's arguments are stated before any is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..devices import DEVICES
from .arguments import axes, device, number, region, whole

if TYPE_CHECKING:
    from ..engines.base import Precision
    from ..imaging.volume_files import ScanReader
    from ..inference.engine_choice import EngineChoice
    from ..inference.segmenter import SegmentationOptions
    from ..models.spec import Label
    from ..progress import Task

#: What the help says of a model and of a scan.
PACKAGE = "model package, or the name of an installed model"
SCAN = "NIfTI, NRRD, MetaImage or a DICOM folder (channels joined by commas)"

#: What a command does with its arguments; it prints the result.
Run = Callable[[argparse.Namespace, "Task"], None]


class Add(Protocol):
    """Makes the parser of a command: ``add_parser`` of argparse's subparsers."""

    def __call__(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are wrapped, lists and examples are left as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        raw = "\n" in text
        return (
            super()._fill_text(text, width, indent)
            if raw
            else argparse.HelpFormatter._fill_text(self, text, width, indent)
        )


def complete_installed(**_: Any) -> list[str]:
    """Return the names of installed models, for completion."""
    from ..models.installed import installed_models

    return list(installed_models())


def complete_public(**_: Any) -> list[str]:
    """Names for completion: installed models and those of the catalogue."""
    from ..importers.catalogue import entries
    from ..models.installed import installed_models

    return sorted({*installed_models(), *entries()})


def add_command(add: Add, name: str, run: Run, text: str, *examples: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command with the options that all have.

    Args:
        text: what it does, in a line of the list of commands.
        examples: command lines for the end of its help, without the word medquant.
        more: what stands before the examples.
    """
    example_lines = "\n".join(f"  medquant {example}" for example in examples)
    command = add(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"{more}example{'s' if len(examples) > 1 else ''}:\n{example_lines}",
        formatter_class=Formatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object for machines")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return command


def add_model(command: argparse.ArgumentParser, text: str = PACKAGE) -> None:
    command.add_argument("model", help=text).completer = complete_installed  # type: ignore[attr-defined]


def add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="replace what is there already, whoever wrote it")


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """How scans are read where a file leaves a choice; the same for every command that reads them."""
    command.add_argument(
        "--allow-gaps", action="store_true", help="DICOM: fill missing or uneven slices by interpolation"
    )
    command.add_argument(
        "--allow-tilt", action="store_true", help="DICOM: resample slices of a tilted gantry to a straight grid"
    )
    command.add_argument(
        "--nifti-form",
        choices=["auto", "sform", "qform"],
        default="auto",
        help="NIfTI: which says where voxels lie (default: the sform)",
    )


def add_running_options(command: argparse.ArgumentParser, *, precision: bool = True) -> None:
    """What every command has that runs a network on scans."""
    command.add_argument(
        "--engine",
        default="auto",
        help="tensorrt, cuda_int8, tensorrt_rtx, openvino, onnxruntime or auto (default: %(default)s)",
    )
    if precision:
        command.add_argument(
            "--precision",
            choices=["auto", "int8", "fp16", "fp32"],
            default="auto",
            help="auto is int8, unless fp32 is faster on this machine; fp16 is for TensorRT (default: %(default)s)",
        )
    command.add_argument(
        "--device", type=device, default="auto", metavar="DEVICE", help=f"{DEVICES} (default: %(default)s)"
    )
    command.add_argument("--patch", type=whole(1, 4096), nargs=3, metavar="N", help="another patch size")
    command.add_argument("--overlap", type=number(0, 1, below=True), help="another overlap, 0 to below 1")
    command.add_argument(
        "--batch",
        type=whole(0, 1024),
        default=0,
        help="windows a call; 0: one on a processor, what fits on a GPU (default: %(default)s)",
    )
    command.add_argument("--threads", type=whole(0, 1024), default=0, help="CPU threads; 0: all (default: %(default)s)")
    mirroring = command.add_mutually_exclusive_group()
    mirroring.add_argument(
        "--mirroring",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average over mirrored windows, along all axes that the model allows (default: as the model says, mostly not)",
    )
    mirroring.add_argument(
        "--mirror-axes",
        type=axes,
        metavar="A,B",
        help="mirror along these axes of the network's input alone, such as 0,2",
    )
    command.add_argument(
        "--resample",
        choices=["logits", "probabilities", "masks", "labels"],
        help="what is resampled to the scan's grid, labels by the nearest voxel (default: as the model says)",
    )
    command.add_argument("--skip-air", action="store_true", help="leave out windows that hold only air")
    command.add_argument(
        "--no-range-check",
        action="store_true",
        help="do not look whether a scan leaves the ranges that INT8 was calibrated on",
    )
    command.add_argument(
        "--check-share",
        type=number(0, 1),
        metavar="SHARE",
        help="share of an INT8 run's windows that FP32 runs as well, to compare both, such as 0.05 (default: one of 50, at most 8, none beside a GPU)",
    )
    command.add_argument(
        "--memory",
        type=number(0, 100_000, above=True),
        metavar="GB",
        help="for blended scores (default: half of what is free, at most 3)",
    )


def add_region_options(command: argparse.ArgumentParser) -> None:
    """Which structures of a scan are segmented, and where."""
    command.add_argument(
        "--structures",
        metavar="NAMES",
        help="only these, joined by commas; a task runs only the parts that have them (default: all)",
    )
    command.add_argument(
        "--roi",
        type=region,
        metavar="BOX",
        help="only in this box, in millimeters: RAS:x0,x1,y0,y1,z0,z1 or LPS:center=x,y,z,size=a,b,c",
    )


def options_of(args: argparse.Namespace, labels: Sequence[Label] = ()) -> SegmentationOptions:
    """How a scan is segmented, by the options of :func:`add_running_options` and, where a command has them, :func:`add_region_options`.

    Args:
        labels: of the model, since a structure's name may hold a comma.
    """
    from ..inference.segmenter import SegmentationOptions

    memory = int(args.memory * (1 << 30)) if args.memory is not None else None
    return SegmentationOptions(
        tuple(args.patch) if args.patch else None,
        args.overlap,
        args.batch,
        args.skip_air,
        memory,
        check_ranges=not args.no_range_check,
        check_share=args.check_share,
        mirroring=args.mirroring if args.mirror_axes is None else args.mirror_axes,
        structures=_structures_of(getattr(args, "structures", None), labels),
        resample=args.resample,
        roi=getattr(args, "roi", None),
    )


def _structures_of(text: str | None, labels: Sequence[Label]) -> tuple[str, ...] | None:
    """Return the names in a text that joins them by commas; a comma in a label's name does not part it.

    Raises:
        InputError: there is no name in it.
    """
    from ..errors import InputError

    if text is None:
        return None
    known = {label.name for label in labels}
    names, parts = list[str](), text.split(",")
    while parts:
        # The longest run of parts that is a name; a part that is none stays alone, to be complained of.
        count = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]).strip() in known), 1)
        names.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    if not any(names):
        raise InputError("--structures names nothing.", "Give names joined by commas, or leave it out for all.")
    return tuple(dict.fromkeys(filter(None, names)))


def reader_of(args: argparse.Namespace, task: Task) -> ScanReader:
    """Reads scans by the options of :func:`add_reading_options`."""
    from ..imaging.volume_files import ReadOptions, ScanReader

    series = getattr(args, "series", None)
    return ScanReader(ReadOptions(series, args.allow_gaps, args.allow_tilt, args.nifti_form), task.check)


def choice_of(args: argparse.Namespace, precision: Precision | None = None) -> EngineChoice:
    """Return the choice of engine that the arguments state.

    Args:
        precision: of a command that takes none from the user.

    Raises:
        EngineError: a GPU that is not there.
        DependencyError: several GPUs, and cuda-python or the driver is missing.
    """
    from ..inference.engine_choice import EngineChoice

    return EngineChoice(args.engine, precision or args.precision, args.threads, args.device).checked()


def packages_of(args: argparse.Namespace, *, one: bool = False) -> str:
    """The packages of the model that was named, joined by commas; says so where the name can mean two.

    Raises:
        InputError: several packages where only ``one`` can be used, or what was given is no model but a scan.
    """
    from ..models.installed import both_meant, resolve, resolve_one
    from .terminal import warn

    check_order(args)
    if note := both_meant(args.model):
        warn(f"note: {note}")
    paths = (resolve_one if one else resolve)(args.model)
    _check_installed(paths)
    return paths


def check_order(args: argparse.Namespace) -> None:
    """Say so where a scan was given before the model, or in its place.

    Raises:
        InputError: what was given as the model is none, and a scan's name names one; or it is a scan itself.
    """
    import shlex
    from pathlib import Path

    from ..errors import InputError
    from ..imaging.segmentation_files import SINGLE_EXTENSIONS
    from ..models.installed import names_model

    if names_model(args.model):
        return
    given = getattr(args, "scans", None) or [getattr(args, "scan", None) or ""]
    if model := next((scan for scan in given if scan and names_model(scan)), None):
        raise InputError(
            f"{args.model} is no model, but {model} is: the model comes first.",
            f"medquant {args.command} {shlex.quote(model)} {shlex.quote(args.model)}",
        )
    if Path(args.model).is_file() and args.model.lower().endswith(SINGLE_EXTENSIONS):
        raise InputError(f"{args.model} is no model, but a scan or a segmentation.", "Give the model before it.")


def _check_installed(paths: str) -> None:
    """Complain of a name of the catalog that stands for nothing on this machine."""
    from ..errors import InputError
    from ..files import split_paths, there

    for path in split_paths(paths):
        if there(path):
            continue
        from ..importers.catalogue import entries

        if path in entries():
            raise InputError(f"The model {path} is not installed.", f"Get it with: medquant models get {path}")


def choice_lines(choice: dict[str, Any] | None) -> list[str]:
    """Why a precision that was left to the program was taken, and when that was decided."""
    if choice is None:
        return []
    return [f"precision: {choice['reason']}" + (f" (decided {choice['decided'][:10]})" if choice["decided"] else "")]
