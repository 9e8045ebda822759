"""An import proves itself: it is compared with the original software on synthetic scans before it is accepted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import DependencyError, PackageError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.importers.base import ImportedModel, write
from MedQuantINT8Lib.importers.check_scans import make_synthetic_scans
from MedQuantINT8Lib.importers.import_check import ImportCheck, ScanCheck, difference
from MedQuantINT8Lib.importers.import_comparison import accept, compare_import
from MedQuantINT8Lib.models.package import IMPORT, ModelPackage
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window
from MedQuantINT8Lib.progress import Task

SPEC = ModelSpec(
    "thr", "1", "MR", (Channel("a"), Channel("b")), Geometry("IJK", "RAS", (1.5, 1.5, 2.0)), (Normalization("zscore"),),
    Window((16, 16, 16), overlap=0.25), Output(),
    (Label(1, "bright", 1),), "made",
)  # fmt: skip


@pytest.fixture
def network(tmp_path):
    """Scores (0, x - 0.5) of the first channel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.zeros((2, 2, 1, 1, 1), np.float32)
    weight[1, 0] = 1
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 16, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 16, 16, 16])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0, -0.5], np.float32), "b")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


@dataclass
class Original:
    """An original that computes as the package says, or with one part wrong."""

    wrong: str = ""
    title: str = "Original 1.0"

    def prepare(self, volume):
        data = preprocess(volume, SPEC).data
        return data[:, :-1] if self.wrong == "shape" else np.roll(data, 1, 1) if self.wrong == "input" else data

    def scores(self, volume):
        first = preprocess(volume, SPEC).data[0]
        return np.stack([np.zeros_like(first), first - (0.8 if self.wrong == "scores" else 0.5)])

    def labels(self, volume):
        made = preprocess(volume, SPEC)
        scores = np.stack([np.zeros_like(made.data[0]), made.data[0] - 0.5])
        return made.restore_from_scores(scores, np.array([0, 2 if self.wrong == "labels" else 1], np.uint8))


def test_synthetic_scans_are_awkward_and_follow_the_network():
    scans = make_synthetic_scans(SPEC)
    assert [scan.name for scan in scans] == [scan.name for scan in make_synthetic_scans(SPEC)] and len(scans) >= 5
    assert np.array_equal(scans[0].data, make_synthetic_scans(SPEC)[0].data)
    assert all(scan.channels == 2 and all(n % 2 for n in scan.grid.size) for scan in scans)
    assert any((scan.data == 0).mean() > 0.05 for scan in scans) and any(scan.data.min() < 0 for scan in scans)
    sizes = [preprocess(scan, SPEC).data.shape[1:] for scan in scans]
    assert any(max(size) > 16 for size in sizes) and any(max(size) <= 16 for size in sizes)
    cosines = [scan.ijk_to_ras[:3, :3] / scan.grid.spacing for scan in scans]
    slants = [np.sort(np.abs(c).ravel())[:6].max() for c in cosines]
    assert any(slant > 0.1 for slant in slants) and any(0 < slant < 1e-3 for slant in slants)
    for scan in scans:
        assert np.array_equal(scan.ijk_to_ras.astype(np.float32).astype(np.float64), scan.ijk_to_ras)


def test_an_import_that_agrees_is_written_with_what_was_compared(network, tmp_path, capsys):
    imported = ImportedModel(SPEC, network, original=Original)
    package = write(imported, tmp_path / "package", Task())
    found = ImportCheck.from_json(json.loads((tmp_path / "package" / IMPORT).read_text()))
    assert found == imported.check and found.compared and found.original == "Original 1.0" and found.acceptable
    assert all(scan.input_difference < 1e-6 and scan.score_difference < 1e-5 for scan in found.scans)
    assert all(scan.label_agreement > 0.999 for scan in found.scans) and "synthetic scan" in found.summary()
    assert IMPORT in package.hashes and package.import_check()["summary"] == found.summary()
    copied = package.with_files(tmp_path / "copy.zip", {})
    assert copied.import_check() == package.import_check()


@pytest.mark.parametrize(
    ("wrong", "part"), [("input", "input"), ("shape", "input"), ("scores", "scores"), ("labels", "label map")]
)
def test_an_import_that_disagrees_is_not_written_and_says_where(wrong, part, network, tmp_path):
    with pytest.raises(PackageError, match=f"Original 1.0 does: synthetic scan .*{part}"):
        write(ImportedModel(SPEC, network, original=lambda: Original(wrong)), tmp_path / "package", Task())
    assert not (tmp_path / "package").exists()
    own = ImportedModel(SPEC, network, original=lambda: Original(wrong), by_hand=True)
    write(own, tmp_path / "package", Task())
    assert any("your own" in note for note in own.notes) and not own.check.acceptable


def test_an_import_without_the_original_software_says_so(network, tmp_path):
    def missing():
        raise DependencyError("nnunetv2 is not installed.", "Install it.")

    imported = ImportedModel(SPEC, network, original=missing)
    write(imported, tmp_path / "package", Task())
    assert imported.check == ImportCheck("", False, "nnunetv2 is not installed")
    assert (
        ModelPackage.load(tmp_path / "package").import_check()["summary"] == "not compared: nnunetv2 is not installed"
    )


def test_the_command_prints_what_was_compared(network, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_json()))
    command = ["import", "onnx", str(network), "--spec", str(tmp_path / "spec.json"), "-o", str(tmp_path / "p"), "-q"]
    assert main(command) == 0
    assert "not compared: " in capsys.readouterr().out
    assert main([*command[:-3], "-o", str(tmp_path / "q"), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["import"]["compared"] is False


def test_a_network_that_takes_long_runs_on_fewer_scans(network, monkeypatch):
    from MedQuantINT8Lib.importers import import_comparison

    monkeypatch.setattr(import_comparison, "SECONDS", 0.0)
    check = compare_import(SPEC, network, Original())
    ran = [scan for scan in check.scans if scan.label_agreement is not None]
    assert len(ran) == 1 and all(scan.input_difference is not None for scan in check.scans)
    assert "the network ran on 1 of them" in check.reason and check.reason in check.summary()


def test_differences_have_stated_tolerances():
    a = np.arange(8.0).reshape(2, 2, 2)
    assert difference(a, a) == 0 and difference(a, a[:1]) == np.inf and difference(a * np.nan, a) == np.inf
    good = ScanCheck("s", 0.001, None, 1.0)
    assert ImportCheck("x", True, "", (good,)).acceptable
    for bad in (
        replace(good, input_difference=0.006),
        replace(good, score_difference=np.nan),
        replace(good, label_agreement=0.99),
    ):
        check = ImportCheck("x", True, "", (good, bad))
        assert not check.acceptable
        with pytest.raises(PackageError, match="x does: s: "):
            accept(check)
    with pytest.raises(PackageError, match="no record of an import"):
        ImportCheck.from_json({"schema": "other"})
