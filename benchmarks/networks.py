"""Networks of the benchmarks: random weights, the study's sizes, exported and quantized on made scans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from MedQuantINT8Lib.imaging.phantom import make_phantom  # noqa: E402
from MedQuantINT8Lib.importers.networks.nnunet import plain_nnunet  # noqa: E402
from MedQuantINT8Lib.importers.onnx import import_onnx  # noqa: E402
from MedQuantINT8Lib.models.package import ModelPackage  # noqa: E402
from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window  # noqa: E402
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler  # noqa: E402

PATCH = (96, 96, 96)


def totalsegmentator(classes: int, activation: str = "leakyrelu") -> Any:
    """nnU-Net's network as TotalSegmentator's plans have it, the same random weights each time; MLPerf's has "relu"."""
    import torch

    torch.manual_seed(0)
    return plain_nnunet(classes, activation=activation, transposed_bias=True)


def torch_networks() -> dict[str, Any]:
    """U-Net as in its paper's 3D form (MONAI BasicUNet with BatchNorm), MONAI's residual UNet, and nnU-Net's plain one."""
    import torch
    from monai.networks.nets import BasicUNet, UNet

    torch.manual_seed(0)
    return {
        "U-Net (BasicUNet, BatchNorm)": BasicUNet(
            3, 1, 14, features=(32, 64, 128, 256, 512, 32), norm="batch", act="relu", upsample="deconv"
        ),
        "residual U-Net (MONAI UNet)": UNet(3, 1, 14, (32, 64, 128, 256), (2, 2, 2), num_res_units=2, norm="batch"),
        "nnU-Net-like (DynUNet, InstanceNorm)": plain_nnunet(14),
    }


def benchmark_spec(name: str, classes: int = 14) -> ModelSpec:
    return ModelSpec(
        name=name,
        version="1",
        modality="CT",
        channels=(Channel("CT"),),
        geometry=Geometry("KJI", "RAS", spacing=(2.5, 2.5, 2.5)),
        normalization=(Normalization("window", low=-160, high=400),),
        window=Window(PATCH),
        output=Output(),
        labels=tuple(Label(n, f"structure {n}", n) for n in range(1, classes)),
        license="Apache-2.0",
    )


def quantized(network: Any, name: str, folder: Path, patches: int = 2, classes: int = 14) -> ModelPackage:
    """Export, import and quantize on a made scan, with no guard: random weights have no structures to agree on."""
    import torch

    from MedQuantINT8Lib.quantization.accuracy_guard import Budget
    from MedQuantINT8Lib.quantization.quantize import QuantizationPolicy, quantize_package

    network.eval()
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        network,
        (torch.randn(1, 1, *PATCH),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    package = import_onnx(path, benchmark_spec(name, classes), folder / name)
    options = CalibrationOptions(patches=patches)
    sampler = PatchSampler([lambda: make_phantom(1)[0]], package.spec, PATCH, options)
    return quantize_package(package, sampler, folder / f"{name}.int8", options, QuantizationPolicy(budget=Budget(0)))[0]


def phantom_patch() -> Any:
    """A patch (1, 1, 96, 96, 96) of a made scan that was not used for calibration."""
    from MedQuantINT8Lib.imaging.preprocessing import preprocess

    data = preprocess(make_phantom(2)[0], benchmark_spec("x")).data
    return data[None, :, 8:104, 16:112, 32:128].copy()
