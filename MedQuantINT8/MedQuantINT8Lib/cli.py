# PYTHON_ARGCOMPLETE_OK
"""The command ``medquant``: arguments in, exit code out.

What the commands are is said in :mod:`.parsers`, what they do in :mod:`.commands` and its neighbours. This module imports next to
nothing, so that help and completion answer at once; a command's own imports run when it is called.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    import signal

    from .parsers import parser
    from .terminal import Bar, prepare_streams, warn

    made = parser()
    if arguments is None and "_ARGCOMPLETE" in os.environ:
        _complete(made)
    prepare_streams()
    args = made.parse_args(arguments)
    from .errors import Cancelled, MedQuantError
    from .progress import Task
    from .scratch import own_temporary_folder

    bar = Bar(enabled=not (args.quiet or args.json))
    task = Task(bar.show)

    def stop(signum: int, frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        signal.signal(signum, signal.SIG_DFL)
        task.cancel()

    previous = [(s, signal.signal(s, stop)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        with own_temporary_folder():
            _function(args.run)(args, task)
        sys.stdout.flush()
    except MedQuantError as error:
        bar.clear()
        warn(error)
        return error.exit_code
    except KeyboardInterrupt:
        bar.clear()
        return Cancelled.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        bar.clear()
        for number, handler in previous:
            signal.signal(number, handler)
    return 0


def _function(name: str) -> Any:
    """The function that "module:function" names among this package's modules."""
    import importlib

    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)


def _complete(made: Any) -> None:
    """Answer the shell that asks for completions, and end; nothing happens without argcomplete."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(made)


if __name__ == "__main__":
    sys.exit(main())
