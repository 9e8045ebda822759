"""Packages, zips, descriptions and networks of any content end in one error of this program's own, never in a traceback.

Damage is drawn with fixed seeds: the same files each time.
"""

from __future__ import annotations

import copy
import json
import random
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import MedQuantError, PackageError
from MedQuantINT8Lib.imaging.phantom import phantom_spec
from MedQuantINT8Lib.importers.archives import as_folder
from MedQuantINT8Lib.importers.onnx import draft_for, import_onnx
from MedQuantINT8Lib.models.package import FP32, MODEL_JSON, ModelPackage, peek
from MedQuantINT8Lib.models.spec_parser import parse_spec

PATCH = (8, 8, 8)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network with what networks are made of."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(16, 1, 3, 3, 3)), "b1": rng.normal(size=16), "one": np.ones(16), "zero": np.zeros(16),
        "w2": rng.normal(size=(16, 16, 1, 1, 1)), "w3": rng.normal(size=(2, 16, 1, 1, 1)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="first", pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c", "one", "zero"], ["n"], name="norm", epsilon=1e-5),
        helper.make_node("LeakyRelu", ["n"], ["r"], name="act", alpha=0.1),
        helper.make_node("Conv", ["r", "w2"], ["d"], name="second"),
        helper.make_node("Add", ["r", "d"], ["s"], name="sum"),
        helper.make_node("Conv", ["s", "w3"], ["y"], name="head"),
    ]
    made = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, *PATCH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, *PATCH])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


def damaged(content: bytes, seed: int) -> bytes:
    """One to four bytes changed, or a piece cut out, doubled or zeroed; mostly where the graph is described, not in its weights."""
    rng = random.Random(seed)
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = (
            rng.randrange(len(found))
            if rng.random() < 0.3
            else rng.choice([rng.randrange(900), len(found) - 1 - rng.randrange(900)])
        )
        place = max(0, min(place, len(found) - 1))
        kind = rng.random()
        if kind < 0.6:
            found[place] ^= 1 << rng.randrange(8)
        elif kind < 0.75:
            found[place] = rng.randrange(256)
        elif kind < 0.85:
            del found[place : place + rng.randint(1, 16)]
        elif kind < 0.95:
            found[place:place] = found[place : place + rng.randint(1, 16)]
        else:
            del found[place:]
        if not found:
            return b""
    return bytes(found)


def with_network(folder: Path, content: bytes) -> Path:
    """A package whose hash is right and whose network is a stranger's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FP32).write_bytes(content)
    value = draft_for("net", 1, 2, PATCH).to_json() | {"files": {FP32: sha256(content).hexdigest()}}
    (folder / MODEL_JSON).write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    import nibabel

    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(1).normal(size=(9, 9, 9)).astype(np.float32), np.eye(4)), path
    )
    return path


def only_own_errors(function):
    """Whether it was refused; anything but an error of this program's own fails the test."""
    try:
        function()
    except MedQuantError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        return True
    return False


def test_a_damaged_network_is_one_error_at_import_and_when_it_is_run(network, scan, tmp_path):
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from MedQuantINT8Lib.inference import pipeline
    from MedQuantINT8Lib.inference.engine_choice import EngineChoice
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
    from MedQuantINT8Lib.progress import Task

    content, volume = network.read_bytes(), read_volume(scan)
    refused = {"import": 0, "segment": 0}
    for seed in range(60):
        bad = damaged(content, seed)
        path = tmp_path / "bad.onnx"
        path.write_bytes(bad)
        refused["import"] += only_own_errors(
            lambda path=path: import_onnx(path, draft_for("net", 1, 2, PATCH), tmp_path / "made")
        )
        folder = with_network(tmp_path / f"package{seed}", bad)

        def segment(folder=folder):
            with ModelPackage.load(folder) as package:
                pipeline.segment(package, volume, EngineChoice("onnxruntime", "fp32"), SegmentationOptions(), Task())

        refused["segment"] += only_own_errors(segment)
    assert min(refused.values()) > 20, refused


@pytest.mark.parametrize("seed", [3, 7])
def test_a_damaged_network_is_one_line_of_each_command(network, scan, tmp_path, capsys, seed):
    package = str(with_network(tmp_path / "package", damaged(network.read_bytes()[:-20], seed)))
    for words in (
        ["segment", package, str(scan), "-o", str(tmp_path / "labels.nii"), "--precision", "fp32", "-q"],
        ["build", package, "--precision", "fp32", "-q"],
        ["quantize", package, "--calibrate", str(scan), "--patches", "1", "-q"],
    ):
        assert main(words) in (3, 4), words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("medquant: "), error


# Descriptions

