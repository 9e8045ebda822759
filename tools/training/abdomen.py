"""Train the demo's network on synthetic abdomens that are made while it trains.

    python tools/training/abdomen.py train --output abdomen.pt [--minutes 7]
    python tools/training/abdomen.py export abdomen.pt MedQuantINT8/Resources/phantom_unet.onnx

`train` needs torch and NumPy alone; a GPU makes it minutes. In its last third every other step computes with weights and
activations rounded to 8 bits (the gradient passes through the rounding), so that INT8 finds what FP32 finds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "MedQuantINT8")]

#: The demo's scans have seeds from 1000 on, the tests' from 2000 on.
_TRAINING_SEEDS, _VALIDATION_SEEDS = range(10_000, 1_000_000), range(5000, 5012)
PATCH = (64, 80, 96)


def sample(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One patient in the network's space: image float16, true labels uint8, both (K, J, I), and how far the labels are moved.

    The scan has another spacing and extent each time. Labels are not resampled but made where they are wanted: up to half a
    voxel (K, J, I) beside the image's voxels, so that scores are learned which are right between voxels, too.
    """
    from MedQuantINT8Lib.imaging.phantom import SCAN_SIZE, SCAN_SPACING, make_phantom, paint_phantom, phantom_spec
    from MedQuantINT8Lib.imaging.preprocessing import network_grid, normalize
    from MedQuantINT8Lib.imaging.volume import Grid, axis_map

    rng = np.random.default_rng(seed)
    spec = phantom_spec()
    kind = 0 if seed in _VALIDATION_SEEDS else int(rng.integers(4))
    if kind == 0:
        size, spacing = SCAN_SIZE, SCAN_SPACING
    else:
        steps = (
            rng.uniform(2.0, 5.0, 3)
            if kind == 1
            else [rng.uniform(1.8, 4.2)] * 3
            if kind == 2
            else [rng.uniform(1.5, 2.2)] * 2 + [rng.uniform(2, 5)]
        )
        extent = rng.uniform((300, 280, 220), (410, 330, 330))
        spacing = (float(steps[0]), float(steps[1]), float(steps[2]))
        size = tuple(int(e / s) for e, s in zip(extent, spacing, strict=True))
    volume, _ = make_phantom(seed, size, spacing)
    turn = axis_map(volume.grid, "RAS")
    source = turn.map_grid(volume.grid)
    target = network_grid(source, spec)
    values = turn.apply(volume.data[0]).astype(np.float32)
    for world in range(3):
        start = target.ijk_to_ras[world, 3] - source.ijk_to_ras[world, 3]
        at = (start + target.ijk_to_ras[world, world] * np.arange(target.size[world])) / source.ijk_to_ras[world, world]
        values = _along(values, at, 2 - world)
    moved = (0.0, 0.0, 0.0) if seed in _VALIDATION_SEEDS else tuple(float(m) for m in rng.uniform(-0.5, 0.5, 3))
    matrix = target.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ np.array(moved[::-1])
    labels = paint_phantom(seed, Grid(target.size, matrix)).labels
    return normalize(values, spec.normalization).astype(np.float16), labels, moved


