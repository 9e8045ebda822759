"""NRRD and MetaImage: read by ITK in a process of its own, whose end, hunger or sleep is one line."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MedQuantINT8Lib.errors import Cancelled, InputError, MedQuantError
from MedQuantINT8Lib.imaging import reading_process
from MedQuantINT8Lib.imaging.volume import Volume, matrix_from_sitk, to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(6, 7, 8)).astype(np.float32)
SHEARED = np.array([[0.80, -0.52, 0.40, -40.0], [0.55, 1.30, -0.30, 12.0], [-0.21, 0.48, 2.70, 77.0], [0, 0, 0, 1.0]])


def write(path, compressed=False):
    sitk.WriteImage(to_sitk(DATA, Volume(DATA, SHEARED).grid), str(path), compressed)
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
def test_voxels_and_their_places_come_through_the_other_process(tmp_path, name):
    path = write(tmp_path / name, name == "a.mha")
    volume = read_volume(path)
    assert np.array_equal(volume.data[0], DATA) and np.allclose(
        volume.ijk_to_ras, matrix_from_sitk(sitk.ReadImage(str(path)))
    )
    volume.data[0, 0, 0, 0] = 5  # The caller's own memory.


def test_a_space_that_is_not_the_patients_is_told(tmp_path):
    path = write(tmp_path / "a.nrrd")
    assert read_volume(path).notes == ()
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", b"space: scanner-xyz"))
    assert "left and right may be exchanged" in read_volume(path).notes[0]


def test_names_and_folders_that_are_not_utf8_are_read(tmp_path):
    folder = tmp_path / b"f-\xe9".decode("utf-8", "surrogateescape")
    folder.mkdir()
    write(tmp_path / "a.nrrd").rename(folder / b"s-\xe9.nrrd".decode("utf-8", "surrogateescape"))
    write(tmp_path / "b.mhd").rename(folder / b"b-\xe9.mhd".decode("utf-8", "surrogateescape"))
    (tmp_path / "b.raw").rename(folder / "b.raw")
    for path in folder.glob("*[dM]"):
        if path.suffix != ".raw":
            assert np.array_equal(read_volume(path).data[0], DATA)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "z.nrrd", "z.mha", "a.mhd", "a.nhdr"])
def test_files_that_are_cut_off_are_refused(tmp_path, name):
    path = write(tmp_path / name, name[0] == "z")
    holder = next((p for p in tmp_path.iterdir() if p != path), path)
    holder.write_bytes(holder.read_bytes()[: int(0.66 * holder.stat().st_size)])
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_volume(path)


def test_a_data_file_that_is_gone_is_named(tmp_path):
    path = write(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"refers to the file a\.raw, which is not there"):
        read_volume(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("a.nrrd", b"sizes: 8 7 6", b"sizes: 80000 70000 60000", "cut off"),
        ("a.nrrd", b"sizes: 8 7 6", b"sizes: 8 -7 6", "8 x -7 x 6"),
        ("a.nrrd", b"type: float", b"type: block", "no NRRD header"),
        ("a.nrrd", b"kinds: domain domain domain", b"kinds: domain domain time", "frames in time"),
        ("a.nrrd", b"kinds: domain domain domain", b"kinds: RGB-color domain domain", "colors"),
        ("a.mha", b"DimSize = 8 7 6", b"DimSize = 8 7", "no MetaImage header"),
        ("a.mha", b"DimSize = 8 7 6", b"DimSize = 90000 90000 90000", "cut off"),
        ("a.mha", b"ObjectType =", b"\xff\xfe\xfd", "no MetaImage header"),
    ],
)
def test_headers_that_cannot_be_followed_are_refused_before_itk_sees_them(
    tmp_path, name, old, new, problem, monkeypatch
):
    path = write(tmp_path / name)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    monkeypatch.setattr(reading_process, "_READER", ("-c", "raise SystemExit('not reached')"))
    with pytest.raises(InputError, match=problem):
        read_volume(path)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"makes ITK's reader end \(signal 11\)"),
        ("from MedQuantINT8Lib.imaging.itk_reader import limit; limit(1 << 40, 1)\nwhile True: pass", "takes too long"),
        ("import sys; sys.exit(1)", "process of its own"),
    ],
)
def test_a_reader_that_ends_or_never_ends_is_one_line(tmp_path, monkeypatch, code, problem):
    path = write(tmp_path / "a.nrrd")
    monkeypatch.setattr(reading_process, "_READER", ("-c", code))
    with pytest.raises(MedQuantError, match=f"a.nrrd.*{problem}"):
        read_volume(path)


def test_a_reader_cannot_take_more_memory_than_it_is_given(tmp_path, monkeypatch):
    hungry = "import json, sys\nfrom MedQuantINT8Lib.imaging.itk_reader import limit\nr = json.load(sys.stdin); limit(r['memory'], 60)\ntry:\n    x = bytearray(8 << 30)\nexcept MemoryError:\n    print(json.dumps({'error': 'memory', 'number': 0}))"
    monkeypatch.setattr(reading_process, "_READER", ("-c", hungry))
    with pytest.raises(InputError, match="cannot be read: memory"):
        read_volume(write(tmp_path / "a.nrrd"))


def test_who_cancels_ends_the_reader(tmp_path, monkeypatch):
    def cancel() -> None:
        raise Cancelled()

    monkeypatch.setattr(reading_process, "_READER", ("-c", "import time; time.sleep(60)"))
    with pytest.raises(Cancelled):
        read_volume(write(tmp_path / "a.nrrd"), check=cancel)


def test_random_damage_is_refused_or_read(tmp_path):
    rng = np.random.default_rng(5)
    for number in range(10):
        path = write(tmp_path / ("a.nrrd" if number % 2 else "a.mha"), number % 3 == 0)
        content = bytearray(path.read_bytes())
        for _ in range(3):
            content[int(rng.integers(0, 500))] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_volume(path)
        except MedQuantError as error:
            assert path.name in str(error)
