"""``medquant import``: a network in any form to a package, by way of a description that can be saved, edited and given back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import fold, whole
from .common import Add, add_command, add_force
from .import_lines import described
from .terminal import print_result

if TYPE_CHECKING:
    from ..importers.base import ImportedModel
    from ..importers.nnunet_task import ImportedTask
    from ..models.spec import ModelSpec
    from ..progress import Task

#: What ``medquant import`` takes.
FORMS = {
    "onnx": "an ONNX file (weights in files beside it are taken along)",
    "bundle": "a MONAI bundle, folder or zip",
    "nnunet": "a result folder of nnU-Net v2, or its zip; a cascade as a task",
    "auto3dseg": "model.pt of MONAI Auto3DSeg, or the folder or zip it lies in",
    "torchscript": "a TorchScript file (needs --trust-code)",
    "export": "an archive of torch.export, .pt2 (needs --trust-code)",
    "python": "a Python file with a class (--class, needs --trust-code)",
}
#: What a form that lies in a folder or a zip is called in a message.
_NOUNS = {"bundle": "MONAI bundle", "nnunet": "result folder of nnU-Net", "auto3dseg": "model of Auto3DSeg"}


def add_parser(add: Add) -> None:
    """State the command and its arguments."""
    forms = "what the network is:\n" + "\n".join(f"  {form:13}{what}" for form, what in FORMS.items()) + "\n\n"
    command = add_command(
        add,
        "import",
        run,
        "make a model package",
        "import bundle spleen_ct_segmentation.zip --output spleen",
        "import onnx network.onnx --spec spleen.draft.json --output spleen",
        more=forms,
    )
    command.add_argument("form", choices=list(FORMS), metavar="FORM", help="one of those below")
    command.add_argument("network", help="the file or folder")
    command.add_argument("--output", "-o", required=True, help="package to write: a folder or .zip")
    add_force(command)
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
        "--configuration",
        help="nnunet: such as 3d_fullres (default: what the checkpoint was trained for); several of one data set, such as 2d,3d_fullres, become a task that averages them",
    )
    command.add_argument(
        "--resampling",
        choices=["nnunet", "totalsegmentator"],
        help="nnunet: who resamples scans and labels (default: TotalSegmentator for networks that it publishes, else nnU-Net)",
    )
    command.add_argument(
        "--channels", type=whole(1, 1024), default=1, help="torchscript, export, python: input channels (default: 1)"
    )
    command.add_argument("--class", dest="class_name", help="python: name of the class")
    command.add_argument("--arguments", default="{}", help="python: JSON object of the class's arguments")
    command.add_argument("--weights", help="python: checkpoint")


def run(args: argparse.Namespace, task: Task) -> None:
    """Import the network, or write a draft of its description."""
    from ..errors import InputError
    from ..importers.archives import as_folder
    from ..models.spec_parser import parse_spec
    from ..outputs import check_output_package

    if args.resampling and (args.spec or args.form != "nnunet"):
        raise InputError(
            "--resampling is for nnU-Net's folders, and is part of what --spec describes.",
            "Leave out --resampling" + (" or --spec." if args.spec else "."),
        )
    spec = parse_spec(json_file(args.spec), args.spec) if args.spec else None
    source = Path(args.network)
    if args.form == "nnunet":
        _run_nnunet(args, source, spec, task)
        return
    check_output_package(args.output, _inputs(args))
    if args.form in ("bundle", "auto3dseg") and not (args.form == "auto3dseg" and source.suffix in (".pt", ".pth")):
        with as_folder(source, _NOUNS[args.form]) as folder:
            _finish(args, _understand(args, folder, spec, task), spec, task)
    else:
        _finish(args, _understand(args, source, spec, task), spec, task)


def _run_nnunet(args: argparse.Namespace, source: Path, spec: ModelSpec | None, task: Task) -> None:
    """Import one training as a package (one a fold), a cascade or several data sets as a task."""
    from ..importers.archives import as_folder
    from ..importers.nnunet_task import check_alone, find_task
    from ..models.task import TASK_JSON
    from ..outputs import check_output_package

    with as_folder(source, _NOUNS["nnunet"]) as folder:
        imported = find_task(folder, args.configuration)
        if imported is None:
            check_output_package(args.output, _inputs(args))
            _finish(args, _understand(args, folder, spec, task), spec, task)
            return
        check_alone(imported, spec=args.spec, draft=args.draft, patch=args.patch)
        check_output_package(args.output, _inputs(args), description=TASK_JSON)
        _finish_task(args, imported, task)


def _finish_task(args: argparse.Namespace, imported: ImportedTask, task: Task) -> None:
    """Write the task, and print what was understood of each network."""
    import shlex

    from ..importers.nnunet_task import understand_task, write_imported_task
    from .overwriting import overwriting

    target = Path(args.output)
    understand_task(imported, args.folds, args.resampling)
    with overwriting(args, [target]), write_imported_task(imported, target, task, dynamic=args.dynamic) as package:
        value, names = package.spec.to_json(), [label.name for label in package.spec.labels]
        networks = list(package.spec.package_paths)
    checks = [item.check for item in imported.models if item.check is not None]
    print_result(
        args,
        {
            "task": str(target),
            "spec": value,
            "notes": {item.spec.name: item.notes for item in imported.models},
            "import": [check.to_json() for check in checks],
        },
        f"{imported.name}: {len(names)} structure(s): {', '.join(names[:8])}" + (" and more" if len(names) > 8 else ""),
        *(
            f"  {part.name} takes the labels of {part.previous.configuration} as input"
            for part in imported.parts
            if part.previous is not None
        ),
        *(
            f"  {' and '.join(stage.configuration for stage in part.stages)} are averaged by probabilities on the scan's grid"
            for part in imported.parts
            if part.averaged
        ),
        *(
            line
            for item, check in zip(imported.models, checks, strict=True)
            for line in (
                f"  {item.spec.name}",
                *(f"    note      {note}" for note in item.notes),
                f"    {'compared  ' if check.compared else ''}{check.summary()}",
            )
        ),
        f"wrote {target} with {len(networks)} package(s): {', '.join(networks)}",
        f"next: medquant quantize {shlex.quote(str(target))} --calibrate SCANS",
    )


def _inputs(args: argparse.Namespace) -> list[str | None]:
    return [args.network, args.spec, args.weights]


def _understand(args: argparse.Namespace, source: Path, spec: ModelSpec | None, task: Task) -> list[ImportedModel]:
    from functools import partial

    from ..child_process import run_in_child
    from ..errors import InputError
    from ..importers.base import ImportedModel

    patch = tuple(args.patch) if args.patch else None
    if args.form == "bundle":
        from ..importers import monai_bundle

        return [monai_bundle.understand(source, trust_code=args.trust_code, spec=spec)]
    if args.form == "nnunet":
        from ..importers import nnunet

        return nnunet.understand(
            source, folds=args.folds, configuration=args.configuration, spec=spec, resampling=args.resampling
        )
    if args.form == "auto3dseg":
        from ..importers import auto3dseg

        return [auto3dseg.understand(source, spec=spec)]
    if args.form == "onnx":
        from ..importers import onnx

        draft = spec or run_in_child(partial(onnx.draft_spec, source, patch), task, f"The trial of {source.name}")
        return [
            ImportedModel(
                draft,
                source,
                ["preprocessing and labels are guesses: correct them"] if spec is None else [],
                by_hand=True,
            )
        ]
    from ..importers import torch_files

    program = torch_files.Program(args.trust_code, args.channels, patch, spec)
    if args.form == "torchscript":
        return [torch_files.understand_torchscript(source, program, task)]
    if args.form == "export":
        return [torch_files.understand_exported(source, program, task)]
    if not args.class_name:
        raise InputError("A Python file may hold several classes.", "Name one with --class.")
    weights = Path(args.weights) if args.weights else None
    return [torch_files.understand_class(source, args.class_name, weights, _arguments(args.arguments), program, task)]


def _arguments(text: str) -> dict[str, Any]:
    from ..errors import InputError
    from ..files import parse_json

    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"--arguments is not valid JSON: {error}.", "Give an object, such as '{\"channels\": 16}'."
        ) from error
    if not isinstance(value, dict):
        raise InputError("--arguments is no JSON object.", "Give one, such as '{\"channels\": 16}'.")
    return value


def _finish(args: argparse.Namespace, imported: list[ImportedModel], spec: ModelSpec | None, task: Task) -> None:
    """Print what was understood; write a draft, or the package(s)."""
    import shlex
    from dataclasses import replace

    from ..importers.base import write
    from ..outputs import check_output_package
    from .overwriting import of_package, overwriting

    guessed = args.form in ("onnx", "torchscript", "export", "python") and spec is None
    if args.draft or guessed:
        _write_draft(args, imported[0])
        return
    targets = _targets(args.output, imported)
    for target in targets:
        check_output_package(target, _inputs(args))
    written = []
    # Whether the INT8 network of a package of that name would be lost is looked at when it is written.
    ours = [
        file
        for item, target in zip(imported, targets, strict=True)
        for file in of_package(target, (spec or item.spec).name)
    ]
    with overwriting(args, targets, ours):
        for item, target in zip(imported, targets, strict=True):
            if spec is not None:
                item.spec = replace(spec, name=item.spec.name) if len(imported) > 1 else spec
                item.by_hand = True
            if args.patch:
                a, b, c = args.patch
                item.spec = replace(item.spec, window=replace(item.spec.window, patch_size=(a, b, c)))
            package = write(item, target, task, dynamic=args.dynamic, force=args.force)
            package.close()
            check = item.check.to_json() if item.check else None
            written.append(
                {
                    "package": str(target),
                    "spec": package.spec.to_json(),
                    "notes": item.notes,
                    "import": check,
                    "network": item.comparisons,
                }
            )
    checks = [item.check for item in imported if item.check is not None]
    print_result(
        args,
        written[0] if len(written) == 1 else {"packages": written},
        *described(imported[0].spec, imported[0].notes),
        *(f"  network     {text}" for text in imported[0].comparisons),
        *(f"  compared    {check.summary()}" if check.compared else f"  {check.summary()}" for check in checks),
        *(f"wrote {target}" for target in targets),
        f"next: medquant quantize {shlex.quote(str(targets[0]))} --calibrate SCANS",
    )


def _targets(output: str, imported: list[ImportedModel]) -> list[Path]:
    """One name a package: where there are several, each has its own ending."""
    target = Path(output)
    if len(imported) == 1:
        return [target]
    stem, suffix = (target.stem, target.suffix) if target.suffix == ".zip" else (target.name, "")
    return [target.with_name(f"{stem}-{item.spec.name.rsplit('-', 1)[-1]}{suffix}") for item in imported]


def _write_draft(args: argparse.Namespace, imported: ImportedModel) -> None:
    from ..errors import InputError
    from ..files import write_json

    target = Path(args.output)
    draft = Path(args.draft) if args.draft else target.with_name(target.stem + ".draft.json")
    if draft.exists() and not args.force:
        raise InputError(
            f"{draft} is there already.",
            f"Edit it and give it back with --spec {draft}, or give --force to replace it.",
        )
    write_json(draft, imported.spec.to_json())
    print_result(
        args,
        {"draft": str(draft), "spec": imported.spec.to_json(), "notes": imported.notes},
        *described(imported.spec, imported.notes),
        f"wrote {draft}: check and correct it,",
        f"then: {next_command(args, draft)}",
    )


def next_command(args: argparse.Namespace, draft: Path) -> str:
    """The command that takes the draft, with every option that the network needs, quoted for a shell."""
    import shlex

    words = ["medquant", "import", args.form, args.network, "--spec", str(draft), "--output", args.output]
    words += ["--trust-code"] if args.trust_code else []
    words += ["--dynamic"] if args.dynamic else []
    words += ["--force"] if args.force else []
    words += ["--patch", *map(str, args.patch)] if args.patch else []
    words += ["--folds", *map(str, args.folds)] if args.folds else []
    words += ["--configuration", args.configuration] if args.configuration else []
    if args.form in ("torchscript", "export", "python") and args.channels != 1:
        words += ["--channels", str(args.channels)]
    if args.form == "python":
        words += ["--class", args.class_name]
        words += ["--arguments", args.arguments] if args.arguments != "{}" else []
        words += ["--weights", args.weights] if args.weights else []
    return shlex.join(words)


def json_file(path: str) -> Any:
    """What a JSON file given on the command line holds; raises :class:`InputError`."""
    from ..errors import InputError, PackageError
    from ..models.package_files import parsed_json

    try:
        return parsed_json(Path(path).read_bytes(), path, "Correct it.")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", "Check the path.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give a JSON file.") from error
    except PackageError as error:
        raise InputError(error.args[0], error.hint) from error
