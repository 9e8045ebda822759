"""A person before the module's panel: clicks, watches, looks. In Slicer itself and in the stand-in of Testing/host alike."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")
import slicer

pytest.importorskip("slicer" if hasattr(slicer, "app") else "PySide6", reason="needs PySide6")
from places import HOST

sys.path.insert(0, str(HOST))

import window
from MedQuantINT8Lib.imaging.phantom import make_phantom
from MedQuantINT8Lib.slicer_module import scene as mrml
from MedQuantINT8Lib.slicer_module.installation import Consent

SECONDS = 120


def read(widget, name):
    """A widget's Qt property, in PythonQt and PySide6 alike."""
    return widget.property(name)


class User:
    """Clicks, and looks."""

    def __init__(self, answers):
        import qt

        import MedQuantINT8

        self.qt, self.scene, self.answers = qt, slicer.mrmlScene, answers
        self._after_test = window.keeping()
        self.scene.Clear(0)
        if window.in_stand_in():
            # Slicer has made the module itself.
            MedQuantINT8.MedQuantINT8(SimpleNamespace(path=MedQuantINT8.__file__))
        # With a parent, as the application makes it.
        self.parent = slicer.qMRMLWidget()
        self.parent.setLayout(qt.QVBoxLayout())
        self.widget = MedQuantINT8.MedQuantINT8Widget(self.parent)
        self.widget.setup()
        self.widget.view.consent = self._consent
        self.parent.resize(400, 1000)
        self.parent.show()
        self.look()

    def _consent(self, question):
        self.answers.shown.append(("consent", question.text()))
        return Consent(self.answers.agree)

    @property
    def ui(self):
        return self.widget.view.ui

    @property
    def view(self):
        return self.widget.view

    def leave(self):
        self.widget.cleanup()
        self.scene.Clear(0)
        self.parent.deleteLater()
        self.look()
        self._after_test()

    def look(self):
        slicer.app.processEvents()

    def load(self, name="Scan", seed=2000, size=(84, 60, 64), spacing=4.0):
        node = mrml.volume_node(make_phantom(seed, size, spacing)[0], name, self.scene)
        self.look()
        return node

    def click(self, button):
        assert read(button, "enabled"), f"{read(button, 'objectName')} is grey"
        button.click()
        self.look()

    def watch(self, until=None, seconds=SECONDS):
        """Look on until the work is done, or until something is seen; what the status said meanwhile."""
        seen, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            text = (
                read(self.ui.segmentStatusLabel, "text")
                + read(self.ui.modelsStatusLabel, "text")
                + read(self.ui.buildStatusLabel, "text")
                + read(self.ui.compareStatusLabel, "text")
            )
            if text and (not seen or seen[-1] != text):
                seen.append(text)
            if until() if until else not self.view.runner.busy:
                return seen
            time.sleep(0.005)
        raise AssertionError(f"still at work after {seconds} s: {seen[-3:]}")

    def panels(self):
        """The module's panels that live in the user's window, shown or hidden."""
        return [child for child in self.parent.children() if read(child, "objectName") == "MedQuantINT8"]

    def segmentations(self):
        count = self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        return [self.scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode") for n in range(count)]

    def structures(self, node):
        inside = node.GetSegmentation()
        return [inside.GetNthSegment(n).GetName() for n in range(inside.GetNumberOfSegments())]

    def errors(self):
        return [text for kind, text in self.answers.shown if kind == "errorDisplay"]


def slow_down(user):
    """Make the next run long enough to act during it."""
    from MedQuantINT8Lib.inference.segmenter import SegmentationOptions

    logic = user.widget.logic.implementation
    plain = logic.segment
    logic.segment = lambda *a, **k: plain(*a, **{**k, "options": SegmentationOptions(overlap=0.9)})
    return lambda: setattr(logic, "segment", plain)
