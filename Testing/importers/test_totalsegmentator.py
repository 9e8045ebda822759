"""TotalSegmentator's way to the network and back, beside a restatement of it in SciPy and nibabel."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError
from MedQuantINT8Lib.imaging.preprocessing import preprocess
from MedQuantINT8Lib.imaging.volume import Volume
from MedQuantINT8Lib.importers import catalogue, nnunet
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.importers.totalsegmentator import published_data_set, resampled_as_totalsegmentator
from MedQuantINT8Lib.inference.segmenter import SegmentationOptions, segment, spec_in_force
from MedQuantINT8Lib.models.package import IMPORT
from MedQuantINT8Lib.models.spec import (
    Channel,
    Cleaning,
    Crop,
    Geometry,
    Label,
    ModelSpec,
    Normalization,
    Output,
    Window,
)
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.progress import Task

nibabel = pytest.importorskip("nibabel", reason="TotalSegmentator's steps are nibabel's and SciPy's")
ndimage = pytest.importorskip("scipy.ndimage", reason="TotalSegmentator's steps are nibabel's and SciPy's")

#: As the importer describes an nnU-Net, with one threshold for a network.
NNUNET = ModelSpec(
    name="part",
    version="1",
    modality="CT",
    channels=(Channel("CT"),),
    geometry=Geometry("KJI", "native", (3.0, 3.0, 3.0), anchor="edges", interpolation="nnunet", tolerance=0.0),
    normalization=(Normalization("nnunet_ct", -1000, 1000, 0.0, 100.0),),
    window=Window((16, 16, 16), placement="nnunet"),
    output=Output(resample="logits"),
    labels=(Label(1, "one", 1), Label(2, "two", 2)),
    license="CC0",
    crop=Crop("nonzero"),
    normalize_in="input",
)
SPEC = resampled_as_totalsegmentator(NNUNET, "part")
LPS = np.diag([-1.0, -1.0, 1.0])
#: Size along I, J, K; spacing; directions of the axes. Sizes at which SciPy loses the last plane to rounding are left out.
SCANS = {
    "as nibabel likes it": ((33, 40, 27), (1.7, 1.5, 2.5), np.eye(3)),
    "as DICOM has it": ((36, 31, 22), (0.8, 0.8, 5.0), LPS),
    "axes swapped": ((20, 36, 31), (5.0, 0.9, 0.7), np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]], float)),
    "oblique": ((35, 34, 25), (1.1, 1.3, 2.0), LPS @ np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]])),
    "halves everywhere": ((21, 21, 21), (1.5, 1.5, 1.5), np.eye(3)),
}  # fmt: skip


def scan(name: str) -> Volume:
    size, spacing, directions = SCANS[name]
    rng = np.random.default_rng(len(name))
    data = ndimage.gaussian_filter(rng.normal(0, 1, size[::-1]), 2)
    data = np.rint(1500 * data / np.abs(data).max()).astype(np.int16)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = directions * spacing, (12.0, -30.0, 7.0)
    return Volume(data[None], matrix, name)


def change_spacing(image, spacing, shape=None, order=0):
    """TotalSegmentator's function of that name: by a spacing on the way to the network, by a shape on the way back."""
    zoom = (
        np.array(image.header.get_zooms()) / np.array([spacing] * 3)
        if shape is None
        else np.array(shape) / np.array(image.shape)
    )
    data = ndimage.zoom(image.get_fdata(), zoom, order=order).astype(np.int32)
    affine = image.affine.copy()
    affine[:3, :3] = affine[:3, :3] / zoom
    return nibabel.Nifti1Image(data, affine)


