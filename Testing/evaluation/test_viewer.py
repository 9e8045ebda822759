"""The viewer in the pages: small enough, right on the scan's grid, drawn by a real browser, and led to a region by a click."""

from __future__ import annotations

import base64
import gzip
import io
import sys

import nibabel
import numpy as np
import pytest

import browser
from MedQuantINT8Lib.evaluation.reports import viewer
from MedQuantINT8Lib.evaluation.reports.pages import _environment
from MedQuantINT8Lib.evaluation.viewing import WorstCases, viewer_pair
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.models.spec import Label

LABELS = (Label(1, "liver", 1, (220, 120, 90)), Label(2, "</script><b>", 2, (90, 200, 90)))
PLACE = (20, 60, 50)  # K, J, I of what INT8 adds
needs_viewer = pytest.mark.skipif(viewer.viewer_module() is None, reason="ipyniivue is not installed")
needs_browser = pytest.mark.skipif(browser.BROWSER is None, reason=browser.NEEDED)


@pytest.fixture(scope="module")
def pair():
    """An oblique scan with two structures; INT8 has a box more of the first."""
    k, j, i = np.mgrid[:44, :90, :100]
    data = (60 * np.sin(i / 9) + 40 * (j > 30)).astype(np.float32)
    fp32 = (((k - 20) * 1.3) ** 2 + (j - 45) ** 2 + (i - 50) ** 2 < 200).astype(np.uint8)
    fp32[(k - 20) ** 2 + (j - 20) ** 2 + (i - 20) ** 2 < 40] = 2
    int8 = fp32.copy()
    int8[18:23, 58:63, 48:53] = 1
    angle = np.radians(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ np.diag([-1.5, -1.5, 2.0]), (70, 60, -50)
    return Volume(data[None], matrix, "scan <one>"), fp32, int8


def layer_of(scan, name):
    content = gzip.decompress(base64.b64decode(scan.layers[name]))
    return nibabel.Nifti1Image.from_stream(io.BytesIO(content))


def test_layers_lie_where_the_scan_lies_and_hold_the_label_maps_voxels(pair):
    volume, fp32, int8 = pair
    scan = viewer_pair(volume, fp32, int8, LABELS)
    assert list(scan.layers) == ["scan", "FP32", "INT8", viewer.DIFFERENCES] and "cut to the structures" in scan.note
    for name, expected in (("FP32", fp32), ("INT8", int8), (viewer.DIFFERENCES, (fp32 != int8).astype(np.uint8))):
        image = layer_of(scan, name)
        values = np.asarray(image.dataobj)
        ijk = np.argwhere(values)
        ras = ijk @ image.affine[:3, :3].T + image.affine[:3, 3]
        own = np.rint((ras - volume.ijk_to_ras[:3, 3]) @ np.linalg.inv(volume.ijk_to_ras[:3, :3]).T).astype(int)
        assert np.array_equal(values[tuple(ijk.T)], expected[tuple(own[:, ::-1].T)])
        assert len(ijk) == np.count_nonzero(expected)
    grey = np.asarray(layer_of(scan, "scan").dataobj)
    assert grey.dtype == np.uint8 and grey.min() == 0 and grey.max() == 255
    region = scan.places[0]
    assert "background in FP32, liver in INT8" in region.name
    kji = np.linalg.solve(volume.ijk_to_ras, [*region.ras, 1])[:3][::-1]
    assert (fp32 != int8)[tuple(np.rint(kji).astype(int))]


def test_a_scan_that_is_too_much_becomes_coarser_and_says_so(pair):
    volume, fp32, int8 = pair
    noise = np.random.default_rng(0).normal(size=volume.data.shape).astype(np.float32)
    scan = viewer_pair(Volume(noise, volume.ijk_to_ras), fp32, int8, LABELS, most_bytes=60_000)
    assert scan.bytes <= 60_000 and "one in" in scan.note
    whole = layer_of(viewer_pair(volume, fp32, int8, LABELS), "FP32")
    coarse = layer_of(scan, "FP32")
    step = round(coarse.header.get_zooms()[0] / whole.header.get_zooms()[0])
    assert step > 1 and np.array_equal(np.asarray(coarse.dataobj), np.asarray(whole.dataobj)[::step, ::step, ::step])


def test_of_a_data_set_the_cases_that_lose_most_are_shown(pair, monkeypatch):
    monkeypatch.setattr("MedQuantINT8Lib.evaluation.viewing.viewer_module", lambda: "installed")
    volume, fp32, int8 = pair
    worst = WorstCases(LABELS)
    for number, lost in enumerate((0.01, 0.3, -0.1, 0.2, 0.05)):
        named = Volume(volume.data, volume.ijk_to_ras, str(number))
        worst.offer(lost, named, {"FP32": fp32, "INT8": int8, "labels": fp32})
    assert [scan.name for scan in worst.scans] == ["1", "3", "4"] and "labels" in worst.scans[0].layers


def page_of(pair, path):
    template = _environment().from_string(
        "{% extends 'base.html' %}{% from 'viewer.html' import viewer %}{% block body %}{{ viewer(shown) }}{% endblock %}"
    )
    scans = [
        viewer_pair(*pair, LABELS),
        viewer_pair(Volume(pair[0].data, pair[0].ijk_to_ras, "two"), *pair[1:], LABELS),
    ]
    path.write_text(template.render(title="A page", shown=viewer.viewer_values(scans)), encoding="utf-8")
    return path


@needs_viewer
def test_a_page_is_one_file_below_25_mb_that_names_no_address_to_load_from(pair, tmp_path):
    path = page_of(pair, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size + viewer.MOST_BYTES < 25_000_000
    assert text.count("</script>") == 2 and "<b>" not in text.split("viewer-data>")[1].split("</script>")[0]
    assert " src=" not in text.split("<script")[0] and "<link" not in text.split("<script")[0]


@needs_viewer
@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_viewer_draws_and_a_click_on_a_region_moves_the_crosshair(pair, tmp_path, width):
    import SimpleITK as sitk

    volume, fp32, int8 = pair
    with browser.Page(page_of(pair, tmp_path / "page.html"), tmp_path / "profile", width) as page:
        if not page.evaluate("!!document.createElement('canvas').getContext('webgl2')"):
            pytest.skip("this Chromium has no WebGL 2, not even in software")
        page.wait_for("document.documentElement.dataset.viewer")
        assert page.evaluate("document.documentElement.dataset.viewer") == "ready"
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        (tmp_path / "page.png").write_bytes(page.picture())
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "page.png")))[..., :3].astype(int)
        left, top, wide, high = page.evaluate(
            "(({left, top, width, height}) => [left, top, width, height])(document.getElementById('viewer-canvas').getBoundingClientRect())"
        )
        stage = pixels[int(top) : int(top + high), int(left) : int(left + wide)].reshape(-1, 3)
        red, green, blue = stage.T
        assert (np.ptp(stage, axis=1) < 6).mean() > 0.2 and (stage.max(axis=1) > 60).mean() > 0.1  # the scan in grey
        assert ((red > 180) & (green < 80) & (blue < 120)).sum() > 20  # what differs
        assert ((red > 200) & (green > 150) & (blue < 60)).sum() > 20  # the crosshair
        before = page.evaluate("document.getElementById('viewer-where').textContent")
        page.click(left + wide * 0.3, top + high * 0.3)
        page.wait_for(f"document.getElementById('viewer-where').textContent !== {before!r}")
        x, y = page.evaluate(
            "(b => { b.scrollIntoView({block: 'center'}); const r = b.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })"
            "(document.querySelector('#viewer-places button'))"
        )
        page.click(x, y)
        page.wait_for(f"document.getElementById('viewer-where').textContent === {before!r}")
        numbers = [float(part.split()[1]) for part in before.removesuffix(" mm").split(", ")]
        kji = np.rint(np.linalg.solve(volume.ijk_to_ras, [*numbers, 1])[:3][::-1]).astype(int)
        assert (fp32 != int8)[tuple(kji)]
        page.evaluate(
            "document.getElementById('viewer-scan').value = '1'; document.getElementById('viewer-scan').dispatchEvent(new Event('change'))"
        )
        page.wait_for("document.getElementById('viewer-layers').children.length === 3")
        assert page.complaints == []


def test_without_a_viewer_there_is_none_in_the_page(pair, monkeypatch):
    monkeypatch.setattr(viewer, "viewer_module", lambda: None)
    assert viewer.viewer_values([viewer_pair(*pair, LABELS)]) is None


def test_a_widget_without_niivues_own_module_is_no_viewer(tmp_path, monkeypatch):
    folder = tmp_path / "ipyniivue" / "static"
    folder.mkdir(parents=True)
    (tmp_path / "ipyniivue" / "__init__.py").write_text("raise RuntimeError('a page needs no widget')")
    (folder / "widget.js").write_text(f'const a = "{"x" * 300_000}"; export {{ a as default }};')
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    monkeypatch.delitem(sys.modules, "ipyniivue")
    monkeypatch.syspath_prepend(tmp_path)
    assert viewer.viewer_module.__wrapped__() is None
    (folder / "widget.js").write_text(f'const a = "{"x" * 300_000}%3Bexport%7BNVImage%2CNiivue%7D%3B";')
    assert viewer.viewer_module.__wrapped__().endswith("export{NVImage,Niivue};")
