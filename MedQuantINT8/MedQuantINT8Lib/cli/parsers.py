"""The commands, their options and their help. Nothing of what a command does is imported here: it is named, and loaded when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from .. import __version__
from ..devices import DEVICES
from .arguments import FORMS, JSON_FORM, device, fold, number, whole
from .terminal import prepare_streams, warn

_EXIT_CODES = """exit codes:
  0 done             1 failed    2 a scan or argument that cannot be used
  3 a bad package    4 no or wrong engine    5 cannot write
  6 a package is not installed    7 a download failed    130 canceled

{completion}

example:
  medquant segment demo scan.nii.gz
"""
_COMPLETION = """completion by the Tab key, in bash, zsh and fish:
  pip install argcomplete, then: eval "$(register-python-argcomplete medquant)\""""
_PACKAGE = "model package, or the name of an installed model"
_SCAN = "NIfTI, NRRD, MetaImage or a DICOM folder (channels joined by commas)"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        prepare_streams()
        warn(f"{message}. See: {self.prog} --help")
        sys.exit(2)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are wrapped, lists and examples are left as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        raw = "\n" in text
        return (
            super()._fill_text(text, width, indent)
            if raw
            else argparse.HelpFormatter._fill_text(self, text, width, indent)
        )


def installed_models(**_: Any) -> list[str]:
    """Names for completion: installed models."""
    from ..models.installed import installed_models

    return list(installed_models())


def public_models(**_: Any) -> list[str]:
    """Names for completion: installed models and those of the catalogue."""
    from ..importers.catalogue import entries
    from ..models.installed import installed_models

    return sorted({*installed_models(), *entries()})


