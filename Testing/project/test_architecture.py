"""The library's layout, read from its imports: folders import what stands below them, modules import each other in no circle, and heavy
packages are loaded by the function that needs them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import MedQuantINT8Lib

LIBRARY = Path(MedQuantINT8Lib.__file__).parent
#: The folders, from the top down: each imports only itself and what stands behind it; the files beside the folders come last.
FOLDERS = (
    "cli", "slicer_module", "worker", "cohort", "evaluation", "quantization", "importers", "inference", "engines", "imaging", "models", "",
)  # fmt: skip
#: Folders that know nothing of these, although they stand above them: an engine takes arrays, not volumes or windows.
STRANGERS = {"engines": {"imaging"}}
#: Packages that are large, optional, or there in Slicer alone: imported inside the function that needs them.
HEAVY = {
    "cuda", "ctk", "highdicom", "jinja2", "modelopt", "monai", "onnx", "onnxruntime", "openvino", "pydicom", "qt", "scipy", "SimpleITK", "slicer", "tensorrt", "torch", "vtk",
}  # fmt: skip
#: Files that Slicer alone loads: the window, and the entry in the menu of the data tree.
SLICER_ONLY = {
    f"slicer_module.{name}": {"qt", "slicer"} for name in ("widget", "panels", "MedQuantINT8SubjectHierarchyPlugin")
}


@dataclass(frozen=True)
class Import:
    """One imported name: ``target`` is a module of the library (as "engines.base"), or a package of others.

    Attributes:
        at_load: whether it runs when the importing module is loaded: outside of functions, and not for type checkers alone.
    """

    target: str
    own: bool
    at_load: bool
    line: int


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of a library, by its dotted name without the library's: "engines.base"; a package by its folder's, the library itself by ""."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports_of(name: str, tree: ast.Module, known: set[str]) -> Iterator[Import]:
    """What a module imports, as far as its text says it."""
    # "engines" is a package if it holds others; relative imports begin at a module's own package.
    is_package = name == "" or any(other.startswith(f"{name}.") for other in known)
    package = [part for part in name.split(".") if part] if is_package else name.split(".")[:-1]
    library = LIBRARY.name

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = at_load and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inside = False
            if isinstance(child, ast.Import):
                for alias in child.names:
                    first, _, rest = alias.name.partition(".")
                    yield Import(rest if first == library else first, first == library, inside, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                words = child.module.split(".") if child.module else []
                if child.level:
                    base = package[: len(package) - child.level + 1] + words
                elif words[0] == library:
                    base = words[1:]
                else:
                    yield Import(words[0], False, inside, child.lineno)
                    continue
                for alias in child.names:
                    whole = ".".join([*base, alias.name])
                    yield Import(whole if whole in known else ".".join(base), True, inside, child.lineno)
            yield from visit(child, inside)

    yield from visit(tree, True)


def folder_of(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in FOLDERS else ""


def upward(name: str, tree: ast.Module, known: set[str]) -> list[str]:
    """Imports of a module that point up, or at a folder that it must not know."""
    folder = folder_of(name)
    return [
        f"{name or '__init__'}:{item.line} imports {item.target}"
        for item in imports_of(name, tree, known)
        if item.own
        and (
            FOLDERS.index(folder_of(item.target)) < FOLDERS.index(folder)
            or folder_of(item.target) in STRANGERS.get(folder, ())
        )
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""

    def reached_from(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reached = {name: reached_from(name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def heavy(name: str, tree: ast.Module, known: set[str]) -> list[str]:
    """Heavy packages that a module imports when it is loaded."""
    allowed = {package for prefix, packages in SLICER_ONLY.items() if name.startswith(prefix) for package in packages}
    return [
        f"{name}:{item.line} imports {item.target}"
        for item in imports_of(name, tree, known)
        if not item.own and item.at_load and item.target in HEAVY - allowed
    ]


TREES = modules(LIBRARY)


def test_the_folders_are_those_of_the_list():
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert folders == set(FOLDERS) - {""}


def test_the_documentation_lists_the_folders_in_this_order():
    page = next(folder / "docs/architecture.md" for folder in Path(__file__).parents if (folder / "docs").is_dir())
    text = page.read_text(encoding="utf-8")
    places = [text.index(f"| `{folder}/` |") for folder in FOLDERS if folder]
    assert places == sorted(places)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder or "top")
def test_imports_point_down(folder):
    wrong = [
        line for name, tree in TREES.items() if folder_of(name) == folder for line in upward(name, tree, set(TREES))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    known = set(TREES)
    graph = {
        name: {item.target for item in imports_of(name, tree, known) if item.own and item.at_load}
        for name, tree in TREES.items()
    }
    assert circles(graph) == []


def test_heavy_packages_are_imported_inside_functions():
    wrong = [line for name, tree in TREES.items() for line in heavy(name, tree, set(TREES))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("engines.base", "from ..inference import windows", "engines.base:1 imports inference.windows"),
        ("engines.base", "def f():\n    from ..cli.main import main", "engines.base:2 imports cli.main"),
        ("engines.base", "import MedQuantINT8Lib.imaging.volume", "engines.base:1 imports imaging.volume"),
        ("errors", "from .models import spec", "errors:1 imports models.spec"),
        ("inference.segmenter", "from ..imaging.volume import Volume\nfrom . import windows\nimport numpy", ""),
    ],
)
def test_an_import_that_points_up_is_seen(module, text, said):
    known = set(TREES) | {"inference.windows", "imaging.volume"}
    assert "".join(upward(module, ast.parse(text), known)) == said


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}
    assert circles(graph) == [["b", "c"], ["d"]]


def test_a_heavy_import_is_seen_at_file_scope_alone():
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
        "class C:\n    from tensorrt import Builder\ntry:\n    import qt\nexcept ImportError:\n    pass\n"
    )
    assert heavy("slicer_module.scene", ast.parse(text), set()) == [
        "slicer_module.scene:7 imports tensorrt",
        "slicer_module.scene:9 imports qt",
    ]
    assert heavy("slicer_module.panels.base", ast.parse("import qt"), set()) == []
