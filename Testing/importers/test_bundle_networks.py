"""A bundle's network: made of listed classes and plain arguments, with the weights that the configuration names, without a socket."""

from __future__ import annotations

import json
import random
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from MedQuantINT8Lib.errors import MedQuantError, PackageError
from MedQuantINT8Lib.importers import monai_bundle
from MedQuantINT8Lib.importers.expression_evaluator import NotAConstant
from MedQuantINT8Lib.importers.expressions import Config
from MedQuantINT8Lib.importers.monai_inferers import translate_inferer
from MedQuantINT8Lib.importers.offline import closed_sockets
from monai_beside import ARGMAX, LINEAR, LOAD, SOFTMAX, WINDOW, Torch, agreement, invert, save_weights, scan, write

POST = [SOFTMAX, invert(), ARGMAX]
NESTED = {"_target_": "monai.networks.nets.DiNTS", "dints_space": "@dints_space", "in_channels": 1, "num_classes": 3, "use_downsample": True,
          "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])"}  # fmt: skip


def changed(folder, **entries):
    path = folder / "configs" / "inference.json"
    value = json.loads(path.read_text())
    value.update(entries)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))
    return folder


def patch_of(imported, side=16):
    x = np.random.default_rng(0).normal(size=(1, 1, side, side, side)).astype(np.float32)
    return Torch(imported.network()).infer(x)


def test_weights_are_those_that_the_configuration_names(tmp_path, monkeypatch):
    folder = write(tmp_path / "bundle", post=POST, weights="models/mine.pt")
    save_weights(LINEAR, folder / "models" / "model.pt", seed=1)
    expected = patch_of(monai_bundle.understand(folder))
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(patch_of(monai_bundle.understand(Path("bundle"))), expected), "by a relative path"
    saved = torch.load(folder / "models" / "mine.pt")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/' + @modelname",
        "load_dict": {"model": "@network"},
    }
    entries = {"checkpointloader": ..., "modelname": "$'mine.pt' if @large else 'model.pt'", "large": True}
    forms = {
        "a handler": {"handlers": [{"_target_": "StatsHandler"}, loader]},
        "a path": {"checkpointloader": {**loader, "load_path": "models/mine.pt"}},
        "os.path": {"checkpointloader": {**loader, "load_path": "$os.path.join(@bundle_root, 'models', @modelname)"}},
        "an expression": {"initialize": ["$@network.load_state_dict(torch.load(@bundle_root + '/models/mine.pt'))"]},
        "a reference": {"state": "$torch.load(@path)", "path": "$@bundle_root + '/models/mine.pt'", "initialize": ["$@network.load_state_dict(@state)"]},
        "one turned off": {"handlers": [{**loader, "_disabled_": True, "load_path": "models/model.pt"}, loader]},
        "another object's": {"handlers": [{**loader, "load_path": "models/model.pt", "load_dict": {"opt": "@optimizer"}}, loader]},
    }  # fmt: skip
    for name, form in forms.items():
        made = monai_bundle.understand(changed(shutil.copytree(folder, tmp_path / name), **{**entries, **form}))
        assert np.array_equal(patch_of(made), expected), name
    torch.save({"model": saved, "ema": {"x": torch.ones(1)}}, folder / "models" / "mine.pt")
    assert np.array_equal(patch_of(monai_bundle.understand(folder)), expected), "under the loader's key"


def test_weights_that_are_not_there_are_named(tmp_path):
    folder = write(tmp_path / "bundle", post=POST, weights="models/mine.pt")
    (folder / "models" / "mine.pt").rename(folder / "models" / "model.pt")
    with pytest.raises(PackageError, match=r"models/mine\.pt is missing"):
        monai_bundle.understand(folder)
    loader = {"_target_": "CheckpointLoader", "load_path": "/etc/passwd", "load_dict": {"model": "@network"}}
    with pytest.raises(PackageError, match="outside of it"):
        monai_bundle.understand(changed(folder, checkpointloader=loader))
    with pytest.raises(PackageError, match="several files"):
        monai_bundle.understand(changed(folder, handlers=[{**loader, "load_path": "models/model.pt"}]))
    with pytest.raises(PackageError, match="trust-code"):
        monai_bundle.understand(
            changed(folder, handlers=[], checkpointloader={**loader, "load_path": "$find_weights()"})
        )
    unnamed = monai_bundle.understand(changed(folder, checkpointloader=...))
    assert any("names no weights" in note for note in unnamed.notes)


