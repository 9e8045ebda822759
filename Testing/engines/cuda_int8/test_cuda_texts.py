"""The CUDA C that lies in files: all of it is installed, used, and part of the engine's version."""

from __future__ import annotations

import ctypes
import fnmatch
import math
import re
from pathlib import Path

import numpy as np
import pytest

import kernels_on_processor
import make_cmake
from cuda_networks import NETWORKS, plan_of, size_of
from MedQuantINT8Lib.engines.cuda.source_files import cuda_text
from MedQuantINT8Lib.engines.cuda_int8 import backend
from MedQuantINT8Lib.engines.cuda_int8.kernels import kernel_text
from MedQuantINT8Lib.engines.cuda_int8.kernels.epilogue import POINTERS
from MedQuantINT8Lib.engines.cuda_int8.runtime import program
from MedQuantINT8Lib.engines.cuda_int8.tiling.candidates import Machine, proposals
from MedQuantINT8Lib.inference import gpu_kernels
from places import LIBRARY as MODULE
from places import ROOT

LIBRARY = MODULE / "MedQuantINT8Lib"
TEXTS = sorted(path for path in LIBRARY.rglob("*") if path.suffix in (".cu", ".cuh"))


def test_every_text_is_in_the_wheel_and_in_cmakes_list():
    tomllib = pytest.importorskip("tomllib")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    listed = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8").split()
    assert TEXTS
    for path in TEXTS:
        package = path.parent.relative_to(MODULE).as_posix().replace("/", ".")
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in data.get(package, [])), path
        assert (
            path.relative_to(MODULE).as_posix() in listed
            and path.relative_to(MODULE).as_posix() in make_cmake.resources()
        )


def test_the_engines_version_follows_every_file_that_decides_about_a_kernel(monkeypatch):
    folder = LIBRARY / "engines" / "cuda_int8"
    files = set(backend.engine_files())
    assert {path for path in folder.rglob("*") if path.suffix in (".py", ".cu", ".cuh")} <= files
    assert {"compiler.py", "source_files.py"} == {path.name for path in files if folder not in path.parents}
    before, read = backend.engine_version.__wrapped__(), Path.read_bytes
    for changed in (folder / "kernels" / "convolution.cu", folder / "kernels" / "prelude.cuh", folder / "backend.py"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path, changed=changed: read(path) + b" " * (path == changed))
            assert backend.engine_version.__wrapped__() != before, changed


def test_every_text_is_used_and_no_kernel_includes_a_file():
    """By the networks of the tests, for the two generations whose products differ."""
    sources = [getattr(gpu_kernels, name)() for name in dir(gpu_kernels) if name.endswith("source")]
    sources.append(kernel_text("widen.cu"))
    for name, network in NETWORKS.items():
        plan = plan_of(network(), size_of(name))
        for machine in (Machine((8, 0), 108), Machine((9, 0), 132)):
            sources += [one.source for one in program.programs(plan, machine, 1)]
            for step in plan.steps:
                if step.kind in ("conv", "deconv"):
                    sources += [
                        program.conv_program(plan, step, tiling, machine).source
                        for tiling in proposals(step, machine, 1, 3)
                    ]
    everything = "\n".join(set(sources))
    assert "#include" not in everything
    assert [path.name for path in TEXTS if cuda_text(path) not in everything] == []


def test_params_have_the_same_fields_in_cuda_c_and_in_python():
    text = kernel_text("prelude.cuh")
    struct = re.search(r"struct __align__\(16\) Params \{(.*?)\};", text, re.DOTALL)
    assert struct is not None
    fields = re.findall(r"(\w+)(?:\[(\d+)\])?\s*[;,]", struct[1])
    shapes = {name: program.PARAMS.fields[name][0].shape for name in program.PARAMS.names}
    assert [(name, (int(count),) if count else ()) for name, count in fields] == list(shapes.items())
    assert shapes["ptr"] == shapes["f"] == (POINTERS,) and program.PARAMS.itemsize % 16 == 0


@pytest.mark.skipif(kernels_on_processor.COMPILER is None, reason="no C++ compiler")
def test_gelu_is_what_the_error_function_gives():
    function = re.search(r"__device__ __forceinline__ float gelu.*?\n}\n", kernel_text("prelude.cuh"), re.DOTALL)
    assert function is not None
    source = "#define __forceinline__ inline\n#define __fmaf_rn fmaf\n" + function[0]
    source += 'extern "C" __global__ void run(float* x) { x[threadIdx.x] = gelu(x[threadIdx.x]); }\n'
    kernel = kernels_on_processor.kernels(source, ["run"])["run"]
    values = np.concatenate([np.linspace(-12, 12, 1019), [0.0, 1e-30, -1e-6, 1e4, -1e4]]).astype(np.float32)
    found = values.copy()
    kernel((1, 1, 1), (len(found), 1, 1), None, ctypes.c_void_p(found.ctypes.data))
    expected = [value / 2 * math.erfc(-value / math.sqrt(2)) for value in values.astype(np.float64)]
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=4e-7)
    ends = np.array([np.inf, -np.inf, 3e38, -3e38, np.nan], np.float32)
    kernel((1, 1, 1), (len(ends), 1, 1), None, ctypes.c_void_p(ends.ctypes.data))
    np.testing.assert_array_equal(ends, np.array([np.inf, 0, 3e38, 0, np.nan], np.float32))
