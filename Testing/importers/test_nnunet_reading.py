"""plans.json, dataset.json and checkpoints of nnU-Net: read as nnU-Net reads them, or refused by name."""

from __future__ import annotations

import copy
import json
import zipfile

import numpy as np
import pytest
import torch

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import InputError, MedQuantError, PackageError
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.nnunet_dataset import read_dataset
from MedQuantINT8Lib.importers.nnunet_plans import read_plans
from MedQuantINT8Lib.models.spec import SplineResampling
from nnunet_folders import MODEL, NAME, checkpoint, dataset, plans, threshold_network, write_folder
from spoiling import spoiled

FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"
NETWORK, ARCHITECTURE = threshold_network()


def made_plans(**changes):
    return plans(**{"architecture": ARCHITECTURE, **changes})


def folder(tmp_path, *places, plan=None, data=None, **changes):
    saved = checkpoint(NETWORK, **changes)
    return write_folder(
        tmp_path,
        plan or made_plans(),
        data or dataset(labels={"background": 0, "bright": 1}),
        dict.fromkeys(places or (f"fold_0/{FINAL}",), saved),
    )


def notes(items):
    return "; ".join(note for item in items for note in item.notes)


def test_fold_all_is_taken_where_it_is_alone_and_said_where_it_is_not(tmp_path):
    alone = folder(tmp_path / "alone", f"fold_all/{FINAL}")
    assert [item.spec.name for item in nnunet.understand(alone)] == ["Dataset001_Phantom-foldall"]
    beside = folder(tmp_path / "beside", f"fold_all/{FINAL}", f"fold_2/{FINAL}", f"fold_10/{FINAL}")
    items = nnunet.understand(beside)
    assert [item.spec.name[-6:] for item in items] == ["-fold2", "fold10"]
    assert "--folds all" in notes(items)
    assert [item.spec.name[-7:] for item in nnunet.understand(beside, folds=["all"])] == ["foldall"]
    with pytest.raises(InputError, match=r"no trained fold 3.*2, all|no trained fold 3"):
        nnunet.understand(beside, folds=[3])


def test_folds_all_is_a_choice_of_the_command(tmp_path, capsys):
    source = folder(tmp_path, f"fold_all/{FINAL}", f"fold_0/{FINAL}")
    draft = tmp_path / "draft.json"
    assert (
        main(
            ["import", "nnunet", str(source), "--folds", "all", "-o", str(tmp_path / "p"), "--draft", str(draft), "-q"]
        )
        == 0
    )
    assert json.loads(draft.read_text())["name"].endswith("foldall")
    with pytest.raises(SystemExit):
        main(["import", "nnunet", str(source), "--folds", "some", "-o", str(tmp_path / "q")])


def test_a_best_checkpoint_is_taken_with_a_word_and_an_unfinished_one_is_not(tmp_path):
    items = nnunet.understand(folder(tmp_path / "best", f"fold_0/{BEST}"))
    assert BEST in notes(items)
    both = nnunet.understand(folder(tmp_path / "both", f"fold_0/{BEST}", f"fold_0/{FINAL}"))
    assert BEST not in notes(both)
    with pytest.raises(PackageError, match="unfinished"):
        nnunet.understand(folder(tmp_path / "latest", "fold_0/checkpoint_latest.pth"))


def test_the_checkpoint_says_what_it_was_trained_for(tmp_path):
    value = made_plans()
    value["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "spacing": [7.0, 7.0, 7.0],
        "next_stage": "3d_cascade_fullres",
    }
    source = folder(tmp_path, plan=value, init_args={"configuration": "3d_lowres"})
    assert nnunet.understand(source)[0].spec.geometry.spacing == (7.0, 7.0, 7.0)
    with pytest.raises(PackageError, match="trained for the configuration 3d_lowres"):
        nnunet.understand(source, configuration="3d_fullres")


def test_mirroring_is_said(tmp_path):
    assert "axes 0, 1, 2 and averages 8" in notes(nnunet.understand(folder(tmp_path / "a")))
    assert "forbids mirroring" in notes(
        nnunet.understand(folder(tmp_path / "b", inference_allowed_mirroring_axes=None))
    )
    assert "averages 4" in notes(nnunet.understand(folder(tmp_path / "c", inference_allowed_mirroring_axes=(0, 1))))


