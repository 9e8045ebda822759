"""Where an engine runs: "auto" leaves it to the program, "cpu" is the processor, "gpu" a GPU; every way of choosing agrees, or refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from MedQuantINT8Lib.cli import compare
from MedQuantINT8Lib.cli.parsers import parser
from MedQuantINT8Lib.engines import base, registry
from MedQuantINT8Lib.engines.cuda.device import GpuMemoryError, choose_gpu
from MedQuantINT8Lib.errors import EngineError
from MedQuantINT8Lib.inference import engine_choice
from MedQuantINT8Lib.inference.engine_choice import EngineChoice


def stand_in(name, *, gpu=False, precisions=("int8", "fp32"), reason=""):
    return SimpleNamespace(
        name=name, title=name.upper(), real_int8=True, needs_gpu=gpu, precisions=precisions, unavailable=lambda: reason
    )


@pytest.fixture
def engines(monkeypatch):
    """A GPU's engine without FP32, another GPU's that cannot run, and two of the processor."""
    made = {
        "ours": stand_in("ours", gpu=True, precisions=("int8", "fp16")),
        "broken": stand_in("broken", gpu=True, reason="no library"),
        "first": stand_in("first"),
        "second": stand_in("second"),
    }
    monkeypatch.setattr(registry, "_REGISTRY", dict.fromkeys(made, ""))
    for module in (registry, engine_choice):
        monkeypatch.setattr(module, "backend", made.__getitem__)
    monkeypatch.setattr("MedQuantINT8Lib.engines.registry.fastest_first", lambda found: found)
    return made


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("auto", "int8", ["ours", "first", "second"]), ("cpu", "int8", ["first", "second"]), ("gpu", "int8", ["ours"]), ("gpu:1", "fp16", ["ours"]),
        ("auto", "fp32", ["first", "second"]), ("cpu", "auto", ["first", "second"]),
    ],
)  # fmt: skip
def test_a_device_restricts_the_engines_that_auto_chooses_from(engines, device, precision, expected):
    assert [made.name for made in registry.usable_backends(precision, device)] == expected
    assert registry.choose_backend("auto", precision, device).name == expected[0]


def test_a_device_that_no_engine_serves_is_refused_with_reasons(engines):
    with pytest.raises(EngineError, match=r"on the device gpu \(ours: no FP32; broken: no library\).*auto or cpu"):
        registry.choose_backend("auto", "fp32", "gpu")


@pytest.mark.parametrize(("name", "device"), [("ours", "cpu"), ("first", "gpu"), ("first", "gpu:0")])
def test_an_engine_and_a_device_that_exclude_each_other_are_refused(engines, name, device):
    with pytest.raises(EngineError, match=f"{name.upper()} runs on .* alone, not on the device {device}"):
        registry.choose_backend(name, "int8", device)


def test_a_device_is_told_to_an_engine_in_its_own_words(engines):
    found = {
        (name, d): base.device_of(engines[name], d)
        for name, d in [("ours", "auto"), ("ours", "gpu:1"), ("first", "auto"), ("first", "cpu")]
    }
    assert list(found.values()) == ["gpu", "gpu:1", "cpu", "cpu"]


def test_an_engine_whose_check_raises_stops_no_other(engines):
    def fail():
        raise LookupError("no driver\nfound")

    engines["ours"].unavailable = fail
    assert registry.choose_backend("auto", "int8").name == "first"
    assert registry.unavailable_reason(registry.backend("ours")) == "OURS cannot be asked: LookupError: no driver."
    with pytest.raises(EngineError, match="cannot run here: OURS cannot be asked"):
        registry.choose_backend("ours", "int8")


def test_a_gpu_that_was_asked_for_is_not_left_for_the_processor(engines):
    full = GpuMemoryError("too small")
    assert registry.choose_instead("int8", full).name == "first"
    with pytest.raises(GpuMemoryError):
        registry.choose_instead("int8", full, device="gpu:1")
    unknown = base.UnsupportedNetwork("no kernel")
    assert registry.choose_instead("int8", unknown, ["ours"]).name == "first"
    with pytest.raises(base.UnsupportedNetwork):
        registry.choose_instead("int8", unknown, ["ours"], "gpu")


@pytest.mark.parametrize(
    ("name", "device", "precision", "expected"),
    [
        ("ours", "gpu:1", "int8", ("ours", "gpu:1")), ("ours", "gpu:1", "fp32", ("auto", "auto")), ("auto", "gpu", "int8", ("auto", "gpu")),
        ("auto", "gpu", "fp32", ("auto", "auto")), ("auto", "cpu", "fp32", ("auto", "cpu")), ("first", "cpu", "fp32", ("first", "cpu")),
    ],
)  # fmt: skip
def test_what_int8_is_compared_with_runs_on_that_device_where_it_can(engines, name, device, precision, expected):
    choice = EngineChoice(name, device=device).beside(precision)
    assert (choice.name, choice.device, choice.precision) == (*expected, precision)


def test_the_processes_of_compare_are_told_the_device(engines, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compare, "_run_command", lambda arguments, task: asked.append(arguments) or {})
    package = SimpleNamespace(folder=tmp_path)
    for device, precision, expected in (("gpu:1", "int8", "gpu:1"), ("gpu:1", "fp32", "auto"), ("cpu", "int8", "cpu")):
        args = parser().parse_args(["compare", "m", "s", "--device", device, "--threads", "2", "--overlap", "0"])
        compare._segment_in_own_process(args, package, "s", precision, tmp_path / "out.nrrd", None)
        for arguments in asked[-2:]:
            told = parser().parse_args(arguments)
            assert (told.device, told.precision, told.threads, told.overlap) == (expected, precision, 2, 0.0)


def test_the_default_is_auto_everywhere():
    from MedQuantINT8Lib.engines import BuildOptions
    from MedQuantINT8Lib.slicer_module.parameter_node import Parameters

    assert EngineChoice().device == BuildOptions("int8", (1, 1, 1)).device == "auto"
    for line in ("segment m s", "build m", "compare m s", "differences m s", "evaluate m --data d"):
        assert parser().parse_args(line.split()).device == "auto"
    assert vars(Parameters)["device"].default == "auto"


def test_the_processor_is_no_gpu():
    with pytest.raises(EngineError, match="not on the device cpu"):
        choose_gpu("cpu")
