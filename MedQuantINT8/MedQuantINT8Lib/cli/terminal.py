"""Everything that commands print goes through here: results, errors, questions, and a progress bar with time left.

Names out of scans, models and licences may hold escape sequences, which would move a terminal's cursor, change its title or
hide text; a terminal may not know a character that is to be printed. Neither may do harm or end the program.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import argparse


#: Characters that order text anew or break lines where none should be, beside the categories Cc and Cs.
_MISLEADING = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff")
#: What stands for a character that a terminal cannot show.
_PLAIN = {"–": "-", "—": "-", "…": "...", "×": "x", "≥": ">=", "≤": "<=", "’": "'", "█": "#", "µ": "u"}


def printable(text: object) -> str:
    """``text`` with every control character (tab and line end too) written as a visible escape, such as ``\\x1b``."""
    return "".join(_escaped(c) if c < " " or c >= "\x7f" else c for c in str(text))


def _escaped(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs") or character in _MISLEADING:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def _for_terminal(error: UnicodeError) -> tuple[str, int]:
    """For characters that an encoding lacks: a plain one that reads alike, else the character's number."""
    assert isinstance(error, UnicodeEncodeError)
    replacements = []
    for character in error.object[error.start : error.end]:
        plain = _PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode(
            "ascii"
        )
        replacements.append(plain or character.encode("ascii", "backslashreplace").decode("ascii"))
    return "".join(replacements), error.end


codecs.register_error("medquant-terminal", _for_terminal)


def prepare_streams() -> None:
    """Let no character end the program that standard output or error cannot show."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="medquant-terminal")


def say(*lines: object) -> None:
    """Print lines to standard output. What a line holds of a file cannot break it or steer the terminal."""
    _to_output("".join(printable(line) + "\n" for line in lines))


def print_result(args: argparse.Namespace, value: Any, *lines: object) -> None:
    """One JSON value for machines (``--json``), or lines for people."""
    if args.json:
        import json

        say(json.dumps(value))
    else:
        say(*lines)


def warn(text: object) -> None:
    """One line to standard error: an error or a note, named as this program's."""
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.write(f"medquant: {printable(' '.join(str(text).split()))}\n")
    sys.stderr.flush()


def flush() -> None:
    """Hand over the lines that were written so far.

    Raises:
        StorageError: it cannot be written, as where a full disk takes it.
        BrokenPipeError: nobody reads any more.
    """
    _to_output("")


def _to_output(text: str) -> None:
    try:
        sys.stdout.write(text)
        if not text:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from ..errors import StorageError

        discard_output()
        raise StorageError(f"Cannot write to standard output: {error.strerror}.", "Send it elsewhere.") from error


def discard_output() -> None:
    """Let nothing more be written where nothing can be, nor complained of when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def asks() -> bool:
    """Whether somebody sits there who can be asked: standard input and output are terminals."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def ask(question: str) -> bool:
    """Ask a question that Enter answers with no; False without asking where nobody sits there."""
    if not asks():
        return False
    main = threading.current_thread() is threading.main_thread()
    # Ctrl-C ends the question at once; elsewhere it lets work end in good order.
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        return input(f"{printable(question)} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        say()
        return False
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
