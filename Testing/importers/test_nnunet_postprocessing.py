"""nnU-Net's postprocessing files: the same label map as nnU-Net's own functions give, and nothing of a pickle is run."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re

import numpy as np
import pytest

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.importers import nnunet
from MedQuantINT8Lib.importers.base import write
from MedQuantINT8Lib.importers.nnunet_postprocessing import find_postprocessing, read_postprocessing
from MedQuantINT8Lib.importers.pickled_values import PickledName, read_pickled
from MedQuantINT8Lib.inference.postprocessing import cleaned
from MedQuantINT8Lib.models.spec import Cleaning
from MedQuantINT8Lib.progress import Task
from nnunet_folders import checkpoint, dataset, plans, threshold_network, write_folder

VALUES = (1, 2, 3)
#: What nnU-Net may have found: foreground first, then labels or regions; labels are NumPy's numbers, as its label manager has them.
STEPS = {
    "foreground": [list(np.array([1, 2, 3]))],
    "foreground, then labels": [list(np.array([1, 2, 3])), np.int64(3), np.int64(1)],
    "labels in another order": [np.int64(1), np.int64(3)],
    "regions": [[1, 2, 3], (2, 3), (3,)],
    "nothing": [],
}


def write_files(folder, labels):
    """postprocessing.pkl and .json as nnU-Net's determine_postprocessing writes them."""
    from nnunetv2.postprocessing.remove_connected_components import (
        remove_all_but_largest_component_from_segmentation as function,
    )
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    kwargs = [{"labels_or_regions": value} for value in labels]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with open(folder / f"postprocessing{protocol}.pkl", "wb") as stream:
            pickle.dump(([function] * len(kwargs), kwargs), stream, protocol)
    value = {
        "input_folder": {"mean": {"1": {"Dice": 0.5}}},
        "postprocessed": {"mean": {"1": {"Dice": 0.6}}},
        "postprocessing_fns": [function.__name__] * len(kwargs),
        "postprocessing_kwargs": [dict(item) for item in kwargs],
    }
    recursive_fix_for_json_export(value)
    (folder / "postprocessing.json").write_text(json.dumps(value))
    return [function] * len(kwargs), kwargs


@pytest.mark.parametrize("name", STEPS)
def test_label_maps_are_cleaned_as_nnunet_cleans_them(name, tmp_path):
    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing

    functions, kwargs = write_files(tmp_path, STEPS[name])
    steps = read_postprocessing(tmp_path / "postprocessing.json", VALUES)
    assert len(steps) == len(kwargs)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read_postprocessing(tmp_path / f"postprocessing{protocol}.pkl", VALUES) == steps
    random = np.random.default_rng(0)
    for share in (0.06, 0.12, 0.3):
        labels = (random.integers(1, 4, (14, 15, 16)) * (random.random((14, 15, 16)) < share)).astype(np.uint8)
        expected = apply_postprocessing(labels, functions, kwargs)
        np.testing.assert_array_equal(cleaned(labels.copy(), steps), expected)
        assert not steps or (expected != labels).any()


def test_parts_of_equal_size_all_stay_as_with_nnunet():
    labels = np.zeros((3, 3, 9), np.uint8)
    labels[1, 1, :2] = labels[1, 1, 4:6] = 1
    labels[1, 1, 8] = 1
    step = Cleaning("largest", (1,), together=True, equal="all")
    assert (cleaned(labels.copy(), [step]) > 0).sum() == 4
    assert (cleaned(labels.copy(), [Cleaning("largest", (1,))]) > 0).sum() == 2


class Evil:
    def __reduce__(self):
        return os.system, ("exit 3",)


class Another:
    """An object of a class, whose state would be set up."""

    def __init__(self):
        self.value = 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_is_refused(protocol):
    for value, message in (
        (Evil(), "calls (posix|nt).system"),
        (Another(), "more than numbers"),
        (range(3), "calls .*range"),
    ):
        with pytest.raises(PackageError, match=message):
            read_pickled(pickle.dumps(([value], []), protocol), "postprocessing.pkl")
    plain = ([1, -300, 2**40, "a", b"b", None, True], {"k": (1, 2, 3, 4), "n": np.uint8(200), "m": np.int64(-5)})
    again = read_pickled(pickle.dumps(plain, protocol), "x")
    assert again[1] == {"k": (1, 2, 3, 4), "n": 200, "m": -5} and again[0][:4] == [1, -300, 2**40, "a"]
    assert read_pickled(pickle.dumps(os.path.join, protocol), "x") == PickledName("posixpath.join")


