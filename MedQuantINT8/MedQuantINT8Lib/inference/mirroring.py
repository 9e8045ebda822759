"""Averaging over mirrored windows: a window is run as it is and reversed along allowed axes, and the scores, turned back, are averaged."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.spec import ModelSpec

if TYPE_CHECKING:
    from .sliding_window import Inference

#: What a user asks for: all allowed axes, none, these axes of the tensor, or (None) whatever the package says.
MirroringChoice = bool | tuple[int, ...] | None
#: The axes of the tensor along which a window is reversed; empty for the window as it is.
Flip = tuple[int, ...]


def mirror_axes_of(spec: ModelSpec, choice: MirroringChoice) -> tuple[int, ...]:
    """Return the axes of the tensor along which windows are mirrored, in ascending order; none where nothing is mirrored.

    Raises:
        InputError: an axis that the package does not allow, or mirroring where it allows none.
    """
    allowed = tuple(sorted(spec.mirroring.axes))
    if choice is None:
        return allowed if spec.mirroring.on else ()
    if isinstance(choice, bool):
        if choice and not allowed:
            raise InputError(
                f"{spec.name} allows no mirroring: its network was not trained for it.", "Segment without mirroring."
            )
        return allowed if choice else ()
    if not isinstance(choice, (list, tuple)) or not all(type(axis) is int for axis in choice):
        raise InputError(
            f"Mirroring cannot be {choice!r}.", "Give True, False, or axes of the network's input, such as (0, 2)."
        )
    if strangers := sorted(set(choice) - set(allowed)):
        has = f"the axes {', '.join(map(str, allowed))}" if allowed else "no axis"
        raise InputError(
            f"{spec.name} does not allow mirroring along axis {strangers[0]}; it allows {has}.",
            "Give axes that it allows, or segment without mirroring.",
        )
    return tuple(sorted(set(choice)))


def flips_along(axes: Sequence[int]) -> list[Flip]:
    """Return all sets of the axes, the empty one first, then those of one axis, of two and so on."""
    return [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]


def reversed_along(values: NDArray[np.float32], flip: Flip) -> NDArray[np.float32]:
    """Return an array (..., n0, n1, n2) reversed along some of its last three axes; a view."""
    return np.flip(values, tuple(axis - 3 for axis in flip)) if flip else values


class MirroredInference:
    """A network that gives the mean of its scores over mirrored windows (:class:`.sliding_window.Inference`).

    Mirrored forms of one window, and of several, share the calls of the network.

    Args:
        inner: the network.
        axes: of the tensor, along which windows are mirrored.
        batch_size: patches a call of the network, at most.
        check: called before every call of the network; it raises :class:`Cancelled` where the user has canceled.
    """

    def __init__(self, inner: Inference, axes: Sequence[int], batch_size: int, check: Callable[[], None]) -> None:
        self._inner, self._flips, self._batch_size, self._check = inner, flips_along(axes), batch_size, check
        #: The windows of a submitted batch that were not collected yet: a sum of scores, and how many of its calls are to come.
        self._means: deque[_Mean] = deque()
        self._calls: deque[tuple[_Mean, list[tuple[int, Flip]]]] = deque()

    @property
    def ahead(self) -> int:
        """One batch of windows where the network works while the caller goes on, else none."""
        return min(1, self._inner.ahead)

    def submit(self, batch: NDArray[np.float32]) -> None:
        """Begin with windows (N, C, p0, p1, p2)."""
        mirrored = [(number, flip) for number in range(len(batch)) for flip in self._flips]
        groups = [mirrored[n : n + self._batch_size] for n in range(0, len(mirrored), self._batch_size)]
        mean = _Mean(len(batch), len(self._flips), len(groups))
        self._means.append(mean)
        for group in groups:
            self._check()
            while len(self._calls) > self._inner.ahead:
                self._take()
            self._inner.submit(np.stack([reversed_along(batch[number], flip) for number, flip in group]))
            self._calls.append((mean, group))

    def collect(self) -> NDArray[np.float32]:
        """Return the mean scores (N, classes, p0, p1, p2) of the oldest batch of windows that was not collected yet."""
        mean = self._means.popleft()
        while mean.calls_left:
            self._take()
        return mean.result()

    def drain(self) -> None:
        """Forget the results that were not collected."""
        self._means.clear()
        self._calls.clear()
        self._inner.drain()

    def _take(self) -> None:
        mean, group = self._calls.popleft()
        mean.add(self._inner.collect(), group)


class _Mean:
    """The mean over mirrored forms of a batch of windows, as the calls of the network give them one after the other."""

    def __init__(self, windows: int, flips: int, calls: int) -> None:
        self._windows, self._flips, self.calls_left = windows, flips, calls
        self._sum: NDArray[np.float32] | None = None

    def add(self, scores: NDArray[np.float32], group: Sequence[tuple[int, Flip]]) -> None:
        if self._sum is None:
            self._sum = np.zeros((self._windows, *scores.shape[1:]), np.float32)
        for values, (number, flip) in zip(scores, group, strict=False):
            self._sum[number] += reversed_along(values, flip)
        self.calls_left -= 1

    def result(self) -> NDArray[np.float32]:
        assert self._sum is not None
        self._sum /= self._flips
        return self._sum
