"""Puts the stand-in's parts where ``import slicer`` finds them, and runs a module in it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Slice views of the application; a second slice node for one of them brings it down.
SLICE_VIEWS = ("Red", "Green", "Yellow")
HERE = Path(__file__).resolve().parent
MODULE = HERE.parent.parent / "MedQuantINT8"


class Answers:
    """What the user is shown and answers; a test sets ``agree`` and reads ``shown``."""

    def __init__(self) -> None:
        self.agree = True
        self.shown: list[tuple[str, str]] = []
        #: Volumes that the slice views were told to show.
        self.viewed: list[Any] = []

    def display(self, kind: str) -> Any:
        def show(text: str, *_arguments: Any, **_options: Any) -> bool:
            self.shown.append((kind, str(text)))
            return self.agree

        return show


class _KeptSettings(dict[str, Any]):
    """QSettings as a dictionary: numbers come back as texts, as they do from a file."""

    def value(self, key: str) -> Any:
        return self.get(key)

    def setValue(self, key: str, value: Any) -> None:
        self[key] = str(value)


class _SettingsDialog:
    """The Application Settings: pages by their title."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}

    def addPanel(self, title: str, page: Any) -> None:
        self.pages[title] = page


#: Translates the module's texts, its .ui file's among them; a test puts another in its place.
language: dict[str, Any] = {"tr": lambda text: text}


class _App:
    """The little of slicer.app that a scripted module touches."""

    #: Slicer has a number; this is how the tests know that they are not in it.
    stand_in = True

    def __init__(self) -> None:
        self.connected: list[tuple[str, Any]] = []
        self._settings, self._dialog = _KeptSettings(), _SettingsDialog()

    def processEvents(self) -> None:
        from PySide6.QtWidgets import QApplication

        QApplication.processEvents()

    def testingEnabled(self) -> bool:
        return True

    def connect(self, signal: str, slot: Any) -> None:
        self.connected.append((signal, slot))

    def translate(self, _context: str, text: str) -> str:
        return text

    def userSettings(self) -> Any:
        """What the application keeps; of this process alone."""
        return self._settings

    def settingsDialog(self) -> Any:
        return self._dialog

    def commandOptions(self) -> Any:
        return types.SimpleNamespace(noMainWindow=False)

    def start_up(self) -> None:
        """As after the application has started."""
        connected, self.connected = self.connected, []
        for signal, slot in connected:
            if signal == "startupCompleted()":
                slot()


