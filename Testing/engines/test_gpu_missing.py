"""A machine without an NVIDIA driver, or with one that finds no GPU: no engine for GPUs stops the one for the processor.

With cuda-python really installed, its oldest and its newest: Testing/Installs/roads.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from MedQuantINT8Lib.engines import registry
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda import driver as cuda_driver
from MedQuantINT8Lib.engines.cuda_int8.backend import CudaInt8Backend
from MedQuantINT8Lib.errors import DependencyError


class DynamicLibNotFoundError(RuntimeError):
    """As newer bindings raise it, at the first call of a library that is not there."""


def missing(*_arguments):
    raise DynamicLibNotFoundError('Failure finding "libcuda.so.1": a search of\nevery place found nothing')


def bindings_with(monkeypatch, cuInit, nvrtcVersion=missing):
    found = SimpleNamespace(cuInit=cuInit), SimpleNamespace(nvrtcVersion=nvrtcVersion)
    for module in (cuda, cuda_driver):
        monkeypatch.setattr(module, "bindings", lambda: found)


@pytest.mark.parametrize("driver_installed", [False, True])
def test_a_missing_driver_is_told_as_such_by_every_way_of_asking(monkeypatch, driver_installed):
    bindings_with(monkeypatch, missing)
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: driver_installed)
    for ask in (cuda.gpus, cuda.check_one_fits, lambda: cuda.choose_gpu("gpu")):
        with pytest.raises(DependencyError, match="driver") as raised:
            ask()
        assert "\n" not in str(raised.value)
    reason = CudaInt8Backend().unavailable()
    assert "driver" in reason and "run-time compiler" not in reason


def test_a_driver_that_finds_no_gpu_is_no_error(monkeypatch):
    bindings_with(monkeypatch, lambda _flags: (100,))
    assert cuda.gpus() == []
    assert "no NVIDIA GPU" in CudaInt8Backend().unavailable()


def test_a_missing_compiler_is_told_with_the_package_that_brings_it(monkeypatch):
    bindings_with(monkeypatch, lambda _flags: (0,))
    monkeypatch.setattr(cuda, "check_one_fits", lambda: None)
    assert "pip install nvidia-cuda-nvrtc" in CudaInt8Backend().unavailable()


class Unforeseen:
    name, title, real_int8, needs_gpu, precisions = "unforeseen", "Unforeseen", True, True, ("int8", "fp32")

    def unavailable(self):
        raise OSError("libsomething.so.1: undefined symbol\nin a second line")


def test_whatever_an_engines_check_raises_is_its_reason_in_one_line(monkeypatch):
    monkeypatch.setitem(registry._REGISTRY, "unforeseen", f"{__name__}:Unforeseen")
    assert (
        registry.unavailable_reason(registry.backend("unforeseen"))
        == "Unforeseen cannot be asked: OSError: libsomething.so.1: undefined symbol."
    )
    assert "unforeseen" not in [made.name for made in registry.usable_backends("int8")]
    assert registry.choose_backend("auto", "int8").name != "unforeseen"
