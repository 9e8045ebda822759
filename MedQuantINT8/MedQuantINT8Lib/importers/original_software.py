"""Calls into other software beside an import: they are silent, and their errors are errors of this program."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

from ..errors import MedQuantError, PackageError


class OriginalFailed(PackageError):
    """The software that a network comes from cannot segment with it either."""


@contextlib.contextmanager
def at_work(title: str) -> Iterator[None]:
    """Run calls into other software without what it prints and warns of.

    Args:
        title: what messages call it.

    Raises:
        OriginalFailed: the software raised an error.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except MedQuantError:
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
            raise OriginalFailed(
                f"{title} itself fails with this network ({reason.rstrip('.')}).",
                "Segment a scan with it to see what is wrong.",
            ) from error
