"""README and docs/: links lead somewhere, commands are understood, quick ones run, and what is listed is what there is."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest

from MedQuantINT8Lib import __version__
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.cli.parsers import commands_of, parser
from MedQuantINT8Lib.importers.catalogue import can_download, entries
from MedQuantINT8Lib.models.spec_parser import parse_spec
from MedQuantINT8Lib.resources import resource
from MedQuantINT8Lib.slicer_module.logic import MedQuantINT8Logic
from pages import blocks, commands, python_blocks, text_of
from places import ROOT

DOCS = ROOT / "docs"
LIBRARY = ROOT / "MedQuantINT8" / "MedQuantINT8Lib"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [*TOP, *sorted(DOCS.rglob("*.md"))]
#: Pages that scripts write from measurements; they tell of their day.
WRITTEN = [page for page in PAGES if page.parent.name != "results" or page.name == "index.md"]
REPOSITORY = "https://raw.githubusercontent.com/MedQuantINT8/SlicerMedQuantINT8/main/"


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=[page.relative_to(ROOT).as_posix() for page in pages])


def test_the_pages_have_commands_at_all():
    assert sum(len(commands(page)) for page in WRITTEN) > 25


@named(WRITTEN)
def test_every_command_line_is_understood(page, capsys):
    for arguments in commands(page):
        try:
            parser().parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"{page.name}: medquant {shlex.join(arguments)}: {capsys.readouterr().err}"


@named(WRITTEN)
def test_commands_within_sentences_exist(page):
    known = dict(commands_of(parser()))
    for quoted in re.findall(r"`medquant ([^`]+)`", text_of(page)):
        words = quoted.split()
        if words[0] in ("COMMAND", "a,b,c") or words[0].startswith("-"):
            continue
        assert words[0] in known, f"medquant {quoted}"
        options = set(known[words[0]]._option_string_actions)
        assert {word for word in words if word.startswith("--")} <= options, f"medquant {quoted}"


def test_the_table_of_commands_is_whole():
    listed = re.findall(r"^\| `medquant (\w+)", text_of(DOCS / "cli.md"), re.M)
    assert sorted(listed) == sorted(name for name, _ in commands_of(parser()))


def test_options_on_the_page_of_commands_exist():
    options = {option for _, command in commands_of(parser()) for option in command._option_string_actions}
    named_there = set(re.findall(r"(--[a-z][a-z0-9-]+)", text_of(DOCS / "cli.md")))
    assert len(named_there) > 40 and named_there - options <= {"--version"}


#: The commands before the options of each: those that need nothing come first.
FIRST = [
    shlex.split(line)[1:]
    for line in text_of(DOCS / "cli.md").partition("These take longer")[0].splitlines()
    if line.startswith("    medquant ")
]
QUICK = ("--version", "doctor", "networks", "models", "cache")


@pytest.mark.parametrize(
    "arguments",
    [line for line in FIRST if line[0] in QUICK],
    ids=lambda words: " ".join(words),
)
def test_quick_commands_run(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDQUANT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 0 and (capsys.readouterr().out or arguments == ["cache", "list"])


@named(PAGES)
def test_links_and_pictures_are_there(page):
    for address in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if address.startswith(REPOSITORY):
            assert (ROOT / address.removeprefix(REPOSITORY)).is_file(), address
        elif not re.match(r"https?://|#", address):
            assert (page.parent / address.partition("#")[0]).exists(), address


@named(WRITTEN)
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)+/?)`", text_of(page)):
        if not re.match(r"(Testing|MedQuantINT8|docs|examples|engines|\w+)/", name) or name.startswith(
            ("build/", "demo-")
        ):
            continue
        if name.rstrip("/").rpartition(".")[2] in ("py", "md", "json", "cu", "cuh") or name.endswith("/"):
            assert (ROOT / name).exists() or (LIBRARY / name).exists(), f"{page.name} names {name}"


def test_the_architecture_lists_every_folder():
    listed = set(re.findall(r"^\| `(\w+)/", text_of(DOCS / "architecture.md"), re.M))
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} <= listed


def test_the_table_of_extras_is_whole():
    section = re.search(
        r"\[project.optional-dependencies\](.*?)\n\[project.scripts\]", text_of(ROOT / "pyproject.toml"), re.S
    )
    extras = re.findall(r"^([\w-]+) = \[", section[1], re.M)
    rows = re.findall(r"^\| (`[^|]*) \|", text_of(DOCS / "install.md"), re.M)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows))) == sorted(extras)


def test_the_models_of_the_readme_are_those_of_the_catalog():
    models = text_of(ROOT / "README.md").partition("## Models")[2].partition("##")[0]
    names = set(re.findall(r"`(\w+)`", models)) - {"demo"}
    names.discard("medquant")
    assert names and names <= set(entries())
    families = {name for name in entries() if name.startswith("totalsegmentator_")}
    assert len(families) == 10
    for name, entry in entries().items():
        by_hand = (
            f"`{name}`" in models.partition("What has no public")[2].partition("is taken from")[0]
            or entry.license == "MIT"
        )
        assert by_hand == (not can_download(entry, entries())), name
    mit = {name for name, entry in entries().items() if entry.license == "MIT"}
    assert len(mit) == 9


#: Parts of messages that the program composes when it speaks, or that Python says.
COMPOSED = {
    "No engine can run here",
    "has func = $lambda",
    "No module named",
    "has no checkpoint_final.pth",
    "has no study instance UID",
    "checkpoint_best.pth was taken",
}


def test_messages_are_quoted_as_the_program_says_them():
    """The words of the first column, without what stands for a file, a number or a reason."""
    sources = " ".join(text_of(path) for path in LIBRARY.rglob("*.py"))
    said = re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", sources))
    tables = (
        text_of(DOCS / "troubleshooting.md"),
        text_of(ROOT / "README.md").partition("## Troubleshooting")[2].partition("## ")[0],
    )
    messages = [
        row for table in tables for row in re.findall(r"^\| ([^|]+) \|", table, re.M) if row not in ("message", "---")
    ]
    assert len(messages) > 20
    for message in messages:
        parts = (part.strip(" .,") for part in re.split(r"\.\.\.|;|: |\(|\)|\bN\b", message))
        assert not [part for part in parts if len(part) > 5 and part not in said and part not in COMPOSED], message


def test_checks_before_a_commit_are_those_of_make_lint():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))["repos"][0]["hooks"]
    lint = text_of(ROOT / "Makefile").partition("\nlint:")[2].partition("\n\n")[0]
    for hook in hooks:
        words = hook["entry"].split()
        assert words[:2] == ["python", "-m"] and f"$(BIN)/{words[2].removesuffix('_lib')}" in lint, hook["id"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "codespell"]


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_the_table_of_results_is_that_of_the_measured_pages():
    """Mended by: python benchmarks/summary_table.py"""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import summary_table

    for page in (ROOT / "README.md", DOCS / "results" / "index.md"):
        assert text_of(page) == summary_table.with_table(text_of(page)), page
    rows = len(summary_table.table())
    assert rows >= 2 + 7 + 9
    ratios = [row["ratio"] for row in json.loads(text_of(DOCS / "results" / "networks.json"))["rows"]]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times faster than FP32" in text_of(ROOT / "README.md")


def test_the_words_of_the_page_of_results_have_the_measured_figures():
    """The tables and sentences of docs/results/index.md that no script writes."""
    page = text_of(DOCS / "results" / "index.md")
    resisting = json.loads(text_of(DOCS / "results" / "resisting.json"))["rows"]
    titles = {
        "hippocampus U-Net, ": "hippocampus U-Net",
        "brain mask, torchio": "brain_torchio_4mm",
        "brain mask, deepbrain v2": "brain_mask_deepbrain_v2",
        "abdominal CT, OBELISK": "abdomen_ct_obelisk",
    }
    for title, name in titles.items():
        row = resisting[name]["row"]
        ratio = row["fp32"]["latency_ms"] / row["int8"]["latency_ms"]
        line = next(line for line in page.splitlines() if line.startswith(f"| {title}"))
        assert f"| {ratio:.1f} | 100 % |" in line and f"| {row['agreement']:.3f} " in line, line
    kits19 = json.loads(text_of(DOCS / "results" / "gpu.json"))["kits19"]
    assert f"{kits19['cases_a_second']:.1f} cases a second" in page


def test_the_page_of_networks_against_labels_is_that_of_the_figures_of_today(monkeypatch):
    """Mended by: python experiments/labelled.py --page. It has figures of other pages, which are measured anew at other times."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import labelled

    results = DOCS / "results"
    assert text_of(results / "labelled.md") == labelled.page(json.loads(text_of(results / "labelled.json")))


