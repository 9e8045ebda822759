"""The section Models: a list to look through, details, and what installs, updates and removes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from MedQuantINT8Lib.engines import cache
from MedQuantINT8Lib.files import write_json
from MedQuantINT8Lib.importers import catalogue
from MedQuantINT8Lib.models.installed import installed_models, models_root
from MedQuantINT8Lib.slicer_module.model_entries import layer_shares
from panel_user import read

pytestmark = pytest.mark.slicer


def listed(user):
    return [user.ui.modelList.item(n).text() for n in range(read(user.ui.modelList, "count"))]


def choose(user, words):
    user.ui.modelSearchEdit.setText(words)
    user.ui.modelList.setCurrentRow(0)
    user.look()


def test_models_are_found_by_words_and_tell_what_they_are(user, int8_package, fp32_package):
    int8_package.save(Path(os.environ["MEDQUANT_MODELS"]) / "phantom" / "package")
    fp32_package.save(Path(os.environ["MEDQUANT_MODELS"]) / "raw" / "package")
    user.view.show()
    user.ui.modelSearchEdit.setText("installed")
    texts = listed(user)
    assert len(texts) == 3 and sum("FP32 only" in text for text in texts) == 1
    assert all(" structures · " in text and "MB · " in text for text in texts)
    assert all(not user.ui.modelList.item(n).icon().isNull() for n in range(3))
    user.ui.modelSearchEdit.setText("ct LIVER int8 ready")
    assert len(listed(user)) == 2
    user.ui.modelSearchEdit.setText("no such thing")
    assert not listed(user)
    user.ui.modelSearchEdit.setText("")
    assert len(listed(user)) > 10 and any("to download" in text for text in listed(user))


def test_the_details_show_what_became_of_each_layer(user):
    user.ui.modelsSection.setProperty("collapsed", False)
    choose(user, "demo installed")
    text = read(user.ui.modelInfoLabel, "text")
    assert "Structures (11): liver" in text and "License: Apache-2.0" in text
    assert read(user.ui.modelBarLabel, "visible") and "INT8: 100" in read(user.ui.modelBarText, "text")
    choose(user, "download")
    assert not read(user.ui.modelBarLabel, "visible") and "Install (" in read(user.ui.modelButton, "text")


def test_the_shares_of_the_layers_are_those_of_their_work():
    layers = [
        {"name": "a", "macs": 60, "quantized": True, "reason": ""},
        {"name": "b", "macs": 10, "quantized": True, "reason": "", "half": "high"},
        {"name": "b_low", "macs": 10, "quantized": True, "reason": "", "half": "low"},
        {"name": "c", "macs": 15, "quantized": False, "reason": "few channels"},
        {"name": "d", "macs": 5, "quantized": False, "reason": "the guard"},
    ]
    shares = layer_shares({"layers": layers, "guard": {"returned": {"d": 0.9}}})
    assert (shares.int8, shares.halves, shares.by_rule, shares.by_guard) == (0.6, 0.2, 0.15, 0.05)
    assert shares.layers == (("c", "few channels"), ("d", "the guard")) and list(shares.counts.values()) == [1, 1, 1, 1]
    assert layer_shares({}) is None


def test_a_download_asks_for_the_licence_first(user):
    choose(user, "spleen download")
    user.answers.agree = False
    user.click(user.ui.modelButton)
    question = user.answers.shown[-1][1]
    assert "License" in question and "https://" in question and not user.view.runner.busy


def test_a_task_of_several_networks_is_one_entry_and_names_all_that_it_downloads(user):
    choose(user, "liver_vessels 2 networks")
    assert not listed(user), "numbers of networks are no words"
    choose(user, "liver_vessels near download")
    [text] = listed(user)
    assert "2 networks" in text and "2 structures" in text
    user.answers.agree = False
    user.click(user.ui.modelButton)
    question = user.answers.shown[-1][1]
    assert question.count("From: https://") == 2 and question.count("License: ") >= 1 and "None" not in question


def test_the_button_takes_the_chosen_model_to_the_section_segment(user, fp32_package):
    fp32_package.save(Path(os.environ["MEDQUANT_MODELS"]) / "mine" / "package")
    user.view.show()
    user.click(user.ui.browseButton)
    assert not read(user.ui.modelsSection, "collapsed")
    choose(user, "installed fp32")
    user.click(user.ui.modelButton)
    assert (
        user.view.segment.parameters.model == "mine"
        and user.ui.modelCombo.itemData(read(user.ui.modelCombo, "currentIndex")) == "mine"
    )


def test_an_older_version_is_offered_its_update(user, fp32_package, monkeypatch):
    entry = next(e for e in catalogue.entries().values() if e.url and "_v0." in e.url)
    spec = replace(fp32_package.spec, name=entry.name, version="0.0.1")
    folder = models_root() / entry.name / "package"
    fp32_package.save(folder)
    write_json(folder / "model.json", {**spec.to_json(), "files": fp32_package.hashes})
    user.view.show()
    choose(user, f"{entry.name} installed")
    assert "pdate to 0." in read(user.ui.updateModelButton, "text") and "update there" in listed(user)[0]
    started = []
    monkeypatch.setattr(user.view.models, "_start", lambda start, needs: started.append(needs))
    user.click(user.ui.updateModelButton)
    assert "From: https://" in user.answers.shown[-1][1] and len(started) == 1


def test_a_damaged_model_is_listed_with_what_is_wrong_and_spoils_nothing(user):
    folder = models_root() / "broken" / "package"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{")
    user.view.show()
    choose(user, "broken")
    assert "damaged" in listed(user)[0] and "model.json" in read(user.ui.modelInfoLabel, "text")
    assert not read(user.ui.modelButton, "enabled") and read(user.ui.removeModelButton, "enabled")
    assert read(user.ui.modelCombo, "count") == 1 and len(user.widget.logic.models()) == 1


def test_models_and_built_engines_are_removed_in_the_window(user, int8_package, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(int8_package.folder, models_root() / "mine" / "package")
    cache.make({"model_name": "mine"}, lambda folder: (folder / "engine").write_bytes(bytes(2_000_000)) and None)
    user.view.show()
    user.ui.modelsSection.setProperty("collapsed", False)
    ui = user.ui
    user.view.models.select("mine")
    assert "MB" in read(ui.removeModelButton, "text") and "engines that were built 2.0 MB" in read(
        ui.storageStatusLabel, "text"
    )
    user.answers.agree = False
    ui.removeModelButton.click()
    assert "mine" in installed_models(), "it was removed though the user refused"
    user.answers.agree = True
    ui.removeModelButton.click()
    assert "mine" not in installed_models() and "MB are free" in read(ui.modelsStatusLabel, "text")
    user.view.models.select("demo")
    assert not read(ui.removeModelButton, "visible"), "the demo is part of the program"
    ui.removeEnginesButton.click()
    assert not cache.entries() and not read(ui.removeEnginesButton, "enabled")


def test_a_model_of_ones_own_is_brought_in(user, file_dialogs, int8_package, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="this build of Slicer has no PyTorch, which a foreign zip is brought in with")
    int8_package.save(tmp_path / "mine.zip")
    monkeypatch.setattr(file_dialogs, "open_file", lambda *_a: str(tmp_path / "mine.zip"))
    user.click(user.ui.importFileButton)
    user.watch()
    assert user.view.segment.parameters.model == int8_package.spec.name
    needed = user.widget.logic.implementation.needsImport
    assert not needed(str(tmp_path / "mine.zip")) and not needed("x.onnx") and needed(str(tmp_path / "bundle.zip"))
    user.click(user.ui.importFileButton)
    user.watch()
    assert "is installed already" in user.errors()[-1]
    (tmp_path / "scan.zip").write_bytes(b"no zip")
    monkeypatch.setattr(file_dialogs, "open_file", lambda *_a: str(tmp_path / "scan.zip"))
    user.click(user.ui.importFileButton)
    user.watch()
    assert "scan.zip" in user.errors()[-1]
