"""Several files of one segmentation: checked before the work, written all or none."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

import tiny
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import Cancelled, InputError, StorageError
from MedQuantINT8Lib.imaging.dicom_segmentation import Algorithm
from MedQuantINT8Lib.imaging.measurements import measure
from MedQuantINT8Lib.imaging.pictures import png, segmentation_picture
from MedQuantINT8Lib.imaging.segmentation_files import mask_names, output_kind
from MedQuantINT8Lib.imaging.volume import Volume, to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.inference import result_files
from MedQuantINT8Lib.inference.result_files import OutputOptions, Result, write_results
from MedQuantINT8Lib.inference.task_model import labels_of, load_model
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.progress import Task
from task_packages import spotted, three_parts

LABELS = (Label(1, "liver", 1, (255, 0, 0)), Label(4, "left kidney", 2, (0, 255, 0)))
MATRIX = np.array([[-1.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1.0]])


def result(**changes):
    data = np.arange(8 * 9 * 10, dtype=np.int16).reshape(1, 8, 9, 10)
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:4, 3:6, 4:9], labels[5, 5, 5], labels[0, 0, 0] = 1, 4, 2
    margins = np.full(labels.shape, 51, np.uint8)
    return replace(
        Result(Volume(data, MATRIX, "scan.nii.gz"), labels, LABELS, Algorithm("net", "1"), margins), **changes
    )


def every(folder):
    return OutputOptions(
        (*(str(folder / name) for name in ("o.seg.nrrd", "o.nii.gz", "o.mhd")), f"{folder / 'masks'}{os.sep}"),
        statistics=str(folder / "s.csv"),
        margins=str(folder / "m.mha"),
        picture=str(folder / "p.png"),
    )


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_all_are_written_and_agree(tmp_path):
    folder = tmp_path / "new folder"
    options, segmentation = every(folder), result()
    options.check(LABELS)
    assert not folder.exists()
    written, notes = write_results(options, segmentation, Task())
    assert all_files(folder) == sorted(str(path.relative_to(folder)) for path in options.files(LABELS)) and notes == []
    assert [entry["kind"] for entry in written] == [
        "segmentation",
        "label_map",
        "label_map",
        "masks",
        "statistics",
        "margins",
        "picture",
    ]
    # A value that is no structure is in none of them.
    kept = np.where(segmentation.label_map == 2, 0, segmentation.label_map)
    for name in ("o.seg.nrrd", "o.nii.gz", "o.mhd"):
        volume = read_volume(folder / name)
        assert np.array_equal(volume.data[0], kept) and np.allclose(volume.ijk_to_ras, MATRIX)
    for label, name in zip(LABELS, written[3]["files"], strict=True):
        mask = read_volume(folder / "masks" / name)
        assert np.array_equal(mask.data[0], kept == label.value) and np.allclose(mask.ijk_to_ras, MATRIX)
    margins = read_volume(folder / "m.mha")
    assert (
        margins.data.dtype == np.float32 and np.allclose(margins.data, 0.2) and np.allclose(margins.ijk_to_ras, MATRIX)
    )
    with open(folder / "s.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert (
        [int(row["voxels"]) for row in table]
        == [m.voxels for m in measure(segmentation.volume, kept, LABELS)]
        == [30, 1]
    )


def test_the_picture_shows_the_structures_in_their_colors(tmp_path):
    segmentation = result()
    (tmp_path / "p.png").write_bytes(segmentation_picture(segmentation.volume, segmentation.label_map, LABELS))
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p.png"))).astype(int)
    red = (pixels[..., 0] - pixels[..., 1]) > 90
    assert pixels.shape[2] == 3 and 0.005 < red.mean() < 0.5
    empty = segmentation_picture(segmentation.volume, np.zeros_like(segmentation.label_map), LABELS)
    (tmp_path / "p.png").write_bytes(empty)
    gray = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p.png")))
    assert (gray[..., 0] == gray[..., 1]).all() and gray.max() > 200
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    (tmp_path / "p.png").write_bytes(png(noise))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p.png"))), noise)


@pytest.mark.parametrize(
    "failing", ["write_masks", "statistics_text", "_write_margins", "segmentation_picture", "sync"]
)
def test_where_one_cannot_be_written_none_is(tmp_path, monkeypatch, failing):
    """The last of them as well: earlier ones are not in their places yet."""
    (tmp_path / "o.nii.gz").write_bytes(b"of yesterday")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(result_files, failing, fail)
    with pytest.raises((StorageError, OSError)):
        write_results(every(tmp_path), result(), Task())
    assert all_files(tmp_path) == ["o.nii.gz"] and (tmp_path / "o.nii.gz").read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [tmp_path / "o.nii.gz"]


def test_canceling_while_files_are_written_leaves_none(tmp_path):
    task = Task()
    task.cancel()
    with pytest.raises(Cancelled):
        write_results(every(tmp_path / "new"), result(), task)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OutputOptions(("a.xyz",)), "no type that a segmentation"),
        (OutputOptions(("a.nii.gz", "./b/../a.nii.gz")), "one file"),
        (OutputOptions(("a.nii.gz", "A.nii.gz")), "one file"),
        (OutputOptions(("a.mhd", "a.zraw/")), "cannot be a file and the folder"),
        (OutputOptions(("masks/", "masks/liver.nii.gz")), "one file"),
        (OutputOptions(("a.nii.gz",), margins="a.nii.gz"), "one file"),
        (OutputOptions(("scan.nii.gz",)), "would replace an input"),
        (OutputOptions(("a.nii.gz",), statistics="scan.nii.gz"), "no type that the measurements"),
        (OutputOptions(margins="m.seg.nrrd"), "no type that the margins"),
        (OutputOptions(picture="p.jpg"), "no type that the picture"),
        (OutputOptions(("a.nii.gz",), "labelmap"), "no output is one"),
        (OutputOptions(("a.dcm",), "other"), "no kind of DICOM"),
        (OutputOptions(("file/a.nii.gz",)), "not a folder"),
        (OutputOptions(("file/",)), "is a file"),
        (OutputOptions(("folder.nii.gz",)), "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    for name in ("scan.nii.gz", "file"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.nii.gz").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((InputError, StorageError), match=words):
        options.check(LABELS, ["scan.nii.gz"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dicom_segmentation_of_another_scan_is_refused_before_the_work(tmp_path):
    pytest.importorskip("highdicom", reason="needs highdicom (the extra dicom)")
    (tmp_path / "scan.nii.gz").write_bytes(b"x" * 200)
    (tmp_path / "series").mkdir()
    options = OutputOptions((str(tmp_path / "o.dcm"),))
    with pytest.raises(InputError, match="is not DICOM"):
        options.check(LABELS, [], [str(tmp_path / "scan.nii.gz")])
    options.check(LABELS, [], [str(tmp_path / "series")])
    inside = OutputOptions((str(tmp_path / "series" / "o.dcm"),))
    with pytest.raises(InputError, match="among the images of the scan"):
        inside.check(LABELS, [], [str(tmp_path / "series")])
    with pytest.raises(InputError, match="was not read from DICOM"):
        result_files.prepare(options, result().volume, LABELS)


def test_a_folder_is_told_from_a_file_by_its_name_and_by_what_is_there(tmp_path):
    (tmp_path / "v1.2").mkdir()
    for path, kind in (
        ("a/b.seg.nrrd", "segmentation"), ("b.NII.GZ", "label_map"), ("b.dcm", "dicom"), ("masks", "masks"), (f"b.nii.gz{os.sep}", "masks"),
        (str(tmp_path / "v1.2"), "masks"), (f"v1.2{os.sep}", "masks"), (".", "masks"),
    ):  # fmt: skip
        assert output_kind(path) == kind
    with pytest.raises(InputError):
        output_kind("v1.2")


def test_names_of_masks_are_safe_and_no_two_are_one():
    names = (
        "liver", "Liver", "left kidney", "left/kidney", "../../etc/passwd", "", "...", "nul", "COM1.x", "a" * 300, "肝臓", "Gefa\u0308ß", "a:b*c?",
    )  # fmt: skip
    files = mask_names([Label(n, name, 1) for n, name in enumerate(names, 1)])
    assert len({name.casefold() for name in files}) == len(names)
    for name in files:
        assert name.endswith(".nii.gz") and "/" not in name and "\\" not in name and len(name.encode()) < 140
        assert not name.startswith((".", "-", "nul.", "COM1.")) and not set(name) & set('<>:"|?*\n\0')
    assert files[0] == "liver_1.nii.gz" and files[2] == "left_kidney_3.nii.gz" and files[4] == "etc_passwd.nii.gz"
    assert files[5] == "structure_6.nii.gz" and files[11] == "Gefäß.nii.gz"
    assert mask_names([Label(2, "a_3", 1), Label(3, "a", 1), Label(4, "A", 1)]) == [
        "a_3.nii.gz",
        "a_3_3.nii.gz",
        "A_4.nii.gz",
    ]


def test_options_come_through_json_as_they_were(tmp_path):
    options = every(tmp_path)
    assert OutputOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert options and not OutputOptions()


def test_the_command_writes_all_outputs_and_names_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with tiny.package(tmp_path / "p") as package:
        model = str(package.folder)
        image = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), "a scan.nii.gz")
        command = [
            "segment",
            model,
            "a scan.nii.gz",
            "--engine",
            "onnxruntime",
            "--precision",
            "fp32",
            "--json",
            "--quiet",
        ]
        files = [
            "-o",
            "o.seg.nrrd",
            "--output",
            "all masks/",
            "--statistics",
            "s.json",
            "--margins",
            "m.nii.gz",
            "--picture",
            "p.png",
        ]
        assert main([*command, *files]) == 0
        value = json.loads(capsys.readouterr().out)
        assert value["output"] == "o.seg.nrrd"
        assert [entry["path"] for entry in value["outputs"]] == [
            "o.seg.nrrd",
            "all masks",
            "s.json",
            "m.nii.gz",
            "p.png",
        ]
        assert value["outputs"][1]["files"] == ["bright.nii.gz"]
        labels = read_volume("o.seg.nrrd").data[0]
        assert np.array_equal(labels, image > 0.5) and np.array_equal(
            read_volume("all masks/bright.nii.gz").data[0], labels
        )
        (structure,) = json.loads((tmp_path / "s.json").read_text())["structures"]
        assert structure["voxels"] == (image > 0.5).sum()
        assert structure["intensity"][0]["mean"] == pytest.approx(image[image > 0.5].mean(), rel=1e-5)
        # Softmax of (0, x - 0.5): the margin of the two is tanh of half their difference.
        margins = read_volume("m.nii.gz").data[0]
        assert np.allclose(margins, np.abs(np.tanh((image - 0.5) / 2)), atol=0.003)
        # Again over its own files; not over what somebody changed.
        assert main([*command, *files]) == 0
        (tmp_path / "p.png").write_bytes(b"mine")
        capsys.readouterr()
        assert main([*command, *files]) == 2
        assert (tmp_path / "p.png").read_bytes() == b"mine" and "p.png" in capsys.readouterr().err


def test_a_task_of_several_networks_gives_the_same_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task, volume = three_parts(tmp_path / "my tasks"), spotted()
    sitk.WriteImage(to_sitk(volume.data[0], volume.grid), "scan.nrrd")
    with load_model(str(task)) as model:
        wanted = list(labels_of(model))[:2]
    command = ["segment", str(task), "scan.nrrd", "--engine", "onnxruntime", "--precision", "fp32", "--json", "--quiet"]
    names = ",".join(label.name for label in wanted)
    assert (
        main(
            [
                *command,
                "--structures",
                names,
                "-o",
                "o.nii.gz",
                "-o",
                "masks/",
                "--margins",
                "m.nrrd",
                "--statistics",
                "s.json",
            ]
        )
        == 0
    )
    value = json.loads(capsys.readouterr().out)
    assert value["outputs"][1]["files"] == mask_names(wanted)
    labels, written = read_volume("o.nii.gz").data[0], json.loads((tmp_path / "s.json").read_text())
    assert set(np.unique(labels)) <= {0, *(label.value for label in wanted)} and labels.any()
    for label, name, structure in zip(wanted, mask_names(wanted), written["structures"], strict=True):
        assert np.array_equal(read_volume(tmp_path / "masks" / name).data[0], labels == label.value)
        assert structure["name"] == label.name and structure["voxels"] == (labels == label.value).sum()
    assert written["network"].startswith("together 1+") and written["precision"] == "fp32"
    assert read_volume("m.nrrd").data.shape == read_volume("scan.nrrd").data.shape