def by_totalsegmentator(volume: Volume, network) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given, and the label map on the scan's grid; both (K, J, I).

    Args:
        network: makes a label map of what it is given, both along R, A and S.
    """
    image = nibabel.Nifti1Image(volume.data[0].transpose().astype(float), volume.ijk_to_ras)
    canonical = nibabel.as_closest_canonical(image)
    resampled = change_spacing(canonical, 3.0, order=3)
    labels = nibabel.Nifti1Image(network(resampled.get_fdata()).astype(np.int32), resampled.affine)
    labels = change_spacing(labels, 3.0, canonical.shape)
    there, here = nibabel.io_orientation(canonical.affine), nibabel.io_orientation(image.affine)
    back = nibabel.orientations.ornt_transform(there, here)
    on_scan = nibabel.orientations.apply_orientation(labels.get_fdata(), back)
    return resampled.get_fdata().transpose(), on_scan.transpose()


@pytest.mark.parametrize("name", SCANS)
def test_the_way_to_the_network_is_totalsegmentators(name):
    volume = scan(name)
    network_input = preprocess(volume, replace(SPEC, crop=Crop(), order=(), normalization=SPEC.normalization[:1]))
    theirs, _ = by_totalsegmentator(volume, lambda data: data)
    assert network_input.data[0].shape == theirs.shape
    # A value that is whole but for rounding may be cut to the one below.
    assert np.abs(network_input.data[0] - theirs).max() <= 1
    assert (network_input.data[0] != theirs).mean() < 0.02


@pytest.mark.parametrize("name", SCANS)
def test_labels_come_back_voxel_by_voxel_as_totalsegmentator_brings_them(name):
    volume = scan(name)
    rng = np.random.default_rng(1)
    network_input = preprocess(volume, replace(SPEC, crop=Crop(), order=(), normalization=SPEC.normalization[:1]))
    labels = rng.integers(0, 9, network_input.data.shape[1:]).astype(np.uint8)
    _, theirs = by_totalsegmentator(volume, lambda data: labels.transpose())
    np.testing.assert_array_equal(network_input.restore(labels, nearest=True), theirs)


def test_the_last_plane_that_scipy_loses_to_rounding_is_kept():
    data = np.random.default_rng(0).integers(0, 9, (20, 20, 40)).astype(np.int16)
    spec = replace(SPEC, geometry=replace(SPEC.geometry, spacing=(1.0, 1.0, 40 / 26)), crop=Crop(), order=())
    network_input = preprocess(Volume(data, np.eye(4)), spec)
    assert network_input.data.shape[1:] == (20, 20, 26)
    assert ndimage.zoom(np.ones(26), 40 / 26, order=0)[-1] == 0
    assert network_input.restore(np.ones((20, 20, 26), np.uint8), nearest=True).all()


class Threshold:
    """A network whose classes are above 0 and above 300 HU of what it was given."""

    def infer(self, batch):
        hounsfield = 100 * batch[:, 0]
        return np.stack([np.zeros_like(hounsfield), hounsfield, 2 * hounsfield - 300], axis=1)


def labels_by(options: SegmentationOptions, volume: Volume, spec: ModelSpec = SPEC) -> tuple[np.ndarray, list[str]]:
    result = segment(preprocess(volume, spec), spec, Threshold(), options)
    return result.labels, result.notes


@pytest.mark.parametrize("name", SCANS)
def test_segmenting_with_such_a_package_is_totalsegmentators_way(name):
    volume = scan(name)
    labels, notes = labels_by(SegmentationOptions(), volume)
    _, theirs = by_totalsegmentator(volume, lambda data: (data > 0).astype(int) + (data > 300))
    assert {1, 2} <= set(np.unique(theirs)) and (labels != theirs).mean() < 0.002
    assert "labels were resampled to the scan's grid, as the model asks: nearest neighbor" in notes


def test_a_user_can_have_scores_brought_back_and_labels_of_any_model():
    volume = scan("as DICOM has it")
    labels, notes = labels_by(SegmentationOptions(resample="logits"), volume)
    assert "class scores were resampled to the scan's grid before the largest was chosen" in notes
    assert 0 < (labels != labels_by(SegmentationOptions(), volume)[0]).mean() < 0.5
    _, notes = labels_by(SegmentationOptions(resample="labels"), volume, NNUNET)
    assert "labels were resampled to the scan's grid, as you ask: nearest neighbor" in notes


def test_what_cannot_be_resampled_is_refused_before_any_work():
    with pytest.raises(InputError, match="'scores' is nothing that can be resampled"):
        SegmentationOptions(resample="scores").check()  # type: ignore[arg-type]
    cleaned = replace(SPEC, cleaning=(Cleaning("largest", where="network"),))
    with pytest.raises(InputError, match="cleans its label map before that is resampled"):
        spec_in_force(cleaned, SegmentationOptions(resample="logits"))
    assert spec_in_force(cleaned, SegmentationOptions(resample="masks")).output.resample == "masks"


# ---- imported


def test_descriptions_of_such_networks_are_valid_and_say_so():
    assert parse_spec(json.loads(json.dumps(SPEC.to_json())), "model.json") == SPEC
    part = resampled_as_totalsegmentator(NNUNET, "Dataset291_TotalSegmentator_part1_organs_1559subj")
    assert (SPEC.window.overlap, part.window.overlap) == (0.5, 0.2)
    for other in (replace(NNUNET, channels=(Channel("a"), Channel("b"))), replace(NNUNET, geometry=Geometry("KJI"))):
        with pytest.raises(InputError, match="none of TotalSegmentator's networks"):
            resampled_as_totalsegmentator(other, "")


def test_the_catalog_sets_it_for_the_networks_that_totalsegmentator_resamples_for():
    known = catalogue.entries()
    resampled = {name for name, item in known.items() if item.resampling == "totalsegmentator"}
    parts = {name for name in known if name.startswith("totalsegmentator_part")}
    assert len(parts) == 5 and resampled == parts | {"totalsegmentator_total_3mm", "totalsegmentator_total_6mm"}
    # In a box around an organ it leaves resampling to nnU-Net.
    boxed = {"totalsegmentator_liver_vessels", "totalsegmentator_cerebral_bleed", "totalsegmentator_hip_implant"}
    assert {name for name, item in known.items() if item.resampling == "nnunet"} == boxed


def test_its_folders_are_known_by_the_name_of_their_data_set(tmp_path):
    for name in ("part3_cardiac_1559subj", "total_3mm_1559subj_v204", "total_6mm_1559subj"):
        assert published_data_set(tmp_path, f"Dataset297_TotalSegmentator_{name}")
        assert published_data_set(tmp_path / f"Dataset297_TotalSegmentator_{name}" / "trainer", "nnunet")
    for name in ("Dataset501_TotalSegmentator", "Dataset008_HepaticVessel", "Dataset299_body_1559subj"):
        assert not published_data_set(tmp_path, name)


def folder_of(tmp_path, name):
    """A small network in nnU-Net's public form."""
    pytest.importorskip("nnunetv2", reason="needs nnU-Net, whose network this is")
    from nnunet_folders import checkpoint, dataset, plans, threshold_network, write_folder

    network, architecture = threshold_network(rows=[(0.0, 0.0), (10.0, -5.0)])
    plan = plans(architecture=architecture, spacing=[4.0, 4.0, 4.0], patch_size=[16, 16, 16])
    files = {"fold_0/checkpoint_final.pth": checkpoint(network)}
    name = f"{name}/nnUNetTrainer__nnUNetPlans__3d_fullres"
    return write_folder(tmp_path, plan, dataset(labels={"background": 0, "bright": 1}), files, name)


