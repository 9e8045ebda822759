"""Names come out of files: of scans, structures, layers, engines. Whatever they hold stands as text on every page, and becomes no part of it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from MedQuantINT8Lib.evaluation.reports.boundary_page import boundary_page
from MedQuantINT8Lib.evaluation.reports.evaluation_page import page as evaluation_page
from MedQuantINT8Lib.evaluation.reports.report import report_html
from MedQuantINT8Lib.evaluation.reports.selftest_page import selftest_page

#: Stands in every text below that may come out of a file.
NAME = "NAME"
HOSTILE = [
    "<script>alert(1)</script>",
    "\"double\" and 'single' onload=alert(1) x='",
    "{{ 7*7 }} {% raw %} {# no comment",
    "</title></style></svg> &lt; & --> <!--",
]


def engine(precision):
    layer = {
        "name": f"layer {NAME}",
        "kind": f"kind {NAME}",
        "precision": f"in {NAME}",
        "kernel": f"kernel {NAME}",
        "macs": 10,
    }
    return {
        "name": f"engine {NAME}", "title": f"title {NAME}", "precision": precision, "bytes": 1_000_000, "note": f"remark {NAME}", "int8_share": 0.9,
        "fidelity": {"patches": 1, "relative_error": 0.01, "label_disagreement": 0.0, "simulated_relative_error": 0.02, "simulated_label_disagreement": 0.001},
        "description": {"version": f"version {NAME}", "verdict": f"verdict {NAME}", "int8_mac_share": 0.98, "layers": [layer]},
    }  # fmt: skip


def run(precision):
    return {
        "scan": f"scan {NAME}", "precision": precision, "engine": engine(precision), "notes": [f"note {NAME}"], "windows": 8, "peak_memory_bytes": 2_000_000_000,
        "seconds": {f"stage {NAME}": 0.1, "network": 1.0, "total": 2.0}, "latency_ms": {"median": 100.0, "p95": 110.0},
        "ranges": {"input": 0.001, "windows": 3, "mean": 0.0001, "worst": [{"tensor": f"tensor {NAME}", "share": 0.002}]},
    }  # fmt: skip


MACHINE = {
    "processor": f"processor {NAME}", "cores": 2, "features": [f"feature {NAME}"], "system": f"system {NAME}", "python": f"python {NAME}",
}  # fmt: skip


def a_report():
    structure = {"value": 1, "name": f"structure {NAME}", "dice": 0.9, "ml": 100.0, "other_ml": 101.0}
    pair = {
        "scan": f"scan {NAME}", "first": "int8", "second": "fp32", "mean_dice": 0.9, "structures": [structure], "left_out": [f"absent {NAME}"],
    }  # fmt: skip
    return {
        "medquant_version": "1", "created": "2026-01-01T00:00:00", "machine": MACHINE,
        "model": {key: f"{key} {NAME}" for key in ("name", "title", "version", "modality", "license", "citation", "source_url")},
        "sizes": {"fp32_bytes": 2_500_000, "int8_bytes": 640_000, "ratio": 0.256},
        "calibration": {"method": f"method {NAME}", "patches_used": 1, "volumes": {"a": "b"}, "warnings": [f"warning {NAME}"], "versions": {f"package {NAME}": f"release {NAME}"}},
        "quantization": {"layers": [{"name": f"convolution {NAME}", "op": f"operator {NAME}", "quantized": False, "reason": f"reason {NAME}"}],
                         "guard": {"returned": ["x"], "agreement": 0.998, "agreement_before": 0.99, "milliseconds": [1.0, 2.0]}},
        "runs": [run("fp32"), run("int8")],
        "agreement": [pair, {**pair, "first": f"side {NAME}", "second": "labels"}],
        "pictures": [{"title": f"picture {NAME}", "png": "ab+/c="}],
    }  # fmt: skip


def an_evaluation():
    interval = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 2}
    metric = {"fp32": interval, "int8": interval, "difference": interval, "wilcoxon_p": 0.01}
    metrics = dict.fromkeys(("dice", "nsd", "hd95", "ml_difference"), metric)
    row = {"case": f"case {NAME}", "structure": f"structure {NAME}", "dice": 0.9, "ml": 10.0}
    return {
        "model": f"model {NAME}", "data": f"data {NAME}", "cases": [f"case {NAME}"], "tolerance_mm": 1.0, "machine": MACHINE,
        "summary": {"overall": metrics, "structures": {f"structure {NAME}": metrics}, "worst": [f"structure {NAME}"],
                    "small": [f"structure {NAME}"],
                    "agreement": {"structures": {f"structure {NAME}": interval}, "worst": None, "worst_small": {"name": f"structure {NAME}", "dice": 0.5}}},
        "rows": [{**row, "precision": "fp32"}, {**row, "precision": "int8", "dice": 0.8, "ml": 11.0}],
        "seconds": {"fp32": 2.0, "int8": 1.0}, "engine": {"fp32": engine("fp32"), "int8": engine("int8")},
    }  # fmt: skip


def a_comparison():
    structure = {
        "name": f"structure {NAME}",
        "dice": 0.9,
        "ml": 100.0,
        "other_ml": 90.0,
        "change_percent": 11.1,
        "pointed_out": True,
    }
    region = {
        "ml": 1.0,
        "first": f"structure {NAME}",
        "second": f"other {NAME}",
        "center_ras": [1.0, 2.0, 3.0],
        "depth_voxels": 1,
        "boundary_share": 0.5,
        "mean_margin": 0.1,
    }
    return {
        "runs": {"fp32": run("fp32"), "int8": run("int8")}, "model": {"file_bytes": {"fp32": 2_000_000, "int8": 500_000}}, "mean_dice": 0.9,
        "structures": [structure, {**structure, "pointed_out": False}], "volume_change_percent": 5.0, "pointed_out": [f"structure {NAME}"],
        "differences": {"voxels": 10, "ml": 1.0, "boundary_share": 0.5, "region_count": 1, "mean_margin": 0.1, "regions": [region]},
    }  # fmt: skip


def a_selftest():
    row = {
        "network": f"network {NAME}", "precision": "int8", "median_ms": 1.0, "p95_ms": 2.0, "engine_mb": 3.0, "int8_share": 0.9, "relative_error": 0.01,
        "other_labels": 0.001, "fidelity": {"relative_error": 0.001}, "passed": False, "reason": f"reason {NAME}",
    }  # fmt: skip
    failed = {"network": f"network {NAME}", "precision": "fp32", "passed": False, "reason": f"reason {NAME}"}
    return {
        "engine": f"engine {NAME}", "version": f"version {NAME}", "device": f"device {NAME}", "machine": MACHINE, "date": "2026-01-01", "rows": [row, failed],
        "passed": False,
    }  # fmt: skip


#: Each page by its command: what is shown, and what shows it. A title holds the names of the model and the scan.
PAGES = {
    "compare": (a_report(), report_html),
    "evaluate": (an_evaluation(), evaluation_page),
    "differences": ({"title": f"title {NAME}", "report": a_comparison()}, lambda value: boundary_page(**value)),
    "selftest": (a_selftest(), selftest_page),
}


def renamed(value, name):
    """A JSON value with another name in place of :data:`NAME`, in keys as well."""
    if isinstance(value, str):
        return value.replace(NAME, name)
    if isinstance(value, dict):
        return {renamed(key, name): renamed(item, name) for key, item in value.items()}
    return [renamed(item, name) for item in value] if isinstance(value, list) else value


def texts_in(value):
    """Every text of a JSON value that holds :data:`NAME`."""
    if isinstance(value, str):
        return {value} if NAME in value else set()
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(texts_in, inner))


class Parts(HTMLParser):
    """A page as a browser takes it apart: tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.parts = []
        self.feed(page)
        self.close()

    def add(self, kind, text):
        if kind == "#text" and self.parts and self.parts[-1][0] == "#text":
            text = self.parts.pop()[1] + text
        self.parts.append([kind, text])

    def handle_starttag(self, tag, attributes):
        self.parts.append([tag, [list(attribute) for attribute in attributes]])

    def handle_endtag(self, tag):
        self.parts.append(["/", tag])

    def handle_comment(self, data):
        self.parts.append(["#comment", data])

    def handle_data(self, data):
        self.add("#text", data)


