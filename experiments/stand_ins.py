"""MeshNets of many classes, trained for a short while on two labeled scans: the like of networks whose weights are not at hand.

    python experiments/stand_ins.py FOLDER [--seconds 30]

Writes NAME.onnx for each of :data:`STAND_INS`, with its batch normalizations folded into the convolutions, as the pretrained ones have them. They are
measured with and not given away: the labels' license allows no more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "Testing" / "support"), str(HERE.parent / "MedQuantINT8"), str(HERE)]

from data_models import DATA, specs  # noqa: E402
from MedQuantINT8Lib.imaging.preprocessing import preprocess  # noqa: E402
from MedQuantINT8Lib.imaging.volume import Volume  # noqa: E402
from MedQuantINT8Lib.imaging.volume_files import read_volume  # noqa: E402
from MedQuantINT8Lib.models.spec import Label, ModelSpec, Normalization  # noqa: E402
from torch_runtime import DEVICE  # noqa: E402

TRAINED_ON, KEPT_APART = ("1001", "1003"), "1000"
_DILATIONS, _SIDE, _RATE, _MARGIN = (1, 2, 4, 8, 16, 8, 4, 2, 1), 96, 2e-2, 16


@dataclass(frozen=True)
class StandIn:
    """A network that is trained.

    Attributes:
        classes: with the background.
        channels: of its layers.
        activation: "Elu" or "Relu".
        sides_as_one: whether a structure of both sides is one class.
    """

    classes: int
    channels: int
    activation: str
    sides_as_one: bool


STAND_INS = {
    "104 classes (stand-in)": StandIn(104, 21, "Elu", sides_as_one=False),
    "50 classes (stand-in)": StandIn(50, 30, "Relu", sides_as_one=True),
}


def structures(network: StandIn) -> list[list[int]]:
    """Return the label values of each class, the largest structures first that all labeled scans show."""
    counts = []
    for case in (*TRAINED_ON, KEPT_APART):
        counts.append(Counter(dict(zip(*np.unique(labels_of_case(case).data[0], return_counts=True), strict=True))))
    shown = [int(value) for value in counts[0] if value > 0 and all(value in other for other in counts)]
    groups: dict[int, list[int]] = {}
    for value in shown:
        # Of the cortex the even number is a side of the next odd one's, of all else the odd number.
        side = (value // 2 + 1000 if value >= 100 else (value + 1) // 2) if network.sides_as_one else value
        groups.setdefault(side, []).append(value)

    def size(group: list[int]) -> int:
        return min(sum(count[value] for value in group) for count in counts)

    return sorted(groups.values(), key=size, reverse=True)[: network.classes - 1]


def spec_of(network: StandIn) -> ModelSpec:
    """Return how a stand-in wants its input, and its classes."""
    labels = tuple(Label(n, f"class {n}", n, (200, 7 * n % 256, 13 * n % 256)) for n in range(1, network.classes))
    normalization = (Normalization("percentile", low=0, high=99.9),)
    plain = f"stand-in-{network.classes}"
    return replace(specs()["brain18_meshnet30"], name=plain, labels=labels, normalization=normalization)


def scan_of_case(case: str) -> Volume:
    """Return a stripped head with a margin of air."""
    return _with_margin(read_volume(DATA / "brain_labelled" / f"{case}_t1_stripped.nii.gz"))


def labels_of_case(case: str) -> Volume:
    """Return its labels with the same margin."""
    return _with_margin(read_volume(DATA / "brain_labelled" / f"{case}_labels.nii.gz"))


def classes_of_case(case: str, groups: list[list[int]]) -> Volume:
    """Return a head's labels as classes; a group without values is all of 100 and more, the cortex."""
    labels = labels_of_case(case)
    classes = np.zeros(labels.data.shape, np.uint8)
    for number, values in enumerate(groups, 1):
        classes[np.isin(labels.data, values) if values else labels.data >= 100] = number
    return replace(labels, data=classes)


def _with_margin(volume: Volume) -> Volume:
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] -= matrix[:3, :3] @ ([_MARGIN] * 3)
    return Volume(np.pad(volume.data[0], _MARGIN)[None], matrix, volume.name)


