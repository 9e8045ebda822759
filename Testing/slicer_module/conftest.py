"""A person before the module's panel, for the tests of the window; without Slicer's core or Qt these are skipped."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def answers():
    panel_user = pytest.importorskip("panel_user", reason="needs slicer-core and PySide6", exc_type=ImportError)
    return panel_user.window.install()


@pytest.fixture(autouse=True)
def _empty_scene(request):
    """What one test leaves in the application's scene is nothing that the next one sees: every volume of it may be segmented."""
    yield
    if request.node.get_closest_marker("slicer"):
        import slicer

        if getattr(slicer, "mrmlScene", None) is not None:
            slicer.mrmlScene.Clear(0)


@pytest.fixture
def user(answers, tmp_path, monkeypatch):
    """A person before the module, with an empty scene."""
    from panel_user import User, window

    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    answers.agree, answers.shown = True, []
    person = User(answers)
    yield person
    person.leave()
    views = person.scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")
    assert views == len(window.SLICE_VIEWS), "a slice node was made beside the application's own"


@pytest.fixture
def file_dialogs(user):
    from MedQuantINT8Lib.slicer_module.panels import file_dialogs

    return file_dialogs
