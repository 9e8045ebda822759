"""What the whole panel keeps to: translation, keyboard, tips, dark themes, large fonts; the settings and the dialog of packages."""

from __future__ import annotations

import os
import re
import sys

import pytest
import slicer

from MedQuantINT8Lib.slicer_module.dependencies import GROUPS
from MedQuantINT8Lib.slicer_module.installation import Consent, InstallQuestion
from MedQuantINT8Lib.slicer_module.settings import KEYS
from panel_user import read, window  # first: it skips where there is no panel
from places import LIBRARY, ROOT

pytestmark = pytest.mark.slicer
#: What takes input, by Qt's own word: the classes that Python knows do not inherit from each other in Slicer.
INPUTS = (
    "QAbstractButton",
    "QComboBox",
    "QLineEdit",
    "QAbstractSpinBox",
    "QListWidget",
    "QTableWidget",
    "QPlainTextEdit",
)
SECTIONS = ("segment", "models", "build", "compare")
#: Texts that are no language: precisions, methods of calibration, numbers and units.
NO_LANGUAGE = {"", "FP32", "INT8", "max", "entropy", "percentile", "mse"}
NUMBER = re.compile(r"[\d.,% –]*")


def unfold(user):
    for name, section in vars(user.ui).items():
        if name.endswith("Section"):
            section.setProperty("collapsed", False)
    user.look()


def inputs(user):
    return {name: widget for name, widget in vars(user.ui).items() if any(map(widget.inherits, INPUTS))}


def shown_texts(widget):
    """All texts of a widget that a user may read."""
    texts = [read(widget, name) for name in ("text", "title", "toolTip", "accessibleName", "placeholderText")]
    if widget.inherits("QComboBox"):
        texts += [widget.itemText(n) for n in range(read(widget, "count"))]
    if widget.inherits("QListWidget"):
        items = [widget.item(n) for n in range(read(widget, "count"))]
        texts += [part for item in items for part in item.text().split("\n")[1:]]
    if widget.inherits("QTableWidget"):
        texts += [widget.horizontalHeaderItem(n).text() for n in range(read(widget, "columnCount"))]
    return [text for text in texts if isinstance(text, str)]


def test_every_text_can_be_translated(answers, tmp_path, monkeypatch):
    """In a language whose words all stand in brackets, what stands outside of them is not translated."""
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no made-up language")
    from panel_user import User

    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    monkeypatch.setitem(window.language, "tr", lambda text: f"⟦{text}⟧" if text else text)
    user = User(answers)
    try:
        user.load(size=(16, 16, 16))
        unfold(user)
        logic = user.widget.logic.implementation
        names = [title for _name, title in [*logic.engineTitles(), *logic.devices()]]
        names += [name for entry in logic.modelEntries() for name in (entry.title, entry.modality, *entry.labels)]
        names += [*logic.terminologies(), "Scan", "None"]
        untranslated = set()
        for name, widget in vars(user.ui).items():
            for text in shown_texts(widget):
                known = text in NO_LANGUAGE or NUMBER.fullmatch(text) or any(part and part in text for part in names)
                if "⟦" not in text and not known:
                    untranslated.add(f"{name}: {text}")
        assert not untranslated, "\n".join(sorted(untranslated))
    finally:
        user.leave()


def test_every_stage_has_a_title_that_can_be_translated(answers, monkeypatch):
    """What the library calls its stages is English; the panel shows them in the application's language."""
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no made-up language")
    from MedQuantINT8Lib.slicer_module.panels.stage_titles import stage_title

    monkeypatch.setitem(window.language, "tr", lambda text: f"⟦{text}⟧")
    stages = {
        name
        for path in (LIBRARY / "MedQuantINT8Lib").rglob("*.py")
        for call in re.findall(r"\.stage\(([^\n]*)", path.read_text(encoding="utf-8"))
        for name in re.findall(r'"([^"{]+)"', call)
    }
    assert len(stages) > 30 and "segmenting" in stages
    assert not [name for name in sorted(stages) if "⟦" not in stage_title(name)]
    assert stage_title("Scan (1 of 2): segmenting") == "Scan (1 of 2): ⟦Segmenting⟧"
    assert stage_title("downloading a.zip") == "⟦Downloading a.zip⟧"


