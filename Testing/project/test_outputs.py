"""Nothing is lost: an output is never an input, a file that is not whole never takes the place of one that is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib import files
from MedQuantINT8Lib.errors import InputError, PackageError, StorageError
from MedQuantINT8Lib.exchange import exchange
from MedQuantINT8Lib.files import finish_interrupted, replacing, replacing_folder, split_paths, storage_error, there
from MedQuantINT8Lib.imaging.itk_file import check_written
from MedQuantINT8Lib.imaging.segmentation_files import LABEL_MAP_EXTENSIONS, check_output_path, write_segmentation
from MedQuantINT8Lib.imaging.volume import matrix_from_sitk
from MedQuantINT8Lib.imaging.volume_files import result_names
from MedQuantINT8Lib.models.spec import Label
from MedQuantINT8Lib.outputs import check_output_file, check_output_folder, check_output_package
from MedQuantINT8Lib.scratch import leftovers, own_temporary_folder, owned_prefix, owner_is_dead
from places import LIBRARY

SHEARED = np.array([[0.80, -0.52, 0.40, -40.0], [0.55, 1.30, -0.30, 12.0], [-0.21, 0.48, 2.70, 77.0], [0, 0, 0, 1.0]])
NAMES = (Label(1, "liver", 1),)


def test_an_output_is_never_an_input_under_any_name(tmp_path):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"scan")
    (tmp_path / "link.nii.gz").symlink_to(scan)
    os.link(scan, tmp_path / "hard.nii.gz")
    (tmp_path / "folder").symlink_to(tmp_path)
    for output in (
        scan,
        tmp_path / "link.nii.gz",
        tmp_path / "hard.nii.gz",
        tmp_path / "folder" / "scan.nii.gz",
        tmp_path / "folder" / ".." / tmp_path.name / "scan.nii.gz",
    ):
        with pytest.raises(InputError, match="would replace an input"):
            check_output_path(output, [scan])
        with pytest.raises(InputError, match="would replace an input"):
            check_output_path(scan, [None, output])
    check_output_path(tmp_path / "other.nii.gz", [scan])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "hard.nii.gz", "link.nii.gz", "scan.nii.gz"]


def test_the_data_file_of_a_detached_header_is_an_input_too(tmp_path):
    (tmp_path / "scan.mhd").write_text("ObjectType = Image\nElementDataFile = out.zraw\n")
    (tmp_path / "scan.nhdr").write_text("NRRD0004\ndata file: det.nrrd\n")
    for name in ("out.zraw", "det.nrrd"):
        (tmp_path / name).write_bytes(b"voxels")
    with pytest.raises(InputError, match=r"out\.zraw"):
        check_output_path(tmp_path / "out.mhd", [tmp_path / "scan.mhd"])
    with pytest.raises(InputError, match=r"det\.nrrd"):
        check_output_path(tmp_path / "det.nrrd", [tmp_path / "scan.nhdr"])


def test_a_file_never_takes_the_place_of_a_folder_nor_the_other_way_round(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"scan")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(StorageError, match="folder"):
        check_output_path(tmp_path / "folder.nii.gz")
    with pytest.raises(InputError, match="is a file"):
        check_output_package(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="is a file"):
        check_output_folder(tmp_path / "scan.nii.gz", ("report.json",))
    with pytest.raises(StorageError, match="in the way"), replacing_folder(tmp_path / "scan.nii.gz"):
        pass
    with pytest.raises(StorageError, match="folder"), replacing(tmp_path / "folder.nii.gz") as path:
        path.write_text("x")
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"scan" and (tmp_path / "folder.nii.gz").is_dir()


def test_a_package_never_takes_the_place_of_what_it_is_made_from(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.json").write_text("{}")
    (package / "scan.nii.gz").write_bytes(b"scan")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    check_output_package(package, [tmp_path / "s.nii"], itself=package)
    for inputs, itself in (
        ([package / "scan.nii.gz"], None),
        ([package / "scan.nii.gz"], package),
        ([package], None),
        ([], package / "model.json"),
    ):
        with pytest.raises(InputError, match="would be lost|would replace"):
            check_output_package(package, inputs, itself=itself)
    with pytest.raises(PackageError, match="other things"):
        check_output_package(tmp_path / "other")


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path):
    with pytest.raises(StorageError, match="too long"):
        check_output_path(tmp_path / ("x" * 300 + ".nii.gz"))


def test_links_in_a_circle_are_said(tmp_path):
    (tmp_path / "a.nrrd").symlink_to("b.nrrd")
    (tmp_path / "b.nrrd").symlink_to("a.nrrd")
    with pytest.raises(StorageError, match="circle"):
        check_output_path(tmp_path / "a.nrrd")


def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest.txt").symlink_to("disk/run.txt")
    files.write_text(tmp_path / "latest.txt", "new")
    assert (tmp_path / "latest.txt").is_symlink() and (tmp_path / "disk" / "run.txt").read_text() == "new"


def test_label_maps_are_read_by_others_as_they_were_written_also_on_a_sheared_grid(tmp_path):
    rng = np.random.default_rng(0)
    for labels in (rng.integers(0, 2, (4, 5, 6)).astype(np.uint8), rng.integers(0, 1001, (4, 5, 6)).astype(np.uint16)):
        for extension in (*LABEL_MAP_EXTENSIONS, ".seg.nrrd"):
            path = tmp_path / f"out{extension}"
            write_segmentation(path, labels, SHEARED, NAMES)
            if extension.startswith(".nii"):
                image = nibabel.load(path)
                assert np.array_equal(np.asarray(image.dataobj).T, labels)
                assert np.allclose(image.affine, SHEARED, atol=1e-4)
            else:
                image = sitk.ReadImage(str(path))
                assert np.array_equal(sitk.GetArrayFromImage(image), labels)
                assert np.allclose(matrix_from_sitk(image), SHEARED, atol=1e-9)


def test_the_two_forms_of_a_straight_grid_agree_in_a_written_nifti(tmp_path):
    rng = np.random.default_rng(1)
    for number in range(24):
        left, _, right = np.linalg.svd(rng.normal(size=(3, 3)))
        matrix = np.eye(4)
        matrix[:3, :3] = left @ right * rng.uniform(0.4, 3, 3) * (-1 if number % 2 else 1)
        matrix[:3, 3] = rng.normal(size=3) * 60
        write_segmentation(tmp_path / "out.nii.gz", np.ones((3, 4, 5), np.uint8), matrix, NAMES)
        image = nibabel.load(tmp_path / "out.nii.gz")
        assert np.allclose(image.get_qform(), matrix, atol=2e-3) and np.allclose(image.get_sform(), matrix, atol=1e-4)
        assert np.allclose(matrix_from_sitk(sitk.ReadImage(str(tmp_path / "out.nii.gz"))), matrix, atol=2e-3)


def test_a_data_file_moves_with_its_header_and_is_removed_with_it(tmp_path):
    write_segmentation(tmp_path / "out.mhd", np.ones((3, 4, 5), np.uint8), np.eye(4), NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mhd", "out.zraw"]
    with pytest.raises(RuntimeError), replacing(tmp_path / "two.mhd") as path:
        path.write_text("header")
        path.with_name("two.zraw").write_text("voxels")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mhd", "out.zraw"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".mhd"])
def test_a_file_that_does_not_fit_on_the_disk_replaces_nothing(tmp_path, extension):
    target = tmp_path / f"out{extension}"
    target.write_text("a good result")
    code = f"""
        import resource, numpy as np
        from MedQuantINT8Lib.errors import StorageError
        from MedQuantINT8Lib.imaging.segmentation_files import write_segmentation
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        labels = np.random.default_rng(0).integers(0, 250, (40, 40, 40)).astype(np.uint8)
        try:
            write_segmentation({str(target)!r}, labels, np.eye(4), ())
        except StorageError as error:
            print("refused:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
    )
    assert done.stdout.startswith("refused: Cannot write"), done.stderr
    assert target.read_text() == "a good result" and [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_one_or_the_new_one(tmp_path, exchanged):
    """Killed before each step that changes a name; the next look into the folder ends what was begun."""
    for step in range(1, 8):
        target = tmp_path / f"{step}" / "package"
        target.mkdir(parents=True)
        (target / "content").write_text("old")
        code = f"""
            import os, signal
            from pathlib import Path
            from MedQuantINT8Lib import files
            if not {exchanged}:
                files.exchange = lambda first, second: False
            real, count = Path.replace, [0]
            def fatal(function):
                def call(*arguments):
                    count[0] += 1
                    if count[0] == {step}:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments)
                return call
            Path.replace, files.exchange, files.sync = fatal(Path.replace), fatal(files.exchange), fatal(files.sync)
            with files.replacing_folder({str(target)!r}) as made:
                (made / "content").write_text("new")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        )
        finish_interrupted(target.parent)
        assert (target / "content").read_text() in ("old", "new"), (step, done.stderr)
        assert [p.name for p in target.parent.iterdir()] == ["package"], step
        if done.returncode == 0:
            assert (target / "content").read_text() == "new"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        pytest.fail("it never came to an end")


def test_only_what_dead_processes_left_is_removed(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "from MedQuantINT8Lib.scratch import owned_prefix; print(owned_prefix('.writing'))"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(LIBRARY)},
    ).stdout.strip()  # fmt: skip
    mine = owned_prefix(".writing")
    elsewhere = dead[:-9] + "00000000-"
    # The number of a process that ended may be given to another one, which began later.
    again = f".writing-{os.getpid()}_1_{mine[-9:]}"
    for name in (dead, mine, elsewhere, again, ".writing-", "other"):
        (tmp_path / f"{name}x").mkdir()
    assert [owner_is_dead(name) for name in (dead, mine, elsewhere, again)] == [True, False, False, True]
    assert {p.name for p in leftovers(tmp_path, ".writing")} == {f"{dead}x", f"{again}x"}
    files.write_text(tmp_path / "file", "x")
    assert {p.name for p in tmp_path.iterdir()} == {f"{mine}x", f"{elsewhere}x", ".writing-x", "otherx", "file"}


def test_everything_temporary_goes_with_the_process(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with own_temporary_folder():
        kept = Path(tempfile.mkdtemp(prefix="medquant-package-"))
        assert kept.parent.parent == tmp_path and os.environ["TMPDIR"] == str(kept.parent)
    assert list(tmp_path.iterdir()) == [] and tempfile.tempdir == str(tmp_path)


def test_commas_in_names_do_not_part_what_is_there(tmp_path):
    for name in ("Doe, Jane", "a,b,c.nii", "d.nii"):
        (tmp_path / name).touch()
    paths = [str(tmp_path / name) for name in ("Doe, Jane", "a,b,c.nii", "d.nii")]
    assert split_paths(",".join(paths)) == paths and split_paths(paths[0]) == paths[:1]
    assert split_paths("gone,too") == ["gone", "too"]


def test_results_of_a_folder_have_a_name_each():
    scans = [Path(name) for name in ("p1.nii.gz", "p1.nrrd", "P1.mha", "p2.nii", "p3.nii.gz", "p1.nrrd.nrrd")]
    names = result_names(scans)
    assert names[3:5] == ["p2", "p3"] and names[:2] == ["p1.nii.gz", "p1.nrrd-2"]
    assert len({name.casefold() for name in names}) == len(scans)


def test_folds_are_installed_together_or_not_at_all(tmp_path, fp32_package):
    from dataclasses import replace

    from MedQuantINT8Lib.errors import Cancelled
    from MedQuantINT8Lib.importers.base import ImportedModel, write_all
    from MedQuantINT8Lib.progress import Task

    folds = [
        ImportedModel(replace(fp32_package.spec, name=f"net-fold{n}"), fp32_package.folder / "model.onnx")
        for n in (0, 1)
    ]
    root = tmp_path / "models"
    task = Task()

    class Stopped(Task):
        def check(self) -> None:
            raise Cancelled()

    with pytest.raises(Cancelled):
        write_all(folds, root / "net", Stopped())
    assert not (root / "net").exists() and list(root.iterdir()) == []
    (root / "net" / "own").mkdir(parents=True)
    packages = write_all(folds, root / "net", task)
    assert sorted(p.name for p in (root / "net").iterdir()) == ["fold0", "fold1", "own"]
    assert [json.loads((p.folder / "model.json").read_text())["name"] for p in packages] == ["net-fold0", "net-fold1"]


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "out.nrrd", Path("/proc/out.nrrd")):
        with pytest.raises(StorageError, match="Cannot write"):
            check_output_file(path)


def test_looking_whether_an_output_can_be_written_leaves_nothing(tmp_path):
    """A command that fails before its work leaves no empty folders."""
    new = tmp_path / "new" / "deeper"
    check_output_file(new / "out.nrrd")
    check_output_folder(new, ["report.json", "report.html"])
    check_output_package(new / "package")
    check_output_package(new / "package.zip")
    assert not list(tmp_path.iterdir())
    for folder in ("n" * 300, f"new/{'n' * 300}"):
        with pytest.raises(StorageError):
            check_output_file(tmp_path / folder / "out.nrrd")
    assert not list(tmp_path.iterdir())
    with replacing(new / "out.nrrd") as path:
        path.write_text("x")
    assert (new / "out.nrrd").read_text() == "x"


def test_a_segmentation_that_another_library_did_not_write_whole_is_found(tmp_path):
    path = tmp_path / "out.seg.nrrd"
    write_segmentation(path, np.random.default_rng(0).integers(0, 9, (8, 9, 10)).astype(np.uint8), SHEARED, NAMES)
    check_written(path)
    content = path.read_bytes()
    for share in (0.99, 0.6, 0.3):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(OSError, match="not whole"):
            check_written(path)


def test_a_full_disk_is_a_full_disk_wherever_it_is_met():
    error = storage_error(OSError(28, "No space left on device", "/tmp/x"))
    assert error is not None and "/tmp/x: there is no space left" in str(error) and error.exit_code == 5
    assert storage_error(FileNotFoundError(2, "gone")) is None


def test_a_name_that_is_too_long_names_nothing():
    assert not there("x" * 5000) and split_paths("x" * 5000 + ",y") == ["x" * 5000, "y"]


def test_an_exchange_swaps_two_folders_where_the_system_can(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "a" / "file").read_text() == "b" and (tmp_path / "b" / "file").read_text() == "a"
