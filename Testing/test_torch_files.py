"""Auto3DSeg models, TorchScript, torch.export and Python classes to packages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNetDS

from MedQuantINT8Lib.cli import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.importers import auto3dseg
from MedQuantINT8Lib.model import FP32, ModelPackage
from MedQuantINT8Lib.preprocessing import normalize, preprocess

ARGUMENTS = {"_target_": "SegResNetDS", "init_filters": 8, "blocks_down": [1, 1, 1], "norm": "INSTANCE", "in_channels": 1, "out_channels": 6,
             "dsdepth": 2}  # fmt: skip
CONFIG = {
    "network": ARGUMENTS,
    "normalize_mode": "range",
    "intensity_bounds": [-250.0, 300.0],
    "resample_resolution": [3.0, 3.0, 3.0],
    "roi_size": [32, 32, 32],
    "modality": "ct",
    "crop_foreground": True,
    "orientation_ras": True,
    "sigmoid": False,
    "class_names": ["liver", "spleen", "kidneys", "spine", "lungs"],
}


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    module = SegResNetDS(**{k: v for k, v in ARGUMENTS.items() if k != "_target_"}).eval()
    folder = tmp_path / "abdominal-organs-v1"
    folder.mkdir()

    def write(**changes):
        torch.save({"state_dict": module.state_dict(), "config": {**CONFIG, **changes}, "epoch": 3}, folder / "model.pt")
        return folder

    return module, write


def by_auto3dseg(volume, config):
    """What the Slicer extension's inference script does before the network, (C, I, J, K)."""
    from monai.data import MetaTensor
    from monai.transforms import (
        Compose,
        CropForegroundd,
        Lambdad,
        NormalizeIntensityd,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    data = torch.from_numpy(np.ascontiguousarray(volume.data.astype(np.float32).transpose(0, 3, 2, 1)))
    steps = [Orientationd("image", axcodes="RAS"), CropForegroundd("image", source_key="image", margin=10, allow_smaller=True)]
    if pixdim := config["resample_resolution"]:
        low, high = np.array(pixdim) * 0.75, np.array(pixdim) * 1.25
        steps.append(Spacingd("image", pixdim=pixdim, mode="bilinear", dtype=torch.float, min_pixdim=low, max_pixdim=high))
    if config["normalize_mode"] == "range":
        low, high = config["intensity_bounds"]
        steps += [ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-1, b_max=1, clip=False), Lambdad("image", func=torch.sigmoid)]
    else:
        steps += [NormalizeIntensityd("image", nonzero=True, channel_wise=True)]
        if config["normalize_mode"] == "meanstdtanh":
            steps.append(Lambdad("image", func=lambda x: 3 * torch.tanh(x / 3)))
    return np.asarray(Compose(steps)({"image": MetaTensor(data, affine=torch.from_numpy(volume.ijk_to_ras))})["image"])


@pytest.mark.parametrize("mode", ["range", "meanstd", "meanstdtanh"])
@pytest.mark.parametrize("spacing", [[3.0, 3.0, 3.0], [4.5, 4.5, 4.5], None])
def test_auto3dseg_prepares_the_volume_as_the_extension_does(model, phantom, mode, spacing):
    folder = model[1](normalize_mode=mode, resample_resolution=spacing)
    spec = auto3dseg.understand(folder).spec
    made, expected = preprocess(phantom[0], spec).data, by_auto3dseg(phantom[0], {**CONFIG, "normalize_mode": mode, "resample_resolution": spacing})
    assert made.shape == expected.shape
    # Voxels that are exactly 0 after resampling are decided by the last bit.
    assert (np.abs(made - expected) > 2e-3).mean() < 1e-3
    assert spec.window.overlap == 0.625 and spec.labels[0].name == "liver"


def test_auto3dseg_computes_what_the_network_does(model, tmp_path):
    module, write = model
    assert main(["import", "auto3dseg", str(write()), "-o", str(tmp_path / "package"), "-q"]) == 0
    package = ModelPackage.load(tmp_path / "package")
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = module(x)
    got = session((package.folder / FP32).read_bytes(), "fp32").run(None, {"image": x.numpy()})[0]
    full_size = expected[0] if isinstance(expected, list) else expected
    assert np.allclose(got, full_size.numpy(), atol=1e-3)
    assert package.spec.name == "abdominal-organs-v1" and package.spec.modality == "CT"


def test_auto3dsegs_hyper_parameters_and_labels_are_read_from_beside_the_weights(model, tmp_path):
    module, write = model
    folder = write()
    torch.save(module.state_dict(), folder / "model.pt")
    with pytest.raises(PackageError, match="no configuration"):
        auto3dseg.understand(folder)
    lines = json.dumps({**CONFIG, "sigmoid": True, "ckpt_path": "$@bundle_root + '/model'", "bundle_root": "/train"})
    (folder / "hyper_parameters.yaml").write_text(lines)
    (folder / "labels.csv").write_text("LabelValue,Name\n1,whole\n2,core\n")
    spec = auto3dseg.understand(folder).spec
    assert spec.output.activation == "sigmoid" and [label.name for label in spec.labels][:3] == ["whole", "core", "structure 3"]
    assert spec.output_channels == 6
    with pytest.raises(PackageError, match="magic"):
        auto3dseg.understand(write(normalize_mode="magic"))
    with pytest.raises(PackageError, match="not a SegResNetDS"):
        auto3dseg.understand(write(network={"_target_": "UNet", "out_channels": 2}))
    with pytest.raises(PackageError, match="multiple of 4"):
        auto3dseg.understand(write(roi_size=[30, 32, 32]))