def taken_apart(page):
    """Its parts, with each run of blanks as one and none around a text."""
    parts = [[kind, " ".join(value.split()) if kind == "#text" else value] for kind, value in Parts(page).parts]
    return [part for part in parts if part != ["#text", ""]]


#: What is kept in the data and shown on no page of that command.
NOT_SHOWN = {
    "compare": set(),
    "evaluate": {"feature", "system", "python", "layer", "kind", "in", "kernel", "title", "remark", "version", "verdict", "case"},
    "differences": {"layer", "kind", "in", "kernel", "engine", "remark", "version", "verdict", "scan", "tensor", "stage"},
    "selftest": {"feature"},
}  # fmt: skip


@pytest.mark.parametrize("command", PAGES)
def test_every_name_is_on_the_page(command):
    value, page = PAGES[command]
    shown = repr(taken_apart(page(value)))
    absent = {text.removesuffix(f" {NAME}") for text in texts_in(value) if text not in shown}
    assert absent == NOT_SHOWN[command]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", PAGES)
def test_a_hostile_name_stands_as_text_and_is_no_part_of_the_page(command, name):
    """The page is that of a harmless name, with the name as it was given in its places."""
    value, page = PAGES[command]
    hostile = page(renamed(value, name))
    assert taken_apart(hostile) == renamed(taken_apart(page(value)), name)
    assert "<script" not in hostile and NAME not in hostile
