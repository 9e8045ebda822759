"""Matrix products use one thread each while threads of this program share out the work."""

from __future__ import annotations

import numpy as np
import pytest

from MedQuantINT8Lib import blas_threads
from MedQuantINT8Lib.thread_pool import Threads


@pytest.fixture
def count():
    functions = blas_threads._openblas()
    if functions is None:
        pytest.skip("this NumPy computes by another library than OpenBLAS")
    count, set_count = functions
    before = count()
    set_count(2)
    yield count
    set_count(before)


def test_products_are_single_threaded_inside_threads_and_as_before_afterwards(count):
    seen = []
    with Threads(2) as threads:
        threads.share(lambda numbers: seen.append(count()), 2)
        with Threads(2):
            seen.append(count())
        seen.append(count())
    assert seen == [1, 1, 1, 1] and count() == 2


def test_one_thread_leaves_products_their_own(count):
    with Threads(1) as threads:
        threads.share(lambda numbers: None, 2)
        assert count() == 2


def test_an_error_inside_gives_products_their_threads_back(count):
    with pytest.raises(ZeroDivisionError), Threads(2) as threads:
        threads.share(lambda numbers: 1 // 0, 2)
    assert count() == 2


def test_without_openblas_nothing_is_set(monkeypatch):
    monkeypatch.setattr(blas_threads, "_openblas", lambda: None)
    with Threads(2) as threads:
        total = []
        threads.share(lambda numbers: total.append(np.ones(3) @ np.ones(3)), 2)
    assert total == [3.0, 3.0]
