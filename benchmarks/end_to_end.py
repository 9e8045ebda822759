"""A whole T1 head, file to label map: INT8 by `medquant segment` beside PyTorch FP32 with MONAI's sliding window.

The network is brain_mask_mindgrab, rebuilt in PyTorch from the ONNX file's own weights; the agreement of the two label maps is printed. Each
run is a process of its own, so that both load what they need: `end_to_end.py torch OUT` is the other side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8")]

from data_models import DATA, specs  # noqa: E402

NAME = "brain_mask_mindgrab"
SCAN = DATA / "brain" / "t1_head_a.nii.gz"


def torch_network():
    """Dilated convolutions, each followed by instance normalisation and GELU; the weights are those of the ONNX file."""
    import onnx
    import torch

    model = onnx.load(str(DATA / "networks" / f"{NAME}.onnx"))
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    layers: list[torch.nn.Module] = []
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            weight = arrays[node.input[1]]
            layer = torch.nn.Conv3d(
                weight.shape[1],
                weight.shape[0],
                weight.shape[2],
                padding=attributes["pads"][0],
                dilation=attributes.get("dilations", [1])[0],
                bias=len(node.input) > 2,
            )
            layer.weight.data = torch.from_numpy(weight.copy())
            if len(node.input) > 2:
                layer.bias.data = torch.from_numpy(arrays[node.input[2]].copy())
            layers.append(layer)
        elif node.op_type == "InstanceNormalization":
            layers.append(
                torch.nn.InstanceNorm3d(
                    arrays[node.input[1]].size if node.input[1] in arrays else 1, eps=attributes.get("epsilon", 1e-5)
                )
            )
        elif node.op_type == "Erf":
            layers.append(torch.nn.GELU())
    return torch.nn.Sequential(*layers).eval()


def in_torch(output: str) -> None:
    """The same preprocessing and windows, the network in PyTorch FP32, blending by MONAI."""
    began = time.perf_counter()
    import torch
    from monai.inferers import sliding_window_inference

    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume_files import read_volume

    spec = specs()[NAME]
    network = torch_network()
    network_input = preprocess(read_volume(SCAN), spec)
    with torch.inference_mode():
        scores = sliding_window_inference(
            torch.from_numpy(network_input.data)[None],
            spec.window.patch_size,
            1,
            network,
            overlap=spec.window.overlap,
            mode="gaussian",
        )
        labels = network_input.restore(scores[0].argmax(0).numpy().astype(np.uint8))
    np.save(output, labels)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def main() -> None:
    from MedQuantINT8Lib.imaging.volume_files import read_volume
    from real_networks import medquant

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDQUANT_CACHE"] = f"{scratch}/engines"
        spec, package = Path(scratch) / "spec.json", f"{scratch}/package"
        spec.write_text(json.dumps(specs()[NAME].to_json()))
        medquant("import", "onnx", str(DATA / "networks" / f"{NAME}.onnx"), "--spec", str(spec), "-o", package)
        medquant(
            "quantize",
            package,
            "--calibrate",
            *(str(DATA / "brain" / f"t1_head_{x}.nii.gz") for x in "bc"),
            "--patches",
            "6",
        )
        medquant("build", package, "--scan", str(SCAN))
        rounds = []
        for _ in range(int(os.environ.get("ROUNDS", "2"))):
            began = time.perf_counter()
            ours = medquant("segment", package, str(SCAN), "-o", f"{scratch}/out.nrrd")
            ours_wall = time.perf_counter() - began
            began = time.perf_counter()
            subprocess.run([sys.executable, __file__, "torch", f"{scratch}/torch.npy"], capture_output=True, check=True)
            rounds.append({"int8_s": ours_wall, "torch_s": time.perf_counter() - began, "stages": ours["seconds"]})
        int8, reference = read_volume(f"{scratch}/out.nrrd").data[0] > 0, np.load(f"{scratch}/torch.npy") > 0
    print(
        json.dumps(
            {
                "network": NAME,
                "rounds": rounds,
                "ratio": float(np.median([r["torch_s"] / r["int8_s"] for r in rounds])),
                "agreement": float(2 * (int8 & reference).sum() / (int8.sum() + reference.sum())),
                "outside_network_share": float(
                    np.median([1 - r["stages"]["network"] / r["stages"]["total"] for r in rounds])
                ),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["torch"]:
        in_torch(sys.argv[2])
    else:
        main()
