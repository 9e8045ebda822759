"""The extension as the index and the Extensions Manager see it: lists, fields, pictures, and what is installed runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import make_cmake
from places import ROOT

MODULE = ROOT / "MedQuantINT8"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def field(name):
    return re.search(rf'set\({name} "([^"]+)"\)', CMAKE)[1]


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_every_script_and_resource_is_listed():
    assert (MODULE / "CMakeLists.txt").read_text(encoding="utf-8") == make_cmake.text(), (
        "run: python tools/make_cmake.py"
    )
    kept = {p.relative_to(MODULE).as_posix() for p in tracked() if MODULE in p.parents} - {"CMakeLists.txt"}
    assert kept <= set(make_cmake.scripts()) | set(make_cmake.resources())


def test_the_catalogue_entry_has_the_fields_of_its_schema():
    path = ROOT / "Resources" / "MedQuantINT8.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    known = {
        "$schema",
        "category",
        "scm_url",
        "scm_revision",
        "scm_type",
        "build_dependencies",
        "build_subdirectory",
        "enabled",
        "tier",
    }
    assert {"$schema", "category", "scm_url"} <= set(entry) <= known
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert entry["category"] == "Segmentation" and entry["scm_url"].startswith("https://") and 1 <= entry["tier"] <= 5
    assert Path(entry["scm_url"]).stem.startswith("Slicer")
    assert path.stem == re.search(r"project\((\w+)\)", CMAKE)[1]
    assert set(entry["build_dependencies"]) == set(field("EXTENSION_DEPENDS").split()) - {"NA"}
    # PyTorch among them would keep the index from packaging the extension, and only the build road needs it.
    assert "PyTorch" not in entry["build_dependencies"]


def test_the_catalogue_entry_is_laid_out_as_the_indexs_lint_wants_it():
    """Prettier with multiline arrays: two spaces, an element of an array a line, an empty array on one."""
    text = (ROOT / "Resources" / "MedQuantINT8.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_the_window_has_the_applications_looks():
    files = [*(MODULE / "Resources" / "UI").glob("*.ui"), *MODULE.rglob("*.py")]
    assert not [path.name for path in files if "stylesheet" in path.read_text(encoding="utf-8").lower()]


def test_no_file_imports_torch_at_its_top():
    for path in MODULE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {"torch", "monai", "modelopt", "nnunetv2"}, path


def test_addresses_of_icon_and_screenshots_are_files_of_this_repository():
    for address in [field("EXTENSION_ICONURL"), *field("EXTENSION_SCREENSHOTURLS").split()]:
        assert address.startswith("https://")
        picture = ROOT / address.split("/main/", 1)[1]
        assert picture.is_file() and picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", ["segment", "compare", "demo"])
def test_the_readmes_pictures_have_one_size(name):
    content = (ROOT / "Resources" / f"{name}.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (1280, 800)


def test_the_icon_is_128_pixels_square():
    header = (MODULE / "Resources" / "Icons" / "MedQuantINT8.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (128, 128)


def test_licence_readme_and_size_are_as_the_index_asks():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for asked in (
        "## Tutorial",
        "## Cite",
        "](Resources/segment.png)",
        "Not a medical device",
        "SyntheticAbdomen",
        "## Troubleshooting",
    ):
        assert asked in text, asked
    assert sum(p.stat().st_size for p in tracked() if p.is_file()) < 100 << 20


def test_the_module_file_imports_nothing_foreign_and_does_nothing_at_import():
    tree = ast.parse((MODULE / "MedQuantINT8.py").read_text(encoding="utf-8"))
    allowed = {"slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy", "scipy"} | set(sys.stdlib_module_names)
    for node in tree.body:
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert {name.split(".")[0] for name in names} <= allowed
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef) or (
            ast.get_docstring(tree) and isinstance(node, ast.Expr)
        )


def test_requirement_files_say_what_the_extras_say():
    project = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]

    def names(extra):
        listed = re.search(rf"^{extra} = \[(.*?)^\]", project, re.S | re.M)[1]
        return set(re.findall(r'^    "([^"]+)",', listed, re.M))

    def lines(name):
        return set((MODULE / "Resources" / name).read_text().splitlines())

    # What every install brings, whatever its engine; Slicer has the first two.
    base = names("dependencies") - {"numpy>=1.26", "SimpleITK>=2.3"}
    assert any(";" in line for line in base), "one with a marker"
    assert lines("requirements-segment.txt") == names("openvino") | names("onnxruntime") | base
    assert lines("requirements-build.txt") == names("quantize") - {"torch>=2.8"}
    assert lines("requirements-import.txt") == (names("import") - {"torch>=2.8"}) | {"onnx>=1.17", "onnxruntime>=1.20"}
    assert lines("requirements-tensorrt.txt") == names("tensorrt") | {"onnxruntime>=1.20"} | base
    assert lines("requirements-cuda.txt") == names("cuda") | {"onnxruntime>=1.20"} | base
    assert lines("requirements-tensorrt-rtx.txt") == names("tensorrt-rtx") | base
    for path in (MODULE / "Resources").glob("requirements-*.txt"):
        assert "==" not in re.sub(";.*", "", path.read_text())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The extension, configured and installed with CMake against the stand-in for Slicer's macros."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None or not (shutil.which("cc") and shutil.which("make")):
        pytest.skip("needs cmake, make and a C compiler")
    folder = tmp_path_factory.mktemp("cmake")
    slicer = f"-DSlicer_DIR={ROOT / 'Testing' / 'cmake'}"
    steps = (
        [cmake, "-S", str(ROOT), "-B", str(folder / "build"), slicer, "-DBUILD_TESTING=ON"],
        [cmake, "--install", str(folder / "build"), "--prefix", str(folder / "installed")],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "installed" / "lib" / "Slicer-5.10" / "qt-scripted-modules"


def test_what_is_installed_is_complete_and_segments(installed, tmp_path):
    listed = set(make_cmake.scripts()) | set(make_cmake.resources())
    assert {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()} == listed
    code = (
        "from MedQuantINT8Lib.slicer_module import logic, scene as mrml; from MedQuantINT8Lib.imaging.phantom import make_phantom;"
        "import MedQuantINT8Lib; print(MedQuantINT8Lib.__file__);"
        "made = logic.MedQuantINT8Logic();"
        "node = made.segment(mrml.volume_node(make_phantom(1, (64, 60, 60), 5.0)[0], 'scan'), model='demo');"
        "print(node.GetSegmentation().GetNumberOfSegments()); made.close()"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "MEDQUANT_MODELS": str(tmp_path),
        "MEDQUANT_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, segments = done.stdout.split()[-2:]
    assert where.startswith(str(installed)) and int(segments) == 11


def test_importing_the_module_loads_nothing_of_the_library():
    pytest.importorskip("PySide6")
    code = (
        "import sys; sys.path.insert(0, 'Testing/host'); import window; window.install();"
        "[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('MedQuantINT8')];"
        "before = set(sys.modules); import MedQuantINT8; print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("['MedQuantINT8']"), done.stdout


EVERY_MODULE = """
import importlib, pkgutil, sys
from unittest.mock import MagicMock
# The application's own modules; they are not on a package index.
for name in ("slicer", "slicer.i18n", "slicer.util", "slicer.ScriptedLoadableModule", "AbstractScriptedSubjectHierarchyPlugin", "qt", "ctk", "vtk", "mrml"):
    sys.modules[name] = MagicMock()
