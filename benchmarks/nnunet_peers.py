"""What a user of nnU-Net and of TotalSegmentator waits for, beside this project: one plan, random weights, a scan in memory to labels.

    python benchmarks/nnunet_peers.py gpu FOLDER   # a machine with a GPU; FOLDER as cuda_int8.py networks makes it (total25)
    python benchmarks/nnunet_peers.py cpu FOLDER [NAME ...]  # the same on the processor, OpenVINO in INT8; only rows whose name holds a NAME

    python benchmarks/nnunet_peers.py page FILE.jsonl ...   # what a processor's rows were written to, into docs/results/nnunet_peers.json and its page

Needs nnunetv2, and TotalSegmentator for its resampling. Prints a JSON line for each of:

- nnU-Net's own predictor (``nnUNetPredictor`` with its defaults, mirroring on and off): cubic resampling in, windows, linear resampling of
  every class, argmax;
- TotalSegmentator's steps: its resampling in (cubic, by SciPy), the predictor without mirroring, its resampling of labels (nearest);
- this project with nnU-Net's plan, and with TotalSegmentator's way.

The plan: 1.5 mm, patches of 128^3 half over each other, CT normalization, PlainConvUNet of six levels, 25 classes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "MedQuantINT8")]
RESULTS = ROOT / "docs" / "results" / "nnunet_peers.json"
CLASSES, TARGET, PATCH, BATCH = 25, 1.5, (128, 128, 128), 4
#: Along (K, J, I), in mm.
SPACING = (1.0, 0.8, 0.8)
#: Voxels (K, J, I) of the scan: an eighth of 512 x 512 x 400 for the GPU, since nnU-Net resamples each class on the processor; for the
#: processor a quarter, four windows of the network, of which mirroring makes 32 patches.
GPU_SHAPE, CPU_SHAPE = (200, 256, 256), (288, 360, 240)
LOW, HIGH, MEAN, STD = -1004.0, 1588.0, -50.0, 503.0
LEVELS, FILTERS = 6, [32, 64, 128, 256, 320, 320]


def plans() -> dict[str, Any]:
    """The plan as nnU-Net writes it (``nnUNetPlans``), with its default resampling."""
    spline = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    settings = {
        "n_stages": LEVELS,
        "features_per_stage": FILTERS,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * LEVELS,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (LEVELS - 1),
        "n_conv_per_stage": [2] * LEVELS,
        "n_conv_per_stage_decoder": [2] * (LEVELS - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "median_image_size_in_voxels": [267, 273, 273],
        "spacing": [TARGET] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": spline,
        "resampling_fn_seg_kwargs": spline | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": spline | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": settings,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    intensity = {"mean": MEAN, "std": STD, "percentile_00_5": LOW, "percentile_99_5": HIGH}
    return {
        "dataset_name": "Dataset297_TotalSegmentator",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [TARGET] * 3,
        "original_median_shape_after_transp": [267, 273, 273],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }


def scan(shape: tuple[int, int, int]) -> np.ndarray:
    """A made-up scan (K, J, I)."""
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


def predictor(device: str, *, mirroring: bool) -> Any:
    """nnU-Net's predictor with that plan and random weights."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    manager = PlansManager(plans())
    configuration = manager.get_configuration("3d_fullres")
    architecture = plans()["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        CLASSES,
        deep_supervision=False,
    ).eval()
    labels = {"background": 0, **{f"s{n}": n for n in range(1, CLASSES)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    result = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
    weights = [network.state_dict()]
    result.manual_initialization(network, manager, configuration, weights, dataset, "nnUNetTrainer", (0, 1, 2))
    return result


def by_nnunet(device: str, volume: np.ndarray, *, mirroring: bool) -> Callable[[], np.ndarray]:
    own = predictor(device, mirroring=mirroring)
    image = volume.astype(np.float32)[None]
    return lambda: own.predict_single_npy_array(image, {"spacing": list(SPACING)})


def by_totalsegmentator(device: str, volume: np.ndarray) -> Callable[[], np.ndarray]:
    """TotalSegmentator's steps between its two files: resampling in, the network's labels, and these resampled."""
    import nibabel
    from totalsegmentator.resampling import change_spacing

    own = predictor(device, mirroring=False)
    k, j, i = SPACING
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([i, j, k, 1.0]))

    def run() -> np.ndarray:
        finer = change_spacing(image, TARGET, order=3, dtype=np.int32, nr_cpus=1)
        data = np.asarray(finer.dataobj).transpose(2, 1, 0)[None].astype(np.float32)
        labels = own.predict_single_npy_array(data, {"spacing": [TARGET] * 3})
        found = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(np.uint8), finer.affine)
        back = change_spacing(found, TARGET, image.shape, order=0, dtype=np.uint8, nr_cpus=1, force_affine=image.affine)
        return np.asarray(back.dataobj).transpose(2, 1, 0)

    return run