def test_how_a_folder_is_resampled_is_known_by_its_name_or_chosen(tmp_path, capsys):
    own = folder_of(tmp_path, "Dataset001_Own")
    part = folder_of(tmp_path, "Dataset291_TotalSegmentator_part1_organs_1559subj")

    def understood(source, resampling=None):
        (item,) = nnunet.understand(source, resampling=resampling)
        return item.spec.output.resample, item.spec.window.overlap

    assert understood(own) == ("logits", 0.5) and understood(own, "totalsegmentator") == ("labels", 0.5)
    assert understood(part) == ("labels", 0.2) and understood(part, "nnunet") == ("logits", 0.5)
    command = ["import", "nnunet", str(own), "-q", "-o", str(tmp_path / "package"), "--resampling", "totalsegmentator"]
    assert main([*command, "--draft", str(tmp_path / "draft.json")]) == 0
    assert "labels are resampled to the scan's grid" in capsys.readouterr().out
    assert json.loads((tmp_path / "draft.json").read_text())["geometry"]["anchor"] == "corners"
    assert main([*command, "--spec", str(tmp_path / "draft.json")]) == 2
    assert "--resampling is for nnU-Net's folders" in capsys.readouterr().err


@pytest.mark.slow
def test_an_import_agrees_with_nnunet_between_totalsegmentators_steps(tmp_path):
    part = folder_of(tmp_path, "Dataset291_TotalSegmentator_part1_organs_1559subj")
    package = write(nnunet.understand(part)[0], tmp_path / "package", Task())
    record = json.loads((package.folder / IMPORT).read_text())
    assert record["original"].endswith("between TotalSegmentator's steps") and record["compared"]
    assert max(scan["input_difference"] for scan in record["scans"]) < 0.003
    assert min(scan["label_agreement"] for scan in record["scans"]) > 0.999