import MedQuantINT8Lib
print(MedQuantINT8Lib.__file__)
for module in pkgutil.walk_packages(MedQuantINT8Lib.__path__, "MedQuantINT8Lib."):
    importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_from_the_wheel(tmp_path):
    """pyproject.toml lists the packages: one that is forgotten is missing from a wheel, and nowhere else."""
    source, site = tmp_path / "source", tmp_path / "site"
    for path in tracked():
        if path.is_file():
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    build = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = [sys.executable, "-c", EVERY_MODULE]
    done = subprocess.run(
        code, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}
    )
    assert done.returncode == 0, done.stderr
    where, *imported = done.stdout.split()
    assert where.startswith(str(site))
    library = MODULE / "MedQuantINT8Lib"
    modules = {p.relative_to(MODULE).with_suffix("").as_posix().replace("/", ".") for p in library.rglob("*.py")}
    expected = {name.removesuffix(".__init__") for name in modules} - {"MedQuantINT8Lib"}
    assert expected <= set(imported), expected - set(imported)
    for pattern in ("*.cu*", "*.html"):
        texts = {p.relative_to(library) for p in library.rglob(pattern)}
        assert texts and texts == {
            p.relative_to(site / "MedQuantINT8Lib") for p in (site / "MedQuantINT8Lib").rglob(pattern)
        }


def test_every_job_of_every_way_to_install_is_known():
    """A road that names a job which jobs.py does not know fails only where it is run, after its environment was made."""
    folder = ROOT / "Testing" / "Installs"
    jobs = set(re.findall(r"\b\w+\b", (folder / "jobs.py").read_text().partition("\nJOBS = (")[2].partition(")")[0]))
    roads = (folder / "roads.py").read_text().partition("\nROADS = (")[2].partition("\n)")[0]
    lists = re.findall(r'Road\("[^"]+", "[^"]*", \(([^)]*)\)', roads)
    wanted = {name for names in lists for name in re.findall(r'"(\w+)"', names)}
    assert len(wanted) > 10 and wanted <= jobs