def specs() -> dict[str, Any]:
    """This project's description of both."""
    from MedQuantINT8Lib.models.spec import Channel, Geometry, Label, ModelSpec, Normalization, Output, Window

    normalization = (Normalization("nnunet_ct", low=LOW, high=HIGH, mean=MEAN, std=STD),)
    grids = {
        "nnU-Net's plan": (Geometry("KJI", "native", (TARGET,) * 3, anchor="edges", interpolation="nnunet"), Output()),
        "TotalSegmentator's way": (
            Geometry("KJI", "LPS", (TARGET,) * 3, anchor="corners", interpolation="bspline"),
            Output("softmax", resample="labels"),
        ),
    }
    return {
        name: ModelSpec(
            name="total25",
            version="1",
            modality="CT",
            channels=(Channel("CT"),),
            license="Apache-2.0",
            geometry=geometry,
            normalization=normalization,
            labels=tuple(Label(n, f"s{n}", n) for n in range(1, CLASSES)),
            output=output,
            window=Window(PATCH, overlap=0.5, placement="nnunet"),
        )
        for name, (geometry, output) in grids.items()
    }


def by_this_project(
    device: str, engine: Any, spec: Any, volume: np.ndarray, *, mirroring: bool = False
) -> Callable[[], Any]:
    from dataclasses import replace

    from MedQuantINT8Lib.imaging.preprocessing import preprocess
    from MedQuantINT8Lib.imaging.volume import Volume
    from MedQuantINT8Lib.inference.gpu_preparation import deferred
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment_volume
    from MedQuantINT8Lib.models.spec import Mirroring

    k, j, i = SPACING
    given = Volume(volume[None], np.diag([-i, -j, k, 1.0]))
    if mirroring:
        spec = replace(spec, mirroring=Mirroring((0, 1, 2)))
    options = SegmentationOptions(batch=BATCH if device == "cuda" else 1, mirroring=mirroring)
    prepare = partial(deferred, prepare=preprocess)
    return lambda: segment_volume(given, spec, lambda _: engine, options, prepare=prepare)


def engine_for(device: str, folder: Path | None, scratch: Path) -> Any:
    """CUDA INT8's engine, or OpenVINO's of the same network."""
    from cuda_int8 import TOTAL, make_network, with_weights
    from MedQuantINT8Lib.engines import choose_backend
    from MedQuantINT8Lib.engines.base import BuildOptions

    if folder is None:
        make_network(TOTAL, scratch)
        folder = scratch
    network = with_weights(folder / f"{TOTAL}.onnx", scratch / "network.onnx")
    backend = choose_backend("cuda_int8" if device == "cuda" else "openvino", "int8")
    options = BuildOptions(
        "int8", PATCH, batch=BATCH if device == "cuda" else 1, device="gpu" if device == "cuda" else "cpu"
    )
    built = scratch / "engine"
    built.mkdir()
    backend.build(network, built, options)
    return backend.load(built, options)