def test_everything_that_takes_input_has_a_name_and_a_tip(user):
    found = inputs(user)
    assert len(found) > 40
    assert not [name for name, widget in found.items() if not read(widget, "toolTip")]
    nameless = [n for n, w in found.items() if not read(w, "accessibleName") and not read(w, "text")]
    assert not nameless


def test_the_keyboard_goes_through_the_panel_from_top_to_bottom(user):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no way for a test to follow the focus")
    unfold(user)
    order, widget = [], user.ui.volumeSelector
    while True:
        name = read(widget, "objectName")
        if name in order:
            break
        order.append(name)
        widget = widget.nextInFocusChain()
        while not read(widget, "objectName") or read(widget, "objectName").startswith("qt_"):
            widget = widget.nextInFocusChain()
    places = [
        order.index(name) for name in ("modelCombo", "segmentButton", "modelSearchEdit", "modelButton", "buildButton")
    ]
    assert places == sorted(places), order
    missing = [name for name in inputs(user) if name not in order]
    assert not missing, "the keyboard does not reach these"


def test_no_two_controls_of_a_section_share_a_key(user):
    """Letters of one section: others are folded when it is used."""
    for section in SECTIONS:
        root = getattr(user.ui, f"{section}Section")
        names = (
            {read(child, "objectName") for child in root.findChildren(user.qt.QWidget._class)}
            if window.in_stand_in()
            else set()
        )
        texts = [read(w, "text") for n, w in vars(user.ui).items() if n in names and isinstance(read(w, "text"), str)]
        keys = [text.replace("&&", "").split("&")[1][0].lower() for text in texts if "&" in text.replace("&&", "")]
        assert len(keys) == len(set(keys)), (section, sorted(keys))


@pytest.mark.parametrize(("factor", "width"), [(1, 400), (1.5, 600), (2, 800)])
def test_nothing_is_wider_than_the_panel_at_any_size_of_the_font(user, factor, width):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no font that a test may change")
    application = user.qt.QApplication.instance()
    before = application.font()
    larger = user.qt.QFont(before)
    larger.setPointSizeF(before.pointSizeF() * factor)
    application.setFont(larger)
    try:
        unfold(user)
        user.ui.numbersWidget.setVisible(True)
        user.ui.compareDetails.setVisible(True)
        user.view.models.select("demo")
        user.look()
        assert user.parent.minimumSizeHint().width() <= width
    finally:
        application.setFont(before)


def test_texts_can_be_read_on_a_dark_background(user):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no palette that a test may change")
    from MedQuantINT8Lib.slicer_module.panels import theme

    qt = user.qt
    for background, text in (((250, 250, 250), (0, 0, 0)), ((45, 45, 48), (228, 228, 228))):
        for mark in (theme.make_quiet, theme.make_warning):
            label, palette = qt.QLabel("x"), qt.QPalette()
            palette.setColor(qt.QPalette.Window, qt.QColor(*background))
            palette.setColor(qt.QPalette.WindowText, qt.QColor(*text))
            label.setPalette(palette)
            mark(label)
            color = label.palette().color(qt.QPalette.WindowText)
            assert contrast(background, (color.red(), color.green(), color.blue())) >= 4.5


def contrast(first, second):
    """The contrast of two colors as WCAG 2 defines it."""

    def luminance(color):
        parts = [c / 255 for c in color]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_settings_stand_in_the_applications_settings_and_reach_the_work(user, tmp_path, monkeypatch):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no settings that a test may change")
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "before"))
    kept = slicer.app.userSettings()
    kept.clear()
    window.start_up()
    page = slicer.app.settingsDialog().pages["Fast 3D Segmentation (INT8)"]
    find = lambda name: page.findChild(user.qt.QWidget._class, name)  # noqa: E731
    find("threadsEdit").setValue(1)
    find("memoryGBEdit").setValue(2.5)
    find("modelsFolderEdit").setText(str(tmp_path / "elsewhere"))
    assert "Telemetry: none" in read(find("telemetryLabel"), "text")
    assert all(read(find(f"{field}Edit"), "toolTip") and read(find(f"{field}Edit"), "accessibleName") for field in KEYS)
    page.applySettings()
    user.widget.enter()
    logic = user.widget.logic.implementation
    assert logic.settings.threads == 1 and logic.settings.memoryGB == 2.5
    assert os.environ["MEDQUANT_MODELS"] == str(tmp_path / "elsewhere")
    asked = []
    monkeypatch.setattr(
        logic._client, "submit", lambda model, volume, *rest: asked.extend(rest) or pytest.skip.Exception
    )
    node = user.load(size=(16, 16, 16))
    logic.segment(node, model="demo", waitForCompletion=False)
    choice, options = asked[:2]
    assert choice.threads == 1 and options.memory_bytes == int(2.5 * (1 << 30))
    kept.clear()
    user.widget.enter()
    assert os.environ["MEDQUANT_MODELS"] == str(tmp_path / "before") and logic.settings.threads == 0


