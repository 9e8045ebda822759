"""The figures of benchmarks for a GPU: what is kept of several runs, which of PyTorch's modes counts, and MLPerf's shapes."""

from __future__ import annotations

import sys

import pytest

from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models.spec import Window
from places import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("gpu_page", "cuda_int8_page", "mlperf_kits19"):
        sys.modules.pop(name, None)


def milliseconds(median):
    return {"median_ms": median, "p95_ms": median}


def beside(mode, theirs, ours):
    shares = {"int8_mac_share": 1.0, "macs": 1, "mb": 1.0}
    return {"mode": mode, "torch": milliseconds(theirs), "int8": milliseconds(ours), "ratio": theirs / ours, **shares}


def row(gpu="NVIDIA H200", **batch):
    return {"network": "unet", "gpu": gpu, "torch": "2.11", "date": "2026-11-29", "batch_1": batch}


def test_runs_are_put_together_and_the_fastest_mode_counts():
    import cuda_int8_page
    import gpu_page

    known = {}
    first = row(
        fp32=milliseconds(14.0), fp16_recorded=milliseconds(3.0), tf32={"left_out": True},
        beside=beside("fp16_recorded", 3.1, 0.5),
    )  # fmt: skip
    second = row(
        fp16_channels_last_recorded=milliseconds(2.0), fp16_recorded={"left_out": True}, tf32=milliseconds(8.0),
        beside=beside("fp16_channels_last_recorded", 2.2, 0.5),
    )  # fmt: skip
    second["date"] = "2026-11-30"
    for found in (first, second):
        gpu_page.add_baselines(known, found)
    batch = known["unet"]["batch_1"]
    assert batch["fp16_recorded"] == milliseconds(3.0) | {"date": "2026-11-29"}
    assert batch["tf32"] == milliseconds(8.0) | {"date": "2026-11-30"}
    assert cuda_int8_page.days_of([known["unet"]]) == "2026-11-29 to 2026-11-30"
    assert cuda_int8_page.days_of([known["unet"]], "beside") == "2026-11-30"
    assert batch["beside"]["mode"] == "fp16_channels_last_recorded"
    assert cuda_int8_page.best_of_torch(batch) == ("FP16 channels-last, recorded", 2.0)
    assert cuda_int8_page.ratios({"baselines": known}) == [pytest.approx(4.0)]
    assert cuda_int8_page.ratios({"baselines": known}, "fp32") == [pytest.approx(28.0)]


def test_what_is_timed_beside_the_engine_later_counts_even_if_pytorch_was_slower_then():
    import gpu_page

    known = {}
    for found in (beside("fp16_recorded", 2.0, 0.5), beside("fp16_recorded", 2.1, 0.4)):
        gpu_page.add_baselines(known, row(beside=found))
    gpu_page.add_baselines(known, row(fp32=milliseconds(9.0)))
    assert known["unet"]["batch_1"]["beside"]["int8"] == milliseconds(0.4)


def test_calls_that_were_queued_have_a_ratio_of_their_own():
    import cuda_int8_page

    value = row(beside=beside("fp16_recorded", 2.0, 0.5))
    head, _, plain = cuda_int8_page.table({"baselines": {"unet": value}})
    assert plain.count("|") == head.count("|") and "| – | – | 100.0 % |" in plain
    value["batch_1"]["beside"]["queued"] = {"calls": 10, "torch": milliseconds(1.2), "int8": milliseconds(0.4)}
    assert "| 4.0 | 1.20, 0.40 | 3.0 | 100.0 % |" in cuda_int8_page.table({"baselines": {"unet": value}})[2]


def test_the_page_and_its_rows_say_when_they_were_measured():
    import cuda_int8_page
    import gpu_page

    first, second = row(beside=beside("fp16_recorded", 2.0, 0.5)), row(beside=beside("fp16_recorded", 2.0, 0.4))
    second |= {"network": "nnunet", "date": "2026-11-30"}
    value = {"date": "2027-01-01", "baselines": {"unet": first, "nnunet": second}, "kits19": {"date": "2026-11-26"}}
    assert gpu_page.days_of_runs(value) == "2026-11-26 to 2026-11-30"
    assert [line.split(" | ")[-1] for line in cuda_int8_page.table(value)[2:]] == ["2026-11-29 |", "2026-11-30 |"]


def test_a_mode_that_was_faster_than_the_one_beside_the_engine_counts():
    import cuda_int8_page

    found = row(tf32=milliseconds(1.5), fp32={"error": "RuntimeError: no"}, beside=beside("fp16_recorded", 3.0, 0.5))
    assert cuda_int8_page.best_of_torch(found["batch_1"]) == ("TF32", 1.5)


def test_another_gpu_s_figures_replace_the_old_ones():
    import gpu_page

    known = {"unet": row("NVIDIA H100", fp32=milliseconds(20.0))}
    gpu_page.add_baselines(known, row(tf32=milliseconds(8.0)))
    assert "fp32" not in known["unet"]["batch_1"] and known["unet"]["gpu"] == "NVIDIA H200"


def test_mlperf_s_cases_are_cut_and_padded_by_its_rule():
    import mlperf_kits19

    assert [mlperf_kits19.fitted(size) for size in (20, 128, 159, 160, 191, 392, 417)] == [
        128,
        128,
        128,
        192,
        192,
        384,
        448,
    ]
    shapes = mlperf_kits19.shapes()
    assert (
        len(shapes) == 42
        and shapes[0] == (192, 384, 384)
        and all(side % 64 == 0 for shape in shapes.values() for side in shape)
    )
    for shape in set(shapes.values()):
        plan = plan_windows(shape, Window(mlperf_kits19.PATCH, overlap=0.5), mlperf_kits19.PATCH)
        assert plan.count == mlperf_kits19.windows_of(shape)