def commands_of(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands with their parsers."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``args.run`` names the function of a command as "module:function"."""
    top = Parser(
        prog="medquant",
        description="3D medical segmentation networks in real 8-bit integers.",
        epilog=_EXIT_CODES.format(completion=_COMPLETION),
        formatter_class=_Formatter,
    )
    top.add_argument("--version", action="version", version=f"medquant {__version__}")
    add = top.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser
    _doctor(add)
    _demo(add)
    _import(add)
    _quantize(add)
    _build(add)
    _segment(add)
    _compare(add)
    _differences(add)
    _models(add)
    _study(add)
    _evaluate(add)
    _cache(add)
    return top


def _command(add: Any, name: str, run: str, text: str, *examples: str, more: str = "") -> argparse.ArgumentParser:
    """A command; ``examples`` stand at the end of its help, without the word medquant."""
    shown = "\n".join(f"  medquant {example}" for example in examples)
    made: argparse.ArgumentParser = add(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"{more}example{'s' if len(examples) > 1 else ''}:\n{shown}",
        formatter_class=_Formatter,
    )
    made.set_defaults(run=run)
    made.add_argument("--json", action="store_true", help="print one JSON object for machines")
    made.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return made


def _model(command: argparse.ArgumentParser, text: str = _PACKAGE) -> None:
    command.add_argument("model", help=text).completer = installed_models  # type: ignore[attr-defined]


def _force(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="replace what is there already, whoever wrote it")


def _doctor(add: Any) -> None:
    _command(
        add,
        "doctor",
        "commands:doctor",
        "what is installed, which engines can run here, and why not the others",
        "doctor",
    )


def _demo(add: Any) -> None:
    command = _command(
        add,
        "demo",
        "commands:demo",
        "calibrate, quantize, segment and report, on a synthetic abdomen or your own scan: needs no download",
        "demo --output demo-output",
    )
    command.add_argument(
        "--output", default="demo-output", help="folder for segmentation, picture and report (default: %(default)s)"
    )
    _force(command)
    command.add_argument(
        "--scan",
        metavar="FILE",
        help="a scan of your own instead of the synthetic abdomen: NIfTI, NRRD, MetaImage or a DICOM folder",
    )


def _import(add: Any) -> None:
    forms = "what the network is:\n" + "\n".join(f"  {form:13}{what}" for form, what in FORMS.items()) + "\n\n"
    command = _command(
        add,
        "import",
        "import_model:run",
        "make a model package",
        "import bundle spleen_ct_segmentation.zip --output spleen",
        "import onnx network.onnx --spec spleen.draft.json --output spleen",
        more=forms,
    )
    command.add_argument("form", choices=list(FORMS), metavar="FORM", help="one of those below")
    command.add_argument("network", help="the file or folder")
    command.add_argument("--output", "-o", required=True, help="package to write: a folder or .zip")
    _force(command)
    command.add_argument("--spec", help="description (model.json) to use instead of the one that is understood")
    command.add_argument(
        "--draft", metavar="FILE", help="only write what is understood, to be edited and given back with --spec"
    )
    command.add_argument(
        "--patch", type=whole(1, 4096), nargs=3, metavar="N", help="patch size, where the network leaves it open"
    )
    command.add_argument("--dynamic", action="store_true", help="leave spatial sizes open, for networks that allow it")
    command.add_argument("--trust-code", action="store_true", help="run Python code that comes with the network")
    command.add_argument(
        "--folds",
        type=fold,
        nargs="+",
        metavar="N",
        help="nnunet: folds by number, or all for fold_all (default: every number; one package each)",
    )
    command.add_argument(
        "--configuration", help="nnunet: such as 3d_fullres (default: what the checkpoint was trained for)"
    )
    command.add_argument(
        "--channels", type=whole(1, 1024), default=1, help="torchscript, export, python: input channels (default: 1)"
    )
    command.add_argument("--class", dest="class_name", help="python: name of the class")
    command.add_argument("--arguments", default="{}", help="python: JSON object of the class's arguments")
    command.add_argument("--weights", help="python: checkpoint")


def _quantize(add: Any) -> None:
    share = number(0, 1)
    command = _command(
        add,
        "quantize",
        "commands:quantize",
        "calibrate on scans and make the INT8 network",
        "quantize spleen --calibrate scan1.nii.gz scan2.nii.gz",
        "quantize spleen --calibrate a.nii.gz --labels a_labels.nii.gz",
    )
    _model(command)
    command.add_argument(
        "--calibrate", nargs="+", required=True, metavar="SCAN", help="scans (channels of one scan joined by commas)"
    )
    command.add_argument("--output", "-o", help="package to write (default: the model itself gets its INT8 network)")
    _force(command)
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
    command.add_argument("--keep-first", action="store_true", help="keep the first convolution in high precision")
    command.add_argument("--keep-head", action="store_true", help="keep the last convolution in high precision")
    command.add_argument(
        "--agreement",
        type=share,
        default=0.99,
        help="least Dice of simulated INT8 with FP32 on the scans; below it layers go back to float (default: %(default)s)",
    )
    command.add_argument("--labels", nargs="+", help="label maps of the scans, one each, with the model's label values")
    command.add_argument(
        "--dice-lost",
        type=share,
        default=0.005,
        help="most mean Dice to --labels that INT8 may lose (default: %(default)s)",
    )
    command.add_argument(
        "--no-fallback", action="store_true", help="only measure the loss: no layer goes back to float"
    )
    command.add_argument(
        "--without-engine",
        action="store_true",
        help="quantize a network that no engine of this machine can run in INT8",
    )
    _reading_options(command)


def _build(add: Any) -> None:
    command = _command(
        add,
        "build",
        "commands:build",
        "build the engine for this machine",
        "build spleen --scan scan1.nii.gz --precision int8",
    )
    _model(command)
    command.add_argument("--scan", help="a scan to hold the engine against the simulation")
    _running_options(command)
    _reading_options(command)


def _segment(add: Any) -> None:
    command = _command(
        add,
        "segment",
        "commands:segment",
        "segment a scan",
        "segment demo scan.nii.gz",
        "segment spleen dicom_folder --output spleen.nii.gz --device cpu",
    )
    _model(command, "model package or installed model, or several joined by commas, whose class scores are averaged")
    command.add_argument("scan", help=_SCAN)
    command.add_argument(
        "--output",
        "-o",
        help="X.seg.nrrd, or a label map as .nii.gz, .nrrd, .mha (default: beside the scan, under a free name)",
    )
    _force(command)
    command.add_argument(
        "--series",
        help="DICOM: series instance UID where a folder holds several; UID:N is the N-th stack of that series",
    )
    _running_options(command)
    _reading_options(command)


def _reading_options(command: argparse.ArgumentParser) -> None:
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


def _compare(add: Any) -> None:
    command = _command(
        add,
        "compare",
        "commands:compare",
        "FP32 against INT8: size, time, memory, agreement",
        "compare spleen scan3.nii.gz --labels labels3.nii.gz --report report",
    )
    _model(command, f"{_PACKAGE}, with both networks")
    command.add_argument("scans", nargs="+", help="scans")
    command.add_argument("--labels", nargs="+", help="reference label maps, one a scan, with the model's label values")
    command.add_argument("--report", help="folder for report.json and report.html")
    _force(command)
    _running_options(command, precision=False)
    _reading_options(command)


def _differences(add: Any) -> None:
    command = _command(
        add,
        "differences",
        "differences:run",
        "where INT8 differs from FP32 on a scan: regions, margins, changed volumes",
        "differences spleen scan3.nii.gz --output differences",
    )
    _model(command, f"{_PACKAGE}, with both networks")
    command.add_argument("scan", help=_SCAN)
    command.add_argument(
        "--output",
        "-o",
        default="differences",
        help="folder for differences.seg.nrrd, regions.csv, report.html and .json (default: %(default)s)",
    )
    _force(command)
    command.add_argument(
        "--volume-change",
        type=number(0, 100_000),
        default=5.0,
        metavar="PERCENT",
        help="point out structures that change by more (default: %(default)s)",
    )
    _running_options(command, precision=False)
    _reading_options(command)


def _models(add: Any) -> None:
    command = _command(
        add,
        "models",
        "models:run",
        "public models: list, show, get, remove",
        "models list spleen",
        "models show vista3d",
    )
    command.add_argument("action", nargs="?", choices=["list", "show", "get", "remove"], default="list")
    name = command.add_argument("name", nargs="?", help="of the model; for list, words to look for")
    name.completer = public_models  # type: ignore[attr-defined]
    command.add_argument("--from", dest="source", metavar="PATH", help="get: a file or folder that was got by hand")
    command.add_argument("--accept-license", action="store_true", help="get: the license was read and is accepted")
    command.add_argument("--trust-code", action="store_true", help="get: run Python code that comes with the model")
    _force(command)


def _study(add: Any) -> None:
    _command(add, "networks", "study:networks", "the study's seven networks, as they can be made here", "networks")

    command = _command(
        add,
        "reproduce",
        "study:reproduce",
        "make a table of the study anew, on this machine",
        "reproduce --table networks --output tables",
    )
    command.add_argument("--table", choices=["networks", "sizes"], required=True, help="which")
    command.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="only these (default: all seven)")
    command.add_argument("--engine", default="auto", help="openvino, onnxruntime or auto (default: %(default)s)")
    command.add_argument("--output", help="folder for TABLE.json and TABLE.md; rows that are there are kept")
    _force(command)

    command = _command(
        add,
        "selftest",
        "study:selftest",
        "prove an engine on this machine: INT8, FP16 and FP32 of known networks",
        "selftest --engine openvino",
    )
    command.add_argument(
        "--engine", default="auto", help="tensorrt, cuda_int8, tensorrt_rtx, openvino or auto (default: %(default)s)"
    )
    command.add_argument(
        "--networks",
        nargs="+",
        default=["demo"],
        metavar="NAME",
        help="demo, all, or names of medquant networks (default: demo)",
    )
    command.add_argument(
        "--output", default="selftest", help="folder for selftest.html and selftest.json (default: %(default)s)"
    )
    _force(command)