STRANGE = [
    None, True, 0, -1, 1, 2.5, 10**400, -(10**30), 1e308, "", "x", "\x1b[31m", "\ud800", "RAS", [], [1, 2, 3], [[[]]], {}, {"kind": "zscore"},
    [None], ["a"] * 3, "9" * 5000, float("1e-320"),
]  # fmt: skip


def places(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(value, path, strange):
    if not path:
        return strange
    made = copy.deepcopy(value)
    inside = made
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = strange
    return made


def test_a_description_of_any_content_is_read_or_refused_by_name():
    value = json.loads(json.dumps(phantom_spec().to_json()))
    rng, refused, tried = random.Random(5), 0, 0
    for path in places(value):
        for strange in rng.sample(STRANGE, 6):
            tried += 1
            refused += only_own_errors(lambda path=path, strange=strange: parse_spec(changed(value, path, strange)))
    assert tried > 300 and refused > 0.7 * tried


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "NaN",
        "1" * 5000,
        '{"schema": Infinity}',
        "[]",
        "null",
        '"\\ud800"',
        "",
        "\x00",
        "\xff",
    ],
    ids=lambda t: repr(t[:12]),
)
def test_json_of_any_kind_is_one_error(text, fp32_package, tmp_path, capsys):
    (tmp_path / MODEL_JSON).write_bytes(text.encode("latin-1"))
    for use in (ModelPackage.load, peek):
        with pytest.raises(PackageError) as caught:
            use(tmp_path)
        assert str(caught.value).isprintable()
    words = [
        "import",
        "onnx",
        str(fp32_package.folder / FP32),
        "--spec",
        str(tmp_path / MODEL_JSON),
        "-o",
        str(tmp_path / "p"),
        "-q",
    ]
    assert main(words) in (2, 3)
    assert capsys.readouterr().err.count("\n") == 1


def test_sizes_that_no_memory_holds_are_refused():
    value = phantom_spec().to_json()
    value["window"].update(patch_size=[1 << 20] * 3, multiples=[1, 1, 1])
    with pytest.raises(PackageError, match="voxels, more than"):
        parse_spec(value)
    value["window"]["patch_size"] = [10**30] * 3
    with pytest.raises(PackageError, match="at most"):
        parse_spec(value)


# Zips


def encrypted(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    found = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found[found.index(mark) + offset] |= 1
    path.write_bytes(found)


def of_method(method):
    def make(path, name, content):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(name, content)

    return make


def of_unknown_method(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    found = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        found[found.index(mark) + offset] = 93
    path.write_bytes(found)


def spoiled(path, name, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, content)
    path.write_bytes(path.read_bytes().replace(content[5:10], b"XXXXX", 1))


def bomb(path, name, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\0" * (80 << 20))


def crowd(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}", b"")


def twice(path, name, content):
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning):
        archive.writestr(name, content)
        archive.writestr(name, content)


def no_utf8(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é.json", content)
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc3\xff"))


def escapes(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\x1b[31mred", content)


def cut(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    path.write_bytes(path.read_bytes()[:-30])


def outside(path, name, content):
    """The end record says that the directory lies 100 bytes further on: the member then begins before the file does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\x05\x06") + 16
    whole[place : place + 4] = (int.from_bytes(whole[place : place + 4], "little") + 100).to_bytes(4, "little")
    path.write_bytes(whole)


def too_long(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("n" * 300, content)


ZIPS = {
    "encrypted": (encrypted, "password"), "bzip2": (of_method(zipfile.ZIP_BZIP2), "bzip2"), "LZMA": (of_method(zipfile.ZIP_LZMA), "LZMA"),
    "Zstandard": (of_unknown_method, "Zstandard"), "a damaged member": (spoiled, "damaged"), "a bomb": (bomb, "would grow"),
    "too many": (crowd, "files"), "the same path twice": (twice, "twice"), "no UTF-8": (no_utf8, "UTF-8"), "escapes": (escapes, "control"),
    "cut off": (cut, "cut off"), "outside": (outside, "outside|damaged"), "a name too long": (too_long, "too long|may not hold"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZIPS)
def test_zips_that_may_not_be_unpacked_are_one_error_and_leave_nothing(kind, tmp_path, monkeypatch):
    import tempfile

    make, problem = ZIPS[kind]
    path = tmp_path / "stranger.zip"
    make(path, MODEL_JSON, json.dumps(phantom_spec().to_json()).encode())
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    for use in (ModelPackage.load, lambda p: as_folder(p, "model").__enter__()):
        with pytest.raises(MedQuantError, match=problem) as caught:
            use(path)
        assert str(caught.value).isprintable() and not list((tmp_path / "scratch").iterdir())
