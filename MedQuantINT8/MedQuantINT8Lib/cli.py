"""The command ``medquant``: arguments in, exit code out. What the commands do is in :mod:`.commands`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from . import __version__, commands, differences_command, import_command, models_command, study_commands
from .errors import Cancelled, MedQuantError
from .progress import Task
from .terminal import Bar

_EXIT_CODES = """exit codes:
  0 done            1 failed             2 a scan or argument that cannot be used
  3 a bad package   4 no or wrong engine 5 cannot write   6 a package is not installed
  7 a download failed   130 cancelled
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="medquant",
        description="3D medical segmentation networks in real 8-bit integers.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"medquant {__version__}")
    add = top.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser

    command = _command(add, "doctor", commands.doctor, "what is installed, which engines can run here, and why not the others")

    command = _command(add, "demo", commands.demo, "the whole road on a made volume, in a Slicer scene: needs no download")
    command.add_argument(
        "--output", default="demo-output", help="folder for segmentation, picture and report (default: %(default)s)"
    )

    _import_options(_command(add, "import", import_command.run, "make a model package"))

    command = _command(add, "quantize", commands.quantize, "calibrate on scans and make the INT8 network")
    command.add_argument("model", help="model package")
    command.add_argument(
        "--calibrate", nargs="+", required=True, metavar="SCAN", help="scans (channels of one scan joined by commas)"
    )
    command.add_argument("--output", "-o", help="package to write (default: the model itself gets its INT8 network)")
    command.add_argument("--method", default="max", help="max, entropy, percentile or mse (default: %(default)s)")
    command.add_argument("--percentile", type=float, default=99.99, help="for --method percentile (default: %(default)s)")
    command.add_argument("--patches", type=int, default=20, help="in total over all scans (default: %(default)s)")
    command.add_argument(
        "--foreground", type=float, default=0.6, help="share of patches around foreground (default: %(default)s)"
    )
    command.add_argument(
        "--foreground-by",
        choices=["intensity", "network"],
        default="intensity",
        help="find it by brightness or by a first FP32 pass (default: %(default)s)",
    )
    command.add_argument("--air", type=float, default=0.1, help="share of patches in air (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    command.add_argument("--keep", nargs="*", default=[], metavar="LAYER", help="layers to keep in high precision")
    command.add_argument("--keep-first", action="store_true", help="keep the first convolution in high precision")
    command.add_argument("--keep-head", action="store_true", help="keep the last convolution in high precision")
    command.add_argument(
        "--agreement",
        type=float,
        default=0.99,
        help="least Dice of simulated INT8 with FP32 on the scans; below it layers go back to float (default: %(default)s)",
    )
    command.add_argument("--labels", nargs="+", help="label maps of the scans, one each, with the model's label values")
    command.add_argument(
        "--dice-lost", type=float, default=0.005, help="most mean Dice to --labels that INT8 may lose (default: %(default)s)"
    )
    command.add_argument("--no-fallback", action="store_true", help="only measure the loss: no layer goes back to float")

    command = _command(add, "build", commands.build, "build the engine for this machine")
    command.add_argument("model", help="model package")
    command.add_argument("--scan", help="a scan to hold the engine against the simulation")
    _running_options(command)

    command = _command(add, "segment", commands.segment, "segment a scan")
    command.add_argument("model", help="model package, or several joined by commas, whose class scores are averaged")
    command.add_argument("scan", help="NIfTI, NRRD, MetaImage or a DICOM folder (channels joined by commas)")
    command.add_argument("--output", "-o", required=True, help="X.seg.nrrd, or a label map as .nii.gz, .nrrd, .mha")
    command.add_argument("--series", help="series instance UID, where a DICOM folder holds several")
    _running_options(command)

    command = _command(add, "compare", commands.compare, "FP32 against INT8: size, time, memory, agreement")
    command.add_argument("model", help="model package with both networks")
    command.add_argument("scans", nargs="+", help="scans")
    command.add_argument("--labels", nargs="+", help="reference label maps, one a scan, with the model's label values")
    command.add_argument("--report", help="folder for report.json and report.html")
    _running_options(command, precision=False)

    command = _command(add, "differences", differences_command.run, "where INT8 differs from FP32 on a scan: regions, margins, changed volumes")
    command.add_argument("model", help="model package with both networks, or the name of an installed model")
    command.add_argument("scan", help="NIfTI, NRRD, MetaImage or a DICOM folder (channels joined by commas)")
    command.add_argument("--output", "-o", default="differences", help="folder for differences.seg.nrrd, regions.csv, report.html and .json (default: %(default)s)")
    command.add_argument("--volume-change", type=float, default=5.0, metavar="PERCENT", help="point out structures that change by more (default: %(default)s)")
    _running_options(command, precision=False)

    command = _command(add, "models", models_command.run, "public models: list, show, get, remove")
    command.add_argument("action", nargs="?", choices=["list", "show", "get", "remove"], default="list")
    command.add_argument("name", nargs="?", help="of the model; for list, words to look for")
    command.add_argument("--from", dest="source", metavar="PATH", help="get: a file or folder that was got by hand")
    command.add_argument("--accept-license", action="store_true", help="get: the licence was read and is accepted")
    command.add_argument("--trust-code", action="store_true", help="get: run Python code that comes with the model")

    _command(add, "networks", study_commands.networks, "the study's seven networks, as they can be made here")

    command = _command(add, "reproduce", study_commands.reproduce, "make a table of the study anew, on this machine")
    command.add_argument("--table", choices=["networks", "sizes"], required=True, help="which")
    command.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="only these (default: all seven)")
    command.add_argument("--engine", default="auto", help="openvino, onnxruntime or auto (default: %(default)s)")
    command.add_argument("--output", help="folder for TABLE.json and TABLE.md; rows that are there are kept")

    command = _command(add, "selftest", study_commands.selftest, "prove an engine on this machine: INT8, FP16 and FP32 of known networks")
    command.add_argument("--engine", default="auto", help="tensorrt, cuda_int8, tensorrt_rtx, openvino or auto (default: %(default)s)")
    command.add_argument("--networks", nargs="+", default=["demo"], metavar="NAME", help="demo, all, or names of medquant networks (default: demo)")
    command.add_argument("--output", default="selftest", help="folder for selftest.html and selftest.json (default: %(default)s)")

    command = _command(add, "evaluate", study_commands.evaluate, "FP32 and INT8 against manual labels, with intervals and tests")
    command.add_argument("model", help="model package with both networks, or the name of an installed model")
    command.add_argument("--data", required=True, help="a data set: JSON description, or the folder of a public one")
    command.add_argument("--form", default="auto", help="json, msd, btcv, totalsegmentator, wholebrain (default: by its files)")
    command.add_argument("--split", default="all", help="train, val, test or all (default: %(default)s)")
    command.add_argument("--cases", type=int, default=0, metavar="N", help="only the first N (default: all)")
    command.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice (default: %(default)s mm)")
    command.add_argument("--output", "-o", default="evaluation", help="folder for evaluation.html, .csv, .json (default: %(default)s)")
    _running_options(command, precision=False)

    command = _command(add, "cache", commands.cache, "engines that were built on this machine")
    command.add_argument("action", choices=["list", "clear"])
    command.add_argument("--model", help="only engines of this model")
    return top