def test_new_intensity_steps_are_numbers_that_one_can_check():
    from MedQuantINT8Lib.model_spec import Normalization

    x = np.array([-1.0, 0.0, 2.0], np.float32)
    assert np.allclose(normalize(x, (Normalization("linear", low=-1.0, high=3.0),)), [-5, -1, 7])
    assert np.allclose(normalize(x, (Normalization("sigmoid"),)), [0.26894, 0.5, 0.88080], atol=1e-5)
    assert np.allclose(normalize(x, (Normalization("tanh", high=3.0),)), 3 * np.tanh(x / 3))


SOURCE = """
import torch
class Small(torch.nn.Module):
    def __init__(self, channels=1, width=4):
        super().__init__()
        self.body = torch.nn.Conv3d(channels, width, 3, padding=1)
        self.head = torch.nn.Conv3d(width, 2, 1)
    def forward(self, x):
        return self.head(torch.relu(self.body(x)))
"""


@pytest.fixture
def programs(tmp_path):
    torch.manual_seed(0)
    space: dict = {}
    exec(SOURCE, space)
    module = space["Small"](2, 6).eval()
    example = torch.zeros(2, 2, 16, 16, 16)
    torch.jit.save(torch.jit.trace(module, example), tmp_path / "net.ts")
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)), tmp_path / "net.pt2")
    (tmp_path / "net.py").write_text(SOURCE)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    return module, {
        "torchscript": [str(tmp_path / "net.ts")],
        "export": [str(tmp_path / "net.pt2")],
        "python": [str(tmp_path / "net.py"), "--class", "Small", "--weights", str(tmp_path / "net.pth"), "--arguments",
                   '{"channels": 2, "width": 6}'],
    }  # fmt: skip


@pytest.mark.parametrize("form", ["torchscript", "export", "python"])
def test_programs_are_run_only_when_trusted_and_become_packages(programs, form, tmp_path, capsys):
    module, arguments = programs
    common = ["import", form, *arguments[form], "--channels", "2", "--patch", "16", "16", "16", "-o", str(tmp_path / "package"), "-q"]
    assert main(common) == 3 and "--trust-code" in capsys.readouterr().err
    assert main([*common, "--trust-code"]) == 0
    draft = tmp_path / "package.draft.json"
    assert f"--spec {draft}" in capsys.readouterr().out and not (tmp_path / "package").exists()
    assert main([*common, "--trust-code", "--spec", str(draft)]) == 0
    package = ModelPackage.load(tmp_path / "package")
    x = torch.randn(3, 2, 16, 16, 16)
    with torch.no_grad():
        expected = module(x).numpy()
    got = session((package.folder / FP32).read_bytes(), "fp32").run(None, {package_input(package): x.numpy()})[0]
    assert np.allclose(got, expected, atol=1e-5)


def package_input(package):
    from MedQuantINT8Lib import graph

    return graph.network_shape(graph.load_network(package.onnx_path("fp32"))).input_name


def test_bad_programs_are_said_in_one_line(programs, tmp_path, capsys):
    _, arguments = programs
    end = ["--patch", "16", "16", "16", "--trust-code", "-o", str(tmp_path / "p"), "-q"]
    (tmp_path / "text.ts").write_text("hello")
    cases = [
        (["torchscript", str(tmp_path / "text.ts"), *end], 3, "no TorchScript file"),
        (["export", str(tmp_path / "text.ts"), *end], 3, "no torch.export archive"),
        (["export", str(tmp_path / "none.pt2"), *end], 3, "no torch.export archive at"),
        (["torchscript", *arguments["torchscript"], *end], 3, "--channels"),
        (["python", *arguments["python"][:1], *end], 2, "--class"),
        (["python", *arguments["python"][:1], "--class", "Large", *end], 2, "no class Large"),
        (["python", *arguments["python"][:3], "--arguments", '{"depth": 3}', *end], 2, "depth"),
        (["python", *arguments["python"][:3], "--arguments", "[1]", *end], 2, "no JSON object"),
        (["torchscript", *arguments["torchscript"], "--trust-code", "-o", str(tmp_path / "p"), "-q"], 2, "--patch"),
    ]
    for given, code, problem in cases:
        assert main(["import", *given]) == code, given
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and problem in error, given
    assert not (tmp_path / "p").exists()


def test_an_onnx_file_with_weights_beside_it_is_taken_whole(tmp_path):
    import onnx

    from MedQuantINT8Lib.phantom import phantom_spec
    from MedQuantINT8Lib.resources import resource

    model = onnx.load(str(resource("phantom_unet.onnx")))
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="net.weights", size_threshold=64)
    (tmp_path / "spec.json").write_text(json.dumps(phantom_spec().to_json()))
    assert (tmp_path / "net.weights").stat().st_size > 100_000
    assert main(["import", "onnx", str(tmp_path / "net.onnx"), "--spec", str(tmp_path / "spec.json"), "-o", str(tmp_path / "p"), "-q"]) == 0
    (tmp_path / "net.weights").unlink()
    x = np.random.default_rng(0).normal(size=(1, 1, 64, 64, 64)).astype(np.float32)
    made, original = ((p.read_bytes()) for p in (tmp_path / "p" / FP32, resource("phantom_unet.onnx")))
    assert np.allclose(*(session(m, "fp32").run(None, {"image": x})[0] for m in (made, original)), atol=1e-4)
