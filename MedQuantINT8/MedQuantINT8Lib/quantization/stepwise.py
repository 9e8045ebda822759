"""A network run piece by piece over several patches at once, so that a layer's weights can be changed before it runs.

Learned rounding (:mod:`.rounding`) needs each layer's inputs as the layers before it leave them, which change while they are
learned. Run anew for each layer, a network of 60 layers would take 60 passes; run piece by piece it takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.float_session import float_session
from ..models import onnx_graph as graph
from ..models.onnx_graph import Graph

Patch = NDArray[np.float32]


class StepwiseRun:
    """One pass of a network over several patches, which stops wherever a tensor is asked for.

    Constants of nodes that have not run yet may be changed in ``model`` in between.

    Args:
        model: a network of fixed shapes without branches and loops (:func:`is_plain`).
        precision: "fp32", or "int8" to compute Q/DQ pairs as they are written.
        patches: (C, A0, A1, A2) each, of the network's size.
        load: loads a piece, in place of the fastest runtime at hand.
    """

    def __init__(
        self, model: Any, precision: str, patches: Sequence[Patch], load: Callable[[bytes, str], Any] = float_session
    ) -> None:
        self.model, self._precision, self._load = model, precision, load
        self._graph = Graph(model)
        self._constant_nodes = {
            id(node) for node in self._graph.nodes if all(self._graph.is_constant(name) for name in node.output if name)
        }
        self._done: set[int] = set()
        input_name = graph.network_shape(model).input_name
        self._values: list[dict[str, NDArray[Any]]] = [{input_name: patch[None]} for patch in patches]
        self._ends = {value.name for value in model.graph.output}

    def tensor(self, name: str) -> list[NDArray[Any]]:
        """Return a tensor's values for each patch; whatever it depends on is run first.

        Tensors have to be asked for in the order of the graph: what no later node reads is forgotten.
        """
        if any(name not in values for values in self._values):
            self._run_up_to(name)
        return [values[name] for values in self._values]

    def _run_up_to(self, name: str) -> None:
        nodes = self._missing_nodes(name)
        self._done |= {id(node) for node in nodes if id(node) not in self._constant_nodes}
        new = {output for node in nodes for output in node.output if output and not self._graph.is_constant(output)}
        wanted = sorted(tensor for tensor in new if tensor == name or self._is_read_later(tensor))
        inputs = sorted({tensor for node in nodes for tensor in node.input if tensor in self._values[0]})
        run = self._load(self._piece(nodes, inputs, wanted).SerializeToString(), self._precision)
        for values in self._values:
            results = run.run(wanted, {tensor: values[tensor] for tensor in inputs})
            values.update(zip(wanted, results, strict=True))
            for tensor in [t for t in values if t != name and not self._is_read_later(t)]:
                del values[tensor]

    def _is_read_later(self, tensor: str) -> bool:
        return tensor in self._ends or any(id(node) not in self._done for node in self._graph.readers.get(tensor, ()))

    def _missing_nodes(self, name: str) -> list[Any]:
        """The nodes that ``name`` depends on and that have not run, in the graph's order; what makes constants is always among them."""
        pending, missing = [name], set()
        while pending:
            tensor = pending.pop()
            node = self._graph.producer.get(tensor)
            if tensor in self._values[0] or node is None or id(node) in missing:
                continue
            if id(node) in self._done:
                raise ValueError(f"the tensor {tensor} was asked for after what reads it had run")
            missing.add(id(node))
            pending.extend(value for value in node.input if value)
        return [node for node in self._graph.nodes if id(node) in missing]

    def _piece(self, nodes: list[Any], inputs: list[str], outputs: list[str]) -> Any:
        """The nodes as a network of their own."""
        onnx = graph.require_onnx()
        read = {name for node in nodes for name in node.input}
        piece = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        piece.functions.extend(self.model.functions)
        piece.graph.name = "piece"
        piece.graph.node.extend(nodes)
        for name in inputs:
            array = self._values[0][name]
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            piece.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        piece.graph.initializer.extend(constant for constant in self.model.graph.initializer if constant.name in read)
        return piece


def is_plain(model: Any) -> bool:
    """Return whether a network has neither branches nor loops, whose bodies may read any tensor."""
    return not any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)


def peak_bytes(model: Any) -> int:
    """Return the most bytes that a :class:`StepwiseRun` keeps of one patch: all tensors that a later node reads, in FP32.

    Args:
        model: a network whose shapes are noted (:func:`..models.onnx_graph.fixed_shape`).
    """
    network = Graph(model)
    last = {name: n for n, node in enumerate(network.nodes) for name in node.input if not network.is_constant(name)}
    kept = {value.name: 0 for value in model.graph.input if value.name in last}
    peak = 0
    for n, node in enumerate(network.nodes):
        kept.update((name, n) for name in node.output if name in last)
        peak = max(peak, sum(4 * int(np.prod(network.shapes.get(name) or [0])) for name in kept))
        kept = {name: begin for name, begin in kept.items() if last[name] > n}
    return peak
