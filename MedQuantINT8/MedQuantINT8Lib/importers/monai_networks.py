"""The network of a MONAI bundle from its description, without running the bundle's code.

Only classes of MONAI and torch that are listed here are built, with arguments that are numbers, flags, plain words, containers of
these, or other descriptions of such classes. Arguments that make a class fetch or read something (``pretrained``, addresses,
paths) are refused, and sockets are closed meanwhile.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import DependencyError, PackageError
from .checkpoints import read_checkpoint
from .expression_evaluator import NotAConstant, Unresolved, dotted_name
from .expressions import Config
from .offline import closed_sockets

#: More channels than any network for segmentation has: a configuration that says more is damaged.
MOST_CHANNELS = 4096
#: MONAI's networks that segment, by every spelling it has for them.
_NETWORKS = {
    "AHNet", "AHnet", "Ahnet", "AttentionUnet", "BasicUNet", "BasicUnet", "Basicunet", "basicunet", "BasicUNetPlusPlus",
    "BasicUnetPlusPlus", "BasicunetPlusPlus", "basicunetplusplus", "DAF3D", "DiNTS", "DynUNet", "DynUnet", "Dynunet",
    "FlexibleUNet", "FlexUNet", "HighResNet", "HyenaNDUNETR", "MedNeXt", "MedNext", "MedNextS", "MedNeXtS", "MedNextSmall",
    "MedNeXtSmall", "MedNextB", "MedNeXtB", "MedNextBase", "MedNextM", "MedNeXtM", "MedNextMedium", "MedNeXtMedium", "MedNextL",
    "MedNeXtL", "MedNextLarge", "MedNeXtLarge", "RegUNet", "SegResNet", "SegResNetVAE", "SegResNetDS", "SegResNetDS2",
    "SwinUNETR", "UNet", "Unet", "UNETR", "VNet", "vista3d132",
}  # fmt: skip
#: What may stand inside of a network's arguments.
_PARTS = {"TopologyInstance"}
_TORCH_PARTS = {
    "ReLU", "LeakyReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softmax", "Identity", "BatchNorm2d",
    "BatchNorm3d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm", "LayerNorm", "Dropout", "Dropout2d", "Dropout3d",
}  # fmt: skip
#: Arguments that MONAI's networks used to take and that change nothing.
_FORMER = {"img_size", "use_checkpoint"}
_FETCHING = re.compile(r"pretrain|url|path|file|weights$|download|cache|hub", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9_.,:+ -]{0,64}")
_LARGEST_NUMBER = 1 << 20
_MOST_WEIGHTS = 4 << 30
#: Methods of a network that change nothing of what it computes here.
_MOVES = {"to", "cpu", "cuda", "eval", "float"}
_MOST_HOPS = 30
_TRUST = "If you trust where it comes from, give --trust-code; else describe the network by hand: medquant import onnx."


@dataclass(frozen=True)
class Definition:
    """A network as a configuration describes it.

    Attributes:
        target: the name of its class or function, as the file has it.
        arguments: resolved, by name; what would need code is :class:`.expressions.Unresolved`.
    """

    target: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def listed(self) -> bool:
        """Whether this is one of MONAI's networks that are built here."""
        return _is_monai(self.target) and self.name in _NETWORKS

    @property
    def output_channels(self) -> int | None:
        """The network's output channels, where its arguments say so."""
        return next(
            (
                count
                for name in ("out_channels", "num_classes", "n_classes")
                if (count := self._count(name)) is not None
            ),
            None,
        )

    @property
    def input_channels(self) -> int | None:
        """The network's input channels, where its arguments say so."""
        return self._count("in_channels" if "in_channels" in self.arguments else "in_channel")

    def _count(self, name: str) -> int | None:
        value = self.arguments.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            return None
        if value > MOST_CHANNELS:
            raise PackageError(
                f"{self.name} has {str(value)[:40]} as its {name}; more than {MOST_CHANNELS} are not understood.",
                "Get the bundle again.",
            )
        return value

    @property
    def axes(self) -> int:
        """How many spatial axes one of MONAI's networks has; 2 works slice by slice."""
        value = next((self.arguments[name] for name in ("spatial_dims", "dimensions") if name in self.arguments), None)
        if value is None and (cls := _class_of(self.target)) is not None:
            default = inspect.signature(cls).parameters.get("spatial_dims")
            value = default.default if default is not None else None
        return value if not isinstance(value, bool) and value in (1, 2, 3) else 3

    @property
    def multiples(self) -> tuple[int, ...]:
        """What a patch's sides must be multiples of along the network's own axes, as far as that is known."""
        axes = self.axes
        strides = self.arguments.get("strides")
        if self.name.lower() in ("unet", "dynunet", "attentionunet") and isinstance(strides, list | tuple):
            steps = [s if isinstance(s, list | tuple) and len(s) == axes else [s] * axes for s in strides]
            if steps and all(isinstance(n, int) and n > 0 for step in steps for n in step):
                return tuple(prod(step[axis] for step in steps) for axis in range(axes))
        factor = {"SwinUNETR": 32, "BasicUNet": 16, "UNETR": 16, "DiNTS": 16, "vista3d132": 16}.get(self.name, 1)
        if self.name.startswith("SegResNet"):
            depths = self.arguments.get("blocks_down", (1, 2, 2, 4))
            factor = 2 ** (len(depths) - 1) if isinstance(depths, list | tuple) and 0 < len(depths) < 12 else 1
        return (factor,) * axes


