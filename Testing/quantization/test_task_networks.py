"""Models of several networks: each is quantized in turn, and all get their INT8 network together, or none does."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.errors import Cancelled, InputError
from MedQuantINT8Lib.inference.task_model import load_model, require_int8
from MedQuantINT8Lib.models.installed import holds_int8, installed_models
from MedQuantINT8Lib.models.package import FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.task_package import peek_task
from MedQuantINT8Lib.models.task_writing import write_task
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization import task_networks
from MedQuantINT8Lib.quantization.task_networks import networks_of, quantize_networks
from task_packages import bands, spotted, task_spec, three_parts


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return three_parts(tmp_path_factory.mktemp("three"))


@pytest.fixture
def model(together, tmp_path, monkeypatch):
    """An installed task in FP32 whose part "bright" is an installed model of its own."""
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    spec, places = peek_task(together), {}
    for path in spec.package_paths:
        with ModelPackage.load(together / path) as package:
            places[path] = tmp_path / "fp32" / path
            write_package(places[path], package.spec, {FP32: package.folder / FP32})
    shutil.copytree(places.pop("packages/bright"), tmp_path / "models/bright/package")
    parts = [replace(p, packages=(), installed="bright") if p.name == "bright" else p for p in spec.parts]
    write_task(tmp_path / "models/together", replace(spec, parts=tuple(parts)), places)
    return str(tmp_path / "models/together")


def adds_int8(together, asked):
    """Stands for quantizing one package: takes the INT8 network that the test's task has."""

    def quantize_one(source, target, scans):
        with ModelPackage.load(source) as package:
            asked.append((package.spec.name, [scan().data.shape for scan in scans]))
            package.with_files(target, {INT8: together / "packages" / package.spec.name / INT8}).close()
        return {"agreement": 1.0}

    return quantize_one


def test_each_network_is_quantized_and_the_task_is_whole_again(together, model):
    stages, asked = [], []
    task = Task(lambda event: stages.append(event.stage))

    def one(source, target, scans):
        with task.stage("calibrating"):
            return adds_int8(together, asked)(source, target, scans)

    assert [network.name for network in networks_of(model)] == ["dim", "bright", "brightest"]
    reports = quantize_networks(model, model, [spotted], one, task)
    assert [report["network"] for report in reports] == [name for name, _shapes in asked]
    assert [name for name, _shapes in asked] == ["dim", "bright", "brightest"]
    assert stages == [f"{name} ({n} of 3): calibrating" for n, name in enumerate(("dim", "bright", "brightest"), 1)]
    assert task.part == "" and holds_int8(installed_models()["together"]) and holds_int8(installed_models()["bright"])


@pytest.mark.parametrize("error", [Cancelled("Canceled."), InputError("The scan cannot be read.", "")])
def test_what_is_canceled_or_fails_leaves_every_network_as_it_was(together, model, error, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    asked = []

    def one(source, target, scans):
        if len(asked) == 2:
            raise error
        return adds_int8(together, asked)(source, target, scans)

    with pytest.raises(type(error)):
        quantize_networks(model, model, [spotted], one, Task())
    assert {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()} == before


def test_a_task_with_packages_of_its_own_goes_elsewhere_and_one_with_installed_models_does_not(
    together, model, tmp_path
):
    with pytest.raises(InputError, match="bright lies outside"):
        quantize_networks(model, str(tmp_path / "other"), [spotted], adds_int8(together, []), Task())
    target = tmp_path / "copy.zip"
    quantize_networks(str(together), str(target), [spotted], adds_int8(together, []), Task())
    with load_model(str(target)) as written:
        require_int8(written)


def test_the_folds_of_one_training_get_their_networks_in_place(together, tmp_path):
    paths = []
    for fold in ("fold_0", "fold_1"):
        with ModelPackage.load(together / "packages/dim") as package:
            write_package(tmp_path / fold, package.spec, {FP32: package.folder / FP32})
        paths.append(tmp_path / fold)
    both = ",".join(map(str, paths))
    reports = quantize_networks(both, both, [spotted], adds_int8(together, []), Task())
    assert [report["network"] for report in reports] == ["fold_0", "fold_1"] and all(holds_int8([p]) for p in paths)


def test_the_second_stage_of_a_cascade_is_calibrated_with_the_labels_of_the_first(tmp_path, monkeypatch):
    """What the first stage finds comes as the last channel, computed once a scan."""
    first = bands(tmp_path, "first", {"grey": 0.4, "white": 0.7})
    parts = [{"name": "second", "packages": ["packages/second"]}]
    spec = task_spec(["grey", "white"], parts, find=[{"name": "first", "packages": ["packages/first"]}])
    write_task(tmp_path / "task", spec, {"packages/first": first.folder, "packages/second": first.folder})
    networks = networks_of(str(tmp_path / "task"))
    assert [network.name for network in networks] == ["first", "second"] and networks[1].previous is None
    # A package with a label map as its channel is made by the import of nnU-Net's cascades alone; the scans are looked at here.
    staged = [replace(networks[1], previous=spec.find[0])]
    monkeypatch.setattr(task_networks, "_networks_of_task", lambda *_spec: staged)
    seen = []

    def one(source, target, scans):
        volume, again = scans[0](), scans[0]()
        assert (volume.data == again.data).all()
        seen.append(volume.data)
        with ModelPackage.load(source) as package:
            package.save(target)
        return {}

    scan = spotted()
    quantize_networks(str(tmp_path / "task"), str(tmp_path / "task"), [lambda: scan], one, Task())
    (data,) = seen
    expected = np.digitize(scan.data[0], [0.4, 0.7])
    assert (data[0] == scan.data[0]).all() and data.dtype == np.float32
    assert (data[1] == expected).mean() > 0.99 and set(np.unique(data[1])) == {0, 1, 2}


def test_a_single_package_is_its_own_only_network(together):
    (network,) = networks_of(str(together / "packages/dim"))
    assert network.name == "dim" and network.inner is None
