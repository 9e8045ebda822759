"""Following an ONNX graph: which tensor (1, C, A0, A1, A2) a tensor's numbers lie in, and where, until they must be moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import onnx_graph as graph
from ...base import UnsupportedNetwork
from ..plan.index_maps import NOWHERE, IndexMap
from .nodes import Node, unsupported

#: How a pointwise convolution goes over its input.
POINTWISE = {"stride": (1, 1, 1), "dilation": (1, 1, 1), "before": (0, 0, 0)}
#: Rows of a table of voxels are filled up to whole groups of so many, so that pointwise convolutions can take them in a row.
_TOGETHER = 8


class Tracer:
    """The state of reading: nodes so far, and what each tensor is.

    Attributes:
        nodes: in order.
        shapes: (1, C, A0, A1, A2) of every tensor that a node makes or takes.
    """

    def __init__(self, model: Any) -> None:
        self.graph = graph.Graph(model)
        self.shapes = {name: tuple(shape) for name, shape in self.graph.shapes.items()}
        self.nodes: list[Node] = []
        #: Tensors that are another one under a new name.
        self._alias: dict[str, str] = {}
        self._index_maps: dict[str, IndexMap] = {}
        #: Rounded tensors by what was rounded, and to which scale; and the reverse.
        self._quantized: dict[tuple[str, float], str] = {}
        self._unrounded: dict[str, tuple[str, float]] = {}
        self._carried: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def tensor(self, name: str) -> str:
        while name in self._alias:
            name = self._alias[name]
        return name

    def array(self, name: str) -> NDArray[Any] | None:
        value = self.graph.array(name)
        return None if value is None else np.asarray(value)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as the graph has it, of any rank."""
        return tuple(self.graph.shapes[name])

    def index_map(self, name: str) -> IndexMap:
        """Return the index map of a tensor: which numbers of which base it is.

        Raises:
            UnsupportedNetwork: its shape is not known beforehand.
        """
        name = self.tensor(name)
        if name not in self._index_maps:
            shape = self.shapes.get(name, ())
            if len(shape) != 5 or not all(shape):
                raise UnsupportedNetwork(
                    f"CUDA INT8 needs the shapes of all tensors; that of {name} does not follow from the patch.",
                    "Choose another engine with --engine.",
                )
            self._index_maps[name] = IndexMap.still(name, shape)
        return self._index_maps[name]

    def put(self, name: str, index_map: IndexMap) -> None:
        self._index_maps[name] = index_map

    def plain(self, node: Any, name: str) -> str:
        """A tensor (1, C, A0, A1, A2) that lies as it says, for a node that takes no other."""
        index_map, shape = self.index_map(name), self.shape(self.tensor(name))
        if len(shape) != 5:
            raise unsupported(node, "it takes another tensor than one of patches")
        if index_map.is_still(self.shapes[index_map.base]) and self.shapes[index_map.base] == shape:
            return index_map.base
        if index_map.rows.shape != (1, 1, *shape[2:]):
            raise unsupported(node, "its channels are not along the second axis")
        return self.carried_out(index_map, shape[2:]).base

    def emit(self, node: Any, op: str, inputs: tuple[str, ...], **values: Any) -> None:
        """A node of tensors that lie as they say."""
        self.nodes.append(
            Node(op, node.name, tuple(self.plain(node, name) for name in inputs), node.output[0], values, (node.name,))
        )

    def through(
        self, node: Any, op: str, index_map: IndexMap, output: str, others: tuple[str, ...] = (), /, **values: Any
    ) -> None:
        """A node that does to each number, or voxel, what it does wherever that lies: its result lies as its input."""
        if index_map.has_gaps or index_map.scale != 1.0:
            index_map = self.carried_out(index_map)
        sources = values.pop("sources", (node.name,))
        self.nodes.append(Node(op, node.name, (index_map.base, *others), output, values, sources))
        self.shapes[output] = self.shapes[index_map.base]
        self.put(output, replace(index_map, base=output))

    def rounded(self, name: str, base: str, scale: float) -> str:
        """A base rounded to a scale of INT8, under this name unless there is one already."""
        known = self._quantized.setdefault((base, scale), name)
        if known == name:
            self.nodes.append(Node("quant", name, (base,), name, {"scale": scale}))
            self.shapes[name] = self.shapes[base]
            self._unrounded[name] = base, scale
        return known

    def ordered(self, index_map: IndexMap) -> IndexMap:
        """The same tensor over a base that has its channels in order: picked out of another, perhaps several times; 0 for NOWHERE.

        Picking is a product with zeros and ones, which is exact in FP16.
        """
        columns, shape = index_map.columns.reshape(-1), self.shapes[index_map.base]
        if np.array_equal(columns, np.arange(shape[1])):
            return index_map
        order = np.arange(columns.size, dtype=np.int32).reshape(index_map.columns.shape)
        if index_map.base in self._unrounded:
            base, scale = self._unrounded[index_map.base]
            whole = self.ordered(replace(index_map, base=base)).base
            return replace(index_map, base=self.rounded(f"{whole}_to_{scale:.9g}", whole, scale), columns=order)
        key = index_map.base, columns.tobytes(), ()
        if key not in self._carried:
            name = f"{index_map.base}_picked{len(self._carried)}"
            weight = (columns[:, None] == np.arange(shape[1])).astype(np.float32).reshape(-1, shape[1], 1, 1, 1)
            values = {"weight": weight, "scales": None, "bias": np.zeros(columns.size, np.float32), **POINTWISE}
            self.nodes.append(Node("conv", name, (index_map.base,), name, values))
            self.shapes[name] = (1, columns.size, *shape[2:])
            self._carried[key] = name
        return replace(index_map, base=self._carried[key], columns=order)

    def settled(self, index_map: IndexMap) -> IndexMap:
        """The same tensor with all channels of its base and no gaps, as what meets constants must be."""
        if index_map.has_gaps or index_map.scale != 1.0:
            return self.carried_out(index_map)
        return index_map if index_map.has_all_channels(self.shapes[index_map.base][1]) else self.ordered(index_map)

    def covers(self, index_map: IndexMap) -> bool:
        """Whether its voxels are all of its base's, each once, but for those that fill up a group."""
        voxels = self._voxels(index_map.base)
        if index_map.rows.size == voxels and index_map.in_order:
            return True
        rows = np.sort(index_map.rows.reshape(-1))
        return rows.size > voxels - _TOGETHER and rows[0] >= 0 and bool((np.diff(rows) > 0).all())

    def _voxels(self, base: str) -> int:
        return int(np.prod(self.shapes[base][2:]))

    def carried_out(self, index_map: IndexMap, size: tuple[int, ...] | None = None) -> IndexMap:
        """The movement done: the same tensor, whose voxels lie in order in a base of their own.

        Args:
            size: of the new base; by default a row of voxels, filled up.
        """
        rows = index_map.rows.reshape(-1)
        if size is None:
            rows = np.pad(rows, (0, -rows.size % _TOGETHER), constant_values=NOWHERE)
            size = (1, rows.size // _TOGETHER, _TOGETHER)
        base = self.gathered(index_map, rows, size)
        order, columns = (
            np.arange(table.size, dtype=np.int32).reshape(table.shape) for table in (index_map.rows, index_map.columns)
        )
        return IndexMap(base, order, columns)

    def gathered(self, index_map: IndexMap, rows: NDArray[np.int32], size: tuple[int, ...]) -> str:
        """A tensor (1, C, *size) of these voxels of a base. What was rounded is so again afterwards: moving and rounding may change places."""
        if index_map.base in self._unrounded:
            base, scale = self._unrounded[index_map.base]
            whole = self.gathered(replace(index_map, base=base), rows, size)
            return self.rounded(f"{whole}_to_{scale:.9g}", whole, scale)
        index_map = self.ordered(index_map)
        shape = self.shapes[index_map.base]
        channels = shape[1]
        if index_map.scale == 1.0 and size == shape[2:] and np.array_equal(rows, np.arange(rows.size)):
            return index_map.base
        key = index_map.base, rows.tobytes(), size
        if key not in self._carried:
            name = f"{index_map.base}_moved{len(self._carried)}"
            self.nodes.append(Node("move", name, (index_map.base,), name, {"rows": rows}))
            self.shapes[name] = (1, channels, *size)
            self._carried[key] = name
        name = self._carried[key]
        if index_map.scale == 1.0:
            return name
        scaled = f"{name}_by_{index_map.scale:.9g}"
        if scaled not in self.shapes:
            values = {"scale": np.full(channels, index_map.scale, np.float32), "shift": np.zeros(channels, np.float32)}
            self.nodes.append(Node("affine", scaled, (name,), scaled, values))
            self.shapes[scaled] = self.shapes[name]
        return scaled
