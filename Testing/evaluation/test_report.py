"""The report's page: what was gained and lost first, in words that name the worst structure; tables that fit any window."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.evaluation.reports import pages
from MedQuantINT8Lib.evaluation.reports.pages import WIDEST_TABLE
from MedQuantINT8Lib.evaluation.reports.pictures import comparison_slices, comparison_title
from MedQuantINT8Lib.evaluation.reports.report import picture_json, report_html
from MedQuantINT8Lib.imaging.pictures import display_range
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.spec import Label


def run(precision, network, total):
    layers = [
        {
            "name": f"/decoder/level_{n}/block/convolution_with_a_long_name/Conv_{n}",
            "kind": "Convolution",
            "precision": "i8",
            "kernel": "brgconv_avx512_core_vnni_i8",
            "macs": 10,
        }
        for n in range(4)
    ]
    engine = {
        "name": "openvino", "title": "OpenVINO (CPU)", "precision": precision, "bytes": 1_000_000, "note": "",
        "fidelity": {"patches": 1, "relative_error": 0.01, "label_disagreement": 0.0, "simulated_relative_error": 0.02, "simulated_label_disagreement": 0.001},
        "description": {"engine": "openvino", "version": "1", "verdict": "INT8", "int8_mac_share": 0.98, "layers": layers},
    }  # fmt: skip
    return {
        "scan": "scan <1>.nii.gz", "precision": precision, "engine": engine, "notes": [], "windows": 8, "peak_memory_bytes": None,
        "seconds": {"reading": 0.1, "preprocessing": 0.2, "network": network, "blending": 0.3, "restoring": 0.1, "total": total},
        "latency_ms": {"median": 100 * network, "p95": 110 * network},
        "ranges": {"input": 0.001, "windows": 3, "mean": 0.0001, "worst": [{"tensor": "/decoder/level_1/a_tensor_with_a_long_name/Relu_output_0", "share": 0.002}]},
    }  # fmt: skip


def row(name, dice, ml, other):
    return {"value": 1, "name": name, "dice": dice, "ml": ml, "other_ml": other}


@pytest.fixture
def report():
    rows = [
        row("liver", 0.999, 1500.0, 1501.0),
        row("inferior vena cava", 0.981, 102.0, 100.0),
        row("spleen", None, 0.0, 0.0),
    ]
    pair = {
        "scan": "scan <1>.nii.gz",
        "first": "int8",
        "second": "fp32",
        "mean_dice": 0.99,
        "structures": rows,
        "left_out": [],
    }
    volume = Volume(
        np.random.default_rng(0).integers(-1024, 300, (8, 20, 20)).astype(np.int16),
        np.diag([2.0, 2.0, 4.0, 1.0]),
        "scan",
    )
    picture = comparison_slices(
        volume, np.ones((8, 20, 20), np.uint8), np.eye(20, dtype=np.uint8)[None].repeat(8, 0), (Label(1, "liver", 1),)
    )
    return {
        "medquant_version": "1", "created": "2026-01-01T00:00:00",
        "machine": {"processor": "A processor", "cores": 2, "features": ["avx512_vnni"], "system": "Linux", "python": "3.11"},
        "model": {"name": "m", "title": "Organs", "version": "1", "modality": "CT", "license": "Apache-2.0", "citation": "", "source_url": ""},
        "sizes": {"fp32_bytes": 2_500_000, "int8_bytes": 640_000, "ratio": 0.256},
        "calibration": {"method": "max", "patches_used": 1, "volumes": {"a": "b"}, "warnings": [], "versions": {}},
        "quantization": {"layers": [{"name": "/up/ConvTranspose", "op": "ConvTranspose", "quantized": False, "reason": "transposed convolutions stay in float"}],
                         "guard": {"returned": [], "agreement": 0.998, "agreement_before": 0.998, "milliseconds": []}},
        "runs": [run("fp32", 3.0, 3.7), run("int8", 1.0, 1.7)],
        "agreement": [pair, {**pair, "first": "fp32", "second": "labels", "mean_dice": 0.985}, {**pair, "first": "int8", "second": "labels", "mean_dice": 0.984}],
        "pictures": [picture_json("A picture", picture)],
    }  # fmt: skip


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.split("</style>")[1])))


def test_the_first_screen_says_what_was_gained_and_lost(report):
    page = report_html(report)
    cards = re.findall(r"<div class=card><b class='(\w*)'>([^<]+)</b>", page)
    assert cards == [("good", "3.0 ×"), ("good", "1.7 s"), ("good", "26 %")]
    text = text_of(page)
    assert "the worst of 2 structures is inferior vena cava with 0.981" in text
    assert "changes most is that of inferior vena cava: by 2.0 %" in text and "0.985 in FP32 and 0.984 in INT8" in text
    assert (
        page.index("class=cards")
        < page.index("class='verdict good'")
        < page.index("<img")
        < page.index("By structure")
        < page.index("Time by stage")
    )
    assert "scan &lt;1&gt;" in page and "scan <1>" not in page
    assert not re.search(r"\w\(e?s\)", text), "no words that may be one or several"


def test_a_loss_is_said_to_be_one(report):
    worse = deepcopy(report)
    for pair in worse["agreement"]:
        pair["structures"][1]["dice"] = 0.7
    page = report_html(worse)
    assert "verdict bad" in page and "INT8 differs from FP32" in page
    slower = {**report, "runs": [run("fp32", 1.0, 1.0), run("int8", 2.0, 2.0)]}
    assert re.findall(r"<b class='(\w*)'>", report_html(slower))[:2] == ["bad", "bad"]
    nothing = {
        **report,
        "agreement": [{**report["agreement"][0], "mean_dice": None, "structures": [row("liver", None, 0.0, 0.0)]}],
    }
    text = text_of(report_html(nothing))
    assert "found any of the model's structures" in text and "INT8 segments as FP32 does" not in text


def test_what_was_not_measured_is_left_out(report):
    assert "largest memory" not in report_html(report)
    measured = deepcopy(report)
    for number, made in enumerate(measured["runs"]):
        made["peak_memory_bytes"] = (2 - number) * 500_000_000
    assert re.search(r"largest memory, MB 1000 500 2\.00", text_of(report_html(measured)))


def test_no_table_is_wider_than_a_telephone(report):
    page = report_html(report)
    for attributes, head in re.findall(r"<table([^>]*)><tr class=head>(.*?)</tr>", page):
        assert head.count("<th") <= WIDEST_TABLE or "stack" in attributes
    assert "overflow-x" not in page and "white-space: nowrap" not in page
    pairs = [{**report["agreement"][0], "first": f"reader {n}"} for n in range(WIDEST_TABLE)]
    wide = report_html({**report, "agreement": pairs}).split("By structure")[1].split("</table>")[0]
    assert "<table class=stack>" in wide and 'data-head="Dice reader 0 – FP32"' in wide


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to lay the page out")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_needs_no_sideways_scrolling(report, width, tmp_path):
    page = report_html(report).replace("<details>", "<details open>")
    frame = (
        f'<iframe width={width} height=900 srcdoc="{html.escape(page)}" onload="const d = this.contentDocument.documentElement; '
        "document.body.innerHTML = 'width ' + d.scrollWidth + ' of ' + d.clientWidth\"></iframe>"
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}</body>", encoding="utf-8")
    arguments = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    found = subprocess.run(
        [*arguments, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    needed, given = map(int, re.search(r"width (\d+) of (\d+)", found.stdout).groups())
    assert needed <= given and given > width - 40


def test_ct_is_shown_in_a_soft_tissue_window_and_anything_else_as_it_comes():
    ct = np.concatenate([np.full(500, -1000), np.linspace(-100, 1200, 500)])
    assert display_range(ct) == (-160.0, 240.0)
    assert display_range(np.linspace(0, 1000, 1001)) == pytest.approx((10, 995))


def test_the_pictures_title_counts_what_differs():
    first = np.zeros((2, 5, 10), np.uint8)
    second = first.copy()
    second[0, 0, :3] = 1
    assert comparison_title("scan", first, second).endswith("3 of 100 (3.000 %)")


def test_a_value_that_a_template_lacks_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="engine"):
        pages.render("selftest.html", title="A title", passed=True)


@pytest.mark.parametrize("command", ["compare demo SCAN --report OUT", "differences demo SCAN --output OUT", "demo --output OUT", "selftest --output OUT"])  # fmt: skip
def test_without_jinja2_a_command_that_writes_a_page_stops_before_its_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    pages._environment.cache_clear()
    words = {"SCAN": str(tmp_path / "scan.nii.gz"), "OUT": str(tmp_path / "out")}
    (tmp_path / "scan.nii.gz").write_bytes(b"never read")
    assert main([words.get(word, word) for word in command.split()]) != 0
    assert "'jinja2'" in capsys.readouterr().err and not (tmp_path / "out" / "report.json").exists()