def _along(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, the edge's value outside."""
    at = np.clip(at, 0, values.shape[axis] - 1)
    low = np.minimum(at.astype(int), values.shape[axis] - 2)
    weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.take(values, low, axis) * (1 - weight) + np.take(values, low + 1, axis) * weight


def _ready() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def train(args: argparse.Namespace) -> None:
    import torch

    from MedQuantINT8Lib.imaging.phantom import phantom_labels
    from unet import AbdomenUNet

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    names = [label.name for label in phantom_labels()]
    patients: list[Any] = []
    stop = threading.Event()
    pool = multiprocessing.get_context("spawn").Pool(args.processes, _ready)

    def collect() -> None:
        for image, label, moved in pool.imap_unordered(sample, _TRAINING_SEEDS):
            if stop.is_set() or len(patients) >= args.patients:
                return
            patients.append((torch.from_numpy(image).to(device), torch.from_numpy(label).to(device), moved))

    validation = pool.map_async(sample, _VALIDATION_SEEDS[: args.validation])
    threading.Thread(target=collect, daemon=True).start()
    network = AbdomenUNet(len(names) + 1).to(device, memory_format=torch.channels_last_3d)
    if args.start:
        network.load_state_dict(torch.load(args.start, weights_only=True)["state"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.rate, weight_decay=1e-4)
    while len(patients) < args.batch:
        time.sleep(0.1)
    began, step, reported = time.time(), 0, 0.0
    print(f"first patients are there; {device}", flush=True)
    while (share := (time.time() - began) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, step / 50) * (0.5 + 0.5 * np.cos(np.pi * share)) + 1e-6
        network.rounded = share > args.rounding and step % 2 == 0
        chosen = rng.integers(0, len(patients), args.batch)
        x, y = zip(*(_patch(*patients[n][:2], rng, torch) for n in chosen), strict=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network(torch.stack(x)[:, None].contiguous(memory_format=torch.channels_last_3d))
        logits = torch.stack(
            [_moved(one, patients[n][2], torch) for one, n in zip(logits.float(), chosen, strict=True)]
        )
        loss = _loss(logits, torch.stack(y)[:, 1:-1, 1:-1, 1:-1].long(), torch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.time() - reported > 20:
            reported = time.time()
            print(
                f"step {step}, {reported - began:.0f} s, {len(patients)} patients, loss {loss.item():.4f}", flush=True
            )
    stop.set()
    network.eval()
    results = {
        "steps": step, "patients": len(patients), "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "minutes": round((time.time() - began) / 60, 1), **_evaluate(network, validation.get(), names, device, torch),
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    torch.save({"state": {k: v.cpu() for k, v in network.state_dict().items()}, "found": results}, args.output)
    pool.terminate()


def _patch(image: Any, label: Any, rng: np.random.Generator, torch: Any) -> tuple[Any, Any]:
    """A patch anywhere in a patient, brighter or darker and with more noise at times."""
    missing = [max(0, p - n) for p, n in zip(PATCH, image.shape, strict=True)]
    pads = [n for m in reversed(missing) for n in (m // 2, m - m // 2)]
    image, label = torch.nn.functional.pad(image, pads), torch.nn.functional.pad(label, pads)
    start = [int(rng.integers(0, n - p + 1)) for n, p in zip(image.shape, PATCH, strict=True)]
    index = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
    x = image[index].float()
    if rng.random() < 0.5:
        x = (
            x * float(rng.uniform(0.93, 1.07))
            + float(rng.normal(0, 0.015))
            + torch.randn_like(x) * float(rng.uniform(0, 0.02))
        )
        x = x.clamp(0, 1)
    return x, label[index]


def _moved(scores: Any, by: tuple[float, ...], torch: Any) -> Any:
    """Scores (C, K, J, I) between voxels, linearly interpolated; one voxel is lost on each side."""
    for axis, share in enumerate(by, start=1):
        scores = torch.lerp(scores, scores.roll(-1 if share > 0 else 1, axis), abs(share))
    return scores[:, 1:-1, 1:-1, 1:-1]


def _loss(logits: Any, target: Any, torch: Any) -> Any:
    classes = logits.shape[1]
    probability = logits.softmax(1)
    onehot = torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = (2 * (probability * onehot).sum(axes) + 1) / (probability.sum(axes) + onehot.sum(axes) + 1)
    return torch.nn.functional.cross_entropy(logits, target) + 1 - dice[1:].mean()


def _evaluate(network: Any, patients: list[Any], names: list[str], device: str, torch: Any) -> dict[str, Any]:
    """Dice of whole patients: FP32 with the truth, and rounded to 8 bits with FP32."""
    rows: dict[str, list[list[float]]] = {"truth": [], "rounded": []}
    for image, label, _ in patients:
        pads = [n for size in reversed(image.shape) for n in (0, -size % 16)]
        x = torch.nn.functional.pad(torch.from_numpy(image).to(device).float(), pads)[None, None]
        labels = {}
        for network.rounded in (False, True):
            with torch.no_grad():
                labels[network.rounded] = network(x).argmax(1)[0][tuple(slice(0, n) for n in image.shape)].cpu().numpy()
        rows["truth"].append(_dice(labels[False], label, len(names)))
        rows["rounded"].append(_dice(labels[True], labels[False], len(names)))
    network.rounded = False
    return {
        key: {
            "mean": round(float(np.nanmean(value)), 4),
            **dict(zip(names, np.nanmean(value, axis=0).round(4).tolist(), strict=True)),
        }
        for key, value in rows.items()
    }


def _dice(first: np.ndarray, second: np.ndarray, count: int) -> list[float]:
    return [
        2 * float(((first == c) & (second == c)).sum()) / total
        if (total := float((first == c).sum() + (second == c).sum()))
        else float("nan")
        for c in range(1, count + 1)
    ]


def export(args: argparse.Namespace) -> None:
    import torch

    from train import write_onnx
    from unet import AbdomenUNet

    state = torch.load(args.network, weights_only=True)["state"]
    network = AbdomenUNet(state["head.bias"].shape[0])
    network.load_state_dict(state)
    write_onnx(network.eval(), args.output, PATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("--output", required=True)
    command.add_argument("--start", help="a network to go on from")
    command.add_argument("--minutes", type=float, default=7)
    command.add_argument("--rate", type=float, default=3e-3)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--patients", type=int, default=3000)
    command.add_argument("--validation", type=int, default=len(_VALIDATION_SEEDS))
    command.add_argument(
        "--rounding",
        type=float,
        default=0.6,
        help="the share of the time after which half the steps are rounded to 8 bits",
    )
    command.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    command.set_defaults(run=train)
    command = commands.add_parser("export")
    command.add_argument("network")
    command.add_argument("output")
    command.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