def safe_functions(folder: Path) -> dict[str, Any]:
    """Return what expressions of a bundle may call besides arithmetic: devices (there is only the processor here), and checkpoints of the
    bundle itself, read as data."""

    checkpoints: dict[str, Any] = {}

    def load(path: Any, *_: Any, **options: Any) -> Any:
        if not set(options) <= {"map_location", "weights_only"} or not isinstance(path, str):
            raise TypeError("torch.load with other arguments than a path")
        if path not in checkpoints:
            checkpoints[path] = read_checkpoint(bundle_file(folder, path), "checkpoint")
        return checkpoints[path]

    def array(value: Any) -> Any:
        import torch

        return torch.as_tensor(value)

    return {
        "torch.device": lambda *_: "cpu",
        "torch.cuda.is_available": lambda: False,
        "torch.load": load,
        "torch.from_numpy": array,
        "torch.tensor": array,
        "torch.as_tensor": array,
    }


def bundle_file(folder: Path, name: str) -> Path:
    """Return a file of a bundle by the path that its configuration gives.

    Raises:
        PackageError: it is not there, or lies outside of the bundle.
    """
    path = Path(name) if Path(name).is_absolute() else folder / name
    try:
        inside = folder.resolve() in path.resolve().parents
        there = path.is_file()
    except (OSError, ValueError) as error:
        raise PackageError(
            f"The bundle names the file {name[:200]!r}, which cannot be one: {error}.", "Get the bundle again."
        ) from error
    if not inside:
        raise PackageError(
            f"The bundle names the file {name}, which lies outside of it.",
            "Put it into the bundle, or correct its path.",
        )
    if not there:
        raise PackageError(f"The bundle's file {path.relative_to(folder)} is missing.", "Download the whole bundle.")
    return path