def _command(add: object, name: str, run: object, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = add(name, help=text, description=text[0].upper() + text[1:] + ".")  # type: ignore[operator]
    made.set_defaults(run=run)
    made.add_argument("--json", action="store_true", help="print one JSON object for machines")
    made.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return made


def _import_options(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "what the network is:\n" + "\n".join(f"  {form:13}{what}" for form, what in import_command.FORMS.items())
    command.add_argument("form", choices=list(import_command.FORMS), metavar="FORM", help="one of those below")
    command.add_argument("network", help="the file or folder")
    command.add_argument("--output", "-o", required=True, help="package to write: a folder or .zip")
    command.add_argument("--spec", help="description (model.json) to use instead of the one that is understood")
    command.add_argument("--draft", metavar="FILE", help="only write what is understood, to be edited and given back with --spec")
    command.add_argument("--patch", type=int, nargs=3, metavar="N", help="patch size, where the network leaves it open")
    command.add_argument("--dynamic", action="store_true", help="leave spatial sizes open, for networks that allow it")
    command.add_argument("--trust-code", action="store_true", help="run Python code that comes with the network")
    command.add_argument("--folds", type=int, nargs="+", help="nnunet: which folds (default: all; one package each)")
    command.add_argument("--configuration", help="nnunet: such as 3d_fullres (default: as the folder's name says)")
    command.add_argument("--channels", type=int, default=1, help="torchscript, export, python: input channels (default: 1)")
    command.add_argument("--class", dest="class_name", help="python: name of the class")
    command.add_argument("--arguments", default="{}", help="python: JSON object of the class's arguments")
    command.add_argument("--weights", help="python: checkpoint")


def _running_options(command: argparse.ArgumentParser, *, precision: bool = True) -> None:
    command.add_argument("--engine", default="auto", help="tensorrt, cuda_int8, tensorrt_rtx, openvino, onnxruntime or auto (default: %(default)s)")
    if precision:
        command.add_argument(
            "--precision",
            choices=["auto", "int8", "fp16", "fp32"],
            default="auto",
            help="auto is int8, unless fp32 is faster on this machine; fp16 is for TensorRT (default: %(default)s)",
        )
    command.add_argument("--device", default="cpu", help="cpu, gpu (the one with most free memory) or gpu:N; for engines on NVIDIA GPUs (default: %(default)s)")
    command.add_argument("--patch", type=int, nargs=3, metavar="N", help="another patch size")
    command.add_argument("--overlap", type=float, help="another overlap, 0 to below 1")
    command.add_argument("--batch", type=int, default=0, help="windows a call; 0: one on a processor, what fits on a GPU (default: %(default)s)")
    command.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    command.add_argument("--skip-air", action="store_true", help="leave out windows that hold only air")
    command.add_argument("--no-range-check", action="store_true", help="do not look whether a scan leaves the ranges that INT8 was calibrated on")
    command.add_argument(
        "--memory", type=float, metavar="GB", help="for blended scores (default: half of what is free, at most 3)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    bar = Bar(enabled=not (args.quiet or args.json))
    task = Task(bar.show)

    def stop(signum: int, frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        signal.signal(signum, signal.SIG_DFL)
        task.cancel()

    previous = [(s, signal.signal(s, stop)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        args.run(args, task)
    except MedQuantError as error:
        bar.clear()
        print(f"medquant: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        bar.clear()
        return Cancelled.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        bar.clear()
        for number, handler in previous:
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