def _evaluate(add: Any) -> None:
    command = _command(
        add,
        "evaluate",
        "study:evaluate",
        "FP32 and INT8 against manual labels, with intervals and tests",
        "evaluate hippocampus --data Task04_Hippocampus --output evaluation",
        more=f"{JSON_FORM}\n",
    )
    _model(command, f"{_PACKAGE}, with both networks")
    command.add_argument(
        "--data", required=True, help="a data set: JSON description (see below), or the folder of a public one"
    )
    command.add_argument(
        "--form", default="auto", help="json, msd, btcv, totalsegmentator, wholebrain (default: by its files)"
    )
    command.add_argument("--split", default="all", help="train, val, test or all (default: %(default)s)")
    command.add_argument(
        "--cases", type=whole(0, 10_000_000), default=0, metavar="N", help="only the first N (default: all)"
    )
    command.add_argument(
        "--tolerance",
        type=number(0, 1000, above=True),
        default=1.0,
        metavar="MM",
        help="of the surface Dice (default: %(default)s mm)",
    )
    command.add_argument(
        "--output", "-o", default="evaluation", help="folder for evaluation.html, .csv, .json (default: %(default)s)"
    )
    _force(command)
    _running_options(command, precision=False)
    _reading_options(command)


def _cache(add: Any) -> None:
    command = _command(add, "cache", "commands:cache", "engines that were built on this machine", "cache list")
    command.add_argument("action", choices=["list", "clear"])
    command.add_argument("--model", help="only engines of this model")


def _running_options(command: argparse.ArgumentParser, *, precision: bool = True) -> None:
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
    command.add_argument("--skip-air", action="store_true", help="leave out windows that hold only air")
    command.add_argument(
        "--no-range-check",
        action="store_true",
        help="do not look whether a scan leaves the ranges that INT8 was calibrated on",
    )
    command.add_argument(
        "--memory",
        type=number(0, 100_000, above=True),
        metavar="GB",
        help="for blended scores (default: half of what is free, at most 3)",
    )