def imports_of(code):
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]


@named([page for page in WRITTEN if python_blocks(page)])
def test_what_python_code_imports_is_there(page):
    for code in python_blocks(page):
        for node in imports_of(code):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_the_logics_methods_are_there():
    methods = re.findall(r"^\| (`[^|]*) \|", text_of(DOCS / "python.md"), re.M)
    for name in re.findall(r"`(\w+)`", " ".join(methods)):
        assert callable(getattr(MedQuantINT8Logic, name)), name


def test_the_example_of_a_description_is_valid():
    page = DOCS / "model-package.md"
    example = next(json.loads(block) for block in blocks(page) if block.startswith("{"))
    spec = parse_spec(example)
    assert spec.name == "spleen" and spec.window.patch_size == (96, 96, 96)
    schema = json.loads(resource("model.schema.json").read_text(encoding="utf-8"))
    for field in schema["properties"]:
        assert f"`{field}`" in text_of(page), field
    assert set(schema["required"]) <= set(example)


def test_the_citation_is_that_of_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert str(citation["version"]) == __version__ and citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["start"] == "014006" and "014006" in text_of(ROOT / "README.md")


@named(WRITTEN)
def test_what_users_read_has_us_spelling(page):
    british = r"colour|licen[c]e|normalis|synchronis|optimis[ei]|travell|centre\b|grey\b|catalogue\b|neighbour|behaviour|made abdomen"
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text_of(page))
    assert not re.findall(british, prose, re.I)


def test_the_pages_are_built_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-q",
        "--strict",
        "-f",
        str(ROOT / "mkdocs.yml"),
        "-d",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").stat().st_size > 1000
