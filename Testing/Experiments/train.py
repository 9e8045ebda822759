"""Train the seven narrowed networks on a GPU, each from a checkpoint if there is one.

    python Testing/Training/train.py prepare hippocampus --data DIR --output prepared.npz
    python Testing/Experiments/train.py prepared.npz --output FOLDER [--seconds 75] [NAME ...]

Recipe of the study (Adam, weight decay 1e-5, Dice and cross-entropy, patches) with a learning rate of 2e-3 that falls to
zero instead of 1e-4: a minute of training has to do. Fixed seeds; the split is by subject.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "MedQuantINT8")]

from scaled import CLASSES, PATCH, SCALED  # noqa: E402

BATCH, RATE = 8, 2e-3


def dice_and_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    share = torch.softmax(logits.float(), 1)
    wanted = functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    both = (share * wanted).sum((0, 2, 3, 4))
    dice = (2 * both + 1e-3) / (share.sum((0, 2, 3, 4)) + wanted.sum((0, 2, 3, 4)) + 1e-3)
    return 1 - dice[1:].mean() + functional.cross_entropy(logits.float(), labels)


def padded(array: torch.Tensor) -> torch.Tensor:
    missing = [p - n for p, n in zip(PATCH, array.shape[-3:], strict=True)]
    pads = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
    return functional.pad(array, pads)


def augmented(image: torch.Tensor, label: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A shift, a change of contrast and a little noise; no flips: left and right hippocampi lie as they lie."""
    shifts = [int(torch.randint(-4, 5, (1,), generator=random)) for _ in range(3)]
    image, label = torch.roll(image, shifts, (-3, -2, -1)), torch.roll(label, shifts, (-3, -2, -1))
    scale, offset, noise = (float(torch.rand(1, generator=random)) for _ in range(3))
    image = image * (0.8 + 0.4 * scale) + 0.4 * (offset - 0.5)
    return image + 0.1 * noise * torch.randn_like(image), label


def score(module: Any, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Mean Dice of each structure over cases."""
    values = []
    with torch.no_grad():
        for image, label in zip(images, labels, strict=True):
            found = module(image[None, None].float())[0].argmax(0)
            values.append([float(2 * ((found == c) & (label == c)).sum() / ((found == c).sum() + (label == c).sum()).clamp(min=1)) for c in (1, 2)])
    return np.mean(values, axis=0).round(4).tolist()


def train(name: str, data: Any, device: str, seconds: float, checkpoint: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    module = SCALED[name]().to(device)
    split = data["split"]
    images, labels = (padded(torch.from_numpy(data[k].astype(t))).to(device) for k, t in (("images", np.float32), ("labels", np.int64)))
    part = {p: torch.from_numpy(np.flatnonzero(split == p)).to(device) for p in ("train", "validation", "test")}
    optimizer = torch.optim.Adam(module.parameters(), RATE, weight_decay=1e-5)
    spent, steps = 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps = saved["spent"], saved["steps"]
    began = time.perf_counter() - spent
    module.train()
    while (done := (time.perf_counter() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, steps / 50 + 0.02) * (1 - done) ** 0.9
        chosen = part["train"][torch.randint(len(part["train"]), (BATCH,), generator=random).to(device)]
        pairs = [augmented(images[i], labels[i], random) for i in chosen]
        x, y = torch.stack([p[0] for p in pairs])[:, None], torch.stack([p[1] for p in pairs])
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = dice_and_cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 500 == 0:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "spent": time.perf_counter() - began, "steps": steps}
            torch.save(state, checkpoint)
    module.eval()
    result = {p: score(module, images[part[p]], labels[part[p]]) for p in ("validation", "test")}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    torch.save(weights, checkpoint.with_name(f"{name}.pt"))
    checkpoint.unlink(missing_ok=True)
    return {"network": name, "steps": steps, "weights": sum(p.numel() for p in module.parameters()), "dice": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("names", nargs="*", default=list(SCALED))
    parser.add_argument("--output", required=True)
    parser.add_argument("--seconds", type=float, default=75, help="a network (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = np.load(args.data)
    rows = []
    for name in args.names or SCALED:
        rows.append(train(name, data, device, args.seconds, folder / f"{name}.checkpoint"))
        print(json.dumps(rows[-1]), flush=True)
        (folder / "training.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