def _keep_none() -> None:
    """PySide6 6.12 takes None for immortal, which it is from Python 3.12 on: on an older one every call that returns nothing
    takes a reference away, and some thousand calls later the interpreter ends with a fatal error."""
    if sys.version_info < (3, 12):
        import ctypes

        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def install() -> Any:
    """Make the stand-in; the application's answers. Call once a process, before the module is imported.

    In Slicer itself nothing but the message boxes is replaced.
    """
    if hasattr(sys.modules.get("slicer"), "app"):
        return _answer_in_slicer()
    _keep_none()
    for path in (str(HERE), str(MODULE)):
        if path not in sys.path:
            sys.path.insert(0, path)
    import ctk
    import qmrml
    import qt
    import slicer
    import slicer.util

    from MedQuantINT8Lib.slicer_module import scene as mrml

    if qt.QApplication.instance() is None:
        install.application = qt.QApplication(["window"])  # type: ignore[attr-defined]
    if getattr(slicer, "mrmlScene", None) is None:
        mrml.headless_scene()
    scene = slicer.mrmlScene
    selection = slicer.vtkMRMLSelectionNode()
    selection.SetSingletonTag("Singleton")
    if scene.GetNodeByID("vtkMRMLSelectionNodeSingleton") is None:
        scene.AddNode(selection)
    for name in ("qMRMLWidget", "qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox"):
        setattr(slicer, name, getattr(qmrml, name))
    slicer.app = _App()
    ctk.ctkSettingsPanel.settings = slicer.app.userSettings()
    answers = Answers()
    util = slicer.util
    for name in ("errorDisplay", "warningDisplay", "infoDisplay", "confirmOkCancelDisplay"):
        setattr(util, name, answers.display(name))
    util.loadUI = _load_ui(ctk, qmrml)
    util.childWidgetVariables = _children
    util.pip_install = lambda _text: None
    util.mainWindow = lambda: None
    util.setSliceViewerLayers = lambda background=None, fit=False: answers.viewed.append(background)
    _add_slice_views(slicer, scene)
    _add_module("slicer.i18n", tr=lambda text: language["tr"](text), translate=lambda _context, text: text)
    _add_module("slicer.packaging", pip_ensure=lambda *_a, **_k: None)
    _add_module("slicer.ScriptedLoadableModule", **_scripted(slicer, qt))
    import sample_data
    import subject_hierarchy

    slicer.qSlicerSubjectHierarchyScriptedPlugin = subject_hierarchy.qSlicerSubjectHierarchyScriptedPlugin
    _add_module(
        "AbstractScriptedSubjectHierarchyPlugin",
        AbstractScriptedSubjectHierarchyPlugin=subject_hierarchy.AbstractScriptedSubjectHierarchyPlugin,
    )
    util.selectModule = lambda name: answers.shown.append(("selectModule", name))
    util.getModuleWidget = lambda name: getattr(slicer.modules, f"{name}Widget")
    util.getModuleLogic = lambda name: util.getModuleWidget(name).logic

    slicer.modules.sampleDataSources = {}
    _add_module(
        "SampleData", SampleDataLogic=sample_data.SampleDataLogic, SampleDataSource=sample_data.SampleDataSource
    )
    return answers


def _add_slice_views(slicer: Any, scene: Any) -> None:
    """The three slice nodes of the application; they outlive the closing of a scene."""
    for name in SLICE_VIEWS:
        node = slicer.vtkMRMLSliceNode()
        node.SetSingletonTag(name)
        node.SetLayoutName(name)
        node.SetName(name)
        scene.AddNode(node)


def start_up() -> None:
    """The application has started; in Slicer it had, before any test was."""
    import slicer

    if in_stand_in():
        slicer.app.start_up()


def keeping() -> Callable[[], None]:
    """What puts the application back to how it is now, but for the scene: settings, what waits for its start, and panels that are to go.

    In Slicer itself nothing: a test changes none of these there.
    """
    import slicer

    if not in_stand_in():
        return lambda: None
    connected, settings = list(slicer.app.connected), dict(slicer.app.userSettings())

    def put_back() -> None:
        from PySide6.QtCore import QCoreApplication, QEvent

        slicer.app.connected = connected
        kept = slicer.app.userSettings()
        kept.clear()
        kept.update(settings)
        slicer.app.settingsDialog().pages.clear()
        # What is to be deleted goes when the event loop ends, which that of a test never does.
        QCoreApplication.sendPostedEvents(None, QEvent.DeferredDelete)

    return put_back


def in_stand_in() -> bool:
    """Whether this is the stand-in, not Slicer."""
    import slicer

    return getattr(slicer.app, "stand_in", False)


def _answer_in_slicer() -> Any:
    import slicer.util

    answers = Answers()
    layers = slicer.util.setSliceViewerLayers

    def view(background: Any = None, **options: Any) -> Any:
        answers.viewed.append(background)
        return layers(background=background, **options)

    slicer.util.setSliceViewerLayers = view
    for name in ("errorDisplay", "warningDisplay", "infoDisplay", "confirmOkCancelDisplay"):
        setattr(slicer.util, name, answers.display(name))
    return answers


def _add_module(name: str, **contents: Any) -> None:
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, made)


