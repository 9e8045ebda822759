"""``medquant evaluate``: metrics as MONAI and SciPy have them, intervals, the forms of public data sets, and the whole road."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.evaluation import statistics as cohort
from MedQuantINT8Lib.evaluation.dataset_evaluation import summary
from MedQuantINT8Lib.evaluation.datasets import BTCV, label_map, read_dataset
from MedQuantINT8Lib.evaluation.surface_distance import surface_agreement
from MedQuantINT8Lib.imaging.phantom import make_phantom, phantom_labels


def blobs(seed, shape=(24, 30, 28)):
    rng = np.random.default_rng(seed)
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    made = np.zeros(shape, bool)
    for _ in range(3):
        c, r = [n * (0.3 + 0.4 * rng.random()) for n in shape], 3 + 5 * rng.random()
        made |= (k - c[0]) ** 2 + (j - c[1]) ** 2 + (i - c[2]) ** 2 < r * r
    return made


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surface_metrics_are_monais(spacing, seed):
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    first, second = blobs(seed), blobs(seed + 10)
    found = surface_agreement(first, second, spacing, 1.5)
    hot = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (first, second)]
    hd95 = float(compute_hausdorff_distance(*hot, percentile=95, spacing=list(spacing))[0, 0])
    nsd = float(compute_surface_dice(*hot, class_thresholds=[1.5], spacing=spacing)[0, 0])
    assert found.hd95 == pytest.approx(hd95, abs=1e-3) and found.nsd == pytest.approx(nsd, abs=1e-6)


def test_surface_metrics_are_those_of_scipys_distance_transform():
    from scipy.ndimage import binary_erosion, distance_transform_edt

    first, second, spacing = blobs(3), blobs(4), (2.0, 1.0, 1.5)
    edges = [m & ~binary_erosion(m) for m in (first, second)]
    there = distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
    back = distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
    found = surface_agreement(first, second, spacing, 2.0)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-3)
    assert found.nsd == pytest.approx(((there <= 2).sum() + (back <= 2).sum()) / (there.size + back.size))


def test_a_structure_that_is_absent_or_the_same():
    mask = blobs(5)
    assert surface_agreement(mask, np.zeros_like(mask), (1, 1, 1), 1.0) is None
    same = surface_agreement(mask, mask, (1, 1, 1), 1.0)
    assert same.hd95 == 0 and same.nsd == 1
    full = np.ones((6, 6, 6), bool)
    assert surface_agreement(full, full, (1, 1, 1), 1.0).nsd == 1


def test_intervals_and_the_paired_test():
    rng = np.random.default_rng(0)
    values = rng.normal(0.8, 0.05, 60)
    found = cohort.mean_of(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(60)
    assert found.mean == pytest.approx(values.mean()) and found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert cohort.mean_of(values) == found, "the same cases give the same interval"
    assert cohort.mean_of([]) is None and cohort.mean_of([0.5]) == cohort.Interval(0.5, 0.5, 0.5, 1)
    assert cohort.mean_of([0.5, 0.5]) == cohort.Interval(0.5, 0.5, 0.5, 2)
    from scipy.stats import wilcoxon

    other = values - rng.normal(0.002, 0.004, 60)
    assert cohort.wilcoxon(values, other) == pytest.approx(wilcoxon(values, other).pvalue)
    assert cohort.wilcoxon(values[:5], other[:5]) is None and cohort.wilcoxon(values, values) is None


def test_what_is_absent_in_both_counts_as_nothing():
    def row(case, structure, precision, dice):
        return {
            "case": case,
            "structure": structure,
            "precision": precision,
            "dice": dice,
            "nsd": dice,
            "hd95": None,
            "ml_difference": None,
        }

    rows = [
        row(c, s, p, d)
        for c, s, d in (("a", "x", 0.8), ("a", "y", None), ("b", "x", 0.6), ("b", "y", 0.4))
        for p in ("fp32", "int8")
    ]
    rows[-1]["dice"] = 0.3
    found = summary(rows, ["x", "y"])
    assert found["overall"]["dice"]["fp32"]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert found["structures"]["y"]["dice"]["fp32"]["cases"] == 1 and found["worst"][0] == "y"
    assert found["structures"]["y"]["dice"]["difference"]["mean"] == pytest.approx(0.1)
    assert found["overall"]["hd95"]["difference"] is None


def save(path, array, spacing=(4.0, 4.0, 4.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    # ITK's own axes are LPS, as make_phantom's volumes lie.
    sitk.WriteImage(image, str(path))


@pytest.fixture
def scans():
    return [make_phantom(seed, (67, 54, 54), 5.0) for seed in (3001, 3002)]


def test_the_decathlons_form(tmp_path, scans):
    for n, (volume, truth) in enumerate(scans):
        save(tmp_path / "imagesTr" / f"c_{n}.nii.gz", volume.data[0])
        save(tmp_path / "labelsTr" / f"c_{n}.nii.gz", truth.astype(np.uint8))
    rows = [{"image": f"./imagesTr/c_{n}.nii.gz", "label": f"./labelsTr/c_{n}.nii.gz"} for n in range(2)]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"name": "Made", "labels": {"0": "background", "1": "liver"}, "training": rows})
    )
    data = read_dataset(tmp_path)
    assert data.name == "Made" and [c.name for c in data.cases] == ["c_0", "c_1"] and data.structures == {1: "liver"}
    found = label_map(data.cases[0], data, {"liver": 7})
    assert set(np.unique(found)) == {0, 7} and (found == 7).sum() == (scans[0][1] == 1).sum()


def test_btcvs_form(tmp_path):
    for n in (1, 2):
        save(tmp_path / "img" / f"img000{n}.nii.gz", np.zeros((4, 4, 4), np.int16))
        save(tmp_path / "label" / f"label000{n}.nii.gz", np.full((4, 4, 4), 13, np.uint8))
    data = read_dataset(tmp_path)
    assert len(data.cases) == 2 and len(data.structures) == len(BTCV) == 13
    assert (label_map(data.cases[1], data, {"left adrenal gland": 2}) == 2).all()


def test_totalsegmentators_form(tmp_path):
    for name in ("s0000", "s0001"):
        save(tmp_path / name / "ct.nii.gz", np.zeros((4, 4, 4), np.int16))
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[0] = 1
        save(tmp_path / name / "segmentations" / "adrenal_gland_left.nii.gz", mask)
        save(tmp_path / name / "segmentations" / "liver.nii.gz", mask[::-1].copy())
    (tmp_path / "meta.csv").write_text("image_id;age;split\ns0000;50;train\ns0001;60;test\n")
    data = read_dataset(tmp_path)
    [case] = data.of("test")
    found = label_map(case, data, {"adrenal gland left": 3, "liver": 9})
    assert case.name == "s0001" and (found[0] == 3).all() and (found[3] == 9).all() and not found[1:3].any()
    with pytest.raises(InputError, match="no structure that the model knows"):
        label_map(case, data, {"heart": 1})
    with pytest.raises(InputError, match=r"no cases of the split 'val'.*test, train"):
        data.of("val")


def test_the_whole_brains_form(tmp_path):
    save(tmp_path / "1000_t1_stripped.nii.gz", np.zeros((4, 4, 4), np.int16))
    save(tmp_path / "1000_labels.nii.gz", np.full((4, 4, 4), 47, np.uint8))
    (tmp_path / "label_names.csv").write_text("value,name\n0,background\n47,Right Hippocampus\n")
    data = read_dataset(tmp_path)
    assert [c.name for c in data.cases] == ["1000"] and data.structures == {47: "Right Hippocampus"}
    assert (label_map(data.cases[0], data, {"right hippocampus": 1}) == 1).all()


def described(folder, scans, **change):
    cases = []
    for n, (volume, truth) in enumerate(scans):
        save(folder / f"{n}.nii.gz", volume.data[0], (5.0, 5.0, 5.0))
        save(folder / f"{n}_l.nii.gz", truth.astype(np.uint8), (5.0, 5.0, 5.0))
        cases.append({"name": f"case {n}", "image": f"{n}.nii.gz", "label": f"{n}_l.nii.gz", "split": "test"})
    value = {
        "name": "Phantoms",
        "structures": {str(label.value): label.name for label in phantom_labels()},
        "cases": cases,
        **change,
    }
    (folder / "data.json").write_text(json.dumps(value))
    return folder / "data.json"


@pytest.mark.slow
def test_the_whole_road_from_a_description_to_a_page(tmp_path, scans, int8_package, capsys):
    path = described(tmp_path, scans)
    out = tmp_path / "out"
    assert (
        main(
            [
                "evaluate",
                str(int8_package.folder),
                "--data",
                str(path),
                "--split",
                "test",
                "--output",
                str(out),
                "-q",
                "--engine",
                "openvino",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "2 case(s) of Phantoms" in text and "FP32 - INT8" in text
    value = json.loads((out / "evaluation.json").read_text())
    assert len(value["rows"]) == 2 * 2 * len(phantom_labels()) and value["engine"]["int8"]["int8_share"] > 0.9
    overall = value["summary"]["overall"]["dice"]
    assert overall["fp32"]["mean"] > 0.75 and abs(overall["difference"]["mean"]) < 0.05
    rows = list(csv.DictReader((out / "evaluation.csv").open()))
    assert len(rows) == 2 * 2 * len(phantom_labels()) and float(rows[0]["dice"]) > 0.5
    page = re.sub(r"<script.*?</script>", "", (out / "evaluation.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert (
        page.count("<svg") == 2
        and page.count("<circle") == 2 * 2 * len(phantom_labels())
        and "liver" in page
        and "Most lost" in page
    )


def test_bad_descriptions_are_told_before_any_work(tmp_path, scans, int8_package, fp32_package, capsys):
    path = described(tmp_path, scans)
    model = str(int8_package.folder)
    (tmp_path / "0_l.nii.gz").rename(tmp_path / "gone.nii.gz")
    assert (
        main(["evaluate", model, "--data", str(path), "-q"]) == 2
        and "case 0: there is no file" in capsys.readouterr().err
    )
    (tmp_path / "gone.nii.gz").rename(tmp_path / "0_l.nii.gz")
    value = json.loads(path.read_text())
    for change, words in (
        ({"structures": {"1": "heart"}}, "nothing in common"),
        ({"cases": [*value["cases"], {**value["cases"][0], "split": "train"}]}, "in two splits"),
        ({"cases": []}, "no labeled case"),
        ({"cases": [{"name": "x"}]}, "no data set of the form json: it lacks 'image'"),
    ):
        path.write_text(json.dumps({**value, **change}))
        assert main(["evaluate", model, "--data", str(path), "-q", "--output", str(tmp_path / "none")]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()
    path.write_text(json.dumps(value))
    assert main(["evaluate", str(fp32_package.folder), "--data", str(path), "-q"]) == 3
    assert "medquant quantize" in capsys.readouterr().err
    assert main(["evaluate", model, "--data", str(tmp_path / "nowhere"), "-q"]) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "its JSON file cannot be read: "),
        ("{}", "it lacks 'training'"),
        ('{"training": 3}', "is no data set of the form msd: "),
        ('{"training": [], "labels": {"one": "liver"}}', "is no data set of the form msd: "),
    ],
)
def test_a_description_of_a_public_form_that_cannot_be_read_is_told(tmp_path, int8_package, capsys, text, words):
    (tmp_path / "dataset.json").write_text(text)
    assert main(["evaluate", str(int8_package.folder), "--data", str(tmp_path), "-q"]) == 2
    assert words in capsys.readouterr().err


def test_a_file_in_place_of_a_folder_is_told(tmp_path, int8_package, capsys):
    (tmp_path / "a b.txt").write_text("x")
    order = ["evaluate", str(int8_package.folder), "--data", str(tmp_path / "a b.txt"), "-q"]
    assert main([*order, "--form", "msd"]) == 2
    assert "Not a directory" in (said := capsys.readouterr().err) and "Errno" not in said


def brains(folder, *names):
    for name in names:
        save(folder / f"{name}.nii.gz", np.full((4, 4, 4), len(name), np.int16))


def test_a_label_map_gets_the_scan_of_its_own_subject(tmp_path):
    """sub1's label map is not paired with sub10's scan, whatever comes first in the folder."""
    brains(
        tmp_path,
        "sub1_labels",
        "sub10_labels",
        "sub10_t1",
        "sub1_t1",
        "sub1_2_labels",
        "sub1_2",
        "a_labels",
        "a",
        "a_flair",
    )
    found = {case.name: case.image[0].name for case in read_dataset(tmp_path).cases}
    assert found == {"sub1": "sub1_t1.nii.gz", "sub10": "sub10_t1.nii.gz", "sub1_2": "sub1_2.nii.gz", "a": "a.nii.gz"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("sub1_labels", "sub10_t1"), "sub1_labels.nii.gz needs one scan called sub1, but there is none"),
        (("s_labels", "s_t1", "s_t2"), "there are several: s_t1.nii.gz, s_t2.nii.gz"),
        (("labels/x", "images/y"), "x.nii.gz needs one scan called x, but there is none"),
    ],
)
def test_a_label_map_without_its_one_scan_is_named(tmp_path, names, words):
    brains(tmp_path, *names)
    with pytest.raises(InputError, match=words):
        read_dataset(tmp_path)


def test_cases_of_one_name_or_one_scan_are_refused(tmp_path):
    brains(tmp_path, "1", "2", "l")
    for cases, words in (
        ([("a", "1"), ("a", "2")], "several cases called a"),
        ([("a", "1"), ("b", "1")], "the cases a and b have the same scan 1.nii.gz"),
    ):
        rows = [{"name": name, "image": f"{scan}.nii.gz", "label": "l.nii.gz"} for name, scan in cases]
        (tmp_path / "data.json").write_text(json.dumps({"cases": rows}))
        with pytest.raises(InputError, match=words):
            read_dataset(tmp_path / "data.json")


def test_the_summary_looks_at_each_row_once():
    class Row(dict):
        looked = 0

        def __getitem__(self, key):
            Row.looked += 1
            return super().__getitem__(key)

    structures, cases = [f"s{n}" for n in range(12)], [f"c{n}" for n in range(4)]
    rows = [
        Row(case=c, structure=s, precision=p, dice=0.5, nsd=0.5, hd95=1.0, ml_difference=0.0)
        for c in cases
        for s in structures
        for p in ("fp32", "int8")
    ]
    summary(rows, structures)
    assert Row.looked <= 40 * len(rows)


def test_structures_that_nobody_drew_are_left_out():
    from MedQuantINT8Lib.evaluation.dataset_evaluation import _annotated
    from MedQuantINT8Lib.evaluation.datasets import Case, DataSet

    data = DataSet("Made", (Case("a", (), {}),))
    rows = [
        {"case": "a", "structure": s, "precision": p, "true_ml": ml}
        for s, ml in (("liver", 2.0), ("heart", 0.0))
        for p in ("fp32", "int8")
    ]
    kept, left_out = _annotated(rows, data)
    assert left_out == ["heart"] and {row["structure"] for row in kept} == {"liver"}
    with pytest.raises(InputError, match="No label map of Made holds"):
        _annotated(rows[2:], data)


def test_help_shows_the_json_form(capsys, tmp_path):
    from MedQuantINT8Lib.cli.evaluate import JSON_FORM

    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert JSON_FORM in capsys.readouterr().out
    shown = json.loads(JSON_FORM[JSON_FORM.index("{") : JSON_FORM.rindex("}") + 1])
    for folder, name in [
        (case["image"] if isinstance(case["image"], list) else [case["image"]], case["label"])
        for case in shown["cases"]
    ]:
        for path in [*folder, name]:
            save(tmp_path / path, np.zeros((4, 4, 4), np.int16))
    (tmp_path / "d.json").write_text(json.dumps(shown))
    assert [len(case.image) for case in read_dataset(tmp_path / "d.json").cases] == [1, 2]
