"""Turn a PyTorch network of one's own into an INT8 engine, and compare it with FP32.

    python examples/quantize_own_network.py [--output PACKAGE]

So that nothing has to be downloaded, a very small network is trained for a few seconds to find the liver and the vertebral column of
synthetic abdomens. With a network of yours, replace ``Network`` and ``trained``, the description, and the scans. The same can be done with
``medquant import python`` and ``medquant quantize``. Needs: pip install '.[openvino,onnxruntime,quantize,import]'
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from MedQuantINT8Lib.errors import MedQuantError
from MedQuantINT8Lib.evaluation.agreement import agreement
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers.export import export_network
from MedQuantINT8Lib.importers.onnx import import_onnx
from MedQuantINT8Lib.inference.pipeline import EngineChoice, segment
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.progress import Task
from MedQuantINT8Lib.quantization.calibration import CalibrationOptions, PatchSampler
from MedQuantINT8Lib.quantization.quantize import calibration_patch, quantize_package

#: How the network wants its scans, and what its output means: docs/model-package.md explains each field. The tensor is (N, C, K, J, I).
DESCRIPTION = {
    "schema": "medquant-model",
    "schema_version": "1.3",
    "name": "liver-and-spine",
    "version": "1.0.0",
    "modality": "CT",
    "channels": [{"name": "CT"}],
    "geometry": {"axis_order": "KJI", "orientation": "LPS", "spacing": [8.0, 8.0, 8.0]},
    "normalization": [{"kind": "window", "low": -160, "high": 400, "clip": True}],
    "window": {"patch_size": [12, 36, 48], "overlap": 0.25},
    "output": {"activation": "softmax"},
    "labels": [
        {"value": 1, "name": "liver", "channel": 1},
        {"value": 2, "name": "vertebral column", "channel": 2},
    ],
    "license": "Apache-2.0",
}
#: Values of these structures in the synthetic abdomen, and in the description.
VALUES = {1: 1, 5: 2}


class Network(torch.nn.Module):
    """A U-Net of two levels: (N, 1, K, J, I) to scores (N, 3, K, J, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = block(1, 8)
        self.down = block(8, 16, stride=2)
        self.within = torch.nn.Sequential(block(16, 16, dilation=2), block(16, 16, dilation=4))
        self.up = torch.nn.ConvTranspose3d(16, 8, 2, 2)
        self.last = torch.nn.Sequential(block(16, 8), torch.nn.Conv3d(8, 3, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.first(image)
        return self.last(torch.cat([fine, self.up(self.within(self.down(fine)))], 1))


def block(channels: int, width: int, stride: int = 1, dilation: int = 1) -> torch.nn.Sequential:
    convolution = torch.nn.Conv3d(channels, width, 3, stride, dilation, dilation, bias=False)
    return torch.nn.Sequential(convolution, torch.nn.BatchNorm3d(width), torch.nn.ReLU())


def scan(seed: int) -> Volume:
    """A synthetic abdomen on the network's own grid: the middle 96 mm of a trunk."""
    return make_phantom(seed, (48, 36, 12), 8.0)[0]


def truth(seed: int) -> np.ndarray:
    """Its labels (K, J, I), with the values of the description."""
    labels = make_phantom(seed, (48, 36, 12), 8.0)[1]
    return sum((labels == theirs).astype(np.uint8) * ours for theirs, ours in VALUES.items())


def trained(steps: int = 60) -> Network:
    """The network after a few seconds of training on four scans."""
    torch.manual_seed(0)
    seeds = range(4)
    images = torch.stack([torch.from_numpy(scan(seed).data.astype(np.float32)) for seed in seeds])
    images = (images.clip(-160, 400) + 160) / 560
    targets = torch.from_numpy(np.stack([truth(seed) for seed in seeds]).astype(np.int64))
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    weight = torch.tensor([0.5, 1.0, 1.0])
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), targets, weight).backward()
        optimizer.step()
    return network.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn a PyTorch network of one's own into an INT8 engine.")
    parser.add_argument("--output", default="liver-and-spine.zip", help="package to write (default: %(default)s)")
    args = parser.parse_args()
    spec = parse_spec(DESCRIPTION)
    try:
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / "network.onnx"
            # The ONNX file is compared with the module before it is accepted.
            export_network(trained(), onnx, spec.window.patch_size)
            package = import_onnx(onnx, spec, Path(folder) / "package")
            # Scans like those that will be segmented; each is read only when its patches are drawn.
            scans = [partial(scan, seed) for seed in (10, 11, 12)]
            options = CalibrationOptions(method="max", patches=8)
            sampler = PatchSampler(scans, spec, calibration_patch(package), options)
            package, report = quantize_package(package, sampler, args.output, options)
        print(f"INT8 network: {report.int8_bytes / 1e3:.0f} kB instead of {report.fp32_bytes / 1e3:.0f} kB")
        for layer in report.layers:
            print(f"  {layer.name}: {'INT8' if layer.quantized else f'in floating point, {layer.reason}'}")
        with package:
            runs = {
                precision: segment(package, scan(20), EngineChoice(precision=precision), SegmentationOptions(), Task())
                for precision in ("fp32", "int8")
            }
    except MedQuantError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"INT8 share of the work: {100 * runs['int8'].engine['description']['int8_mac_share']:.0f} %")
    fp32, int8 = (runs[precision].result.labels for precision in ("fp32", "int8"))
    for reference, labels in (("FP32", fp32), ("the truth", truth(20))):
        for row in agreement(int8, labels, spec.labels):
            # There is no Dice where a structure is in neither label map.
            print(f"{row.name}: Dice with {reference} {'-' if row.dice is None else f'{row.dice:.3f}'}")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
