"""Names of a graph's tensors: which there are, new ones that meet none of them, and renaming, in bodies of loops and branches too."""

from __future__ import annotations

from typing import Any


def free_name(preferred: str, used_names: set[str]) -> str:
    """Return ``preferred``, with a number behind it if it is among ``used_names``, and add the result to these."""
    name, number = preferred, 2
    while name in used_names:
        name, number = f"{preferred}_{number}", number + 1
    used_names.add(name)
    return name


def tensor_names(model: Any) -> set[str]:
    """Return the names of all tensors of a graph: inputs, outputs, constants, and what nodes read and give, in bodies of loops and branches too."""
    return _names_in(model.graph, within=True)


def _names_in(graph: Any, *, within: bool) -> set[str]:
    names = {
        value.name for field in (graph.input, graph.output, graph.initializer, graph.value_info) for value in field
    }
    names |= {constant.values.name for constant in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for body in _bodies(node) if within else ():
            names |= _names_in(body, within=True)
    # An optional input that is left out has no name.
    return names - {""}


def _bodies(node: Any) -> list[Any]:
    return [
        body
        for attribute in node.attribute
        for body in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ()))
    ]


class FreshNames:
    """Names for new tensors that no tensor of the network has: exporters choose names freely, also such as are made here."""

    def __init__(self, model: Any) -> None:
        self._used_names = tensor_names(model)

    def __call__(self, preferred: str) -> str:
        """Return ``preferred``, with a number behind it if it is in use; the same name is never returned twice."""
        return free_name(preferred, self._used_names)


def rename_tensors(model: Any, names: dict[str, str]) -> None:
    """Give tensors of the graph itself other names, in place, also where bodies of loops and branches read them. ``names`` is applied
    once, not followed."""
    graph = model.graph
    for field in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in field:
            value.name = names.get(value.name, value.name)
    _rename_in_nodes(graph.node, names)


def _rename_in_nodes(nodes: Any, names: dict[str, str]) -> None:
    for node in nodes:
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                if name in names:
                    field[position] = names[name]
        for body in _bodies(node):
            _rename_in_nodes(body.node, names)
            for output in body.output:
                output.name = names.get(output.name, output.name)


def use_plain_names(model: Any) -> dict[str, str]:
    """Name all tensors but the network's own inputs and outputs by number, in place; the old name by the new.

    What is done to a network afterwards makes names out of those that it finds. With plain ones these cannot meet a name that an
    exporter chose.
    """
    ends = {value.name for field in (model.graph.input, model.graph.output) for value in field}
    fixed = ends | {constant.values.name for constant in model.graph.sparse_initializer}
    fresh = FreshNames(model)
    # What bodies define is theirs alone; ONNX lets no such name be one of the graph around them.
    names = {
        old: fresh(f"tensor{number}") for number, old in enumerate(sorted(_names_in(model.graph, within=False) - fixed))
    }
    rename_tensors(model, names)
    return {new: old for old, new in names.items()}