def test_torchscript_alone_needs_trust(tmp_path):
    folder = write(tmp_path / "bundle", post=POST)
    module = monai_bundle.understand(folder).network()
    expected = patch_of(monai_bundle.understand(folder))
    torch.jit.trace(module, torch.zeros(1, 1, 16, 16, 16)).save(str(folder / "models" / "model.ts"))
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(PackageError, match=r"models/model\.ts.*--trust-code"):
        monai_bundle.understand(folder)
    assert np.array_equal(patch_of(monai_bundle.understand(folder, trust_code=True)), expected)


NETWORKS = {
    "a call": {
        "network_def": "$monai.networks.nets.UNet(spatial_dims=3, in_channels=1, out_channels=@classes, channels=[2, 2], strides=[1], kernel_size=1,"
        " up_kernel_size=1, num_res_units=0, act=('leakyrelu', {'negative_slope': 1.0}), norm=None, adn_ordering='A').to(@device)",
        "classes": 3,
    },
    "a choice": {"network_def": "$@small if @classes > 2 else @other", "small": LINEAR, "other": {"_target_": "VNet"}, "classes": 3},
    "a reference": {"network_def": "@nets#0", "nets": [LINEAR]},
    "network alone": {"network_def": ..., "network": LINEAR},
    "with notes": {"network_def": {**LINEAR, "_desc_": "a network", "_requires_": "$import os", "out_channels": "$1 + 2", "channels": "$[2 for _ in range(2)]"}},
}  # fmt: skip


@pytest.mark.parametrize("form", NETWORKS)
def test_networks_are_made_from_what_describes_them(form, tmp_path):
    folder = write(tmp_path / "bundle", post=POST)
    expected = patch_of(monai_bundle.understand(folder))
    assert np.array_equal(patch_of(monai_bundle.understand(changed(folder, **NETWORKS[form]))), expected)


def test_nested_networks_are_made(tmp_path):
    rng = np.random.default_rng(0)
    code = {
        "arch_code_a": (rng.random((2, 10)) > 0.3).astype(int),
        "arch_code_c": rng.integers(0, 4, (2, 10)),
        "node_a": np.ones((3, 4)),
    }
    space = {"_target_": "monai.networks.nets.TopologyInstance", "channel_mul": 0.125, "num_blocks": 2, "num_depths": 4, "use_downsample": True,
             "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"], "device": "$torch.device('cuda')"}  # fmt: skip
    entries = {
        "dints_space": space,
        "arch_ckpt": "$torch.load(@path, map_location=torch.device('cuda'))",
        "path": "$@bundle_root + '/models/code.pt'",
    }
    folder = write(tmp_path / "bundle", post=POST, network="@whole", whole=NESTED, **entries)
    torch.save(code, folder / "models" / "code.pt")
    torch.save({}, folder / "models" / "model.pt")
    from monai.networks.nets import DiNTS, TopologyInstance

    torch.manual_seed(0)
    inside = TopologyInstance(
        channel_mul=0.125, num_blocks=2, num_depths=4, arch_code=[code["arch_code_a"], code["arch_code_c"]]
    )
    network = DiNTS(
        inside, in_channels=1, num_classes=3, use_downsample=True, node_a=torch.from_numpy(code["node_a"])
    ).eval()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    imported = monai_bundle.understand(folder)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(imported.network()(x), network(x), atol=1e-5)