def trained(name: str, seconds: float) -> Any:
    """Return the network as ONNX after so many seconds of training."""
    network = STAND_INS[name]
    spec, groups = spec_of(network), structures(network)
    data = []
    for case in TRAINED_ON:
        network_input = preprocess(scan_of_case(case), spec)
        classes = network_input.labels_in_network_space(classes_of_case(case, groups).data[0].astype(np.int32))
        scan = torch.from_numpy(np.array(network_input.data, np.float32)).to(DEVICE)
        data.append((scan, torch.from_numpy(classes.astype(np.int64)).to(DEVICE)))
    module = _module(network).to(DEVICE)
    began, step = time.time(), 0
    optimizer, rng = torch.optim.AdamW(module.parameters(), _RATE), np.random.default_rng(0)
    while (share := (time.time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, 20 * share + 0.05) * (0.5 + 0.5 * np.cos(np.pi * share))
        scan, classes = data[step % len(data)]
        box = tuple(slice(begin := int(rng.integers(0, n - _SIDE + 1)), begin + _SIDE) for n in classes.shape)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            scores = module(scan[(slice(None), *box)][None] * float(rng.uniform(0.9, 1.1)))
        loss = _loss(scores.float(), classes[box][None], network.classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    print(f"{name}: {step} steps, loss {loss.item():.3f}", flush=True)
    return _as_onnx(module.eval().double().cpu(), network)


def _module(network: StandIn) -> Any:
    layers, width = [], 1
    for dilation in _DILATIONS:
        convolution = torch.nn.Conv3d(width, network.channels, 3, padding=dilation, dilation=dilation)
        activation = torch.nn.ELU() if network.activation == "Elu" else torch.nn.ReLU()
        layers += [convolution, torch.nn.BatchNorm3d(network.channels), activation]
        width = network.channels
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(width, network.classes, 1))


def _loss(scores: Any, classes: Any, count: int) -> Any:
    """Cross entropy, and one less the Dice of the classes that are there."""
    shares = scores.softmax(1)
    truth = torch.nn.functional.one_hot(classes, count).movedim(-1, 1).to(shares.dtype)
    both, sizes = ((values).sum((0, 2, 3, 4)) for values in (shares * truth, shares + truth))
    there = truth.sum((0, 2, 3, 4)) > 0
    return torch.nn.functional.cross_entropy(scores, classes) + (1 - 2 * both / (sizes + 1))[there].mean()


def _as_onnx(module: Any, network: StandIn) -> Any:
    nodes, constants, read = [], [], "image"
    convolutions = [layer for layer in module if isinstance(layer, torch.nn.Conv3d)]
    normalizations = [layer for layer in module if isinstance(layer, torch.nn.BatchNorm3d)]
    for number, layer in enumerate(convolutions):
        weight, bias, last = layer.weight.detach(), layer.bias.detach(), number == len(normalizations)
        if not last:
            norm = normalizations[number]
            factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * factor[:, None, None, None, None]
            bias = (bias - norm.running_mean) * factor + norm.bias.detach()
        names = [f"{number}.weight", f"{number}.bias"]
        for key, value in zip(names, (weight, bias), strict=True):
            constants.append(numpy_helper.from_array(value.float().numpy(), key))
        output = "scores" if last else f"convolution{number}"
        settings = {"dilations": [layer.dilation[0]] * 3, "kernel_shape": [layer.kernel_size[0]] * 3}
        settings |= {"pads": [layer.padding[0]] * 6, "strides": [1] * 3}
        nodes.append(helper.make_node("Conv", [read, *names], [output], name=f"/{number}/Conv", **settings))
        if not last:
            read = f"layer{number}"
            nodes.append(helper.make_node(network.activation, [output], [read], name=f"/{number}/{network.activation}"))
    ends = (("image", 1), ("scores", network.classes))
    values = [helper.make_tensor_value_info(key, TensorProto.FLOAT, [1, width, *"DHW"]) for key, width in ends]
    graph = helper.make_graph(nodes, "MeshNet", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--names", nargs="+", choices=STAND_INS, default=list(STAND_INS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        onnx.save(trained(name, args.seconds), str(args.folder / f"{name}.onnx"))


if __name__ == "__main__":
    main()
