"""Packages that Slicer's Python lacks: asked for with size and licence, and every way in which pip fails is told in words."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from MedQuantINT8Lib.errors import DependencyError
from MedQuantINT8Lib.slicer_module import dependencies, installation
from MedQuantINT8Lib.slicer_module.installation import Consent, Installer


def ensure(name, agree, install=None, ask=pytest.fail, **options):
    """Install a group, where ``agree`` is asked with the words of the question."""
    installer = Installer(lambda question: Consent(bool(agree(question.text()))), ask, install)
    return installation.ensure([name], installer, **options)


@pytest.fixture
def lacking(monkeypatch):
    """openvino and torch are not installed, until something is."""
    gone = {"openvino", "torch"}
    real = dependencies._satisfied
    monkeypatch.setattr(dependencies, "_satisfied", lambda line: line.split(">")[0] not in gone and real(line))
    return gone


def test_only_what_is_lacking_is_installed_and_only_if_the_user_agrees(lacking):
    asked, installed = [], []

    def install(lines):
        installed.extend(lines)
        lacking.clear()

    def agree(text):
        asked.append(text)
        return True

    assert ensure("segment", agree, install)
    assert installed == ["openvino>=2025.2"] and "about 90 MB" in asked[0] and "Apache-2.0" in asked[0]
    assert not ensure("segment", agree, install) and len(asked) == 1
    lacking.add("openvino")
    with pytest.raises(DependencyError, match="Nothing was installed; openvino"):
        ensure("segment", lambda text: False, install)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError("[Errno 28] No space left on device"), "No space left on device"),
        (RuntimeError("pip failed\nERROR: Could not find a version (from versions: none)"), "Could not find a version"),
        (ConnectionError("Cannot connect to proxy"), "proxy"),
    ],
)
def test_pip_that_fails_is_told_with_what_to_look_at(lacking, fault, words):
    def install(lines):
        raise fault

    with pytest.raises(DependencyError, match=words) as told:
        ensure("segment", lambda text: True, install)
    assert "proxy" in str(told.value) and "space on the disk" in str(told.value)


def test_an_install_that_did_nothing_is_noticed(lacking):
    with pytest.raises(DependencyError, match="openvino could not be installed"):
        ensure("segment", lambda text: True, lambda lines: None)


def test_torch_comes_through_slicers_extension(lacking, monkeypatch):
    # What is installed after the install is looked at as it is.
    pytest.importorskip("modelopt", reason="this build of Slicer has no ModelOpt")
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(DependencyError, match="PyTorch extension is not installed"):
        ensure("build", lambda text: True, lambda lines: lacking.clear(), ask=lambda text: False)
    called = []
    utils = ModuleType("PyTorchUtils")

    class Logic:
        def installTorch(self, **options):
            called.append(options)
            lacking.discard("torch")
            return SimpleNamespace(__version__="2.9")

    utils.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", utils)
    assert ensure("build", lambda text: True, lambda lines: None)
    assert called[0]["torchVersionRequirement"] == ">=2.8"


def test_slicers_package_manager_is_used_and_an_older_slicers_pip_otherwise(lacking, monkeypatch):
    calls = []
    slicer, manager = ModuleType("slicer"), ModuleType("slicer.packaging")
    slicer.util = SimpleNamespace(pip_install=lambda text: (calls.append(text), lacking.clear()))
    manager.pip_ensure = lambda requirements, **options: (
        calls.append((list(map(str, requirements)), options)),
        lacking.clear(),
    )
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "slicer.packaging", manager)
    assert ensure("segment", lambda text: True)
    assert calls[-1] == (["openvino>=2025.2"], {"prompt_install": False, "requester": "MedQuantINT8"})
    lacking.add("openvino")
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    assert ensure("segment", lambda text: True)
    assert calls[-1] == "openvino>=2025.2"


def test_several_groups_are_one_question_with_the_folder_that_is_written(lacking):
    asked = []

    def consent(question):
        asked.append(question)
        return Consent(False)

    with pytest.raises(DependencyError, match="Nothing was installed"):
        installation.ensure(["segment", "build", "segment"], Installer(consent, pytest.fail))
    [question] = asked
    assert "openvino>=2025.2" in question.packages and len(set(question.packages)) == len(question.packages)
    assert len(question.purposes) == len(question.sizes) == 2 and "site-packages" in question.target.replace(
        "dist-", "site-"
    )
    assert question.target in question.text() and " and " in question.text()


def test_without_a_network_packages_come_from_a_folder_of_wheels(lacking, monkeypatch, tmp_path):
    # What is installed after the install is looked at as it is.
    pytest.importorskip("modelopt", reason="this build of Slicer has no ModelOpt")
    calls = []
    slicer = ModuleType("slicer")
    slicer.util = SimpleNamespace(pip_install=lambda arguments: (calls.append(arguments), lacking.clear()))
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    installer = Installer(lambda question: Consent(True, str(tmp_path)), pytest.fail)
    with pytest.raises(DependencyError, match="holds no Python packages") as told:
        installation.ensure(["segment"], installer)
    assert "pip download" in str(told.value) and not calls
    (tmp_path / "openvino-2026.1-py3-none-any.whl").write_bytes(b"")
    assert installation.ensure(["segment", "build"], installer)
    [arguments] = calls
    assert arguments[:3] == ["--no-index", "--find-links", str(tmp_path)] and "openvino>=2025.2" in arguments
    assert any(line.startswith("torch") for line in arguments), "torch comes from the folder, too"


def test_versions_are_compared_by_number():
    assert dependencies._satisfied("numpy>=1.9") and dependencies._satisfied("numpy>=1.9,<99")
    assert not dependencies._satisfied("numpy>=99") and not dependencies._satisfied("no-such-thing>=1")


def installed(folder, name, version, *requires):
    """Metadata of a package that is installed in ``folder``."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    extras = [f"Provides-Extra: {extra}" for extra in ("fast",) if requires]
    (place / "METADATA").write_text("\n".join([*lines, *extras, *(f"Requires-Dist: {line}" for line in requires)]))


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("2.13.0+cpu", "made-up>=2.9", True),
        ("2026.4.1-22982-x", "made-up>=2025.2", True),
        ("2026.4.1-22982-x", "made-up>=2027", False),
        ("3.0rc1", "made-up>=2", True),
        ("2.0", "made-up>=1,<2", False),
        ("2.0", "made-up!=2.0", False),
        ("1.0", 'made-up>=2; python_version < "3"', True),
        ("1.0", 'made-up>=2; python_version >= "3"', False),
        ("1.0", "made-up[fast]", False),
        ("1.0", "made-up", True),
    ],
)
def test_limits_markers_and_extras_count(tmp_path, monkeypatch, version, wanted, met):
    installed(tmp_path, "made_up", version, 'no-such-thing>=2; extra == "fast"')
    monkeypatch.syspath_prepend(tmp_path)
    assert dependencies._satisfied(wanted) == met


