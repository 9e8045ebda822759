"""The networks and scans of ``stages.py``: how each is made, or where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_models import DATA, ROOT, hippocampus_spec
from MedQuantINT8Lib.models.package import ModelPackage, write_package
from MedQuantINT8Lib.models.spec import Crop, Geometry, Label, Normalization, Output


def label_scores(classes: int, shape: tuple[int, int, int], order: tuple[int, ...]) -> np.ndarray:
    """Scores (C, n0, n1, n2) of a label map, as certain as a trained network's: logarithms of smoothed masks, with noise.

    Args:
        order: the axes of the scores, of the scan's K, J and I.
    """
    from scipy.ndimage import gaussian_filter, zoom

    from MedQuantINT8Lib.imaging.volume_files import read_volume

    labels = read_volume(DATA / "ct" / "abdomen_3mm_labels_totalsegmentator.nii.gz").data[0].transpose(order)
    # As many voxels as the labels have at 3 mm, or twice as many along each axis, in the middle of the volume.
    labels = zoom(labels, max(1, round(shape[0] / 137)), order=0)
    whole = np.zeros(shape, labels.dtype)
    begin = [(outer - min(inner, outer)) // 2 for inner, outer in zip(labels.shape, shape, strict=True)]
    inside = tuple(slice(b, b + min(n, m)) for b, n, m in zip(begin, labels.shape, shape, strict=True))
    whole[inside] = labels[tuple(slice(0, s.stop - s.start) for s in inside)]
    whole[whole >= classes] = 0
    rng, scores = np.random.default_rng(0), np.empty((classes, *shape), np.float32)
    for number, score in enumerate(scores):
        gaussian_filter((whole == number).astype(np.float32), 1.0, output=score)
        np.log(score + np.float32(1e-4), out=score)
        score += rng.normal(0, 0.2, shape).astype(np.float32)
    return scores


@dataclass(frozen=True)
class Row:
    """A network and a scan.

    Attributes:
        package: makes the package in a folder, or finds it there.
        scan: the scan's file, made in that folder where it is a synthetic one.
        of_labels: scores of a label map are blended in place of the network's.
    """

    package: Callable[[Path], Path]
    scan: Callable[[Path], Path]
    precision: str = "int8"
    cases: int = 10
    of_labels: bool = False


def nnunet(spacing: float, classes: int) -> Callable[[Path], Path]:
    """nnU-Net's plain network as TotalSegmentator's plans have it, described as nnU-Net's importer does, on a grid of that spacing."""

    def package(folder: Path) -> Path:
        target = folder / f"nnunet-{spacing:g}"
        if not target.exists():
            from networks import quantized, totalsegmentator

            name = f"nnunet{classes}"
            if not (folder / f"{name}.int8").exists():
                quantized(totalsegmentator(classes), name, folder, classes=classes)
            with ModelPackage.load(folder / f"{name}.int8") as source:
                spec = replace(
                    source.spec,
                    geometry=Geometry("KJI", "native", (spacing,) * 3, anchor="edges", interpolation="nnunet", tolerance=0.0),
                    normalization=(Normalization("nnunet_ct", -900, 900, 0, 250),),
                    window=replace(source.spec.window, patch_size=(128, 128, 128), overlap=0.5, placement="nnunet"),
                    output=Output(resample="logits"),
                    crop=Crop("nonzero"),
                    normalize_in="input",
                    labels=tuple(Label(n, f"structure {n}", n) for n in range(1, classes)),
                )  # fmt: skip
                write_package(target, spec, {name: source.folder / name for name in source.hashes})
        return target

    return package


def hippocampus_package(folder: Path) -> Path:
    """The hippocampus U-Net of the results page, quantized as there."""
    target = folder / "hippocampus" / "package"
    if not target.exists():
        from real_networks import Case, quantized_package

        split = json.loads((DATA / "hippocampus" / "split.json").read_text())
        images = [DATA / "hippocampus" / "images" / f"{name}.nii.gz" for name in split["train"][:20]]
        target.parent.mkdir(exist_ok=True)
        network = ROOT / "Testing" / "Networks" / "hippocampus_unet.onnx"
        quantized_package(Case(network, hippocampus_spec(), images, []), target.parent)
    return target


def kept(name: str) -> Callable[[Path], Path]:
    """A network of the results page (``benchmarks/real_networks.py``), quantized as there."""

    def package(folder: Path) -> Path:
        target = folder / name.replace(" ", "-") / "package"
        if not target.exists():
            from real_networks import cases, quantized_package

            target.parent.mkdir(exist_ok=True)
            quantized_package(cases(folder)[name], target.parent)
        return target

    return package


def ct(folder: Path) -> Path:
    """512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm, a synthetic body with the noise of a CT."""
    from MedQuantINT8Lib.imaging.nifti_file import write_nifti
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.volume import Grid, resample

    path = folder / "ct.nii.gz"
    if not path.exists():
        volume, _ = make_phantom(2)
        extent = np.array(volume.grid.size) * volume.grid.spacing
        size = (512, 512, 400)
        matrix = volume.ijk_to_ras.copy()
        matrix[:3, :3] = matrix[:3, :3] / volume.grid.spacing * (extent / size)
        data = resample(volume.data[0].astype(np.float32), volume.grid, Grid(size, matrix), "linear")
        data += np.random.default_rng(0).normal(0, 12, data.shape).astype(np.float32)
        matrix[:3, :3] = matrix[:3, :3] / (extent / size) * (0.8, 0.8, 1.0)
        write_nifti(path, np.rint(data).astype(np.int16), matrix)
    return path


def head(folder: Path) -> Path:
    return DATA / "brain" / "t1_head_a.nii.gz"


def hippocampus(folder: Path) -> Path:
    return min((DATA / "hippocampus" / "images").glob("*.nii.gz"))


ROWS = {
    "nnU-Net, 118 classes, 3 mm, scores of a label map": Row(nnunet(3.0, 118), ct, cases=3, of_labels=True),
    "nnU-Net, 118 classes, 3 mm, random weights": Row(nnunet(3.0, 118), ct, cases=2),
    "nnU-Net, 25 classes, 1.5 mm, scores of a label map": Row(nnunet(1.5, 25), ct, cases=1, of_labels=True),
    "nnU-Net, 25 classes, 1.5 mm, random weights": Row(nnunet(1.5, 25), ct, cases=1),
    "hippocampus U-Net, INT8": Row(hippocampus_package, hippocampus),
    "hippocampus U-Net, FP32": Row(hippocampus_package, hippocampus, "fp32"),
    "brain_torchio_4mm, INT8": Row(kept("brain_torchio_4mm"), head),
    "brain_torchio_4mm, FP32": Row(kept("brain_torchio_4mm"), head, "fp32"),
}