def definition_of(config: Config, raw: Any) -> Definition | None:
    """Return what a raw value of a configuration describes: a ``_target_``, a reference to one, such a reference with ``.to(device)``, or
    a call (``$monai.networks.nets.UNet(...)``). None where it is code of another kind.

    Raises:
        PackageError: it is no description at all, or one that is turned off or incomplete.
    """
    for _ in range(_MOST_HOPS):
        if isinstance(raw, dict):
            return _of_description(config, raw)
        if not isinstance(raw, str):
            raise PackageError(f"The bundle's network is {_short(raw)}, not a description.", "Get the bundle again.")
        if raw.startswith("%"):
            raw = config.macro(raw[1:])
        elif raw.startswith("@"):
            raw = config.raw_at(raw[1:])
        elif raw.startswith("$"):
            tree, names = config.tree_of(raw[1:].strip())
            tree = _without_moves(tree)
            if isinstance(tree, ast.IfExp):
                tree = _without_moves(tree.body if config.value_of(tree.test, names, raw) else tree.orelse)
            if isinstance(tree, ast.Name) and tree.id in names:
                raw = config.raw_at(names[tree.id])
            else:
                return _of_call(config, tree, names, raw)
        else:
            raise PackageError(f"The bundle's network is {_short(raw)}, not a description.", "Get the bundle again.")
    raise PackageError("The bundle's network refers to itself.", "Get the bundle again.")


def _of_description(config: Config, raw: dict[str, Any]) -> Definition | None:
    target = raw.get("_target_")
    if not isinstance(target, str):
        raise PackageError("The bundle's network has no '_target_' that names its class.", "Get the bundle again.")
    if target.startswith(("$", "@", "%")):
        target = config.resolve(target)
        if not isinstance(target, str):
            return None
    disabled = config.resolve(raw.get("_disabled_", False))
    if disabled is True or str(disabled).strip().lower() == "true":
        raise PackageError("The bundle's network is turned off (_disabled_).", "Correct the bundle's configuration.")
    if raw.get("_mode_", "default") != "default":
        raise PackageError(
            f"The bundle's network has _mode_ = {_short(raw['_mode_'])}, which is not understood.", _TRUST
        )
    resolved = config.resolve(raw)
    arguments = {
        str(k): v for k, v in resolved.items() if k not in ("_target_", "_disabled_", "_mode_", "_desc_", "_requires_")
    }
    return Definition(target, arguments)


def _of_call(config: Config, tree: ast.expr, names: dict[str, str], text: str) -> Definition | None:
    if not isinstance(tree, ast.Call) or (target := dotted_name(tree.func)) is None or not _is_monai(target):
        return None
    if any(keyword.arg is None for keyword in tree.keywords) or any(isinstance(a, ast.Starred) for a in tree.args):
        return None
    pairs = [(keyword.arg or "", keyword.value) for keyword in tree.keywords]
    if tree.args:
        cls = _class_of(target)
        order = list(inspect.signature(cls).parameters) if cls is not None else []
        if len(order) < len(tree.args):
            return None
        pairs += list(zip(order, tree.args, strict=False))
    arguments: dict[str, Any] = {}
    for name, node in pairs:
        try:
            arguments[name] = config.value_of(node, names, text)
        except NotAConstant as error:
            arguments[name] = Unresolved(str(error), text)
    return Definition(target, arguments)


def _without_moves(tree: ast.expr) -> ast.expr:
    while isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr in _MOVES:
        tree = tree.func.value
    return tree


def make(config: Config, definition: Definition) -> Any:
    """Build the network, without weights.

    Raises:
        PackageError: A class or an argument, which the message names, is not built here, or the class refuses it.
    """
    if not definition.listed:
        raise PackageError(
            f"The bundle's network is {definition.target}, which is none of MONAI's networks that segment.", _TRUST
        )
    import torch

    # Some constructors print what they recommend, which would stand among what the command prints.
    with closed_sockets(), contextlib.redirect_stdout(io.StringIO()):
        arguments = _check_arguments(config, definition)
        cls = _class_of(definition.target)
        assert cls is not None
        try:
            with torch.device("meta"):
                weights = sum(p.numel() for p in cls(**arguments).parameters())
        except Exception:
            # Some classes compute with their weights while they are built; then there is nothing to count beforehand.
            weights = 0
        if weights > _MOST_WEIGHTS:
            raise PackageError(
                f"The bundle's {definition.name} would have {weights:,} weights.", "Get the bundle again."
            )
        try:
            return cls(**arguments)
        except PackageError:
            raise
        except Exception as error:
            # Constructors of networks raise whatever their arithmetic stumbles over.
            raise PackageError(
                f"MONAI cannot make the bundle's {definition.name}: {_first_line(error)}.",
                "Check which MONAI it was made for.",
            ) from error


