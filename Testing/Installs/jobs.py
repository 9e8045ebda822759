"""What a user does first with each way to install: run inside an environment that has just been made, outside of the repository.

    python jobs.py JOB [JOB ...]

Scans and networks are made on the spot. A job that finds something wrong raises; the command line is called as a user calls it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path.cwd()
MEDQUANT = Path(sys.executable).parent / "medquant"


def medquant(*arguments: object, fails: bool = False) -> str:
    """The command's output; what it says on standard error too where it is to fail.

    Raises:
        AssertionError: it failed, or did not though it was to; or it ended in a traceback.
    """
    done = subprocess.run([str(MEDQUANT), *map(str, arguments)], capture_output=True, text=True, timeout=900)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert bool(done.returncode) == fails, f"medquant {' '.join(map(str, arguments))}: exit {done.returncode}\n{said}"
    return said if fails else done.stdout


def scan(seed: int = 1000, name: str = "scan.nii.gz") -> Path:
    """A made scan as a file, and its true labels beside it."""
    import SimpleITK as sitk

    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.imaging.volume import to_sitk

    path = HERE / name
    if not path.exists():
        volume, labels = make_phantom(seed, (72, 64, 56), 5.0)
        image = to_sitk(volume.data[0], volume.grid)
        truth = sitk.GetImageFromArray(labels.astype(np.uint8))
        truth.CopyInformation(image)
        sitk.WriteImage(image, str(path))
        sitk.WriteImage(truth, str(HERE / f"labels-{name}"))
    return path


def nothing_heavy_is_installed() -> None:
    heavy = [name for name in ("torch", "monai", "modelopt", "nnunetv2", "slicer") if importlib.util.find_spec(name)]
    assert not heavy, f"the segment road brought {heavy}"


def check_segmentation(path: Path, least: int = 5) -> None:
    import SimpleITK as sitk

    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert len(np.unique(found)) > least, f"{path.name} holds {np.unique(found)}"


def segment() -> None:
    """The demo's network on a made scan, in INT8 by OpenVINO."""
    said = json.loads(
        medquant("segment", "demo", scan(), "--precision", "int8", "--output", HERE / "labels.nii.gz", "--json")
    )
    assert said["engine"]["description"]["verdict"] == "INT8", said["engine"]
    check_segmentation(HERE / "labels.nii.gz")
    medquant("segment", "demo", scan(), "--output", HERE / "segmentation.seg.nrrd")


def segment_without_openvino() -> None:
    """ONNX Runtime alone has no INT8 that counts as such: FP32, and the report says so."""
    said = json.loads(
        medquant("segment", "demo", scan(), "--precision", "fp32", "--output", HERE / "labels.nii.gz", "--json")
    )
    assert said["engine"]["description"]["verdict"] == "not INT8", said["engine"]
    check_segmentation(HERE / "labels.nii.gz")


def segment_without_an_engine() -> None:
    said = medquant("segment", "demo", scan(), "--output", HERE / "labels.nii.gz", fails=True)
    assert "pip install" in said, said


def dicom() -> None:
    """A DICOM series, read as any other scan."""
    import SimpleITK as sitk

    image = sitk.Cast(sitk.ReadImage(str(scan())), sitk.sitkInt16)
    folder = HERE / "series"
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for k in range(image.GetSize()[2]):
        piece = image[:, :, k]
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.826.0.1.3680043.2.1125.1", "0020|000e": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{k + 1}", "0020|0013": str(k + 1), "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|0052": "1.2.826.0.1.3680043.2.1125.4",
            "0020|0032": "\\".join(f"{c:.6f}" for c in image.TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{direction[i]:.6f}" for i in (0, 3, 6, 1, 4, 7)),
        }  # fmt: skip
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"slice{k:03}.dcm"))
        writer.Execute(piece)
    medquant("segment", "demo", folder, "--output", HERE / "of-dicom.nii.gz")
    check_segmentation(HERE / "of-dicom.nii.gz")


