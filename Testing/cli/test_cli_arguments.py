"""The command line's first minute: help, examples, completion, arguments that are refused, and what may reach a terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from MedQuantINT8Lib.cli import terminal
from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.cli.parsers import commands_of, parser
from places import LIBRARY

COMMANDS = dict(commands_of(parser()))


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(LIBRARY), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns_and_ends_with_examples_that_parse(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = parser()
    text = (dict(commands_of(made))[name] if name else made).format_help()
    assert max(map(len, text.splitlines())) <= 80
    examples = [line.strip() for line in text.rstrip().split("example")[-1].splitlines()[1:]]
    assert examples and all(line.startswith(f"medquant {name}".strip()) for line in examples)
    for line in examples:
        args = made.parse_args(shlex.split(line)[1:])
        assert name in ("", args.command)


def test_every_command_has_a_function_of_its_own():
    functions = [command.get_default("run") for command in COMMANDS.values()]
    assert all(map(callable, functions)) and len(set(functions)) == len(COMMANDS)


def test_help_version_and_refusals_import_neither_numpy_nor_a_command():
    code = (
        "import sys; from MedQuantINT8Lib.cli.main import main\n"
        "for line in ('--help', '--version', 'segment --help', 'segment a b -o c --seed x'):\n"
        "    try: main(line.split())\n"
        "    except SystemExit: pass\n"
        "ours = sorted({m.split('.')[1] for m in sys.modules if m.startswith('MedQuantINT8Lib.')})\n"
        "heavy = sorted({'numpy', 'json', 'subprocess', 'logging'} & set(sys.modules))\n"
        "print(ours, heavy, file=sys.stderr)"
    )
    done = python(code)
    assert done.stderr.splitlines()[-1] == "['cli', 'devices', 'errors', 'former_names', 'telemetry'] []", done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory", "nan"), ("--memory", "inf"), ("--memory", "0"), ("--memory", "-1"), ("--memory", "much"),
        ("--threads", "100000"), ("--threads", "-1"), ("--threads", "1.5"), ("--batch", "-1"), ("--batch", "1e9"),
        ("--overlap", "2"), ("--overlap", "1"), ("--overlap", "-0.1"), ("--overlap", "nan"), ("--patch", "0 8 8"), ("--patch", "8 8"),
        ("--device", "toaster"), ("--device", "gpu:"), ("--device", "gpu:-1"), ("--device", "cpu:0"), ("--device", ""),
        ("--precision", "int4"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_in_one_line(option, value, capsys):
    assert_refused(["segment", "model", "scan.nii", "-o", "x.nii", option, *value.split(" ")], option, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "quantize m --calibrate s --patches 0", "quantize m --calibrate s --seed -1", "quantize m --calibrate s --foreground nan",
        "quantize m --calibrate s --percentile 101", "quantize m --calibrate s --air 2", "quantize m --calibrate s --agreement -0.5",
        "quantize m --calibrate s --dice-lost nan", "import nnunet m -o x --folds -1", "import python m -o x --channels 0",
        "evaluate m --data d --cases -1", "evaluate m --data d --tolerance 0", "evaluate m --data d --tolerance nan",
        "differences m s --volume-change -3", "differences m s --volume-change inf",
    ],
)  # fmt: skip
def test_numbers_of_other_commands_are_refused_in_one_line(line, capsys):
    assert_refused(line.split(), line.split()[-2], capsys)


def assert_refused(arguments, option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1 and err.startswith("medquant: ") and option in err, err
    assert f"medquant {arguments[0]} --help" in err


def test_a_wrong_device_is_answered_with_the_list(capsys):
    with pytest.raises(SystemExit):
        main(["build", "m", "--device", "toaster"])
    assert "auto, cpu, gpu or gpu:N" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["doctor --foo", "cache clear all", "networks unet", "models get demo --foo"])
def test_what_a_command_does_not_take_is_refused_by_that_command(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    command, *_, last = words.split()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"medquant: unrecognized arguments: {last}. See: medquant {command} --help\n"


@pytest.mark.parametrize(
    "order", ["segment SCAN demo", "compare SCAN demo", "differences SCAN demo", "segment SCAN demo -o out"]
)
def test_a_scan_before_the_model_is_told(order, tmp_path, capsys):
    (scan := tmp_path / "a b.nii.gz").touch()
    assert main([str(scan) if word == "SCAN" else word for word in order.split()]) == 2
    hint = f"medquant {order.split()[0]} demo '{scan}'"
    assert f"{scan} is no model, but demo is: the model comes first. {hint}" in capsys.readouterr().err


def test_a_scan_in_place_of_the_model_is_told(tmp_path, capsys):
    (scan := tmp_path / "a b.nii.gz").touch()
    for order in (["quantize", str(scan), "--calibrate", str(scan)], ["package", str(scan), "-o", "x.zip"]):
        assert main(order) == 2
        assert f"{scan} is no model, but a scan or a segmentation." in capsys.readouterr().err
    assert main(["models", "get", "demo"]) == 2
    assert "demo is installed already" in capsys.readouterr().err
    assert main(["import", "bundle", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 3
    assert "There is no MONAI bundle at" in capsys.readouterr().err


def test_no_escape_sequence_of_a_file_or_argument_reaches_the_terminal(capsys):
    hostile = "liver\x1b[2J\x1b]0;title\x07\x9b31m\u202ekcab\nmedquant: done\r\t\x7f"
    terminal.say(f"found {hostile}")
    terminal.warn(f"cannot find {hostile}")
    with pytest.raises(SystemExit):
        main(["models", "list", "a", hostile])
    assert main(["models", "show", hostile]) == 2
    assert main(["segment", hostile, "scan.nii", "-o", "x.nii.gz"]) == 3
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not set(text) & (set(map(chr, [*range(10), *range(11, 32), *range(0x7F, 0xA0)])) | {"\u202e"}), text
    assert printed.out.count("\n") == 1 and printed.err.count("\n") == 4
    assert r"\x1b[2J" in printed.out and r"\u202e" in printed.out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_characters_gets_others(encoding):
    code = (
        "from MedQuantINT8Lib.cli import terminal; terminal.prepare_streams();"
        "terminal.say('Łódź – 東京 … é', '\\udcff'); terminal.warn('Jané 肝脏')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(LIBRARY), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert "\\udcff" in out and err.startswith("medquant: Jan")
    if encoding == "ascii":
        assert (
            out.splitlines()[0] == r"Lodz - \u6771\u4eac ... e".replace("Lodz", r"\u0141odz")
            and err == "medquant: Jane \\u809d\\u810f\n"
        )
    if encoding == "utf-8":
        assert out.splitlines()[0] == "Łódź – 東京 … é"


def test_nothing_prints_but_the_terminal_module():
    """One place: what is printed elsewhere would reach the terminal as it is."""
    import ast

    for path in sorted((LIBRARY / "MedQuantINT8Lib").rglob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id in ("print", "input")), f"{path.name}:{node.lineno}"


def test_questions_are_asked_on_terminals_only(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked"))
    assert not terminal.ask("Shall it be?")
    asked = []
    monkeypatch.setattr(terminal, "asks", lambda: True)
    for answer, expected in (("y", True), ("YES ", True), ("", False), ("n", False)):
        monkeypatch.setattr("builtins.input", lambda text, answer=answer: asked.append(text) or answer)
        assert terminal.ask("Shall \x1b[1m it be?") is expected

    def ended(text):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert not terminal.ask("Shall it be?")
    assert asked[0] == r"Shall \x1b[1m it be? [y/N] "


def test_the_shell_completes_commands_options_and_installed_models(tmp_path):
    pytest.importorskip("argcomplete")
    code = "import sys; sys.argv = ['medquant']; from MedQuantINT8Lib.cli.main import main; main()"

    def completions(line):
        answer = tmp_path / "answer"
        python(
            code, _ARGCOMPLETE="1", _ARGCOMPLETE_SHELL="bash", _ARGCOMPLETE_STDOUT_FILENAME=str(answer), _ARGCOMPLETE_IFS="\n", COMP_LINE=line,
            COMP_POINT=str(len(line)), _ARGCOMPLETE_COMP_WORDBREAKS=" ", COMP_TYPE="9", MEDQUANT_MODELS=str(tmp_path / "models"),
        )  # fmt: skip
        return answer.read_text().split()

    assert "segment" in completions("medquant seg")
    assert "demo" in completions("medquant segment de")
    assert "vista3d" in completions("medquant models get vis")
    assert "--device" in completions("medquant segment demo scan --dev")


def test_the_script_says_that_it_can_be_completed():
    assert "PYTHON_ARGCOMPLETE_OK" in (LIBRARY / "MedQuantINT8Lib" / "cli" / "main.py").read_text()[:1024]
