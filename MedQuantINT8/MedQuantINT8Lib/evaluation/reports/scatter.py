"""Scatter plots for a page: where points, lines and ticks stand in the drawing, which ``templates/scatter.html`` writes as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SIDE, _MARGIN = 340, 44
_COLORS = ("#3366cc", "#dc3912", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e")
#: A point: x, y, and the structure that it belongs to.
Point = tuple[float, float, str]


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    dash: str = ""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    color: str
    title: str


@dataclass(frozen=True)
class Tick:
    x: str
    y: str
    anchor: str
    text: str


@dataclass(frozen=True)
class Scatter:
    """A plot, in pixels from its upper left corner.

    Attributes:
        x, y: what the axes are.
        side: its width and height.
    """

    x: str
    y: str
    lines: Sequence[Line] = ()
    points: Sequence[Dot] = ()
    ticks: Sequence[Tick] = ()
    side: int = _SIDE


@dataclass(frozen=True)
class _Axes:
    """The range of values along each axis: the plot's left and right, its bottom and top."""

    horizontal: tuple[float, float]
    vertical: tuple[float, float]

    def place(self, a: float, b: float) -> tuple[float, float]:
        """Return where a point of values stands, in pixels."""
        u = (a - self.horizontal[0]) / (self.horizontal[1] - self.horizontal[0] or 1)
        v = (b - self.vertical[0]) / (self.vertical[1] - self.vertical[0] or 1)
        return _MARGIN + u * (_SIDE - _MARGIN - 8), (_SIDE - _MARGIN) - v * (_SIDE - _MARGIN - 8)

    def line(self, a: tuple[float, float], b: tuple[float, float], dash: str = "") -> Line:
        return Line(*self.place(*a), *self.place(*b), dash)

    def level(self, value: float) -> Line:
        """Return a dashed line over the whole width."""
        return self.line((self.horizontal[0], value), (self.horizontal[1], value), "4 3")

    def frame(self) -> list[Line]:
        left, bottom = self.horizontal[0], self.vertical[0]
        return [
            self.line((left, bottom), (self.horizontal[1], bottom)),
            self.line((left, bottom), (left, self.vertical[1])),
        ]

    def ticks(self) -> list[Tick]:
        below = str(_SIDE - _MARGIN + 16)
        left, right = (f"{value:.3g}" for value in self.horizontal)
        beside = [
            Tick(str(_MARGIN - 4), f"{self.place(self.horizontal[0], value)[1] + 4:.0f}", "end", f"{value:.3g}")
            for value in self.vertical
        ]
        return [Tick(str(_MARGIN), below, "start", left), Tick(str(_SIDE - 8), below, "end", right), *beside]


def equality_plot(points: Sequence[Point], names: Sequence[str], x: str, y: str) -> Scatter:
    """Two measurements of the same, up to 1, with the line on which they are equal.

    Args:
        names: the structures; each has a color by its place among them.
    """
    if not points:
        return Scatter(x, y)
    low = max(0.0, min(min(p[0], p[1]) for p in points) - 0.02)
    axes = _Axes((low, 1.0), (low, 1.0))
    lines = [*axes.frame(), axes.line((low, low), (1.0, 1.0), "4 3")]
    return Scatter(x, y, lines, _dots(points, names, axes), axes.ticks())


def difference_plot(points: Sequence[Point], names: Sequence[str], x: str, y: str) -> Scatter:
    """Bland and Altman's plot: differences over means, with the mean difference and 1.96 standard deviations around it.

    Args:
        names: the structures; each has a color by its place among them.
    """
    if not points:
        return Scatter(x, y)
    xs, ys = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    mean, deviation = float(ys.mean()), float(ys.std())
    most = max(1e-6, float(np.abs(ys).max()) * 1.2, 2.2 * deviation + abs(mean))
    axes = _Axes((0.0, max(1e-6, float(xs.max()) * 1.05)), (-most, most))
    levels = [axes.level(value) for value in (mean - 1.96 * deviation, mean, mean + 1.96 * deviation)]
    return Scatter(x, y, [*axes.frame(), *levels], _dots(points, names, axes), axes.ticks())


def _dots(points: Sequence[Point], names: Sequence[str], axes: _Axes) -> list[Dot]:
    color = {name: _COLORS[n % len(_COLORS)] for n, name in enumerate(names)}
    return [Dot(*axes.place(a, b), color.get(name, "#333"), f"{name}: {a:.4f}, {b:.4f}") for a, b, name in points]