def test_every_trainer_of_nnunets_own_is_known_unless_it_builds_another_network(tmp_path):
    from pathlib import Path

    import nnunetv2.training.nnUNetTrainer as trainers

    from MedQuantINT8Lib.importers.nnunet_folds import _KNOWN_TRAINER

    texts = [path.read_text() for path in Path(trainers.__path__[0]).rglob("*.py") if "primus" not in path.name]
    names = {
        line.split("(")[0].split()[1] for text in texts for line in text.splitlines() if line.startswith("class nnUNet")
    }
    assert len(names) > 40
    assert {name for name in names if not _KNOWN_TRAINER.fullmatch(name)} == {"nnUNetTrainerBN"}
    for name in ("nnUNetTrainerMine", "nnUNet_Primus_S_Trainer", "UMambaTrainer", "nnUNetTrainerReLU"):
        assert not _KNOWN_TRAINER.fullmatch(name)
    assert "nnUNetTrainerMine" in notes(nnunet.understand(folder(tmp_path, trainer_name="nnUNetTrainerMine")))


def test_the_trainer_of_batch_normalization_is_understood(tmp_path):
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    value = made_plans()
    manager = PlansManager(copy.deepcopy(value))
    module = nnUNetTrainerBN.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, 2, False
    ).eval()
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.copy_(torch.rand(buffer.shape) + 1) if buffer.is_floating_point() else None
    saved = checkpoint(module, trainer_name="nnUNetTrainerBN")
    source = write_folder(tmp_path, value, dataset(labels={"background": 0, "a": 1}), {f"fold_0/{FINAL}": saved})
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.allclose(nnunet.understand(source)[0].network().eval()(x), module(x))


def test_the_zip_of_nnunets_export_with_a_trainers_own_checkpoint(tmp_path, monkeypatch):
    """A checkpoint as nnUNetTrainer.save_checkpoint writes it: optimizer, scaler, logger and epochs beside the weights."""
    source = folder(tmp_path / "results", f"fold_0/{FINAL}")
    optimizer = torch.optim.SGD(NETWORK.parameters(), 1e-2, momentum=0.99, nesterov=True)
    NETWORK(torch.zeros(1, 1, 8, 8, 8)).sum().backward()
    optimizer.step()
    saved = checkpoint(
        NETWORK,
        optimizer_state=optimizer.state_dict(),
        grad_scaler_state={"scale": 65536.0, "_growth_tracker": 3},
        logging={
            "train_losses": [np.float32(0.5)],
            "dice_per_class_or_region": [[np.float64(0.1)]],
            "epoch_start_timestamps": [1.5],
        },
        current_epoch=1000,
        init_args={
            "plans": made_plans(),
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": dataset(),
            "unpack_dataset": True,
        },
    )
    torch.save(saved, source / f"fold_0/{FINAL}")
    (source / "dataset_fingerprint.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in (tmp_path / "results").rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "results"))
    draft = tmp_path / "draft.json"
    assert (
        main(["import", "nnunet", str(tmp_path / "export.zip"), "-o", str(tmp_path / "p"), "--draft", str(draft), "-q"])
        == 0
    )
    assert json.loads(draft.read_text())["name"] == "Dataset001_Phantom-fold0"


def test_several_trainings_in_one_folder_are_told_apart_by_their_configuration(tmp_path):
    folder(tmp_path)
    write_folder(
        tmp_path, made_plans(), dataset(labels={"background": 0, "a": 1}), {}, MODEL.replace("fullres", "lowres")
    )
    with pytest.raises(PackageError, match="several trainings.*lowres"):
        nnunet.understand(tmp_path)
    assert nnunet.understand(tmp_path, configuration="3d_fullres")


REFUSED = {
    "'conv_op' is .*Conv3d, and the patch has 2 sides": {
        "patch_size": [32, 32],
        "spacing": [1.0, 1.0],
        "architecture": {**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], "strides": [[1, 1], [2, 2]]}},
    },
    "patch of 1 sides": {"patch_size": [32], "spacing": [1.0]},
    "MyNormalization": {"normalization_schemes": ["MyNormalization"]},
    "'normalization_schemes' is .* list of 1": {"normalization_schemes": ["CTNormalization"] * 2},
    "'use_mask_for_norm'.* true or false": {"use_mask_for_norm": [1]},
    "resample_my_way": {"resampling_fn_data": "resample_my_way"},
    "resampling_fn_data_kwargs: 'order' is 5": {"resampling_fn_data_kwargs": {"order": 5}},
    "'order_z' is 3": {"resampling_fn_probabilities_kwargs": {"order_z": 3}},
    "'is_seg' is True": {"resampling_fn_data_kwargs": {"is_seg": True}},
    "'anti_aliasing' is True": {"resampling_fn_data_kwargs": {"anti_aliasing": True}},
    "'mode' is 'cubic'": {
        "resampling_fn_data": "resample_torch_fornnunet",
        "resampling_fn_data_kwargs": {"mode": "cubic"},
    },
    "or the other way about": {"resampling_fn_data": "no_resampling_hack", "resampling_fn_data_kwargs": {}},
    "'preprocessor_name' is 'MyPreprocessor'": {"preprocessor_name": "MyPreprocessor"},
    "'sliding_window_step' is 0.25": {"sliding_window_step": 0.25},
    "mypackage.PlainConvUNet": {"architecture": {**ARCHITECTURE, "network_class_name": "mypackage.PlainConvUNet"}},
    "'patch_size' is .*above|whole number": {"patch_size": [24, 32, -1]},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_a_configuration_says_and_nobody_understands_is_refused_by_name(named):
    with pytest.raises(PackageError, match=named):
        read_plans(made_plans(**REFUSED[named]), "3d_fullres", 1)


