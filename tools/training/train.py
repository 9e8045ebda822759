"""Train the small U-Net of the hippocampus experiment (the demo's: abdomen.py).

    python tools/training/train.py prepare hippocampus --data DIR --output prepared.npz
    python tools/training/train.py train prepared.npz --output network.pt [--seconds 300]
    python tools/training/train.py export network.pt network.onnx --patch 48 64 48

`prepare` normalises the volumes as the model's description says; `train` needs torch alone (a GPU helps); `export`
writes ONNX and compares it with PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "Testing" / "support"), str(HERE.parent.parent / "MedQuantINT8")]


def _pad(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    missing = [max(0, s - n) for s, n in zip(shape, array.shape, strict=True)]
    return np.pad(array, [(m // 2, m - m // 2) for m in missing])


def prepare(args: argparse.Namespace) -> None:
    """Write images float16 and labels uint8, (N, K, J, I) padded to one shape, with the split."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split: list[str] = []
    import SimpleITK as sitk

    folder = Path(args.data)
    parts = json.loads((folder / "split.json").read_text())
    for part, cases in ((p, c) for p, c in parts.items() if p in ("train", "val", "validation", "test")):
        for case in cases:
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "images" / f"{case}.nii.gz"))).astype(np.float32)
            label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels" / f"{case}.nii.gz"))).astype(np.uint8)
            image = (image - image.mean()) / max(float(image.std()), 1e-8)
            images.append(_pad(image, (48, 64, 48))[:48, :64, :48])
            labels.append(_pad(label, (48, 64, 48))[:48, :64, :48])
            split.append({"val": "validation"}.get(part, part))
    np.savez_compressed(
        args.output, images=np.stack(images).astype(np.float16), labels=np.stack(labels), split=np.array(split)
    )


def train(args: argparse.Namespace) -> None:
    import torch

    from unet import SmallUNet

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = np.load(args.prepared)
    classes = int(data["labels"].max()) + 1
    images = torch.from_numpy(data["images"]).to(device).float()
    labels = torch.from_numpy(data["labels"]).to(device)
    training = np.flatnonzero(data["split"] == "train")
    network = SmallUNet(classes, tuple(args.channels)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-5)
    patch = [min(p, n) // 4 * 4 for p, n in zip(args.patch, images.shape[1:], strict=True)]
    began, step = time.time(), 0
    while (share := (time.time() - began) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - share) ** 0.9
        chosen = rng.choice(training, args.batch)
        x, y = zip(
            *(_augmented(images[n], labels[n], patch, rng, torch, mirror=args.mirror) for n in chosen), strict=True
        )
        logits = network(torch.stack(x)[:, None])
        loss = _dice_ce(logits, torch.stack(y).long(), classes, torch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step}, {time.time() - began:.0f} s, loss {loss.item():.4f}", flush=True)
    network.eval()
    scores = {}
    for part in ("validation", "test"):
        cases = np.flatnonzero(data["split"] == part)
        if len(cases):
            scores[part] = _evaluate(network, images, labels, cases, classes, torch)
    print(json.dumps({"steps": step, "device": device, "dice": scores}))
    torch.save(
        {"state": network.cpu().state_dict(), "classes": classes, "channels": tuple(args.channels), "dice": scores},
        args.output,
    )


def _augmented(image, label, patch, rng, torch, *, mirror):
    start = [int(rng.integers(0, n - p + 1)) for n, p in zip(image.shape, patch, strict=True)]
    index = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
    x, y = image[index], label[index]
    if mirror and rng.random() < 0.5:
        x, y = x.flip(2), y.flip(2)
    theta = torch.eye(3, 4, device=x.device)
    theta[:, :3] += torch.from_numpy(rng.normal(0, 0.07, (3, 3)).astype(np.float32)).to(x.device)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *x.shape], align_corners=False)
    x = torch.nn.functional.grid_sample(x[None, None], grid, align_corners=False, padding_mode="border")[0, 0]
    y = torch.nn.functional.grid_sample(y[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0]
    x = (
        x * float(rng.uniform(0.85, 1.15))
        + float(rng.normal(0, 0.1))
        + torch.randn_like(x) * float(rng.uniform(0, 0.1))
    )
    return x, y


def _dice_ce(logits, target, classes, torch):
    probability = logits.softmax(1)
    onehot = torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()
    axes = (0, 2, 3, 4)
    dice = (2 * (probability * onehot).sum(axes) + 1) / (probability.sum(axes) + onehot.sum(axes) + 1)
    return torch.nn.functional.cross_entropy(logits, target) + 1 - dice[1:].mean()


def _evaluate(network, images, labels, cases, classes, torch) -> list[float]:
    """Mean Dice of each class over cases, whole volumes."""
    rows = []
    with torch.no_grad():
        for n in cases:
            crop = tuple(slice(0, s // 4 * 4) for s in images[n].shape)
            predicted = network(images[n][crop][None, None]).argmax(1)[0]
            truth = labels[n][crop]
            rows.append(
                [
                    float(
                        2
                        * ((predicted == c) & (truth == c)).sum()
                        / max(1, int((predicted == c).sum() + (truth == c).sum()))
                    )
                    for c in range(1, classes)
                ]
            )
    return np.mean(rows, axis=0).round(4).tolist()


def export(args: argparse.Namespace) -> None:
    import torch

    from unet import SmallUNet

    saved = torch.load(args.network, weights_only=True)
    network = SmallUNet(saved["classes"], saved["channels"])
    network.load_state_dict(saved["state"])
    write_onnx(network.eval(), args.output, args.patch)


def write_onnx(network, path, patch) -> None:
    """Write ONNX without the exporter's notes and compare it with PyTorch."""
    import onnx
    import onnxruntime
    import torch

    from MedQuantINT8Lib.models.onnx_graph import strip_notes

    example = torch.rand(1, 1, *patch)
    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        optimize=True,
        opset_version=20,
        dynamic_shapes=None,
        verbose=False,
    )
    model = onnx.load(path)
    strip_notes(model)
    onnx.save(model, path)
    with torch.no_grad():
        expected = network(example).numpy()
    predicted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"image": example.numpy()}
    )[0]
    error = float(np.linalg.norm(predicted - expected) / np.linalg.norm(expected))
    print(f"{path}: {Path(path).stat().st_size / 1e3:.0f} kB, relative difference from PyTorch {error:.2g}")
    if error > 1e-3:
        raise SystemExit("the exported network differs from PyTorch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare")
    command.add_argument("what", choices=["hippocampus"])
    command.add_argument("--data", required=True)
    command.add_argument("--output", required=True)
    command.set_defaults(run=prepare)
    command = commands.add_parser("train")
    command.add_argument("prepared")
    command.add_argument("--output", required=True)
    command.add_argument("--seconds", type=float, default=300)
    command.add_argument("--batch", type=int, default=4)
    command.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    command.add_argument("--channels", type=int, nargs=3, default=[16, 24, 32])
    command.add_argument("--mirror", action="store_true")
    command.set_defaults(run=train)
    command = commands.add_parser("export")
    command.add_argument("network")
    command.add_argument("output")
    command.add_argument("--patch", type=int, nargs=3, required=True)
    command.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
