"""The study's networks: shapes, sizes, gradients, export, and the two that are written here."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import InputError, PackageError
from MedQuantINT8Lib.importers.export import export_network
from MedQuantINT8Lib.importers.networks import STUDY, make, study_network
from MedQuantINT8Lib.importers.networks.blocks import SelfAttention
from MedQuantINT8Lib.importers.networks.fitting import fit_last_layer, last_layer
from MedQuantINT8Lib.importers.networks.nnunet import plain_nnunet
from MedQuantINT8Lib.importers.networks.transunet import TransUNet
from MedQuantINT8Lib.importers.networks.unest import UNesT, from_blocks, to_blocks
from MedQuantINT8Lib.importers.networks.vista3d import AutomaticVista3D
from places import ROOT
from study_networks import SMALL


@pytest.mark.parametrize("name", STUDY)
def test_networks_have_the_studys_size(name):
    network = study_network(name)
    module = make(name)
    megabytes = sum(p.numel() for p in module.parameters()) * 4 / 1e6
    if name == "vista3d":
        # The decoder of the interactive road is in the module, but not in the graph.
        megabytes -= sum(p.numel() for p in module.encoder.up_layers.parameters()) * 4 / 1e6
    assert megabytes == pytest.approx(network.engine_mb, rel=0.17 if "16 %" in network.note else 0.05)
    assert last_layer(module, network.classes).out_channels == network.classes


def test_the_plain_nnunet_has_the_classes_levels_and_layers_that_are_asked_for():
    network = plain_nnunet(7, (4, 8, 16), activation="relu", transposed_bias=True)
    assert network(torch.randn(1, 1, 16, 8, 8)).shape == (1, 7, 16, 8, 8)
    kinds = {type(layer) for layer in network.modules()}
    assert torch.nn.ReLU in kinds and torch.nn.LeakyReLU not in kinds
    ups = [layer for layer in network.modules() if isinstance(layer, torch.nn.ConvTranspose3d)]
    assert [layer.out_channels for layer in ups] == [8, 4] and all(layer.bias is not None for layer in ups)


@pytest.mark.parametrize("name", SMALL)
def test_own_networks_give_scores_of_the_patchs_size_and_every_weight_a_gradient(name):
    build, patch = SMALL[name]
    module = build()
    output = module(torch.randn(2, 2, *patch))
    assert output.shape == (2, 3, *patch)
    output.square().mean().backward()
    silent = [
        n
        for n, p in module.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    # The key's bias adds the same to every score of a query, which softmax takes away; it is part of the fused projection.
    assert silent == []


def test_own_networks_count_the_weights_that_their_papers_count():
    attention = 4 * 768**2 + 4 * 768
    mlp = 2 * 4 * 768**2 + 5 * 768
    layers = 12 * (attention + mlp + 4 * 768)
    assert sum(p.numel() for p in TransUNet().transformer.parameters()) == layers
    unest = UNesT()
    assert [sum(p.numel() for p in h.layers.parameters()) for h in unest.hierarchies] == [
        n * (12 * w * w + 13 * w) for n, w in ((2, 128), (2, 256), (8, 512))
    ]
    assert [tuple(h.positions.shape[1:3]) for h in unest.hierarchies] == [(64, 216), (8, 216), (1, 216)]


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        TransUNet(patch=(20, 32, 32), features=(4, 8, 16))
    with pytest.raises(ValueError, match="multiple of 32"):
        UNesT(patch=(48, 32, 32))


def test_blocks_hold_neighbours_and_come_back_in_place():
    x = torch.arange(2 * 4 * 6 * 4, dtype=torch.float32).reshape(1, 2, 4, 6, 4)
    blocks = to_blocks(x, (2, 3, 2))
    assert blocks.shape == (1, 8, 12, 2)
    assert torch.equal(blocks[0, 0, :, 0], x[0, 0, :2, :3, :2].reshape(-1))
    assert torch.equal(from_blocks(blocks, (2, 3, 2), (2, 2, 2)), x)


def test_attention_stays_inside_its_block():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2).eval()
    x = torch.randn(1, 3, 5, 8)
    changed = x.clone()
    changed[0, 1] += 1
    with torch.no_grad():
        before, after = attention(x), attention(changed)
    assert torch.equal(before[0, [0, 2]], after[0, [0, 2]]) and not torch.allclose(before[0, 1], after[0, 1])


def test_attention_is_what_torch_computes():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 4).eval(), torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
        x = torch.randn(2, 7, 16)
        assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_own_networks_are_exported_with_an_open_batch(name, tmp_path):
    build, patch = SMALL[name]
    report = export_network(build(), tmp_path / "network.onnx", patch, 2)
    assert report.parity < 1e-4 and report.unexplained == []


@pytest.mark.slow
def test_a_free_network_is_exported_with_open_sizes(tmp_path):
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    module = BasicUNet(3, 1, 3, features=(4, 4, 8, 8, 16, 4), norm="batch").eval()
    report = export_network(module, tmp_path / "network.onnx", (32, 32, 32), dynamic_spatial=True)
    run = session((tmp_path / "network.onnx").read_bytes(), "fp32")
    x = torch.randn(1, 1, 48, 32, 64)
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.allclose(run.run(None, {"image": x.numpy()})[0], expected, atol=1e-4) and report.unexplained == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, network in STUDY.items() if network.free_size and name != "unet"])
def test_networks_that_are_said_to_be_free_take_another_size(name, tmp_path):
    """The same blocks with fewer channels; an uneven size, so that no axis stands for another."""
    sys.path.insert(0, str(ROOT / "experiments"))
    from scaled import SCALED

    module = SCALED[name](3).eval()
    report = export_network(module, tmp_path / "network.onnx", (64, 64, 64), dynamic_spatial=True)
    x = torch.randn(1, 1, 96, 64, 128)
    with torch.no_grad():
        expected = module(x).numpy()
    got = session((tmp_path / "network.onnx").read_bytes(), "fp32").run(None, {"image": x.numpy()})[0]
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected) and report.unexplained == []


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path):
    class Stubborn(torch.nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(PackageError, match="cannot be exported"):
        export_network(Stubborn(), tmp_path / "network.onnx", (8, 8, 8))


def test_vista3ds_static_graph_equals_its_class_prompts():
    from monai.networks.nets import vista3d132

    torch.manual_seed(0)
    vista = vista3d132(encoder_embed_dim=16, in_channels=1).eval()
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        prompted = vista(x, class_vector=torch.tensor([3, 22, 1]))
        static = AutomaticVista3D(vista, [3, 22, 1]).eval()(x)
    assert torch.allclose(static[0, 1:], prompted[:, 0], atol=1e-4) and not static[0, 0].any()


def test_a_fitted_last_layer_finds_the_structures():
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    module = BasicUNet(3, 1, 7, features=(32, 32, 32, 32, 32, 32), norm="instance").eval()
    labels = np.zeros((32, 32, 32), np.int32)
    labels[4:16, 4:28, 4:28], labels[18:30, 8:20, 8:20] = 2, 5
    image = (labels[None] * 0.5 + np.random.default_rng(0).normal(0, 0.05, (1, *labels.shape))).astype(np.float32)
    fit_last_layer(module, image, labels, 7)
    with torch.no_grad():
        found = module(torch.from_numpy(image)[None])[0].argmax(0).numpy()
    assert (found == labels).mean() > 0.9 and set(np.unique(found)) <= {0, 2, 5}


def test_weights_are_given_back(tmp_path):
    torch.save({"state_dict": make("unet", seed=5).state_dict()}, tmp_path / "weights.pt")
    first, second = make("unet", str(tmp_path / "weights.pt")), make("unet", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(InputError, match="does not fit"):
        make("nnunet", str(tmp_path / "weights.pt"))
    with pytest.raises(InputError, match="no network 'resnet'"):
        make("resnet")


def test_networks_are_listed(capsys):
    assert main(["networks"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in STUDY) and "point prompts" in out
    assert main(["networks", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["networks"]) == 7


@pytest.mark.slow
def test_a_row_of_the_studys_table(tmp_path, capsys, monkeypatch):
    """The smallest of the seven, on the real road: random weights, export, ModelOpt, OpenVINO, simulation."""
    assert (
        main(["reproduce", "--table", "networks", "--networks", "unet", "--output", str(tmp_path), "-q", "--json"]) == 0
    )
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["fp32_mb"] == pytest.approx(23.11, rel=0.01) and row["int8_mb"] < 0.27 * row["fp32_mb"]
    assert row["verdict"] == "INT8" and row["fidelity"]["trusted"] and row["parity"] < 1e-3
    assert row["unexplained_warnings"] == [] and row["fp32_ms"] > 0 and row["int8_ms"] > 0
    assert "U-Net" in (tmp_path / "networks.md").read_text()