def test_arguments_that_reach_out_are_refused(tmp_path, monkeypatch):
    reached = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: reached.append(a))
    folder = write(tmp_path / "bundle", post=POST)
    flexible = {
        "_target_": "FlexibleUNet",
        "in_channels": 1,
        "out_channels": 3,
        "backbone": "efficientnet-b0",
        "spatial_dims": 3,
    }
    for definition, match in (
        ({**flexible, "pretrained": True}, "pretrained = True"),
        ({"_target_": "AHNet", "spatial_dims": 3, "pretrained": True, "progress": True}, "pretrained"),
        ({**LINEAR, "pretrained_url": "http://example.org/w.pt"}, "pretrained_url"),
        ({**LINEAR, "act": "file:///etc/passwd"}, "no plain word"),
        ({**LINEAR, "norm": "$open('/etc/passwd').read()"}, "have to be run"),
        ({**LINEAR, "act": {"_target_": "os.system", "command": "true"}}, "os.system"),
        ({**LINEAR, "magic": 1}, "magic"),
        ({**LINEAR, "channels": [10**9, 2]}, "channels is 1000000000"),
        ({**LINEAR, "channels": [10**6, 10**6]}, "weights"),
        ({**LINEAR, "_mode_": "callable"}, "_mode_"),
        ({**LINEAR, "_disabled_": True}, "turned off"),
        ({"_target_": "monai.networks.nets.resnet50", "pretrained": True}, "resnet50"),
        ({"_target_": "torch.hub.load", "github": "x/y"}, "torch.hub.load"),
        ("$torch.hub.load('x/y', 'z')", "have to be run"),
        ("$monai.bundle.load('x')", "have to be run"),
    ):
        with pytest.raises(PackageError, match=match):
            monai_bundle.understand(changed(folder, network_def=definition)).network()
    assert not reached
    with closed_sockets(), pytest.raises(PackageError, match="another machine"):
        socket.socket().connect(("127.0.0.1", 9))
    with pytest.raises(OSError):
        socket.socket().connect(("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("inferer", "expected"),
    [
        ({"overlap": [0.5, 0.25, 0.0]}, {"overlaps": (0.5, 0.25, 0.0)}),
        ({"mode": "gaussian", "sigma_scale": [0.1, 0.2, 0.3]}, {"sigma": (0.1, 0.2, 0.3), "blend": "gaussian"}),
        ({"padding_mode": "reflect", "roi_size": [24, 24, 32]}, {"padding": "reflect"}),
        ({"padding_mode": "replicate", "roi_size": 32}, {"padding": "edge", "patch_size": (32, 32, 32)}),
        ({"cval": -1.5, "roi_size": [32, 32, 32]}, {"pad_value": -1.5}),
        ({"_target_": "SlidingWindowInfererAdapt", "cpu_thresh": 100, "buffer_steps": 2, "progress": False}, {}),
        ({"_target_": "SimpleInferer"}, {"whole_volume": True}),
        ({"roi_size": [-1, 0, -1]}, {"whole_volume": True}),
    ],
)
def test_inferers_run_as_monai_runs_them(inferer, expected, tmp_path):
    given = inferer if inferer.get("_target_") == "SimpleInferer" else {**WINDOW, **inferer}
    # Whole volumes: a side that the network's strides divide, as MONAI itself needs it.
    network = {**LINEAR, "kernel_size": 3, "strides": [2], "up_kernel_size": 3}
    folder = write(tmp_path / "bundle", post=POST, network=network, pre=LOAD, inferer=given)
    window = monai_bundle.understand(folder).spec.window
    assert {name: getattr(window, name) for name in expected} == expected
    assert agreement(folder, scan(tmp_path / "scan.nii.gz", (26, 24, 20))) > 0.9999


def test_expressions_are_run_where_they_are_trusted(tmp_path):
    folder = write(tmp_path / "bundle", post=POST, inferer={**WINDOW, "overlap": "$__import__('math').sqrt(0.25)"})
    with pytest.raises(PackageError, match="--trust-code"):
        monai_bundle.understand(folder)
    assert monai_bundle.understand(folder, trust_code=True).spec.window.overlap == 0.5


def test_inferers_that_a_window_cannot_say_are_named():
    for inferer, match in (
        ({"_target_": "SliceInferer", "roi_size": [32, 32]}, "single slices, and its network has 3"),
        ({"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 3}, "spatial_dim"),
        ({**WINDOW, "roi_size": [32, 32, -1]}, "roi_size"),
        ({**WINDOW, "mode": "mean"}, "mode"),
        ({**WINDOW, "with_coord": True}, "with_coord"),
        ({**WINDOW, "padding_mode": "symmetric"}, "padding_mode"),
        ({**WINDOW, "overlap": 1.0}, "overlap"),
        ({**WINDOW, "magic": 1}, "magic"),
        ("text", "not a description"),
    ):
        with pytest.raises(PackageError, match=match):
            translate_inferer(inferer, (1, 1, 1))


def test_labels_are_named_by_either_definition(tmp_path):
    for number, definition in enumerate(
        (
            {"label_def": {"0": "background", "1": "liver", "2": "spleen"}},
            {"channel_def": {"0": "background", "1": "liver", "2": "spleen"}, "num_channels": 1},
            {"label_def": {"background": 0, "liver": 1, "spleen": 2}},
            {"channel_def": ["background", "liver", "spleen"]},
        )
    ):
        folder = write(tmp_path / str(number), post=POST, pred=definition)
        assert [(label.value, label.name) for label in monai_bundle.understand(folder).spec.labels] == [
            (1, "liver"),
            (2, "spleen"),
        ]


def test_the_licence_of_the_weights_comes_first(tmp_path):
    folder = write(tmp_path / "bundle", post=POST)
    assert monai_bundle.understand(folder).spec.license == "unknown: see the bundle"
    (folder / "LICENSE").write_text("Code License\n\nThis license applies to all files.\n\nApache License\n\n-----\n\nModel Weights License\n\n"
                                    "This license applies to model weights.\n\nSome Vendor License\n3.3 only non-commercially.\n")  # fmt: skip
    (folder / "docs").mkdir()
    (folder / "docs" / "data_license.txt").write_text("CC BY 4.0\n")
    said = monai_bundle.understand(folder).spec.license
    assert (
        said.startswith("weights: Some Vendor License, non-commercial")
        and "code: Apache License" in said
        and "data: CC BY 4.0" in said
    )
    (folder / "LICENSE").write_text("Apache License\n")
    (folder / "LICENSE.weights").write_text("Some Vendor License\nonly non-commercially\n")
    assert monai_bundle.understand(folder).spec.license.startswith(
        "weights: Some Vendor License, non-commercial (LICENSE.weights); Apache License"
    )
    (folder / "LICENSE.weights").unlink()
    (folder / "docs" / "README.md").write_text("# Model\nThe model weights are licensed under the Some v1 License.\n")
    assert monai_bundle.understand(folder).spec.license.startswith(
        "weights: The model weights are licensed under the Some v1 License."
    )


def bombs():
    doubled = {"a0": "$9999999999", **{f"a{n + 1}": f"$@a{n} * @a{n}" for n in range(60)}}
    tenfold = {"a0": ["lol"] * 10, **{f"a{n + 1}": [f"@a{n}"] * 10 for n in range(20)}}
    aliases = (
        "a0: &a0 [lol]\n"
        + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n" for n in range(20))
        + "x: *a20\n"
    )
    return {
        "nested ranges": ("x.json", json.dumps({"x": "$[[[0 for _ in range(99999)] for _ in range(99999)] for _ in range(999)]"})),
        "a large range": ("x.json", json.dumps({"x": "$list(range(1000000000))"})),
        "squares": ("x.json", json.dumps({**doubled, "x": "@a60"})),
        "references": ("x.json", json.dumps({**tenfold, "x": "@a20"})),
        "loops": ("x.json", json.dumps({"x": "$[1 for a in @y for b in @y for c in @y]", "y": list(range(999))})),
        "a shared list as text": ("x.json", json.dumps({"x": "$str([[[[0] * 1000] * 1000] * 1000] * 1000)"})),
        "text": ("x.json", json.dumps({"x": "$'a' * 1000000000"})),
        "itself": ("x.json", json.dumps({"x": {"y": "%x.json::x"}})),
        "aliases": ("x.yaml", aliases),
        "merges": ("x.yaml", "a: &a {k: 1}\nx:\n  <<: *a\n"),
        "an alias of itself": ("x.yaml", "x: &x [*x]\n"),
        "brackets": ("x.json", "[" * 100000),
        "yaml brackets": ("x.yaml", "x: " + "[" * 50000),
        "yaml dashes": ("x.yaml", "- " * 50000 + "x"),
        "parentheses": ("x.json", json.dumps({"x": "$" + "(" * 5000 + "1" + ")" * 5000})),
        "signs": ("x.json", json.dumps({"x": "$" + "-" * 5000 + "1"})),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_a_configuration_has_one_budget(name, tmp_path):
    import tracemalloc

    file, text = bombs()[name]
    (tmp_path / file).write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises((PackageError, NotAConstant)) as caught:
            Config.read(tmp_path / file).get("x")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20 and len(str(caught.value)) < 500
    finally:
        tracemalloc.stop()


JUNK = [
    None,
    True,
    -1,
    3,
    1e308,
    "",
    "text",
    "@nothing",
    "$1 / 0",
    "$x.y",
    "%nothing",
    [],
    [1],
    {},
    {"_target_": 5},
    {"_target_": "X"},
    [[]],
    "\x1b[31m",
]


def places(value, at=()):
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*at, key))


def test_wrong_types_are_told_and_not_traced(tmp_path):
    folder = write(
        tmp_path / "bundle",
        post=[
            SOFTMAX,
            invert(),
            ARGMAX,
            {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]},
        ],
        handlers=[{"_target_": "StatsHandler"}],
    )
    rng = random.Random(0)
    originals = {
        name: json.loads((folder / "configs" / name).read_text()) for name in ("inference.json", "metadata.json")
    }
    refused = 0
    for _ in range(250):
        name = rng.choice(sorted(originals))
        value = json.loads(json.dumps(originals[name]))
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.choice([place for place in places(value) if place])
            inner = value
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = rng.choice(JUNK)
        (folder / "configs" / name).write_text(json.dumps(value))
        try:
            monai_bundle.understand(folder).network()
        except MedQuantError as error:
            refused += 1
            assert "\n" not in str(error)
        (folder / "configs" / name).write_text(json.dumps(originals[name]))
    assert refused > 100
