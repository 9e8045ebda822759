"""Auto3DSeg models, TorchScript, torch.export and Python classes to packages."""

from __future__ import annotations

import json
import shlex
import zipfile

import numpy as np
import pytest
import torch

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.imaging.preprocessing import normalize
from MedQuantINT8Lib.importers.checkpoints import read_checkpoint
from MedQuantINT8Lib.models.package import FP32, ModelPackage


def test_new_intensity_steps_are_numbers_that_one_can_check():
    from MedQuantINT8Lib.models.spec import Normalization

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
    torch.export.save(
        torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)), tmp_path / "net.pt2"
    )
    (tmp_path / "net.py").write_text(SOURCE)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    return module, {
        "torchscript": [str(tmp_path / "net.ts")],
        "export": [str(tmp_path / "net.pt2")],
        "python": [str(tmp_path / "net.py"), "--class", "Small", "--weights", str(tmp_path / "net.pth"), "--arguments",
                   '{"channels": 2, "width": 6}'],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "export", "python"])
def test_programs_are_run_only_when_trusted_and_become_packages(programs, form, tmp_path, capsys):
    module, arguments = programs
    common = [
        "import",
        form,
        *arguments[form],
        "--channels",
        "2",
        "--patch",
        "16",
        "16",
        "16",
        "-o",
        str(tmp_path / "package"),
        "-q",
    ]
    assert main(common) == 3 and "--trust-code" in capsys.readouterr().err
    assert main([*common, "--trust-code"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("then: medquant "))
    assert not (tmp_path / "package").exists()
    # As it is pasted into a shell: with every option that the network needs.
    assert main([*shlex.split(printed)[2:], "-q"]) == 0
    package = ModelPackage.load(tmp_path / "package")
    x = torch.randn(3, 2, 16, 16, 16)
    with torch.no_grad():
        expected = module(x).numpy()
    got = session((package.folder / FP32).read_bytes(), "fp32").run(None, {package_input(package): x.numpy()})[0]
    assert np.allclose(got, expected, atol=1e-5)


def package_input(package):
    from MedQuantINT8Lib.models import onnx_graph as graph

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

    from MedQuantINT8Lib.imaging.phantom import phantom_spec
    from MedQuantINT8Lib.resources import resource

    model = onnx.load(str(resource("phantom_unet.onnx")))
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="net.weights", size_threshold=64)
    spec = phantom_spec()
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    assert (tmp_path / "net.weights").stat().st_size > 100_000
    assert (
        main(
            [
                "import",
                "onnx",
                str(tmp_path / "net.onnx"),
                "--spec",
                str(tmp_path / "spec.json"),
                "-o",
                str(tmp_path / "p"),
                "-q",
            ]
        )
        == 0
    )
    (tmp_path / "net.weights").unlink()
    x = np.random.default_rng(0).normal(size=(1, 1, *spec.window.patch_size)).astype(np.float32)
    made, original = ((p.read_bytes()) for p in (tmp_path / "p" / FP32, resource("phantom_unet.onnx")))
    assert np.allclose(*(session(m, "fp32").run(None, {"image": x})[0] for m in (made, original)), atol=1e-4)


@pytest.mark.parametrize("pickled", [b"\x80\x02a.", b"\x80\x02t.", b"\x80\x02}K\x01K\x02u."])
def test_a_checkpoint_whose_pickle_is_damaged_is_refused_in_words(tmp_path, pickled):
    """Torch's own unpickler answers these with IndexError and the like."""
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    torch.save({"weight": torch.zeros(2)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(damaged, "w") as target:
        for item in source.infolist():
            target.writestr(item, pickled if item.filename.endswith("data.pkl") else source.read(item))
    with pytest.raises(PackageError, match="damaged"):
        read_checkpoint(damaged)
