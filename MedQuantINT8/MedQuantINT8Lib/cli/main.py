# PYTHON_ARGCOMPLETE_OK
"""The command ``medquant``: arguments in, exit code out.

Each command is a file that states its arguments and does its work; :mod:`.parsers` puts them together. Nothing of the library is
imported before a command runs, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import sys

# Not from typing: importing that takes as long as all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .interrupts import Interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: by default those of the process, which then is the command and nothing else: a signal may end it at any moment.
    """
    if arguments is None:
        import _signal

        # First of all: even the module signal takes a while on a busy machine, and nothing is lost yet.
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    from .interrupts import Interrupts

    with Interrupts(for_good=arguments is None) as interrupts:
        code = _run(arguments, interrupts)
        if interrupts.asked and arguments is None:
            # All is in good order; libraries and their threads may take their time to end.
            os._exit(code)
    return code


def _run(arguments: Sequence[str] | None, interrupts: Interrupts) -> int:
    from .parsers import parser
    from .progress_bar import Bar
    from .terminal import discard_output, flush, prepare_streams, warn

    command_parser = parser()
    if arguments is None and "_ARGCOMPLETE" in os.environ:
        _complete(command_parser)
    prepare_streams()
    args = command_parser.parse_args(arguments)
    from ..errors import Cancelled, MedQuantError
    from ..progress import Task
    from ..scratch import own_temporary_folder

    bar = Bar(enabled=not (args.quiet or args.json))
    task = Task(bar.show)
    interrupts.watch_over(task, bar)
    try:
        with own_temporary_folder():
            args.run(args, task)
        flush()
    except MedQuantError as error:
        bar.clear()
        warn(error)
        return error.exit_code
    except KeyboardInterrupt:
        bar.clear()
        return Cancelled.exit_code
    except BrokenPipeError:
        discard_output()
        return 0
    except MemoryError:
        bar.clear()
        warn("There is not enough memory. Close other programs, or give --memory and a smaller --batch or --patch.")
        return MedQuantError.exit_code
    except OSError as error:
        from ..files import storage_error

        bar.clear()
        if (complaint := storage_error(error)) is None:
            return _unexpected(error)
        warn(complaint)
        return complaint.exit_code
    except Exception as error:
        bar.clear()
        return _unexpected(error)
    finally:
        bar.clear()
    return 0


def _unexpected(error: Exception) -> int:
    """Say in one line what nobody thought of; the environment variable MEDQUANT_TRACEBACK shows where it came from."""
    import traceback

    from ..errors import MedQuantError
    from .terminal import warn

    if os.environ.get("MEDQUANT_TRACEBACK"):
        traceback.print_exc()
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:500]
    warn(
        f"unexpected {type(error).__name__} in {place.filename.replace(os.sep, '/').rpartition('/')[2]}:{place.lineno}: {words} "
        "This is a fault of the program: please report it, with what MEDQUANT_TRACEBACK=1 shows in addition."
    )
    return MedQuantError.exit_code


def _complete(command_parser: Any) -> None:
    """Answer the shell that asks for completions, and end; nothing happens without argcomplete."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(command_parser)


if __name__ == "__main__":
    sys.exit(main())