def _load_ui(ctk: Any, qmrml: Any) -> Any:
    from PySide6.QtUiTools import QUiLoader
    from PySide6.QtWidgets import QWidget

    def load(path: str) -> Any:
        loader = QUiLoader()
        for cls in (
            ctk.ctkCollapsibleButton,
            ctk.ctkPathLineEdit,
            qmrml.qMRMLWidget,
            qmrml.qMRMLNodeComboBox,
            qmrml.qMRMLCheckableNodeComboBox,
        ):
            loader.registerCustomWidget(cls)
        widget = loader.load(_translated(path))
        assert widget is not None, loader.errorString()
        # The loader cannot connect signals of Python's own classes; the .ui file's connections are made here.
        import xml.etree.ElementTree as tree

        for connection in tree.parse(path).iter("connection"):
            assert connection.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
            receiver = widget.findChild(QWidget, connection.findtext("receiver"))
            widget.mrmlSceneChanged.connect(receiver.setMRMLScene)
        return widget

    return load


def _translated(path: str) -> Any:
    """The .ui file with its texts translated, as Slicer's loader does by its own catalog."""
    import xml.etree.ElementTree as tree

    from PySide6.QtCore import QBuffer

    content = tree.parse(path)
    for prop in content.iter("property"):
        for text in prop.findall("string"):
            if text.text and text.get("notr") != "true":
                text.text = language["tr"](text.text)
    # The loader cannot connect signals of Python's own classes; they are connected by hand.
    for connections in content.getroot().findall("connections"):
        content.getroot().remove(connections)
    buffer = QBuffer()
    buffer.setData(tree.tostring(content.getroot()))
    assert buffer.open(QBuffer.ReadOnly), path
    return buffer


def _children(root: Any) -> Any:
    from PySide6.QtCore import QObject

    found = types.SimpleNamespace()
    for child in root.findChildren(QObject):
        if child.objectName() and not child.objectName().startswith("qt_"):
            setattr(found, child.objectName(), child)
    return found


def _scripted(slicer: Any, qt: Any) -> dict[str, Any]:
    """The base classes of a scripted module, as far as this one uses them."""
    import unittest

    class ScriptedLoadableModule:
        def __init__(self, parent: Any) -> None:
            self.parent = parent
            self.moduleName = type(self).__name__
            # The application looks for the module's icon beside its file.
            Path(parent.path).with_suffix(".png")

    class ScriptedLoadableModuleWidget:
        def __init__(self, parent: Any = None) -> None:
            self.moduleName = type(self).__name__.removesuffix("Widget")
            self.parent = parent or qt.QWidget()
            if self.parent.layout() is None:
                qt.QVBoxLayout(self.parent)
            self.layout = self.parent.layout()
            setattr(slicer.modules, type(self).__name__, self)

        def setup(self) -> None: ...

        def resourcePath(self, name: str) -> str:
            return str(MODULE / "Resources" / name)

        def onReload(self) -> None:
            """As slicer.util.reloadScriptedModule: the file again, and a new widget in the place of the module's own (which need not be
            this one); what the old one had put there is hidden, taken out of the layout, and lives on."""
            module = importlib.reload(sys.modules[type(self).__module__])
            own = getattr(slicer.modules, type(self).__name__)
            while own.layout.count():
                item = own.layout.takeAt(0)
                if item.widget() is not None:
                    item.widget().hide()
            own.cleanup()
            getattr(module, type(self).__name__)(own.parent).setup()

    class ScriptedLoadableModuleLogic:
        def __init__(self, parent: Any = None) -> None:
            self.moduleName = type(self).__name__.removesuffix("Logic")

        def getParameterNode(self) -> Any:
            scene = slicer.mrmlScene
            node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is None:
                node = slicer.vtkMRMLScriptedModuleNode()
                node.SetSingletonTag(self.moduleName)
                node.SetModuleName(self.moduleName)
                node = scene.AddNode(node)
            node.SetAttribute("ModuleName", self.moduleName)
            return node

    class ScriptedLoadableModuleTest(unittest.TestCase):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*(arguments or ("runTest",)))

        def delayDisplay(self, _text: str, *_arguments: Any) -> None: ...

    return {
        c.__name__: c
        for c in (
            ScriptedLoadableModule,
            ScriptedLoadableModuleWidget,
            ScriptedLoadableModuleLogic,
            ScriptedLoadableModuleTest,
        )
    }
