"""A few threads for numpy work, which releases Python's lock while it computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from .blas_threads import begin_single, end_single
from .system import cpu_count

#: Above this, memory and not arithmetic is the limit.
MOST = 8


class Threads:
    """Shares out ranges of equal items; use as a context. Outside of it, work runs in the caller's thread."""

    def __init__(self, count: int | None = None) -> None:
        self._count = min(MOST, count or cpu_count())
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Threads:
        if self._count > 1:
            self._pool = ThreadPoolExecutor(self._count, "blending")
            begin_single()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown()
            self._pool = None
            end_single()

    def share(self, run: Callable[[range], None], items: int) -> None:
        """Call ``run`` on ranges that together are ``range(items)``, and wait for all of them."""
        if self._pool is None or items < 2:
            run(range(items))
            return
        bounds = [items * n // self._count for n in range(self._count + 1)]
        for future in [self._pool.submit(run, range(a, b)) for a, b in itertools.pairwise(bounds) if a < b]:
            future.result()
