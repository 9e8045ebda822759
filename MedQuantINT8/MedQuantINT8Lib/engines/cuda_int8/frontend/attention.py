"""Attention, recognized while a graph is read: from the product of queries and keys to that of probabilities and values, one node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import rewrites
from ..plan.index_maps import IndexMap
from .nodes import unsupported
from .patterns import word

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Products of queries and keys, of shape (..., windows, heads, tokens, tokens), on their way to becoming probabilities.

    Attributes:
        queries, keys: (..., windows, heads, tokens, width).
        shape: as the graph has it.
        terms: constants that were added, of the rank that ``shape`` had then.
        ready: whether they went through a softmax.
        names: of the ONNX nodes so far.
    """

    queries: IndexMap
    keys: IndexMap
    shape: tuple[int, ...]
    names: tuple[str, ...]
    terms: tuple[Values, ...] = ()
    ready: bool = False

    @property
    def scale(self) -> float:
        return self.queries.scale * self.keys.scale

    def times(self, factor: float) -> Scores:
        """Multiplied by a number, with all that was added."""
        queries = replace(self.queries, scale=self.queries.scale * factor)
        return replace(self, queries=queries, terms=tuple(term * np.float32(factor) for term in self.terms))


def rows_of(node: Any, part: IndexMap) -> NDArray[np.int32]:
    """(windows, tokens): the voxel of each token of queries, keys or values."""
    if (
        len(part.shape) < 3
        or part.rows.shape[-3] != 1
        or part.rows.shape[-1] != 1
        or any(n > 1 for n in part.columns.shape[:-3])
        or part.columns.shape[-2] != 1
    ):
        raise unsupported(node, "it is no product of tokens, head by head")
    return part.rows.reshape(-1, part.rows.shape[-2])


def heads_of(node: Any, part: IndexMap) -> tuple[int, int, int]:
    """Heads, their width, and the channel where the first begins; the others follow."""
    heads, width = part.columns.shape[-3], part.columns.shape[-1]
    columns = part.columns.reshape(-1)
    if not np.array_equal(columns, columns[0] + np.arange(heads * width)):
        raise unsupported(node, "its heads do not lie side by side")
    return heads, width, int(columns[0])


def _letters(node: Any) -> tuple[str, str, str] | None:
    """The letters of an Einsum of two tensors: theirs, and the result's."""
    text = word(rewrites.attributes(node), "equation", "").replace(" ", "")
    inputs, arrow, output = text.partition("->")
    first, comma, second = inputs.partition(",")
    return (first, second, output) if arrow and comma and "," not in second and "." not in text else None


def turned_keys(node: Any) -> tuple[int, ...] | None:
    """The order of the second tensor's axes in which an Einsum like "bhxd,bhyd->bhxy" takes keys; None where it is something else."""
    letters = _letters(node)
    if letters is None:
        return None
    first, second, output = letters
    wanted = output[:-2] + output[-1] + first[-1]
    fits = (
        first[:-1] == output[:-1]
        and first[-1] not in output
        and sorted(wanted) == sorted(second)
        and len(set(wanted)) == len(wanted)
    )
    return tuple(second.index(letter) for letter in wanted) if fits else None


def takes_values(node: Any) -> bool:
    """Whether an Einsum is like "bhxy,bhyd->bhxd": probabilities and values."""
    letters = _letters(node) if node.op_type == "Einsum" else None
    if letters is None:
        return False
    first, second, output = letters
    return (
        len(first) > 2
        and second == first[:-2] + first[-1] + output[-1]
        and output == first[:-1] + output[-1]
        and output[-1] not in first
    )


def bias_and_mask(
    node: Any, terms: tuple[Values, ...], windows: int, heads: int, tokens: int
) -> tuple[Values | None, tuple[NDArray[np.int32], float] | None]:
    """What was added to scores, as a bias (heads, tokens, tokens) and a mask.

    The mask of shifted windows keeps apart tokens of different regions: (windows, tokens) numbers of regions, and what is added where two differ.
    """
    bias: Values | None = None
    mask: tuple[NDArray[np.int32], float] | None = None
    for term in terms:
        term = (
            term.reshape((1,) * (4 - term.ndim) + term.shape) if term.ndim < 4 else term.reshape(-1, *term.shape[-3:])
        )
        if len(term) == 1:
            whole = np.broadcast_to(term[0], (heads, tokens, tokens)).astype(np.float32)
            bias = whole if bias is None else bias + whole
        elif (
            mask is None
            and term.shape[1] == 1
            and (mask := regions_of(np.broadcast_to(term[:, 0], (windows, tokens, tokens))))
        ):
            continue
        else:
            raise unsupported(
                node, "what is added to its scores differs from window to window, and is no mask of regions"
            )
    return bias, mask


def regions_of(mask: Values) -> tuple[NDArray[np.int32], float] | None:
    """(windows, tokens, tokens) with 0 between tokens of one region and one number between others: that region's number for each token."""
    together = mask == 0
    regions = together.argmax(-1).astype(np.int32)
    apart = mask[~together]
    value = float(apart[0]) if apart.size else 0.0
    if not (together == (regions[:, :, None] == regions[:, None])).all() or (apart != value).any():
        return None
    return regions, value