def test_the_same_for_the_plans_around_it():
    for change, named in (
        ({"image_reader_writer": "Tiff3DIO"}, "Tiff3DIO.*TIFF"),
        ({"image_reader_writer": "NaturalImage2DIO"}, "single pictures"),
        ({"image_reader_writer": "MyReader"}, "MyReader is not known"),
        ({"label_manager": "MyLabels"}, "label_manager"),
        ({"transpose_forward": [0, 0, 1]}, "transpose"),
        ({"transpose_forward": [1, 2, 0]}, "transpose"),
        ({"mirroring": "half"}, "'mirroring' is 'half'"),
        ({"foreground_intensity_properties_per_channel": {}}, "channel 0"),
    ):
        with pytest.raises(PackageError, match=named):
            read_plans({**made_plans(), **change}, "3d_fullres", 1)
    with pytest.raises(PackageError, match="no configuration '2d'"):
        read_plans(made_plans(), "2d", 1)
    circle = {**made_plans(), "configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(PackageError, match="inherits from itself"):
        read_plans(circle, "a", 1)


def test_foreign_blocks_and_arguments_build_nothing(tmp_path):
    for arguments, named in (
        ({"conv_op": "os.system"}, r"os\.system"),
        ({"magic": 1}, "magic"),
        ({"kernel_sizes": 7.5}, "cannot be built"),
    ):
        changed = {**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], **arguments}}
        with pytest.raises(PackageError, match=named):
            nnunet.understand(folder(tmp_path, plan=made_plans(architecture=changed)))[0].network()


def test_plans_of_before_2_4_are_read():
    old = made_plans()
    configuration = old["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [2] * 5,
        "n_conv_per_stage_decoder": [2] * 4,
        "num_pool_per_axis": [3, 4, 4],
        "conv_kernel_sizes": [[3, 3, 3]] * 5,
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    }
    old["foreground_intensity_properties_by_modality"] = old.pop("foreground_intensity_properties_per_channel")
    found = read_plans(old, "3d_fullres", 1).architecture
    assert found.name == "PlainConvUNet" and found.arguments["features_per_stage"] == [32, 64, 128, 256, 320]
    assert found.total_strides == [8, 16, 16]


def test_defaults_of_resampling_are_those_of_nnunets_functions():
    left_out = read_plans(made_plans(resampling_fn_data_kwargs={}), "3d_fullres", 1)
    assert left_out.data == SplineResampling(3, 0, False, 3.0)
    null = read_plans(made_plans(resampling_fn_data_kwargs={"force_separate_z": None}), "3d_fullres", 1)
    assert null.data == SplineResampling(3, 0, None, 3.0)


