"""Reading what transformers are made of: movements, matrix products, LayerNorm and attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import rewrites
from ..plan.index_maps import IndexMap, Mixed, joined
from .attention import Scores, bias_and_mask, heads_of, rows_of, takes_values, turned_keys
from .nodes import unsupported
from .patterns import epsilon_of, word
from .tracing import POINTWISE, Tracer

#: Channels of a head: at most so many, and whole fours.
_WIDEST_HEAD, _FOURS = 128, 4


class TransformerReader(Tracer):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._scores: dict[str, Scores] = {}

    # Movements: a tensor is noted as where its numbers lie, and nothing is done.

    def _transpose(self, node: Any) -> None:
        index_map = self.index_map(node.input[0])
        order = rewrites.attributes(node).get("perm") or range(len(index_map.shape))[::-1]
        self.put(node.output[0], index_map.transposed(order))

    def _reshape(self, node: Any) -> None:
        self._shaped(node, self.index_map(node.input[0]))

    _squeeze = _unsqueeze = _flatten = _reshape

    def _shaped(self, node: Any, index_map: IndexMap) -> None:
        shape = self.shape(node.output[0])
        if not all(shape) and len(shape):
            raise unsupported(node, "its shape is not known beforehand")
        try:
            self.put(node.output[0], index_map.reshaped(shape))
        except Mixed as error:
            raise unsupported(node, "it takes voxels and channels together") from error

    def _gather(self, node: Any) -> None:
        indices, index_map = self.array(node.input[1]), self.index_map(node.input[0])
        if indices is None:
            raise unsupported(node, "its indices are computed")
        axis = int(rewrites.attributes(node).get("axis", 0)) % len(index_map.shape)
        self._shaped(node, index_map.take(axis, np.asarray(indices, np.int64).reshape(-1) % index_map.shape[axis]))

    def _split(self, node: Any) -> None:
        index_map, attributes = self.index_map(node.input[0]), rewrites.attributes(node)
        axis = int(attributes.get("axis", 0)) % len(index_map.shape)
        begin = 0
        for name in node.output:
            length = self.shape(name)[axis]
            self.put(name, index_map.cut(axis, slice(begin, begin + length)))
            begin += length

    def _slice(self, node: Any) -> None:
        bounds = [self.array(name) if name else None for name in node.input[1:5]]
        index_map = self.index_map(node.input[0])
        if any(value is None for value in bounds[:2]):
            raise unsupported(node, "its bounds are computed")
        count = len(bounds[0])  # type: ignore[arg-type]
        axes = bounds[2] if len(bounds) > 2 and bounds[2] is not None else np.arange(count)
        steps = bounds[3] if len(bounds) > 3 and bounds[3] is not None else np.ones(count, np.int64)
        for axis, start, end, step in zip(axes, bounds[0], bounds[1], steps, strict=True):  # type: ignore[arg-type]
            index_map = index_map.cut(int(axis) % len(index_map.shape), slice(int(start), int(end), int(step)))
        self.put(node.output[0], index_map)

    def _pad(self, node: Any) -> None:
        arguments, index_map = (
            [self.array(name) if name else None for name in node.input[1:4]],
            self.index_map(node.input[0]),
        )
        mode, rank = word(rewrites.attributes(node), "mode", "constant"), len(index_map.shape)
        pads, value, axes = (*arguments, None, None, None)[:3]
        if pads is None or mode not in ("constant", "edge"):
            raise unsupported(node, f"mode {mode}")
        if value is not None and float(np.asarray(value).reshape(())) != 0:
            raise unsupported(node, "with another value than 0")
        before, after = np.zeros(rank, int), np.zeros(rank, int)
        where = np.arange(rank) if axes is None else np.asarray(axes) % rank
        before[where], after[where] = np.split(pads, 2)
        if (before < 0).any() or (after < 0).any():
            for axis, (b, a) in enumerate(zip(before, after, strict=True)):
                index_map = index_map.cut(axis, slice(max(0, -b), index_map.shape[axis] - max(0, -a)))
            before, after = np.maximum(before, 0), np.maximum(after, 0)
        try:
            self.put(node.output[0], index_map.padded(before.tolist(), after.tolist(), mode == "edge"))
        except Mixed as error:
            raise unsupported(node, "it repeats channels at the edge") from error

    def _expand(self, node: Any) -> None:
        """Read an Expand, which repeats axes of length one."""
        index_map, shape = self.index_map(node.input[0]), self.shape(node.output[0])
        if len(shape) != len(index_map.shape) or not all(shape):
            raise unsupported(node, "it adds axes, or its shape is not known beforehand")
        self.put(
            node.output[0], index_map.broadcast(shape, [index_map.is_of_channels(axis) for axis in range(len(shape))])
        )

    def _tile(self, node: Any) -> None:
        """Repeated along axes, one whole after the other."""
        index_map, counts = self.index_map(node.input[0]), self.array(node.input[1])
        if counts is None:
            raise unsupported(node, "how often is computed")
        for axis, count in enumerate(int(n) for n in counts):
            index_map = index_map.take(axis, np.tile(np.arange(index_map.shape[axis]), count))
        self.put(node.output[0], index_map)

    def _concat(self, node: Any) -> None:
        parts = [self.index_map(name) for name in node.input]
        axis = int(rewrites.attributes(node)["axis"]) % len(parts[0].shape)
        if (whole := joined(parts, axis)) is not None:
            self.put(node.output[0], whole)
        elif parts[0].rows.shape[axis] == 1:
            self._side_by_side(node, [self.ordered(part) for part in parts], axis)
        else:
            raise unsupported(node, "along another axis than that of channels")

    def _side_by_side(self, node: Any, parts: list[IndexMap], axis: int) -> None:
        """Channels behind one another; parts that do not lie alike are carried to where they do."""
        shape = self.shape(node.output[0])
        if len(shape) == 5 and axis == 1:
            self.emit(node, "concat", tuple(node.input))
            return
        first = parts[0]
        if not all(p.columns.size == p.shape[axis] for p in parts):
            raise unsupported(node, "its channels are on several axes")
        alike = all(
            np.array_equal(p.rows, first.rows) and self.shapes[p.base][2:] == self.shapes[first.base][2:] for p in parts
        )
        if not alike or first.has_gaps or any(part.scale != 1.0 for part in parts):
            parts = [self.carried_out(p) for p in parts]
        self.through(node, "concat", parts[0], node.output[0], tuple(p.base for p in parts[1:]))
        self.shapes[node.output[0]] = (1, sum(p.columns.size for p in parts), *self.shapes[parts[0].base][2:])
        columns = np.arange(self.shapes[node.output[0]][1], dtype=np.int32)
        lengths = [1] * len(shape)
        lengths[axis] = -1
        self.put(node.output[0], IndexMap(node.output[0], parts[0].rows, columns.reshape(lengths)))

    # Products.

    def weight(self, node: Any) -> tuple[NDArray[Any], NDArray[np.float32] | None] | None:
        """A layer's weight, and the scale of each output channel where it is stored as INT8; None where it is computed."""
        name = node.input[1]
        if (array := self.array(name)) is not None:
            return array, None
        producer = self.graph.producer.get(name)
        if (
            producer is None
            or producer.op_type != "DequantizeLinear"
            or (array := self.array(producer.input[0])) is None
        ):
            return None
        return array, np.asarray(self.array(producer.input[1]), np.float32).reshape(-1)

    def _matmul(self, node: Any) -> None:
        weight = self.weight(node)
        if weight is None:
            self._query(node)
        elif weight[0].ndim != 2:
            raise unsupported(node, "its weight has other axes than two")
        else:
            self._linear(node, weight[0].T, weight[1], None)

    def _gemm(self, node: Any) -> None:
        attributes, weight = rewrites.attributes(node), self.weight(node)
        if (
            weight is None
            or attributes.get("transA", 0)
            or attributes.get("alpha", 1.0) != 1.0
            or attributes.get("beta", 1.0) != 1.0
        ):
            raise unsupported(node, "it is no plain layer")
        bias = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        self._linear(node, weight[0] if attributes.get("transB", 0) else weight[0].T, weight[1], bias)

    def _linear(
        self, node: Any, weight: NDArray[Any], scales: NDArray[np.float32] | None, bias: NDArray[Any] | None
    ) -> None:
        """A layer (out, in) of every voxel: a pointwise convolution."""
        index_map = self.settled(self.index_map(node.input[0]))
        outputs, channels = weight.shape
        if index_map.columns.shape[-1] != channels or self.shapes[index_map.base][1] != channels:
            raise unsupported(node, "its channels are not along the last axis")
        if not self.covers(index_map):
            # What lies elsewhere would be computed and not used.
            index_map = self.carried_out(index_map)
        spread_weight = np.empty_like(weight)
        spread_weight[:, index_map.columns.reshape(-1)] = weight
        values: dict[str, Any] = {
            "weight": spread_weight.reshape(outputs, channels, 1, 1, 1),
            "scales": None if scales is None else np.broadcast_to(scales, (outputs,)),
            "bias": np.zeros(outputs, np.float32)
            if bias is None
            else np.broadcast_to(bias, (outputs,)).astype(np.float32),
            **POINTWISE,
        }
        self.through(node, "conv", index_map, node.output[0], **values)
        self.shapes[node.output[0]] = (1, outputs, *self.shapes[index_map.base][2:])
        columns = np.arange(outputs, dtype=np.int32).reshape((1,) * (index_map.columns.ndim - 1) + (-1,))
        self.put(node.output[0], replace(self.index_map(node.output[0]), columns=columns))

    def _layernormalization(self, node: Any) -> None:
        index_map = self.index_map(node.input[0])
        gamma = self.array(node.input[1])
        beta = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if gamma is None or (beta is None and len(node.input) > 2 and node.input[2]):
            raise unsupported(node, "its scale is computed")
        if int(rewrites.attributes(node).get("axis", -1)) % len(index_map.shape) != len(index_map.shape) - 1:
            raise unsupported(node, "over other axes than that of channels")
        self.normalized(
            node,
            index_map,
            np.ravel(gamma),
            np.zeros_like(np.ravel(gamma)) if beta is None else np.ravel(beta),
            epsilon_of(node),
            (node.name,),
        )

    def normalized(
        self,
        node: Any,
        index_map: IndexMap,
        gamma: NDArray[Any],
        beta: NDArray[Any],
        epsilon: float,
        sources: tuple[str, ...],
    ) -> None:
        """A LayerNorm over the last axis, which must be that of channels; ``gamma`` and ``beta`` in its order."""
        index_map = self.settled(index_map)
        if index_map.columns.shape[-1] != self.shapes[index_map.base][1]:
            raise unsupported(node, "over other axes than that of channels")
        order = np.argsort(index_map.columns.reshape(-1))
        by_channel = {"gamma": gamma.astype(np.float32)[order], "beta": beta.astype(np.float32)[order]}
        self.through(node, "layernorm", index_map, node.output[0], sources=sources, epsilon=epsilon, **by_channel)

    # Attention.

    def _einsum(self, node: Any) -> None:
        """Read an Einsum, a product that is written with letters."""
        keys = turned_keys(node)
        if keys is None:
            raise unsupported(node, "a product of other axes than those of attention")
        self._query(node, keys)

    def _query(self, node: Any, order: tuple[int, ...] | None = None) -> None:
        """The product of two tensors: of queries and keys, it is hoped.

        Args:
            order: of the axes of keys, so that they are (..., tokens, width); by default the last two are exchanged.
        """
        queries, keys = (self.index_map(name) for name in node.input[:2])
        last = len(keys.shape)
        if last < 3 or last != len(queries.shape):
            raise unsupported(node, "the product of two tensors")
        keys = keys.transposed(order or (*range(last - 2), last - 1, last - 2))
        rows_of(node, queries), rows_of(node, keys)
        self._scores[node.output[0]] = Scores(queries, keys, self.shape(node.output[0]), (node.name,))

    def is_scored(self, node: Any) -> bool:
        return any(self.tensor(name) in self._scores for name in node.input)

    def scored(self, node: Any) -> None:
        """A node whose input is scores of attention."""
        name = next(self.tensor(n) for n in node.input if self.tensor(n) in self._scores)
        scores, place = self._scores[name], [self.tensor(n) for n in node.input].index(name)
        scores = replace(scores, names=(*scores.names, node.name), shape=self.shape(node.output[0]))
        other = self.array(node.input[1 - place]) if len(node.input) > 1 else None
        if scores.ready and place == 0 and (node.op_type == "MatMul" or takes_values(node)):
            self._attention(node, scores, self.index_map(node.input[1]))
            return
        if scores.ready or len(scores.shape) < 3:
            raise unsupported(node, "it takes the probabilities of attention")
        if node.op_type == "Softmax" and rewrites.attributes(node).get("axis", -1) in (-1, len(scores.shape) - 1):
            scores = replace(scores, ready=True)
        elif node.op_type == "Add" and other is not None:
            term = np.asarray(other, np.float32)
            scores = replace(
                scores, terms=(*scores.terms, term.reshape((1,) * (len(scores.shape) - term.ndim) + term.shape))
            )
        elif (
            node.op_type in ("Mul", "Div")
            and other is not None
            and other.size == 1
            and (node.op_type == "Mul" or place == 0)
        ):
            factor = float(other.reshape(()))
            scores = scores.times(factor if node.op_type == "Mul" else 1 / factor)
        elif (
            node.op_type not in ("Reshape", "Unsqueeze", "Squeeze")
            or scores.shape[-3:] != self._scores[name].shape[-3:]
        ):
            raise unsupported(node, "it takes the scores of attention")
        self._scores[node.output[0]] = scores

    def _attention(self, node: Any, scores: Scores, values: IndexMap) -> None:
        parts = [scores.queries, scores.keys, values]
        rows = [rows_of(node, part) for part in parts]
        shapes = [heads_of(node, part) for part in parts]
        heads, width, _ = shapes[0]
        if any(s[:2] != (heads, width) for s in shapes) or any(not np.array_equal(r, rows[0]) for r in rows):
            raise unsupported(node, "attention of tokens to others than themselves")
        if width % _FOURS or width > _WIDEST_HEAD or values.scale != 1.0:
            raise unsupported(node, f"attention with heads of {width} channels")
        windows, tokens = rows[0].shape
        bias, mask = bias_and_mask(node, scores.terms, windows, heads, tokens)
        where, bases = scores.queries, [part.base for part in parts]
        if not self.covers(where):
            # Voxels of windows lie side by side from here on.
            bases = [self.carried_out(self._whole(part)).base for part in parts]
            rows[0] = np.arange(windows * tokens, dtype=np.int32).reshape(windows, tokens)
        base, starts = self._beside(node, bases)
        name, size = node.output[0], self.shapes[base][2:]
        in_order = np.array_equal(rows[0].reshape(-1), np.arange(windows * tokens))
        attributes = {
            "heads": heads,
            "width": width,
            "windows": windows,
            "tokens": tokens,
            "starts": tuple(start + shape[2] for start, shape in zip(starts, shapes, strict=True)),
            "scale": scores.scale,
            "rows": None if in_order else rows[0],
            "bias": bias,
            "mask": mask,
        }
        whole = IndexMap.still(base, self.shapes[base])
        self.through(node, "attention", whole, name, sources=(*scores.names, node.name), **attributes)
        self.shapes[name] = (1, heads * width, *size)
        columns = np.arange(heads * width, dtype=np.int32).reshape(where.columns.shape)
        self.put(name, IndexMap(name, rows[0].reshape(where.rows.shape), columns))

    def _whole(self, part: IndexMap) -> IndexMap:
        """The same voxels with all channels of the base."""
        channels = self.shapes[part.base][1]
        return IndexMap(
            part.base, part.rows, np.arange(channels, dtype=np.int32).reshape((1,) * (part.rows.ndim - 1) + (-1,))
        )

    def _beside(self, node: Any, bases: list[str]) -> tuple[str, list[int]]:
        """One tensor that holds several, and the channel where each begins."""
        different = list(dict.fromkeys(bases))
        if len(different) == 1:
            return different[0], [0] * len(bases)
        if len({self.shapes[base][2:] for base in different}) > 1:
            raise unsupported(node, "its queries, keys and values lie differently")
        begins = np.cumsum([0, *(self.shapes[base][1] for base in different)])
        whole = IndexMap.still(different[0], self.shapes[different[0]])
        name = f"{node.output[0]}_taken"
        self.through(node, "concat", whole, name, tuple(different[1:]))
        self.shapes[name] = (1, int(begins[-1]), *self.shapes[different[0]][2:])
        return name, [int(begins[different.index(base)]) for base in bases]