def rows(device: str, folder: Path | None, shape: tuple[int, int, int], names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each way whose name holds one of ``names``, or for all, as they come."""
    from MedQuantINT8Lib.system import cpu_count, cpu_name

    volume = scan(shape)
    about = {"device": device, "voxels": list(shape), "spacing": list(SPACING), "classes": CLASSES}
    about |= {"processor": cpu_name(), "cores": cpu_count(), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:

        @functools.cache
        def engine() -> Any:
            return stack.enter_context(closing(engine_for(device, folder, Path(scratch))))

        def ours(spec: Any, **options: Any) -> Callable[[], Any]:
            return by_this_project(device, engine(), spec, volume, **options)

        ways: list[tuple[str, Callable[[], Callable[[], Any]], int]] = []
        for name, spec in specs().items():
            ways.append((f"this project, {name}", partial(ours, spec), 4))
        mirrored = 2 if device == "cuda" else 1
        plan = specs()["nnU-Net's plan"]
        ways += [
            ("this project, nnU-Net's plan, mirroring", partial(ours, plan, mirroring=True), 2 * mirrored),
            ("TotalSegmentator's steps", partial(by_totalsegmentator, device, volume), 2),
            ("nnU-Net's predictor, no mirroring", partial(by_nnunet, device, volume, mirroring=False), 2),
            ("nnU-Net's predictor, mirroring", partial(by_nnunet, device, volume, mirroring=True), mirrored),
        ]
        for name, make, rounds in ways:
            if names and not any(word in name for word in names):
                continue
            try:
                run = make()
                times, processor = [], []
                for _ in range(rounds):
                    began, cpu = time.perf_counter(), time.process_time()
                    run()
                    times.append(time.perf_counter() - began)
                    processor.append(time.process_time() - cpu)
                # The first run of several builds, compiles or searches.
                yield {
                    "nnunet_peer": name,
                    **about,
                    "seconds": float(np.median(times[1:] or times)),
                    "times": times,
                    "processor_seconds": float(np.median(processor[1:] or processor)),
                }
            except Exception as error:
                yield {"nnunet_peer": name, **about, "error": f"{type(error).__name__}: {error}"[:300]}


def row_lines(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of records, from lines among which libraries may have written of their own."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                yield json.loads(line)


def write_page(files: list[Path]) -> None:
    """Put rows of a processor into the record, and write its page."""
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    record |= {row["nnunet_peer"]: row for row in row_lines(files) if row["device"] == "cpu" and "seconds" in row}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(record), encoding="utf-8")


def page(record: dict[str, dict[str, Any]]) -> str:
    """The page of the documentation."""
    first = next(iter(record.values()))
    k, j, i = first["voxels"]
    lines = [
        "# Beside nnU-Net and TotalSegmentator on a processor",
        "",
        "Written by `benchmarks/nnunet_peers.py`, which says what is measured: a scan in memory to labels in memory, one plan of nnU-Net (1.5 mm, patches of 128^3 half over each",
        f"other, {first['classes']} classes, PlainConvUNet of six levels), random weights, {first['cores']} cores of {first['processor']}. The scan has {i} x {j} x {k} voxels of 0.8 x 0.8 x 1 mm, a quarter of",
        "512 x 512 x 400, for all of them: four windows, 32 patches with mirroring. nnU-Net and TotalSegmentator's steps run PyTorch in FP32, which is what they do on a processor; this project",
        "runs INT8 in OpenVINO. With random weights every class may win anywhere, so that this project's way back to the scan's grid is at its slowest; that of the others does not depend on it.",
        f"The median of the runs after the first, but for the predictor with mirroring, which was run once. Load of the whole machine before: {first['load_before']:.0f}; its other cores did other work.",
        "",
        "| way | seconds | processor seconds |",
        "| --- | ---: | ---: |",
    ]
    for name in sorted(
        record, key=lambda name: ("mirroring" in name and "no mirroring" not in name, record[name]["seconds"])
    ):
        lines.append(f"| {name} | {record[name]['seconds']:.1f} | {record[name]['processor_seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("gpu", "cpu", "page"))
    parser.add_argument(
        "folder", type=Path, nargs="?", help="networks without weights; by default the network is quantized first"
    )
    parser.add_argument("names", nargs="*", help="words of the rows that are measured")
    parser.add_argument("--voxels", type=int, nargs=3, help="(K, J, I) of the scan")
    args = parser.parse_args()
    if args.device == "page":
        write_page([args.folder, *map(Path, args.names)])
        return
    shape = tuple(args.voxels) if args.voxels else GPU_SHAPE if args.device == "gpu" else CPU_SHAPE
    for row in rows("cuda" if args.device == "gpu" else "cpu", args.folder, shape, args.names):
        print(json.dumps({"date": time.strftime("%Y-%m-%d"), **row}), flush=True)


if __name__ == "__main__":
    main()
