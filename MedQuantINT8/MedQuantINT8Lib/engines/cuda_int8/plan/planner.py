"""From a network's nodes to a plan: what can be done to a value where it is made is done there, before it is stored.

Nodes are taken in order. One that needs its neighbors or sums (convolution, pooling, resizing, normalization) begins a step; one that
does not (activation, sum, scale and shift) is added to the epilogue of the step that makes its input, if that value has no other reader.
Which forms of a tensor are stored (FP16, INT8 of some scale) is known when all readers are: stores are put in last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base import UnsupportedNetwork
from ..frontend.nodes import Network, Node
from .buffers import Tensors, placed
from .kernel_plan import Attention, Geometry, KernelPlan, Layout, Norm, Op, Size, Step, View
from .merging import merged
from .open_step import HALF, Form, OpenStep, closed
from .recompute import recomputed
from .resize_tables import resize_tables

#: A first convolution of no more products than this is done pointwise, on voxels that hold their neighbors, if what a small tile looks at is no
#: more numbers of the input than these: each takes ten bytes of shared memory.
_MOST_NEIGHBORS, _SMALL_TILE, _MOST_INPUTS = 128, (2, 4, 8), 6000
#: Steps whose kernels have no place for statistics.
_GATHERING_NONE = ("softmax", "layernorm", "attention")


def plan_network(network: Network) -> KernelPlan:
    """The plan of a network.

    Raises:
        UnsupportedNetwork: tensors of different layout meet, or an operator stands where it cannot; names the node.
    """
    return _Planner(network).run()


class _Planner:
    def __init__(self, network: Network) -> None:
        self._network = network
        first, last = network.shapes[network.input], network.shapes[network.output]
        self._plan = KernelPlan(first[1], last[1], _size(first))
        self._open_steps: list[OpenStep] = []
        self._where: dict[str, OpenStep] = {}
        self._concats: dict[str, tuple[str, ...]] = {}
        #: What a tensor of INT8 is: another tensor, rounded to a scale.
        self._rounded: dict[str, tuple[str, float]] = {}
        self._forms: dict[str, dict[Form, None]] = {}
        self._readers: dict[str, int] = {network.output: 1}
        self._joins: dict[str, int] = {}
        for node in network.nodes:
            for name in node.inputs:
                self._readers[name] = self._readers.get(name, 0) + (node.op != "quant")
                self._joins[name] = self._joins.get(name, 0) + (node.op == "concat")

    def run(self) -> KernelPlan:
        network = self._network
        begun = self._begin("input", Node("input", network.input, (), network.input), None)
        begun.step = replace(begun.step, source_size=self._plan.size)
        for node in network.nodes:
            getattr(self, f"_{node.op}")(node)
        self._insert(network.output, Op("output"))
        self._finish()
        return merged(recomputed(self._plan))

    # What each node becomes.

    def _quant(self, node: Node) -> None:
        source = node.inputs[0]
        if source in self._rounded:
            source = self._copied(source)
        self._rounded[node.output] = source, float(node.values["scale"])

    def _conv(self, node: Node) -> None:
        self._convolution(node, "conv")

    def _deconv(self, node: Node) -> None:
        self._convolution(node, "deconv")

    def _convolution(self, node: Node, kind: str) -> None:
        values = node.values
        weight, scales, source = values["weight"], values["scales"], node.inputs[0]
        rounded = source in self._rounded
        int8 = rounded and scales is not None
        if rounded and not int8:
            source = self._copied(source)
        form = self._rounded[source][1] if int8 else HALF
        geometry = Geometry(weight.shape[2:], values["stride"], values["dilation"], values["before"])
        if kind == "conv" and self._is_first(source, weight, geometry):
            open_step, weight = self._first(node, form, geometry)
            geometry = Geometry()
        else:
            open_step = self._begin(kind, node, source, form)
        if scales is None:
            # Powers of two cost nothing and keep small weights away from where FP16 has few bits.
            scales = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-30)))
            weight = (weight / scales.reshape(-1, 1, 1, 1, 1)).astype(np.float16)
        scale = (scales * (form if int8 else 1.0)).astype(np.float32)
        layout = open_step.step.layout
        places = int(np.prod(open_step.step.size if kind == "conv" else open_step.step.source_size))
        open_step.step = replace(
            open_step.step, geometry=geometry, weights=self._array(weight), int8=int8, macs=int(weight.size) * places
        )
        self._extend(
            open_step,
            Op("affine", arrays=(self._array(layout.placed(scale)), self._array(layout.placed(values["bias"])))),
            node,
        )

    def _is_first(self, source: str, weight: NDArray[Any], geometry: Geometry) -> bool:
        """Whether a convolution has so few input channels that tensor cores, which take 32 at once, would mostly multiply zeros."""
        base = self._rounded.get(source, (source, 0))[0]
        inputs = int(np.prod(geometry.region(_SMALL_TILE))) * weight.shape[1]
        return base == self._network.input and weight[0].size <= _MOST_NEIGHBORS and inputs <= _MOST_INPUTS

    def _first(self, node: Node, form: Form, geometry: Geometry) -> tuple[OpenStep, NDArray[Any]]:
        """A first convolution as a pointwise one over slots that are the neighbors of each voxel, and its weights."""
        weight = node.values["weight"]
        open_step = self._begin("conv", node, None)
        slots = weight[0].size
        open_step.step = replace(open_step.step, source=View("", 0, Layout.dense(slots), form), neighbors=geometry)
        return open_step, np.moveaxis(weight, 1, -1).reshape(len(weight), slots, 1, 1, 1)

    def _maxpool(self, node: Node) -> None:
        values = node.values
        open_step = self._begin(node.op, node, node.inputs[0])
        geometry = Geometry(values["kernel"], values["stride"], values["dilation"], values["before"], values["whole"])
        open_step.step = replace(open_step.step, geometry=geometry)

    _avgpool = _maxpool

    def _resize(self, node: Node) -> None:
        open_step = self._begin("resize", node, node.inputs[0])
        tables = resize_tables(open_step.step.source_size, open_step.step.size, node.values)
        open_step.step = replace(open_step.step, tables=tuple(self._array(table) for table in tables))

    def _softmax(self, node: Node) -> None:
        self._begin("softmax", node, node.inputs[0])

    def _move(self, node: Node) -> None:
        open_step = self._begin("move", node, node.inputs[0])
        open_step.step = replace(open_step.step, tables=(self._array(node.values["rows"]),))

    def _layernorm(self, node: Node) -> None:
        open_step, values = self._begin("layernorm", node, node.inputs[0]), node.values
        tables = [self._array(open_step.step.layout.placed(values[key])) for key in ("gamma", "beta")]
        tables += [self._array(values["rows"])] if "rows" in values else []
        open_step.step = replace(open_step.step, tables=tuple(tables), epsilon=values["epsilon"])

    def _attention(self, node: Node) -> None:
        open_step, values = self._begin("attention", node, node.inputs[0], HALF), node.values
        layout = self._layout(node.inputs[0])
        if not np.array_equal(layout.slots, np.arange(layout.channels)):
            raise UnsupportedNetwork(
                f"CUDA INT8 cannot take queries, keys and values of such widths (node {node.name}).",
                "Choose another engine with --engine.",
            )
        tables = {"rows": values["rows"], "bias": values["bias"], "regions": None}
        if tables["bias"] is not None:
            tables["bias"] = np.pad(tables["bias"], ((0, 0), (0, 0), (0, -values["tokens"] % 8))).astype(np.float16)
        tables["regions"], apart = values["mask"] or (None, 0.0)
        attention = Attention(
            **{key: values[key] for key in ("windows", "tokens", "heads", "width", "starts", "scale")}, apart=apart
        )
        open_step.step = replace(
            open_step.step,
            layout=Layout.dense(attention.heads * attention.width),
            attention=attention,
            tables=tuple("" if table is None else self._array(table) for table in tables.values()),
            macs=2 * attention.windows * attention.heads * attention.tokens**2 * attention.width,
        )

    def _norm(self, node: Node) -> None:
        source = node.inputs[0]
        open_step = self._where.get(source)
        name = f"norm{len(self._plan.norms)}"
        if (
            open_step is None
            or open_step.step.kind in _GATHERING_NONE
            or any(isinstance(op, Op) and op.kind == "statistics" for op in open_step.epilogue)
        ):
            # Joined or rounded tensors have no epilogue of their own to gather statistics in, and an epilogue gathers no more than one.
            gathering = self._begin("elementwise", replace(node, output=f"{source}_looked_at"), source)
            gathering.epilogue.append(Op("statistics", norm=name))
            layout = gathering.step.layout
        else:
            layout = open_step.step.layout
            self._insert(source, Op("statistics", norm=name))
        values, slots = node.values, layout.slots
        groups = tuple(tuple(int(s) for s in part) for part in np.split(slots, values["groups"]))
        gamma, beta = (self._array(layout.placed(values[key])) for key in ("gamma", "beta"))
        self._plan.norms[name] = Norm(groups, gamma, beta, values["epsilon"])
        size = _size(self._network.shapes[node.output])
        self._open_steps.append(OpenStep(Step("normalize", f"{node.name} statistics", size, size, layout, norm=name)))
        applied = self._begin("elementwise", node, source)
        self._extend(applied, Op("norm", norm=name), node)

    def _act(self, node: Node) -> None:
        if node.values["function"] == "rest" and (open_step := self._open(node.inputs[0], beside_joins=True)):
            # Only its rounded form is read: worked out where the whole value is, which a joined tensor may take as well.
            self._extend(open_step, Op("act", function="rest", params=node.values["params"]), node)
            return
        self._elementwise(node, Op("act", function=node.values["function"], params=node.values["params"]))

    def _prelu(self, node: Node) -> None:
        self._elementwise(node, Op("prelu"), node.values["slope"])

    def _affine(self, node: Node) -> None:
        self._elementwise(node, Op("affine"), node.values["scale"], node.values["shift"])

    def _offset(self, node: Node) -> None:
        open_step = self._open(node.inputs[0]) or self._begin("elementwise", node, node.inputs[0])
        layout, table = open_step.step.layout, node.values["table"]
        placed = np.zeros((len(table), layout.width), np.float32)
        placed[:, layout.slots] = table
        self._extend(open_step, Op("offset", arrays=(self._array(placed),)), node)

    def _elementwise(self, node: Node, op: Op, *by_channel: NDArray[Any]) -> None:
        open_step = self._open(node.inputs[0]) or self._begin("elementwise", node, node.inputs[0])
        op = replace(op, arrays=tuple(self._array(open_step.step.layout.placed(values)) for values in by_channel))
        self._extend(open_step, op, node)

    def _add(self, node: Node) -> None:
        a, b = node.inputs
        epilogues = [
            (open_step, other)
            for value, other in ((a, b), (b, a))
            if (open_step := self._open(value)) and self._before(other, open_step)
        ]
        if epilogues:
            open_step, other = max(epilogues, key=lambda pair: self._open_steps.index(pair[0]))
        else:
            open_step, other = self._begin("elementwise", node, a), b
        if self._layout(other) != open_step.step.layout:
            raise UnsupportedNetwork(
                f"CUDA INT8 cannot take two tensors of different layout together (node {node.name}).",
                "Choose another engine with --engine.",
            )
        norm = self._norm_alone(other, open_step)
        open_step.others[len(open_step.epilogue)] = self._read(other) if norm is None else norm[0]
        self._extend(open_step, Op(node.op, norm="" if norm is None else norm[1]), node)

    _mul = _add

    def _norm_alone(self, name: str, open_step: OpenStep) -> tuple[tuple[str, Form], str] | None:
        """For a tensor that is another one normalized, and is read by this step alone: that other one and its statistics. It need not be stored then."""
        step = self._where.get(name)
        if (
            step is None
            or step.step.kind != "elementwise"
            or self._readers.get(name) != 1
            or name in self._forms
            or not self._before(name, open_step)
        ):
            return None
        if (
            len(step.epilogue) != 2
            or not isinstance(op := step.epilogue[0], Op)
            or op.kind != "norm"
            or step.reads is None
        ):
            return None
        self._open_steps.remove(step)
        open_step.step = replace(
            open_step.step, sources=tuple(dict.fromkeys((*step.step.sources, *open_step.step.sources)))
        )
        return step.reads, op.norm

    def _concat(self, node: Node) -> None:
        parts: list[str] = []
        for name in node.inputs:
            name = self._copied(name) if name in self._rounded else name
            parts += self._concats.get(name, (name,))
        self._concats[node.output] = tuple(parts)

    # Steps and their epilogues.

    def _begin(self, kind: str, node: Node, source: str | None, form: Form | None = None) -> OpenStep:
        """A new step for a node; it reads ``source`` in the form asked for, or the one that is at hand."""
        shape = self._network.shapes.get(node.output) or self._network.shapes[source or node.output]
        size, layout = _size(shape), Layout.dense(shape[1])
        source_size, reads = size, None
        if source is not None:
            reads = self._read(source, form)
            source_size = _size(self._shape(source))
            if kind not in ("conv", "deconv"):
                layout = self._layout(source)
        open_step = OpenStep(
            Step(kind, node.name, size, source_size, layout, sources=node.sources), [node.output], reads
        )
        self._open_steps.append(open_step)
        self._where[node.output] = open_step
        return open_step

    def _extend(self, open_step: OpenStep, op: Op, node: Node) -> None:
        if open_step.value == node.output:
            # The node that began the step: its own work comes before its value.
            open_step.epilogue.insert(len(open_step.epilogue) - 1, op)
            return
        open_step.epilogue += [op, node.output]
        open_step.step = replace(open_step.step, sources=tuple(dict.fromkeys((*open_step.step.sources, *node.sources))))
        self._where[node.output] = open_step

    def _open(self, name: str, *, beside_joins: bool = False) -> OpenStep | None:
        """The step whose epilogue ends in this tensor, if nobody else reads it; with ``beside_joins`` nobody but joined tensors."""
        open_step = self._where.get(name)
        others = self._joins.get(name, 0) if beside_joins else 0
        return (
            open_step
            if open_step is not None
            and open_step.value == name
            and self._readers.get(name, 0) - others == 1
            and open_step.step.kind != "input"
            else None
        )

    def _before(self, name: str, open_step: OpenStep) -> bool:
        """Whether a tensor is whole before a step begins."""
        number = self._open_steps.index(open_step)
        base = self._rounded.get(name, (name, 0))[0]
        return all(self._open_steps.index(self._where[part]) < number for part in self._concats.get(base, (base,)))

    def _copied(self, rounded: str) -> str:
        """An INT8 tensor as a value with an epilogue of its own."""
        name = f"{rounded}_value"
        if name not in self._where:
            self._begin("elementwise", Node("elementwise", name, (rounded,), name), rounded)
        return name

    def _read(self, name: str, form: Form | None = None) -> tuple[str, Form]:
        base, scale = self._rounded.get(name, (name, HALF))
        wanted = scale if form is None else form
        self._forms.setdefault(base, {})[wanted] = None
        return base, wanted

    def _insert(self, name: str, op: Op) -> None:
        """An operation on a tensor's value, as soon as it is there."""
        open_step = self._where.get(name)
        if open_step is None:
            # The network's output is a joined or a rounded tensor.
            open_step = self._begin(
                "elementwise", Node("elementwise", f"{name} given out", (name,), f"{name}_out"), name
            )
            name = open_step.value
        place = open_step.epilogue.index(name) + 1
        open_step.epilogue.insert(place, op)
        open_step.others = {n + (n >= place): other for n, other in open_step.others.items()}

    def _array(self, values: NDArray[Any]) -> str:
        name = f"a{len(self._plan.arrays)}"
        self._plan.arrays[name] = np.ascontiguousarray(values)
        return name

    def _shape(self, name: str) -> tuple[int, ...]:
        base = self._rounded.get(name, (name, 0))[0]
        return self._network.shapes.get(base) or self._network.shapes[name.removesuffix("_value")]

    def _layout(self, name: str) -> Layout:
        base = self._rounded.get(name, (name, 0))[0]
        if base not in self._concats:
            return self._where[base].step.layout
        parts: list[tuple[int, int]] = []
        begin = 0
        for part in self._concats[base]:
            inner = self._where[part].step.layout
            parts += [(begin + first, count) for first, count in inner.parts]
            begin += inner.width
        return Layout(tuple(parts), begin).merged()

    def _finish(self) -> None:
        """Give each tensor its place, and close the steps."""
        tensors = Tensors(self._forms, self._concats, self._layout, lambda name: _size(self._shape(name)))
        buffers, views, stores = placed(tensors)
        self._plan.buffers |= buffers
        steps = (closed(open_step, views, stores) for open_step in self._open_steps)
        # The network's input may have no reader left.
        self._plan.steps += [step for step in steps if step.ops or step.kind == "normalize"]


def _size(shape: tuple[int, ...]) -> Size:
    return shape[-3], shape[-2], shape[-1]
