"""MONAI bundles: prepared, run and described as MONAI itself does, without running their code."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from bundles import COMMON, FORMS, write_bundle
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import to_sitk
from MedQuantINT8Lib.imaging.volume_files import read_volume
from MedQuantINT8Lib.importers import monai_bundle
from MedQuantINT8Lib.importers.checkpoints import load_weights, read_checkpoint
from MedQuantINT8Lib.importers.expression_evaluator import NotAConstant
from MedQuantINT8Lib.importers.expressions import Config
from MedQuantINT8Lib.models.package import FP32, ModelPackage

CLASSES = {"spleen": 2, "swin_unetr_btcv": 14, "wholebody": 105, "wholebrain_unest": 5, "vista3d": 7}


def network_of(form, config):
    from monai.networks import nets

    torch.manual_seed(0)
    if form == "vista3d":
        return nets.vista3d132(encoder_embed_dim=16, in_channels=1).eval()
    if form == "wholebrain_unest":
        from bundles import SCRIPT

        space: dict = {}
        exec(SCRIPT, space)
        return space["UNesT"](1, 5, 4).eval()
    arguments = {k: v for k, v in config["network_def"].items() if k not in ("_target_", "img_size")}
    return getattr(nets, config["network_def"]["_target_"])(**arguments).eval()


@pytest.fixture
def bundle(request, tmp_path):
    form = request.param
    folder = write_bundle(tmp_path / f"{form}_bundle", form, CLASSES[form])
    network = network_of(form, FORMS[form])
    name = "model_lowres.pt" if form == "wholebody" else "model.pt"
    torch.save(network.state_dict(), folder / "models" / name)
    return form, folder, network


@pytest.fixture
def scan(tmp_path, phantom):
    """A scan that is neither RAS nor at any network's spacing."""
    volume = phantom[0]
    image = to_sitk(volume.data[0].astype(np.float32), volume.grid)
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(image, "PLI"), str(path))
    return path


def by_monai(form, path):
    """The scan as MONAI's own transforms prepare it, (C, I, J, K)."""
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    config = {k: v for k, v in FORMS[form].items() if k not in COMMON}
    parser = ConfigParser({**config, "bundle_root": ".", "device": "cpu"})
    transforms = config.get("preprocessing_transforms") or config["preprocessing"]
    made = []
    for t in transforms:
        if "Vista" in t["_target_"]:
            continue
        parser["one"] = {k: v == "True" if v in ("True", "False") else v for k, v in t.items()}
        parser.parse()
        made.append(parser.get_parsed_content("one"))
    return np.asarray(Compose(made)({"image": str(path)})["image"])


@pytest.mark.slow
@pytest.mark.parametrize("bundle", list(FORMS), indirect=True)
def test_a_bundle_prepares_and_computes_as_monai_does(bundle, scan, tmp_path):
    form, folder, network = bundle
    trust = ["--trust-code"] if form == "wholebrain_unest" else []
    assert main(["import", "bundle", str(folder), "-o", str(tmp_path / "package"), "-q", *trust]) == 0
    package = ModelPackage.load(tmp_path / "package")
    made, expected = preprocess(read_volume(scan), package.spec), by_monai(form, scan)
    assert made.data.shape == expected.shape
    # Whether a resampled voxel is exactly 0, which "nonzero" asks, is decided by the last bit of single voxels.
    other = np.abs(made.data - expected) > 2e-3 * max(1.0, np.abs(expected).max())
    assert other.mean() < 2e-4
    inferer = FORMS[form]["inferer"]
    assert package.spec.window.overlap == (0.25 if form == "wholebody" else inferer["overlap"])
    assert package.spec.window.blend == ("gaussian" if form in ("wholebody", "vista3d") else "constant")
    a, b, c = package.spec.window.patch_size
    patch = np.random.default_rng(0).normal(size=(1, 1, a, b, c)).astype(np.float32)
    got = session((package.folder / FP32).read_bytes(), "fp32").run(None, {"image": patch})[0]
    with torch.no_grad():
        if form == "vista3d":
            wanted = network(torch.from_numpy(patch), class_vector=torch.tensor([1, 3, 4, 6]))[:, 0][None].numpy()
            assert np.array_equal(got[:, 0], np.zeros_like(got[:, 0]))
            got = got[:, 1:]
        else:
            wanted = network(torch.from_numpy(patch)).numpy()
    assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)
    assert package.spec.license == "Apache License (the bundle's LICENSE)"


@pytest.mark.parametrize("bundle", ["vista3d"], indirect=True)
def test_vista3d_keeps_its_class_numbers(bundle):
    _, folder, _ = bundle
    labels = monai_bundle.understand(folder).spec.labels
    assert [(label.value, label.channel, label.name) for label in labels] == [
        (1, 1, "organ 1"), (3, 2, "organ 3"), (4, 3, "organ 4"), (6, 4, "organ 6"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["wholebrain_unest"], indirect=True)
def test_code_in_a_bundle_runs_only_when_trusted(bundle, tmp_path, capsys):
    _, folder, _ = bundle
    script = folder / "scripts" / "networks" / "unest_base_patch_4.py"
    script.write_text("import pathlib; pathlib.Path(r'" + str(tmp_path / "ran") + "').touch()\n" + script.read_text())
    assert main(["import", "bundle", str(folder), "-o", str(tmp_path / "package"), "-q"]) == 3
    assert "--trust-code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "package").exists()
    assert main(["import", "bundle", str(folder), "-o", str(tmp_path / "package"), "-q", "--trust-code"]) == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["spleen"], indirect=True)