def dicom_segmentation() -> None:
    """A DICOM segmentation of the series that :func:`dicom` has left, which refers to its images."""
    import pydicom

    folder = HERE / "series"
    medquant("segment", "demo", folder, "--output", HERE / "of-dicom.dcm")
    segmentation = pydicom.dcmread(HERE / "of-dicom.dcm")
    assert segmentation.Modality == "SEG" and len(segmentation.SegmentSequence) >= 5 and segmentation.pixel_array.any()
    references = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(references) == len(list(folder.iterdir()))


def quantize() -> None:
    medquant("quantize", "demo", "--calibrate", scan(), "--patches", 4, "--output", HERE / "quantized")
    said = medquant(
        "segment", HERE / "quantized", scan(), "--precision", "int8", "--output", HERE / "of-quantized.nii.gz", "--json"
    )
    assert json.loads(said)["engine"]["description"]["verdict"] in ("INT8", "mixed")


def quantize_alone() -> None:
    """Without OpenVINO: the network is made and proved in ONNX Runtime."""
    medquant("quantize", "demo", "--calibrate", scan(), "--patches", 4, "--output", HERE / "quantized")
    assert (HERE / "quantized" / "model.int8.onnx").is_file()


def import_bundle() -> None:
    import torch
    from monai.networks.nets import UNet

    import bundles

    folder = bundles.write_bundle(HERE / "bundle", "spleen", 2)
    torch.manual_seed(0)
    torch.save(
        UNet(**{k: v for k, v in bundles.UNET.items() if k != "_target_"}).state_dict(), folder / "models" / "model.pt"
    )
    _imported("bundle", folder)


def import_nnunet() -> None:
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    folder = HERE / "Dataset001_Made" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    plain = {
        "n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    named = {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [24, 32, 32],
        "spacing": [5.0, 4.0, 4.0], "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True, "order": 1}, "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
        "architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                         "arch_kwargs": {**plain, **named}, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]},
    }  # fmt: skip
    statistics = {
        "max": 400.0,
        "mean": 60.0,
        "median": 50.0,
        "min": -900.0,
        "percentile_00_5": -850.0,
        "percentile_99_5": 380.0,
        "std": 250.0,
    }
    plans = {
        "dataset_name": "Dataset001_Made", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": statistics},
        "original_median_spacing_after_transp": [5.0, 4.0, 4.0], "original_median_shape_after_transp": [60, 70, 70],
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "body": 1, "bright": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.manual_seed(0)
    module = PlainConvUNet(
        input_channels=1,
        num_classes=3,
        deep_supervision=False,
        conv_op=nn.Conv3d,
        norm_op=nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
        **plain,
    )
    torch.save({"network_weights": module.state_dict(), "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": [0, 1, 2],
                "init_args": {"configuration": "3d_fullres"}}, folder / "fold_0" / "checkpoint_final.pth")  # fmt: skip
    _imported("nnunet", folder)


def export() -> None:
    """A TorchScript file: a program, which is exported to ONNX."""
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))
    torch.jit.trace(module, torch.zeros(1, 1, 16, 16, 16)).save(str(HERE / "network.ts"))
    # Such a file says nothing of its preprocessing: the first call writes a draft, to be corrected and given back.
    draft = HERE / "network.json"
    medquant(
        "import",
        "torchscript",
        HERE / "network.ts",
        "--patch",
        16,
        16,
        16,
        "--trust-code",
        "--draft",
        draft,
        "--output",
        HERE / "of-torchscript",
    )
    _imported("torchscript", HERE / "network.ts", "--trust-code", "--spec", draft)


def _imported(form: str, source: Path, *options: object) -> None:
    target = HERE / f"of-{form}"
    medquant("import", form, source, *options, "--output", target)
    medquant(
        "segment",
        target,
        scan(),
        "--engine",
        "onnxruntime",
        "--precision",
        "fp32",
        "--output",
        HERE / f"labels-of-{form}.nii.gz",
    )
    check_segmentation(HERE / f"labels-of-{form}.nii.gz", least=0)


def evaluate() -> None:
    cases = []
    for seed in (1000, 1001):
        path = scan(seed, f"scan{seed}.nii.gz")
        cases.append({"name": str(seed), "image": path.name, "label": f"labels-{path.name}"})
    (HERE / "set.json").write_text(json.dumps({"name": "made", "cases": cases}))
    medquant("evaluate", "demo", "--data", HERE / "set.json", "--output", HERE / "evaluation")
    assert (HERE / "evaluation" / "evaluation.html").is_file()