def test_labels_and_regions_are_nnunets(tmp_path):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    for labels, order in (
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rest": 3, "ignore": 4}, [1, 2, 3]),
        ({"background": 0, "core": [2, 3], "whole": [1, 2, 3], "enhancing": [3]}, [2, 1, 3]),
        ({"tumor": 2, "background": 0, "organ": 1}, None),
        ({"organ": [1], "background": 0, "tumor": [2], "ignore": 3}, None),
    ):
        read = read_dataset(dataset(labels=labels, regions_class_order=order))
        manager = LabelManager(labels, order)
        assert read.regions == manager.has_regions and read.outputs == manager.num_segmentation_heads
        # One channel at a time is high: the label that nnU-Net paints is the one that the description gives this channel.
        for label in read.labels:
            scores = torch.full((read.outputs, 1, 1, 1), -5.0)
            scores[label.channel] = 5
            assert int(manager.convert_logits_to_segmentation(scores)[0, 0, 0]) == label.value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": {"background": 0, "organ": 2}}, "0, 1, 2"),
        ({"labels": {"organ": 1}}, "no background"),
        ({"labels": {"background": 0}}, "names no labels"),
        ({"labels": {"0": "background", "1": "liver"}}, "label '0' is 'background'"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "ignore"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2]}}, "regions_class_order"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2]}, "regions_class_order": [1]}, "1 values for 2 regions"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2]}, "regions_class_order": [1, 1]}, "different values"),
        ({"channel_names": {"1": "CT"}}, "channels 0, 1, 2"),
        ({"channel_names": ["CT"]}, "'channel_names' is"),
        ({"step_size": 0.25}, "'step_size' is 0.25"),
    ],
)
def test_a_dataset_that_nnunet_would_not_take_is_refused_by_name(changes, named):
    with pytest.raises(PackageError, match=named):
        read_dataset(dataset(**changes))


def test_remarks_and_channel_names_in_any_form_are_taken():
    read = read_dataset(dataset(author="somebody", converted_by="me", release=1.0, channel_names={"0": "ct"}))
    assert read.channels == ["ct"] and read.remarks["release"] == "1.0"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(PackageError, match=r"plans\.json is missing"):
        nnunet.understand(tmp_path)
    source = folder(tmp_path)
    (source / "dataset.json").unlink()
    with pytest.raises(PackageError, match=r"dataset\.json is missing"):
        nnunet.understand(source)
    with pytest.raises(PackageError, match=r"no fold_N"):
        nnunet.understand(write_folder(tmp_path / "no", made_plans(), dataset(), {}))
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "plans.pkl").write_bytes(b"")
    with pytest.raises(PackageError, match="nnU-Net v1"):
        nnunet.understand(tmp_path / "v1")


def test_any_wrong_type_is_an_error_in_words(tmp_path):
    """Whatever is exchanged for another type: taken where nnU-Net does not read it, else one of our own errors."""
    random = np.random.default_rng(23)
    plan, data, saved = made_plans(), dataset(labels={"background": 0, "bright": 1}), checkpoint(NETWORK)
    source = folder(tmp_path)
    refused = 0
    for n in range(300):
        given = [plan, data, {k: v for k, v in saved.items() if k != "network_weights"}]
        given[n % 3] = spoiled(given[n % 3], random)
        try:
            (source / "plans.json").write_text(json.dumps(given[0]))
            (source / "dataset.json").write_text(json.dumps(given[1]))
            if n % 3 == 2:
                whole = (
                    {**given[2], "network_weights": saved["network_weights"]}
                    if isinstance(given[2], dict)
                    else given[2]
                )
                torch.save(whole, source / f"fold_0/{FINAL}")
            nnunet.understand(source)[0].network()
        except MedQuantError as error:
            refused += 1
            assert str(error).endswith(".") and "\n" not in str(error)
        finally:
            torch.save(saved, source / f"fold_0/{FINAL}") if n % 3 == 2 else None
    assert refused > 100
    assert nnunet.understand(folder(tmp_path))[0].network() is not None
    assert NAME in str(source)
