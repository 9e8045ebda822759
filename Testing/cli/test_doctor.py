"""``medquant doctor``: what can run here, why not the rest, in 80 columns and without loading any of it; and the list of models."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from MedQuantINT8Lib.cli import doctor
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines import register
from MedQuantINT8Lib.engines import registry as engine_registry
from places import LIBRARY


class BrokenBackend:
    name = title = "broken"
    real_int8 = True

    def unavailable(self):
        raise RuntimeError("libcuda.so.1\nis no library")

    def version(self):
        return ""


class SilentBackend(BrokenBackend):
    def unavailable(self):
        return ""

    def version(self):
        raise OSError


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(engine_registry, "_REGISTRY", dict(engine_registry._REGISTRY))
    for made in (BrokenBackend, SilentBackend):
        register(made.__name__, f"{__name__}:{made.__name__}")


def test_no_engines_own_failure_stops_the_doctor(registry, monkeypatch, capsys):
    def fail():
        raise LookupError("no NVIDIA driver\nhere")

    monkeypatch.setattr("MedQuantINT8Lib.engines.cuda.setup_hints.advice_for_gpus", fail)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engines"]["BrokenBackend"]["reason"] == "libcuda.so.1 is no library"
    assert (
        found["engines"]["SilentBackend"]["reason"] == "OSError" and not found["engines"]["SilentBackend"]["available"]
    )
    assert found["engines"]["openvino"]["available"] and found["gpus"] == ["no NVIDIA driver here"]


@pytest.mark.parametrize("module", ["onnxscript", "lief", "modelopt", "torch"])
def test_whatever_is_missing_to_quantize_is_named(module, monkeypatch):
    look = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else look(name, *more))
    reason = doctor.quantizer_lacks()
    assert (
        reason.startswith(doctor.QUANTIZER_MODULES[module])
        and "is not installed (pip install 'medquantint8[quantize]')" in reason
    )


def test_a_package_that_is_too_old_to_quantize_is_named(monkeypatch):
    assert doctor.quantizer_lacks() == ""
    monkeypatch.setattr("MedQuantINT8Lib.system.installed_version", lambda name: "2.7.1" if name == "torch" else None)
    assert doctor.quantizer_lacks() == "torch 2.7.1 is too old: 2.8 is needed (pip install -U torch)"


@pytest.mark.slow
def test_the_modules_of_the_quantizer_are_those_that_it_imports():
    """In a process of its own: what ModelOpt's ONNX road loads from outside, each of which keeps it from running when it is missing."""
    code = (
        "import sys; before = set(sys.modules); from modelopt.onnx.quantization import quantize;"
        "print('\\n'.join({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(doctor.QUANTIZER_MODULES) <= set(done.stdout.split())


def test_the_doctor_loads_nothing_that_makes_networks():
    code = (
        "import sys; from MedQuantINT8Lib.cli.main import main; main(['doctor']);"
        "print(sorted({'torch', 'modelopt', 'monai', 'onnx', 'onnxscript', 'slicer', 'vtk'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_the_doctor_says_fits_80_columns_with_a_line_for_each_engine(registry, monkeypatch, capsys):
    monkeypatch.setattr(
        "MedQuantINT8Lib.engines.cuda.setup_hints.advice_for_gpus",
        lambda: ["0: NVIDIA H100, 80 GB: " + "for this project's own kernels: pip install cuda-python " * 4],
    )
    monkeypatch.setattr(SilentBackend, "version", lambda self: "1.2.3-with-a-long-build-name-" + "x" * 60)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    engines = lines[: next(n for n, line in enumerate(lines) if line.startswith("packages"))]
    for name in (*engine_registry.backend_names(), "quantize"):
        assert sum(line[11:].startswith(f"{name} ") for line in engines) == 1, name
    assert any(line.startswith("faster     GPU 0: NVIDIA H100") for line in lines)


def test_without_an_engine_the_doctor_says_what_to_install():
    nothing = {"title": "", "available": False, "reason": "is missing", "real_int8": True, "version": ""}
    found = {
        "machine": {"processor": "P", "cores": 1, "system": "Linux", "python": "3", "features": []},
        "engines": {"openvino": nothing}, "packages": {}, "gpus": [], "cache": "c", "memory_available_bytes": 1,
        "quantizer": {"available": False, "reason": "is missing"},
    }  # fmt: skip
    text = "\n".join(doctor.lines_of(found))
    assert (
        "nothing      no engine: pip install openvino onnx" in text and "faster     pip install openvino onnx" in text
    )


def test_models_are_listed_in_columns_that_fit_80(tmp_path, monkeypatch, capsys):
    from MedQuantINT8Lib.cli import models as models_command

    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path))
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines[:-1] if line[:2].strip() or line[2:3].strip()]
    assert len({line.index(" CT ") for line in rows if " CT " in line}) == 1 and rows[0].startswith("* demo ")
    long = {
        "installed": True,
        "name": "n" * 90,
        "modality": "CT",
        "structures": 105,
        "title": "a title of " + "many words " * 20,
    }
    made = models_command._table([long, {**long, "name": "short"}])
    # A name is what is typed: it is never cut.
    assert (
        made[0] == "* " + "n" * 90
        and max(map(len, made[1:])) <= 80
        and made[1].split() == ["CT", "105", *long["title"].split()[: len(made[1].split()) - 2]]
    )
