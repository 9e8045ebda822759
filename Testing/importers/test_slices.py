"""Networks that work slice by slice: MONAI's SliceInferer and nnU-Net's 2D configuration, held against the originals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from cuda_networks import plan_of
from MedQuantINT8Lib.engines.base import UnsupportedNetwork
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.importers import monai_bundle, nnunet
from MedQuantINT8Lib.importers.base import write as write_package
from MedQuantINT8Lib.importers.monai_inferers import translate_inferer
from MedQuantINT8Lib.importers.nnunet_plans import read_plans
from MedQuantINT8Lib.importers.slices import sliced
from MedQuantINT8Lib.inference.windows import plan_windows
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.package import IMPORT
from MedQuantINT8Lib.models.spec import Window
from MedQuantINT8Lib.progress import Task
from monai_beside import ARGMAX, LOAD, SOFTMAX, SPACE, agreement, invert, scan, write
from nnunet_folders import MODEL, architecture, by_nnunet, checkpoint, dataset, plans, write_folder

POST = [SOFTMAX, invert(), ARGMAX]
UNET = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2], "num_res_units": 0,
        "norm": "instance"}  # fmt: skip
SLICES = {"_target_": "SliceInferer", "roi_size": [16, 12], "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


def plans_2d(transpose=(0, 1, 2), **changes):
    """plans.json of a small 2D configuration."""
    made = architecture()
    made["arch_kwargs"] |= {
        "n_stages": 2, "features_per_stage": [16, 24], "kernel_sizes": [[3, 3]] * 2, "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    }  # fmt: skip
    plan = plans(transpose, **{"architecture": made, "normalization_schemes": ["ZScoreNormalization"], **changes})
    plan["configurations"] = {
        "2d": {**plan["configurations"]["3d_fullres"], "patch_size": [24, 32], "spacing": [1.5, 1.2], **changes}
    }
    return plan


def folder_2d(tmp_path, transpose=(0, 1, 2)):
    """A result folder of it, with weights that tell slices apart."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plan = plans_2d(transpose)
    made = plan["configurations"]["2d"]["architecture"]
    torch.manual_seed(1)
    net = get_network_from_plans(
        made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], 1, 3, deep_supervision=False
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    saved = checkpoint(net, init_args={"configuration": "2d"}, inference_allowed_mirroring_axes=(0, 1))
    return write_folder(
        tmp_path, plan, dataset(), {"fold_0/checkpoint_final.pth": saved}, MODEL.replace("3d_fullres", "2d")
    )


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_segmented_as_monai_segments_them(axis, tmp_path):
    folder = write(
        tmp_path / "bundle", post=POST, network=UNET, pre=[*LOAD, SPACE], inferer={**SLICES, "spatial_dim": axis}
    )
    window = monai_bundle.understand(folder).spec.window
    expected, multiples = [16, 12], [2, 2]
    expected.insert(axis, 1)
    multiples.insert(axis, 1)
    assert window.patch_size == tuple(expected) and window.multiples == tuple(multiples)
    assert agreement(folder, scan(tmp_path / "scan.nii.gz")) > 0.9999


@pytest.mark.slow
def test_an_import_of_slices_is_compared_with_monai(tmp_path):
    folder = write(tmp_path / "bundle", post=POST, network=UNET, inferer={**SLICES, "spatial_dim": 2})
    # With biases, as trained networks have them: without any, slices of zeros would score the same for every class.
    state = torch.load(folder / "models" / "model.pt")
    noise = {name: 0.1 * torch.randn_like(value) for name, value in state.items() if name.endswith("bias")}
    torch.save({**state, **noise}, folder / "models" / "model.pt")
    package = write_package(monai_bundle.understand(folder), tmp_path / "package", Task())
    record = json.loads((package.folder / IMPORT).read_text())
    assert record["compared"] and record["original"].startswith("MONAI ")
    assert all(found["score_difference"] < 1e-4 and found["label_agreement"] > 0.999 for found in record["scans"])


def test_what_slices_cannot_say_is_named(tmp_path):
    for changes, named in (
        ({"roi_size": [16, -1]}, "roi_size"),
        ({"roi_size": 16}, "roi_size"),
        ({"roi_size": [16, 16, 16]}, "roi_size"),
        ({"spatial_dim": -1}, "spatial_dim"),
        ({"spatial_dim": True}, "spatial_dim"),
        ({"magic": 1}, "magic"),
    ):
        with pytest.raises(PackageError, match=named):
            translate_inferer({**SLICES, **changes}, (2, 2))
    flat = write(tmp_path / "flat", post=POST, network=UNET)
    with pytest.raises(PackageError, match="SlidingWindowInferer runs windows of three axes, and its network has 2"):
        monai_bundle.understand(flat)
    solid = write(tmp_path / "solid", post=POST, network={**UNET, "spatial_dims": 3}, inferer=SLICES)
    with pytest.raises(PackageError, match="SliceInferer runs single slices, and its network has 3"):
        monai_bundle.understand(solid)
    with pytest.raises(PackageError, match="TorchScript"):
        sliced(torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4)), 0)