def test_what_is_no_list_of_postprocessing_is_an_error_in_words(tmp_path):
    whole = pickle.dumps(([], [{"labels_or_regions": [1, 2]}]))
    path = tmp_path / "postprocessing.pkl"
    for content in (
        b"",
        b"no pickle",
        whole[:-1],
        whole[3:],
        b"\x80\x05e.",
        b"\x80\x05(.",
        b"0.",
        b"\x80\x04}]s.",
        b"x" * (2 << 20),
    ):
        path.write_bytes(content)
        with pytest.raises(PackageError):
            read_postprocessing(path, VALUES)
    name = "remove_all_but_largest_component_from_segmentation"
    for changes, message in (
        ({"postprocessing_fns": ["magic"]}, "magic is not understood"),
        ({"postprocessing_fns": [name, name]}, "2 functions have 1"),
        ({"postprocessing_kwargs": [{}]}, "'labels_or_regions' is missing"),
        ({"postprocessing_kwargs": [{"labels_or_regions": "all"}]}, "'labels_or_regions' is 'all'"),
        ({"postprocessing_kwargs": [{"labels_or_regions": 1, "background_label": 2}]}, "background_label"),
        ({"postprocessing_kwargs": [{"labels_or_regions": 1, "magic": 2}]}, "'magic' is 2"),
        ({"more": 1}, "'more' is 1"),
    ):
        value = {"postprocessing_fns": [name], "postprocessing_kwargs": [{"labels_or_regions": 1}], **changes}
        (tmp_path / "postprocessing.json").write_text(json.dumps(value))
        with pytest.raises(PackageError, match=re.escape(message)):
            read_postprocessing(tmp_path / "postprocessing.json", VALUES)


def test_the_file_of_the_imported_folds_is_taken(tmp_path):
    assert find_postprocessing(tmp_path, [0]) is None
    for name in ("crossval_results_folds_0_1_2_3_4", "crossval_results_folds_0_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "postprocessing.pkl").write_bytes(b"")
    for folds, name in (([0, 1], "0_1"), ([0], "0_1_2_3_4"), ([0, 1, 2, 3, 4], "0_1_2_3_4")):
        assert find_postprocessing(tmp_path, folds).parent.name == f"crossval_results_folds_{name}"
    (tmp_path / "postprocessing.json").write_text("{}")
    assert find_postprocessing(tmp_path, [0, 1]).name == "postprocessing.json"


def test_an_import_states_the_postprocessing_and_agrees_with_nnunet(tmp_path, capsys):
    net, made = threshold_network(0.2)
    plan = plans(architecture=made, normalization_schemes=["ZScoreNormalization"], patch_size=[16, 16, 16])
    labels = {"labels": {"background": 0, "bright": 1}}
    source = write_folder(tmp_path, plan, dataset(**labels), {"fold_0/checkpoint_final.pth": checkpoint(net)})
    (source / "crossval_results_folds_0").mkdir()
    write_files(source / "crossval_results_folds_0", [[1]])
    model = nnunet.understand(source)[0]
    assert model.spec.cleaning == (Cleaning("largest", (1,), together=True, equal="all"),)
    package = write(model, tmp_path / "package", Task())
    assert model.check.compared and model.check.acceptable
    assert min(scan.label_agreement for scan in model.check.scans) > 0.999
    wrong = nnunet.understand(source)[0]
    wrong.spec = dataclasses.replace(wrong.spec, cleaning=())
    with pytest.raises(PackageError, match="does not do what nnU-Net"):
        write(wrong, tmp_path / "other", Task())
    assert main(["models", "show", str(package.folder)]) == 0
    assert "keeps the largest part of bright" in capsys.readouterr().out