def cluster() -> None:
    (HERE / "scans").mkdir(exist_ok=True)
    for seed in (1000, 1001):
        path = scan(seed, f"{seed}.nii.gz")
        path.rename(HERE / "scans" / path.name)
    medquant("segment", "demo", HERE / "scans", "--output", HERE / "cohort", "--cluster", "local")
    assert len(list((HERE / "cohort").glob("*.seg.nrrd"))) == 2


def viewer() -> None:
    medquant("differences", "demo", scan(1000, "scan1000.nii.gz"), "--output", HERE / "differences")
    page = (HERE / "differences" / "report.html").read_text(encoding="utf-8")
    assert "viewer-canvas" in page and len(page) < 25_000_000


def completion() -> None:
    """What the shell asks for, and is answered, while a command is typed."""
    line, answer = "medquant segment de", HERE / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " ",
    }
    given = {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([str(MEDQUANT)], env={**os.environ, **asked, **given}, timeout=60)
    assert "demo" in answer.read_text().split()
    assert (
        "medquant"
        in subprocess.run(
            [str(MEDQUANT.with_name("register-python-argcomplete")), "medquant"], capture_output=True, text=True
        ).stdout
    )


def slicer_scene() -> None:
    """Nodes in, nodes out, as in Slicer's Python console."""
    from MedQuantINT8Lib.imaging.phantom import make_phantom
    from MedQuantINT8Lib.slicer_module import scene as mrml
    from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic

    node = mrml.volume_node(make_phantom(1000, (72, 64, 56), 5.0)[0], "scan", mrml.headless_scene())
    logic = MedQuantINT8Logic()
    try:
        assert logic.segment(node, model="demo").GetSegmentation().GetNumberOfSegments() >= 5
    finally:
        logic.close()


def slicer_tests() -> None:
    """The quick tests of Slicer's side, on this Python and NumPy: Slicer ships others than those of the tests' own environment."""
    repository = Path(os.environ["MEDQUANT_REPOSITORY"])
    folder = repository / "Testing" / "slicer_module"
    files = [
        folder / f"test_{name}.py" for name in ("mrml", "undo", "logic_choices", "dependencies", "recipes", "window")
    ]
    options = ["-m", "not slow", "-p", "no:cacheprovider", "-c", repository / "pyproject.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, files + options)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def _doctor(name: str) -> str:
    engine = json.loads(medquant("doctor", "--json"))["engines"][name]
    assert not engine["available"], engine
    assert "\n" not in engine["reason"].strip(), engine
    return str(engine["reason"])


def cuda_cannot_run_here() -> None:
    """Neither with no driver nor with one that finds no GPU may an engine for GPUs stop the one for the processor."""
    assert "driver" in (reason := _doctor("cuda_int8")).lower() or "GPU" in reason, reason
    assert "run-time compiler" not in reason, reason
    segment()


def tensorrt_cannot_run_here() -> None:
    reason = _doctor("tensorrt")
    assert "driver" in reason or "GPU" in reason, reason
    segment()


def tensorrt_rtx_cannot_run_here() -> None:
    reason = _doctor("tensorrt_rtx")
    assert "driver" in reason or "GPU" in reason, reason
    segment_without_openvino()


JOBS = (
    nothing_heavy_is_installed, segment, segment_without_openvino, segment_without_an_engine, dicom, dicom_segmentation, quantize, quantize_alone, import_bundle,
    import_nnunet, export, evaluate, cluster, viewer, completion, slicer_scene, slicer_tests, cuda_cannot_run_here, tensorrt_cannot_run_here, tensorrt_rtx_cannot_run_here,
)  # fmt: skip


if __name__ == "__main__":
    assert importlib.util.find_spec("MedQuantINT8Lib") and "site-packages" in (
        importlib.util.find_spec("MedQuantINT8Lib").origin or ""
    ), "not the wheel"
    known: dict[str, Callable[[], None]] = {job.__name__: job for job in JOBS}
    for wanted in sys.argv[1:]:
        known[wanted]()