def test_one_dialog_says_what_how_large_which_license_and_where_to(user, tmp_path):
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no dialog that a test could answer")
    from MedQuantINT8Lib.slicer_module.panels.packages_dialog import PackagesDialog

    groups = [GROUPS["segment"], GROUPS["build"]]
    question = InstallQuestion(
        ("openvino>=2025.2", "torch>=2.8"),
        tuple(g.purpose for g in groups),
        tuple(g.size for g in groups),
        tuple(g.license for g in groups),
        "/opt/Slicer/site-packages",
    )
    dialog = PackagesDialog(question)
    labels = "\n".join(read(label, "text") for label in dialog.dialog.findChildren(user.qt.QLabel._class))
    assert all(text in labels for text in ("Apache-2.0", "90 MB", "/opt/Slicer/site-packages", groups[1].purpose))
    assert dialog.answer() == Consent(False)
    dialog.wheelsCheck.setChecked(True)
    dialog.wheelsEdit.setText(str(tmp_path))
    dialog.installButton.click()
    assert dialog.answer() == Consent(True, str(tmp_path))
    dialog.dialog.deleteLater()


def test_the_opened_panel_takes_the_room_that_its_page_says(user):
    """docs/results/panels.md, for what is this module's own: what can be seen without a click, and how wide it is."""
    if not window.in_stand_in():
        pytest.skip("the page's figures are the stand-in's")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import panels
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    user.load(size=(16, 16, 16))
    shown = {read(widget, "objectName") for widget in panels.shown_inputs(user.parent)}
    assert shown == {"volumeSelector", "modelCombo", "browseButton", "segmentButton"}
    assert user.parent.minimumSizeHint().width() <= panels.WIDTH
    text = (ROOT / "docs/results/panels.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| what takes input"))
    assert row.split("|")[2].strip() == str(len(shown))
    for panel in panels.OTHERS.values():
        assert all(file in text for file in panel.files)


def test_text_that_wraps_pushes_what_is_below_it_down_and_covers_nothing(user):
    """A section is as high as its contents at this width: a list was covered by the button below it where a verdict took more lines."""
    if not window.in_stand_in():
        pytest.skip("this build of Slicer has no geometry that a test may compare")
    ui = user.ui
    for name, section in vars(ui).items():
        if name.endswith("Section"):
            section.setProperty("collapsed", name not in ("compareSection", "regionSection"))
    ui.comparePlanLabel.setText(
        "A model with a long title, on a volume with a name that is long as well, and on another one"
    )
    for label in (ui.diceLabel, ui.speedLabel, ui.sizeLabel):
        label.setText("<b style='font-size: x-large'>25</b><br>mean Dice with FP32, and more")
    ui.compareResultLabel.setText("Worst structure: gallbladder.\n" + "A verdict that takes more than a line. " * 5)
    ui.regionList.addItems([str(n) for n in range(40)])
    ui.regionList.setFixedHeight(120)
    for widget in (ui.numbersWidget, ui.compareResultLabel, ui.compareDetails, ui.regionSection):
        widget.setVisible(True)
    user.parent.resize(400, 1400)
    for _ in range(8):
        # What a widget needs goes up through the layouts, a level a turn of the event loop.
        user.look()
    section = ui.compareSection
    assert section.height() >= section.heightForWidth(section.width())
    bottom = ui.regionList.geometry().bottom()
    assert bottom < ui.showDifferencesButton.geometry().top(), "the button lies over the list"
    assert ui.showDifferencesButton.geometry().bottom() < ui.regionBody.height()
    heights = [ui.compareSection.height(), ui.segmentSection.height()]
    user.parent.resize(400, 1800)
    user.look()
    assert heights == [ui.compareSection.height(), ui.segmentSection.height()], "sections do not stretch"