def test_what_was_understood_can_be_saved_edited_and_given_back(bundle, tmp_path, capsys):
    _, folder, _ = bundle
    shutil.make_archive(str(tmp_path / "spleen"), "zip", tmp_path, folder.name)
    draft = tmp_path / "draft.json"
    assert (
        main(["import", "bundle", str(tmp_path / "spleen.zip"), "-o", str(tmp_path / "p"), "--draft", str(draft), "-q"])
        == 0
    )
    out = capsys.readouterr().out
    assert "1.5 x 1.5 x 2 mm" in out and "organ 1" in out and not (tmp_path / "p").exists()
    value = json.loads(draft.read_text())
    value["labels"][0]["name"] = "spleen"
    draft.write_text(json.dumps(value))
    assert (
        main(["import", "bundle", str(tmp_path / "spleen.zip"), "-o", str(tmp_path / "p"), "--spec", str(draft), "-q"])
        == 0
    )
    assert ModelPackage.load(tmp_path / "p").spec.labels[0].name == "spleen"


@pytest.mark.parametrize("bundle", ["spleen"], indirect=True)
def test_what_is_not_understood_is_named(bundle, tmp_path):
    _, folder, _ = bundle
    path = folder / "configs" / "inference.json"
    good = json.loads(path.read_text())

    def spoiled(edit, match):
        value = json.loads(json.dumps(good))
        edit(value)
        path.write_text(json.dumps(value))
        with pytest.raises(PackageError, match=match):
            monai_bundle.understand(folder)

    spoiled(
        lambda v: v["preprocessing"]["transforms"].append({"_target_": "RandAffined", "keys": "image"}), "RandAffined"
    )
    spoiled(lambda v: v["postprocessing"]["transforms"].append({"_target_": "MagicD", "keys": "pred"}), "Magicd")
    spoiled(lambda v: v["inferer"].update(_target_="SaliencyInferer"), "SaliencyInferer")
    spoiled(lambda v: v["inferer"].update(overlap="$__import__('os').system('true')"), "trust-code")
    spoiled(lambda v: v["network_def"].update(_target_="os.system"), "os.system")
    path.write_text("{ not json")
    with pytest.raises(PackageError, match=r"inference\.json"):
        monai_bundle.understand(folder)
    path.unlink()
    with pytest.raises(PackageError, match="no MONAI bundle"):
        monai_bundle.understand(folder)


EXPRESSIONS = {
    "$1 + 2 * 3": 7, "$[i * 2 for i in range(4) if i > 1]": [4, 6], "$@a['x'][1]": 5, "$@a::x::0 - 1": 3, "$'a' + 'b'": "ab",
    "$list(set([1, 2, 3]) - {2})": [1, 3], "$2 if 1 < @a#x#0 <= 4 else 3": 2, "@b": [4, 5], "$not True or 5": 5,
    "$f'{1}.pt'": "1.pt", "$os.path.join('a', 'b')": "a/b", "$torch.float32": "float32", "${n: m for n, m in zip([1], 'a')}": {1: "a"},
}  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_harmless_expressions_are_computed(text, tmp_path):
    assert Config({"a": {"x": [4, 5]}, "b": "@a::x"}, tmp_path).resolve(text) == EXPRESSIONS[text]


@pytest.mark.parametrize(
    "text",
    [
        "$__import__('os').getcwd()", "$(1).__class__", "$open('/etc/passwd').read()", "$[1] * 10**9", "$'a' * 10**9", "$range(10**9)",
        "$exec('1')", "$lambda: 1", "$@missing", "@loop", "$1 / 0", "$2 ** 10**9", "%../../secret.json::a", "$(", "$x",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text, tmp_path):
    with pytest.raises(NotAConstant):
        Config({"loop": "@loop"}, tmp_path).resolve(text)


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


def test_checkpoints_are_data(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(PackageError, match="run their code"):
        read_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(PackageError, match="damaged|run their code"):
        read_checkpoint(tmp_path / "text.pt")
    with pytest.raises(PackageError, match=r"no checkpoint at .*none\.pt"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save(
        {"score": np.float64(0.9), "state_dict": {"module.weight": torch.ones(1, 1), "module.bias": torch.ones(1)}},
        tmp_path / "a.pt",
    )
    module = torch.nn.Linear(1, 1)
    load_weights(module, tmp_path / "a.pt")
    assert module.weight.item() == 1
    with pytest.raises(InputError, match="1 left over"):
        load_weights(torch.nn.Linear(1, 1, bias=False), tmp_path / "a.pt")
    with pytest.raises(InputError, match="size mismatch"):
        load_weights(torch.nn.Linear(2, 1), tmp_path / "a.pt")


def test_a_zip_may_not_climb_out_of_its_folder(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "climbing.zip", "w") as archive:
        archive.writestr("../up.txt", "x")
    assert main(["import", "bundle", str(tmp_path / "climbing.zip"), "-o", str(tmp_path / "p"), "-q"]) == 3
    assert "leaves the package" in capsys.readouterr().err and not (tmp_path.parent / "up.txt").exists()