def test_an_extra_that_is_there_is_met(tmp_path, monkeypatch):
    installed(tmp_path, "made_up", "1.0", 'other-thing>=2; extra == "fast"')
    installed(tmp_path, "other_thing", "2.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert dependencies._satisfied("made-up[fast]>=1")


def test_pip_is_asked_for_requirements_without_their_markers(monkeypatch):
    group = SimpleNamespace(lines=lambda: ['no-such-thing[fast]>=1; python_version >= "3"'], torch=False)
    assert dependencies.missing(group) == ["no-such-thing[fast]>=1"]


@pytest.mark.parametrize(("agreed", "words"), [(True, "PyTorch extension was installed"), (False, "is not installed")])
def test_slicers_pytorch_extension_is_offered_at_the_click_that_needs_it(lacking, monkeypatch, agreed, words):
    installed = []
    manager = SimpleNamespace(
        interactive=True, installExtensionFromServer=lambda name, restart: installed.append(name) or True
    )
    monkeypatch.setitem(
        sys.modules, "slicer", SimpleNamespace(app=SimpleNamespace(extensionsManagerModel=lambda: manager))
    )
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(DependencyError, match=words):
        ensure("build", lambda text: True, lambda lines: None, ask=lambda text: agreed)
    assert installed == (["PyTorch"] if agreed else [])


def test_questions_and_errors_are_in_the_applications_language(monkeypatch):
    def shouting(text):
        return re.sub(r"\{\w+\}", lambda field: field[0].lower(), text.upper())

    package, i18n = ModuleType("slicer"), ModuleType("slicer.i18n")
    i18n.tr, package.i18n, package.__path__ = shouting, i18n, []
    monkeypatch.setitem(sys.modules, "slicer", package)
    monkeypatch.setitem(sys.modules, "slicer.i18n", i18n)
    monkeypatch.setattr(dependencies, "_satisfied", lambda line: False)
    asked = []
    with pytest.raises(DependencyError, match="NOTHING WAS INSTALLED"):
        ensure("segment", lambda text: bool(asked.append(text)))
    assert "INSTALL NOW?" in asked[0]


def test_every_requirement_names_a_module_that_can_be_looked_for():
    modules = dependencies.GROUPS["build"].modules()
    assert modules["onnxscript"] == "onnxscript>=0.3" and "modelopt.onnx.quantization" in modules
    assert list(modules)[-1] == "torch", "what takes longest to import comes last"
    for group in ("segment", "build", "import"):
        for module, line in dependencies.GROUPS[group].modules().items():
            assert not dependencies._satisfied(line) or importlib.util.find_spec(module.split(".")[0]), line


def test_another_python_is_asked_what_it_has_and_nothing_is_installed_there(tmp_path):
    """The Python that makes INT8 networks may be another than Slicer's: what Slicer has says nothing of it."""
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    assert not dependencies.missing(dependencies.GROUPS["segment"], sys.executable)
    with pytest.raises(DependencyError, match="bare-python lacks packages") as told:
        ensure("build", pytest.fail, pytest.fail, python=lambda _name: str(bare))
    assert f"{bare} -m pip install 'onnx>=" in str(told.value) and "onnxscript>=" in str(told.value)
    with pytest.raises(DependencyError, match="cannot be asked"):
        ensure("build", pytest.fail, pytest.fail, python=lambda _name: str(tmp_path / "none"))


def test_markers_are_those_of_the_python_that_is_asked():
    packages = dependencies.Packages(
        {"made-up": ("1.0", ['extra-thing; extra == "fast"'])}.get, {"sys_platform": "win32"}
    )
    assert dependencies._satisfied('no-such-thing>=1; sys_platform != "win32"', packages)
    assert not dependencies._satisfied('no-such-thing>=1; sys_platform == "win32"', packages)
    assert dependencies._satisfied("Made_Up>=1", packages) and not dependencies._satisfied("made-up[fast]", packages)


def test_a_requirement_for_other_computers_is_neither_asked_for_nor_looked_for(monkeypatch):
    group = dependencies.GROUPS["segment"]
    marked = [line for line in group.lines() if ";" in line]
    assert marked == ["archspec>=0.2.7; sys_platform != 'linux'"]
    for platform, expected in (("win32", ["archspec>=0.2.7"]), ("darwin", ["archspec>=0.2.7"]), ("linux", [])):
        packages = dependencies.Packages(
            lambda name: None if name == "archspec" else ("9999", []), {"sys_platform": platform}
        )
        monkeypatch.setattr(dependencies, "_packages_of", lambda python, packages=packages: packages)
        monkeypatch.setattr(dependencies, "_OWN", packages)
        assert dependencies.missing(group, "another-python") == expected, platform
        assert ("archspec" in group.modules()) == bool(expected) and "jinja2" in group.modules()