def _check_arguments(config: Config, definition: Definition) -> dict[str, Any]:
    cls = _class_of(definition.target)
    if cls is None:
        raise PackageError(f"MONAI has no {definition.name}.", "Check which MONAI the bundle was made for.")
    accepted = inspect.signature(cls).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    arguments = {}
    for name, value in definition.arguments.items():
        if name in _FORMER and name not in accepted:
            continue
        if name not in accepted and not free:
            raise PackageError(
                f"MONAI's {definition.name} takes no argument {name!r}.", "Check which MONAI the bundle was made for."
            )
        if _FETCHING.search(name) and value not in (None, False, "", []):
            raise PackageError(
                f"The bundle's {definition.name} has {name} = {_short(value)}, which makes it fetch or read something else.",
                "Set it to false: the weights come from the bundle's own checkpoint.",
            )
        arguments[name] = _argument(config, value, f"{definition.name}'s {name}")
    return arguments


def _argument(config: Config, value: Any, where: str) -> Any:
    """Return an argument that may be given to a constructor; nested descriptions are built."""
    import numpy as np
    import torch

    if value is None or isinstance(value, bool | torch.Tensor | np.ndarray | np.number):
        return value
    if isinstance(value, int | float):
        if not abs(value) <= _LARGEST_NUMBER:
            raise PackageError(f"The bundle's {where} is {value}.", "Get the bundle again.")
        return value
    if isinstance(value, str):
        if not _WORD.fullmatch(value) or ".." in value or "://" in value:
            raise PackageError(f"The bundle's {where} is {_short(value)}, which is no plain word.", _TRUST)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_argument(config, item, where) for item in value)
    if isinstance(value, dict) and "_target_" not in value:
        return {str(key): _argument(config, item, where) for key, item in value.items()}
    text = value.text if isinstance(value, Unresolved) else value
    try:
        part = definition_of(config, text) if isinstance(text, dict | str) else None
    except NotAConstant:
        part = None
    if part is None or not _is_part(part.target):
        target = part.target if part is not None else text
        raise PackageError(f"The bundle's {where} is {_short(target)}, which would have to be run.", _TRUST)
    cls = _class_of(part.target)
    assert cls is not None
    try:
        return cls(**_check_arguments(config, part))
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        raise PackageError(
            f"The bundle's {where} cannot be made: {_first_line(error)}.", "Check which MONAI it was made for."
        ) from error


def _is_monai(target: str) -> bool:
    package = target.rpartition(".")[0]
    return package in ("", "monai.networks.nets", "nets", "networks.nets") or package.startswith("monai.networks.nets.")


def _is_part(target: str) -> bool:
    package, _, name = target.rpartition(".")
    return (_is_monai(target) and name in _PARTS) or (package in ("torch.nn", "nn") and name in _TORCH_PARTS)


def _class_of(target: str) -> Any:
    """Return the class or function of a listed name; None for anything else."""
    try:
        from monai.networks import nets
        from torch import nn
    except ImportError as error:
        raise DependencyError(
            "MONAI is not installed.", "Install it with: pip install 'medquantint8[import]'"
        ) from error
    package, _, name = target.rpartition(".")
    if package in ("torch.nn", "nn") and name in _TORCH_PARTS:
        return getattr(nn, name, None)
    return getattr(nets, name, None) if _is_monai(target) and name in _NETWORKS | _PARTS else None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200].rstrip(".")


def _short(value: Any) -> str:
    return "an expression" if isinstance(value, Unresolved) else repr(value)[:100]
