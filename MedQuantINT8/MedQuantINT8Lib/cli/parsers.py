"""The parser of the whole command line: what every command states of itself, in the order in which the help lists them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .. import __version__
from . import (
    build,
    cache,
    compare,
    demo,
    differences,
    doctor,
    evaluate,
    import_model,
    models,
    package,
    quantize,
    segment,
    study,
)
from .common import Formatter
from .terminal import prepare_streams, warn

_EXIT_CODES = """exit codes:
  0 done             1 failed    2 a scan or argument that cannot be used
  3 a bad package    4 no or wrong engine    5 cannot write
  6 a package is not installed    7 a download failed
  8 some cases of many failed        130 canceled

{completion}

example:
  medquant segment demo scan.nii.gz
"""
_COMPLETION = """completion by the Tab key, in bash, zsh and fish:
  pip install argcomplete, then: eval "$(register-python-argcomplete medquant)\""""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, and name the command that they are about."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the arguments; what no option or place takes is refused by the command that it was given to."""
        value, rest = self.parse_known_args(args, namespace)
        if rest:
            command = dict(commands_of(self)).get(getattr(value, "command", ""), self)
            command.error(f"unrecognized arguments: {' '.join(rest)}")
        return value

    def error(self, message: str) -> NoReturn:
        prepare_streams()
        warn(f"{message.rstrip('.')}. See: {self.prog} --help")
        sys.exit(2)


def commands_of(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands with their parsers."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``args.run`` is the function of a command: it takes the arguments and a task."""
    top = Parser(
        prog="medquant",
        description="3D medical segmentation networks in real 8-bit integers.",
        epilog=_EXIT_CODES.format(completion=_COMPLETION),
        formatter_class=Formatter,
    )
    top.add_argument("--version", action="version", version=f"medquant {__version__}")
    add = top.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser
    doctor.add_parser(add)
    demo.add_parser(add)
    import_model.add_parser(add)
    quantize.add_parser(add)
    build.add_parser(add)
    segment.add_parser(add)
    compare.add_parser(add)
    differences.add_parser(add)
    models.add_parser(add)
    package.add_parser(add)
    study.add_parsers(add)
    evaluate.add_parser(add)
    cache.add_parser(add)
    return top
