"""Train the seven narrowed networks on a labelled data set.

    python experiments/train.py prepare DATASET --output prepared.npz
    python experiments/train.py train prepared.npz --output FOLDER [--seconds 500] [--together] [--networks NAME ...]

DATASET is what ``medquant evaluate`` takes: a JSON file with images, labels, a split by case and names of the structures, or
a public set's folder. `prepare` reads the scans (z-score over the volume); `train` needs torch and MONAI alone, runs on a GPU
if there is one, and goes on from a checkpoint if it was stopped.

Recipe of the study (Adam, weight decay 1e-5, Dice and cross-entropy, patches), with a learning rate of 2e-3 that falls to
zero where the study has 1e-4, since minutes of training have to do, and weights averaged over the last steps. Seeds are fixed;
a data set with a case in two splits is refused.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "MedQuantINT8")]

from scaled import PATCH, SCALED  # noqa: E402

BATCH, RATE, AVERAGED = 8, 2e-3, 0.999
_SPLITS = {"val": "validation", "valid": "validation"}


def prepare(args: argparse.Namespace) -> None:
    """Write image_N (float16, K x J x I), label_N (uint8: 0 and one number a structure), splits, structures and names."""
    from MedQuantINT8Lib.evaluation.datasets import label_map, read_dataset
    from MedQuantINT8Lib.imaging.volume_files import read_volume

    data = read_dataset(Path(args.data))
    names = list(data.structures.values())
    if not names:
        raise SystemExit(f"{args.data} names no structures: describe it in JSON.")
    numbers = {name.lower(): n + 1 for n, name in enumerate(names)}
    arrays: dict[str, Any] = {}
    for n, case in enumerate(data.cases):
        image = read_volume(case.image[0]).data[0].astype(np.float32)
        arrays[f"image_{n}"] = ((image - image.mean()) / max(float(image.std()), 1e-8)).astype(np.float16)
        arrays[f"label_{n}"] = label_map(case, data, numbers).astype(np.uint8)
    splits = [_SPLITS.get(case.split, case.split) for case in data.cases]
    np.savez_compressed(
        args.output,
        splits=np.array(splits),
        structures=np.array(names),
        names=np.array([c.name for c in data.cases]),
        **arrays,
    )


@dataclass
class Cases:
    """Scans on the device, each padded to a patch at least."""

    images: list[Any]
    labels: list[Any]
    splits: np.ndarray
    classes: int

    def of(self, split: str) -> list[int]:
        return [int(n) for n in np.flatnonzero(self.splits == split)]


def load_cases(path: str, device: str) -> Cases:
    import torch
    from torch.nn import functional

    def padded(array: np.ndarray, dtype: Any) -> Any:
        missing = [max(0, p - n) for p, n in zip(PATCH, array.shape, strict=True)]
        pads = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
        return functional.pad(torch.from_numpy(array.astype(dtype)).to(device), pads)

    data = np.load(path)
    count = len(data["splits"])
    images = [padded(data[f"image_{n}"], np.float32) for n in range(count)]
    labels = [padded(data[f"label_{n}"], np.int64) for n in range(count)]
    return Cases(images, labels, data["splits"], len(data["structures"]) + 1)


def dice_and_cross_entropy(logits: Any, labels: Any) -> Any:
    import torch
    from torch.nn import functional

    classes = logits.shape[1]
    share = torch.softmax(logits.float(), 1)
    wanted = functional.one_hot(labels, classes).movedim(-1, 1).float()
    both = (share * wanted).sum((0, 2, 3, 4))
    dice = (2 * both + 1e-3) / (share.sum((0, 2, 3, 4)) + wanted.sum((0, 2, 3, 4)) + 1e-3)
    return 1 - dice[1:].mean() + functional.cross_entropy(logits.float(), labels)


def patch_of(image: Any, label: Any, random: np.random.Generator) -> tuple[Any, Any]:
    """A random patch; of scans larger than one, every second around a labelled voxel."""
    room = [n - p for n, p in zip(image.shape, PATCH, strict=True)]
    start = [int(random.integers(0, r + 1)) for r in room]
    if any(room) and random.random() < 0.5:
        marked = label.nonzero()
        if len(marked):
            centre = marked[int(random.integers(len(marked)))].tolist()
            start = [min(max(0, c - p // 2), r) for c, p, r in zip(centre, PATCH, room, strict=True)]
    index = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
    return image[index], label[index]


def augmented(images: Any, labels: Any, random: np.random.Generator) -> tuple[Any, Any]:
    """Mirrored, turned, stretched, moved, another contrast and a little noise.

    Args:
        images: (N, *patch) float32.
        labels: (N, *patch) int64.
    """
    import torch
    from torch.nn import functional

    count, device = len(images), images.device

    def drawn(values: np.ndarray) -> Any:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    theta = np.eye(3, 4)[None] + np.concatenate(
        [random.normal(0, 0.08, (count, 3, 3)), random.normal(0, 0.05, (count, 3, 1))], 2
    )
    # From left to right: a data set whose structures have a side must not be trained with this.
    theta[:, 0] *= random.choice([-1, 1], (count, 1))
    grid = functional.affine_grid(drawn(theta), [count, 1, *PATCH], align_corners=False)
    images = functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    labels = functional.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].long()
    scale, offset, noise = (
        drawn(v)[:, None, None, None]
        for v in (random.uniform(0.8, 1.2, count), random.normal(0, 0.1, count), random.uniform(0, 0.1, count))
    )
    return images * scale + offset + noise * torch.randn_like(images), labels


def score(module: Any, cases: Cases, split: str) -> list[float]:
    """Mean Dice of each structure over whole scans."""
    import torch
    from monai.inferers import sliding_window_inference

    values = []
    with torch.no_grad():
        for n in cases.of(split):
            found = sliding_window_inference(cases.images[n][None, None], PATCH, 4, module, 0.5, "gaussian")[0].argmax(
                0
            )
            label = cases.labels[n]
            both = [((found == c) & (label == c)).sum() for c in range(1, cases.classes)]
            each = [((found == c).sum() + (label == c).sum()).clamp(min=1) for c in range(1, cases.classes)]
            values.append([float(2 * b / e) for b, e in zip(both, each, strict=True)])
    return [round(float(v), 4) for v in np.mean(values, axis=0)] if values else []


def train(name: str, cases: Cases, device: str, seconds: float, checkpoint: Path) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    module = SCALED[name](cases.classes).to(device)
    average = copy.deepcopy(module).eval()
    optimizer = torch.optim.Adam(module.parameters(), RATE, weight_decay=1e-5)
    spent, steps, training = 0.0, 0, cases.of("train")
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for key, part in (("module", module), ("average", average), ("optimizer", optimizer)):
            part.load_state_dict(saved[key])
        spent, steps = saved["spent"], saved["steps"]
    began = time.perf_counter() - spent
    module.train()
    while (done := (time.perf_counter() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, steps / 50 + 0.02) * (1 - done) ** 0.9
        pairs = [patch_of(cases.images[n], cases.labels[n], random) for n in random.choice(training, BATCH)]
        x, y = augmented(torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), random)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = dice_and_cross_entropy(module(x[:, None]), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        steps += 1
        follow(average, module, min(AVERAGED, steps / (steps + 10)))
        if steps % 500 == 0:
            parts = {"module": module, "average": average, "optimizer": optimizer}
            state = {key: part.state_dict() for key, part in parts.items()}
            torch.save({**state, "spent": time.perf_counter() - began, "steps": steps}, checkpoint)
    result = {split: score(average, cases, split) for split in ("validation", "test")}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in average.state_dict().items()}
    torch.save(weights, checkpoint.with_name(f"{name}.pt"))
    checkpoint.unlink(missing_ok=True)
    return {"network": name, "steps": steps, "weights": sum(p.numel() for p in module.parameters()), "dice": result}


def follow(average: Any, module: Any, keep: float) -> None:
    """Move the averaged weights, and what batch norms have gathered, a little towards the trained ones."""
    import torch

    ours, theirs = list(average.state_dict().values()), list(module.state_dict().values())
    floats = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - keep)
    for a, b in zip(ours, theirs, strict=True):
        if not a.is_floating_point():
            a.copy_(b)


def train_all(args: argparse.Namespace) -> None:
    import torch

    folder, names = Path(args.output), args.names
    folder.mkdir(parents=True, exist_ok=True)
    if args.together and len(names) > 1:
        # Small networks leave a large GPU idle between their kernels; side by side they fill it.
        call = [
            sys.executable,
            __file__,
            "train",
            args.prepared,
            "--output",
            args.output,
            "--seconds",
            str(args.seconds),
        ]
        running = [subprocess.Popen([*call, "--networks", name]) for name in names]
        failed = [name for name, process in zip(names, running, strict=True) if process.wait()]
        rows = [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").exists()]
        (folder / "training.json").write_text(json.dumps(rows, indent=1) + "\n")
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = load_cases(args.prepared, device)
    for name in names:
        row = train(name, cases, device, args.seconds, folder / f"{name}.checkpoint")
        print(json.dumps(row), flush=True)
        (folder / f"{name}.json").write_text(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    preparing = actions.add_parser("prepare")
    preparing.add_argument("data")
    preparing.add_argument("--output", required=True)
    preparing.set_defaults(run=prepare)
    training = actions.add_parser("train")
    training.add_argument("prepared")
    training.add_argument("--networks", dest="names", nargs="+", choices=list(SCALED), default=list(SCALED))
    training.add_argument("--output", required=True)
    training.add_argument("--seconds", type=float, default=500, help="a network (default: %(default)s)")
    training.add_argument("--together", action="store_true", help="all networks at once, each in a process of its own")
    training.set_defaults(run=train_all)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
