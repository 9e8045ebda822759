"""Following an ONNX graph: which tensor (1, C, A0, A1, A2) a tensor's numbers lie in, and where, until they must be moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models import onnx_graph as graph
from ...base import UnsupportedNetwork
from ..plan.index_maps import NOWHERE, Moved
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
        self._moved: dict[str, Moved] = {}
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
        """As the graph has it, of any rank."""
        return tuple(self.graph.shapes[name])

    def moved(self, name: str) -> Moved:
        """What a tensor is.

        Raises:
            UnsupportedNetwork: its shape is not known beforehand.
        """
        name = self.tensor(name)
        if name not in self._moved:
            shape = self.shapes.get(name, ())
            if len(shape) != 5 or not all(shape):
                raise UnsupportedNetwork(
                    f"CUDA INT8 needs the shapes of all tensors; that of {name} does not follow from the patch.",
                    "Choose another engine with --engine.",
                )
            self._moved[name] = Moved.still(name, shape)
        return self._moved[name]

    def put(self, name: str, moved: Moved) -> None:
        self._moved[name] = moved

    def plain(self, node: Any, name: str) -> str:
        """A tensor (1, C, A0, A1, A2) that lies as it says, for a node that takes no other."""
        moved, shape = self.moved(name), self.shape(self.tensor(name))
        if len(shape) != 5:
            raise unsupported(node, "it takes another tensor than one of patches")
        if moved.is_still(self.shapes[moved.base]) and self.shapes[moved.base] == shape:
            return moved.base
        if moved.rows.shape != (1, 1, *shape[2:]):
            raise unsupported(node, "its channels are not along the second axis")
        return self.carried_out(moved, shape[2:]).base

    def emit(self, node: Any, op: str, inputs: tuple[str, ...], **values: Any) -> None:
        """A node of tensors that lie as they say."""
        self.nodes.append(
            Node(op, node.name, tuple(self.plain(node, name) for name in inputs), node.output[0], values, (node.name,))
        )

    def through(
        self, node: Any, op: str, moved: Moved, output: str, others: tuple[str, ...] = (), /, **values: Any
    ) -> None:
        """A node that does to each number, or voxel, what it does wherever that lies: its result lies as its input."""
        if moved.has_gaps or moved.scale != 1.0:
            moved = self.carried_out(moved)
        sources = values.pop("sources", (node.name,))
        self.nodes.append(Node(op, node.name, (moved.base, *others), output, values, sources))
        self.shapes[output] = self.shapes[moved.base]
        self.put(output, replace(moved, base=output))

    def rounded(self, name: str, base: str, scale: float) -> str:
        """A base rounded to a scale of INT8, under this name unless there is one already."""
        known = self._quantized.setdefault((base, scale), name)
        if known == name:
            self.nodes.append(Node("quant", name, (base,), name, {"scale": scale}))
            self.shapes[name] = self.shapes[base]
            self._unrounded[name] = base, scale
        return known

    def ordered(self, moved: Moved) -> Moved:
        """The same tensor over a base that has its channels in order: picked out of another, perhaps several times; 0 for NOWHERE.

        Picking is a product with zeros and ones, which is exact in FP16.
        """
        columns, shape = moved.columns.reshape(-1), self.shapes[moved.base]
        if np.array_equal(columns, np.arange(shape[1])):
            return moved
        order = np.arange(columns.size, dtype=np.int32).reshape(moved.columns.shape)
        if moved.base in self._unrounded:
            base, scale = self._unrounded[moved.base]
            whole = self.ordered(replace(moved, base=base)).base
            return replace(moved, base=self.rounded(f"{whole}_to_{scale:.9g}", whole, scale), columns=order)
        key = moved.base, columns.tobytes(), ()
        if key not in self._carried:
            name = f"{moved.base}_picked{len(self._carried)}"
            weight = (columns[:, None] == np.arange(shape[1])).astype(np.float32).reshape(-1, shape[1], 1, 1, 1)
            values = {"weight": weight, "scales": None, "bias": np.zeros(columns.size, np.float32), **POINTWISE}
            self.nodes.append(Node("conv", name, (moved.base,), name, values))
            self.shapes[name] = (1, columns.size, *shape[2:])
            self._carried[key] = name
        return replace(moved, base=self._carried[key], columns=order)

    def settled(self, moved: Moved) -> Moved:
        """The same tensor with all channels of its base and no gaps, as what meets constants must be."""
        if moved.has_gaps or moved.scale != 1.0:
            return self.carried_out(moved)
        return moved if moved.has_all_channels(self.shapes[moved.base][1]) else self.ordered(moved)

    def covers(self, moved: Moved) -> bool:
        """Whether its voxels are all of its base's, each once, but for those that fill up a group."""
        voxels = self._voxels(moved.base)
        if moved.rows.size == voxels and moved.in_order:
            return True
        rows = np.sort(moved.rows.reshape(-1))
        return rows.size > voxels - _TOGETHER and rows[0] >= 0 and bool((np.diff(rows) > 0).all())

    def _voxels(self, base: str) -> int:
        return int(np.prod(self.shapes[base][2:]))

    def carried_out(self, moved: Moved, size: tuple[int, ...] | None = None) -> Moved:
        """The movement done: the same tensor, whose voxels lie in order in a base of their own.

        Args:
            size: of the new base; by default a row of voxels, filled up.
        """
        rows = moved.rows.reshape(-1)
        if size is None:
            rows = np.pad(rows, (0, -rows.size % _TOGETHER), constant_values=NOWHERE)
            size = (1, rows.size // _TOGETHER, _TOGETHER)
        base = self.gathered(moved, rows, size)
        order, columns = (
            np.arange(table.size, dtype=np.int32).reshape(table.shape) for table in (moved.rows, moved.columns)
        )
        return Moved(base, order, columns)

    def gathered(self, moved: Moved, rows: NDArray[np.int32], size: tuple[int, ...]) -> str:
        """A tensor (1, C, *size) of these voxels of a base. What was rounded is so again afterwards: moving and rounding may change places."""
        if moved.base in self._unrounded:
            base, scale = self._unrounded[moved.base]
            whole = self.gathered(replace(moved, base=base), rows, size)
            return self.rounded(f"{whole}_to_{scale:.9g}", whole, scale)
        moved = self.ordered(moved)
        shape = self.shapes[moved.base]
        channels = shape[1]
        if moved.scale == 1.0 and size == shape[2:] and np.array_equal(rows, np.arange(rows.size)):
            return moved.base
        key = moved.base, rows.tobytes(), size
        if key not in self._carried:
            name = f"{moved.base}_moved{len(self._carried)}"
            self.nodes.append(Node("move", name, (moved.base,), name, {"rows": rows}))
            self.shapes[name] = (1, channels, *size)
            self._carried[key] = name
        name = self._carried[key]
        if moved.scale == 1.0:
            return name
        scaled = f"{name}_by_{moved.scale:.9g}"
        if scaled not in self.shapes:
            values = {"scale": np.full(channels, moved.scale, np.float32), "shift": np.zeros(channels, np.float32)}
            self.nodes.append(Node("affine", scaled, (name,), scaled, values))
            self.shapes[scaled] = self.shapes[name]
        return scaled