@pytest.mark.parametrize("placement", ["monai", "nnunet"])
def test_no_slice_is_run_twice(placement):
    plan = plan_windows((7, 20, 20), Window((1, 16, 16), overlap=0.5, placement=placement), (1, 16, 16))
    assert plan.starts[0] == list(range(7))


def test_a_2d_configuration_keeps_the_distance_between_slices_along_nnunets_first_axis(tmp_path):
    read = read_plans(plans_2d((1, 0, 2)), "2d", 1)
    assert (
        read.patch == [1, 24, 32] and read.spacing == [None, 1.5, 1.2] and read.architecture.total_strides == [1, 2, 2]
    )
    spec = nnunet.understand(folder_2d(tmp_path, (1, 0, 2)))[0].spec
    assert (
        spec.window.patch_size == (24, 1, 32)
        and spec.geometry.spacing == (1.5, None, 1.2)
        and spec.window.multiples == (2, 1, 2)
    )


def test_plans_of_before_2_4_describe_2d_networks_too():
    old = plans_2d()
    configuration = old["configurations"]["2d"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 8, "unet_max_num_features": 16, "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1], "conv_kernel_sizes": [[3, 3]] * 2, "pool_op_kernel_sizes": [[1, 1], [2, 2]],
    }  # fmt: skip
    found = read_plans(old, "2d", 1).architecture
    assert found.arguments["conv_op"].endswith("Conv2d") and found.arguments["norm_op"].endswith("InstanceNorm2d")
    assert found.with_batch_norm().arguments["norm_op"].endswith("BatchNorm2d")


@pytest.mark.parametrize("transpose", [(0, 1, 2), pytest.param((1, 0, 2), marks=pytest.mark.slow)])
def test_a_2d_configuration_segments_as_nnunet_and_in_int8(transpose, tmp_path, capsys):
    from MedQuantINT8Lib.cli.main import main

    folder, package = folder_2d(tmp_path, transpose), tmp_path / "package"
    assert main(["import", "nnunet", str(folder), "-o", str(package), "-q"]) == 0
    record = json.loads((package / IMPORT).read_text())
    assert (
        record["compared"]
        and record["original"].startswith("nnU-Net")
        and all(s["label_agreement"] > 0.999 for s in record["scans"])
    )
    case = scan(tmp_path / "scan.nii.gz", (41, 37, 9), (1.0, 1.1, 5.0), turned=False)
    theirs = by_nnunet(folder, [case])
    made = tmp_path / "labels.nii.gz"
    for engine in ("onnxruntime", "openvino"):
        words = [
            "segment",
            str(package),
            str(case),
            "-o",
            str(made),
            "--engine",
            engine,
            "--precision",
            "fp32",
            "-q",
            "--force",
        ]
        assert main(words) == 0, capsys.readouterr().err
        assert len(np.unique(theirs)) == 3 and np.mean(labels_of(made) == theirs) > 0.999
    if transpose != (0, 1, 2):
        return
    assert (
        main(["quantize", str(package), "--calibrate", str(case), "--patches", "4", "--agreement", "0", "-q"]) == 0
    ), capsys.readouterr().err
    capsys.readouterr()
    words = [
        "segment",
        str(package),
        str(case),
        "-o",
        str(made),
        "--engine",
        "openvino",
        "--precision",
        "int8",
        "-q",
        "--force",
    ]
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert engine["name"] == "openvino" and engine["real_int8"] and engine["description"]["int8_mac_share"] > 0.5
    assert np.mean(labels_of(made) == theirs) > 0.8
    with pytest.raises(UnsupportedNetwork, match="CUDA INT8"):
        plan_of(graph.load_network(package / "model.int8.onnx"), (1, 24, 32))
    assert main([*words, "--patch", "4", "24", "32"]) != 0 and "slice by slice" in capsys.readouterr().err
    assert main(["import", "nnunet", str(folder), "-o", str(tmp_path / "open"), "--dynamic", "-q"]) != 0
    assert "without --dynamic" in capsys.readouterr().err and not (tmp_path / "open").exists()
