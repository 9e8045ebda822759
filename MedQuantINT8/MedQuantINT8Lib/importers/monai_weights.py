"""The file that holds the weights of a MONAI bundle's network: the one that its configuration names, and no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PackageError
from .checkpoints import load_weights, read_checkpoint, state_dict_of
from .expression_evaluator import NotAConstant, dotted_name
from .expressions import Config
from .monai_networks import bundle_file
from .offline import closed_sockets

_USUAL = ("models/model.pt", "models/model.pth")
_TORCHSCRIPT = (".ts", ".torchscript")


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes:
        path: a checkpoint, or a TorchScript file.
        key: under which name the checkpoint keeps the network's weights, if it keeps several things.
        note: what the user should know of the choice; may be empty.
    """

    path: Path
    key: str = ""
    note: str = ""

    @property
    def torchscript(self) -> bool:
        """Whether it is a network with its weights, a program, not weights alone."""
        return self.path.suffix in _TORCHSCRIPT

    def load_into(self, module: Any) -> None:
        """Put the weights into a module; raises as :func:`.checkpoints.load_weights`."""
        with closed_sockets():
            checkpoint = read_checkpoint(self.path)
            if self.key and isinstance(checkpoint, dict) and isinstance(checkpoint.get(self.key), dict):
                checkpoint = checkpoint[self.key]
            load_weights(module, state_dict_of(checkpoint, self.path.name))


def find_weights(config: Config, folder: Path) -> Weights:
    """Return the weights that a bundle's configuration names.

    Raises:
        PackageError: they are missing or lie outside of the bundle, two files are named, or there are none.
        NotAConstant: their path can only be worked out by running code.
    """
    references = list(dict.fromkeys([*_by_loaders(config), *_by_expressions(config)]))
    if len({path for path, _ in references}) > 1:
        names = ", ".join(sorted({path for path, _ in references}))
        raise PackageError(
            f"The bundle's configuration names several files of weights: {names}.", "Leave one of them in it."
        )
    if references:
        path, key = references[0]
        return Weights(_file(folder, path), key)
    usual_path = next((folder / name for name in _USUAL if (folder / name).is_file()), None)
    if usual_path is not None:
        return Weights(
            usual_path, note=f"the configuration names no weights: {usual_path.relative_to(folder)} was taken"
        )
    return Weights(_file(folder, _USUAL[0]))


def _file(folder: Path, name: str) -> Path:
    """Return the file of that name, or the TorchScript file that a bundle holds in its place."""
    try:
        return bundle_file(folder, name)
    except PackageError:
        script = (Path(name) if Path(name).is_absolute() else folder / name).with_suffix(".ts")
        if not script.is_file():
            raise
        return bundle_file(folder, str(script))


def _by_loaders(config: Config) -> Iterator[tuple[str, str]]:
    """Yield path and key of the checkpoint loaders, wherever they stand: among the handlers, or by themselves."""
    for item in _descriptions(dict(config.values)):
        if str(item.get("_target_", "")).rpartition(".")[2] != "CheckpointLoader" or "load_path" not in item:
            continue
        if str(config.resolve(item.get("_disabled_", False))).strip().lower() == "true":
            continue
        load_dict = item.get("load_dict")
        load_dict = (
            config.raw_at(load_dict[1:]) if isinstance(load_dict, str) and load_dict.startswith("@") else load_dict
        )
        keys = (
            [str(key) for key, what in load_dict.items() if _is_network(what)] if isinstance(load_dict, dict) else [""]
        )
        if keys:
            yield _text(config.resolve(item["load_path"])), keys[0]


def _by_expressions(config: Config) -> Iterator[tuple[str, str]]:
    """Yield path and key of calls such as ``$@network.load_state_dict(torch.load(PATH)['KEY'])``, wherever they stand."""
    for text in _texts(dict(config.values)):
        if not text.startswith("$") or "load_state_dict" not in text:
            continue
        tree, names = config.tree_of(text[1:].strip())
        for call in ast.walk(tree):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "load_state_dict"
                and call.args
            ):
                yield _read_load_call(config, call.args[0], names, text)


def _read_load_call(config: Config, node: ast.expr, names: dict[str, str], text: str) -> tuple[str, str]:
    if isinstance(node, ast.Name) and node.id in names:
        raw = config.raw_at(names[node.id])
        if isinstance(raw, str) and raw.startswith("$"):
            text = raw
            node, names = config.tree_of(raw[1:].strip())
    return _from_file(config, node, names, text)


def _from_file(config: Config, node: ast.expr, names: dict[str, str], text: str) -> tuple[str, str]:
    key = ""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        key = str(node.slice.value)
        node = node.value
    if isinstance(node, ast.Call) and dotted_name(node.func) == "torch.load" and node.args:
        return _text(config.value_of(node.args[0], names, text)), key
    raise NotAConstant(text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PackageError("The bundle's load_path is no path of a file.", "Correct the bundle's configuration.")
    return value


def _is_network(value: Any) -> bool:
    return isinstance(value, str) and "@net" in value.replace(" ", "").replace("@model", "@net")


def _descriptions(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all dictionaries with a ``_target_`` in a configuration."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for item in value.values():
            yield from _descriptions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _descriptions(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
