"""What the window remembers: in a parameter node, so that it is saved with the scene."""

from __future__ import annotations

import json
from typing import Any, Generic, TypeVar

from ..files import parse_json

T = TypeVar("T")


class _Field(Generic[T]):
    """A parameter of the node, under its attribute's name."""

    def __init__(self, default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Parameters, cls: type | None = None) -> T:
        text = owner.node.GetParameter(self.name)
        return self.default if text == "" else self.parse(text)

    def __set__(self, owner: Parameters, value: T) -> None:
        text = self.text(value)
        if owner.node.GetParameter(self.name) != text:
            owner.node.SetParameter(self.name, text)

    def parse(self, text: str) -> Any:
        """A scene may come from anywhere: what does not fit is the default."""
        try:
            value = parse_json(text)
        except ValueError:
            return self.default
        same = isinstance(value, type(self.default)) and isinstance(value, bool) == isinstance(self.default, bool)
        return value if same or self.default is None else self.default

    def text(self, value: T) -> str:
        return json.dumps(value)


class _Node:
    """A reference to a node of the scene; None once that node is gone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Parameters, cls: type | None = None) -> Any:
        return owner.node.GetNodeReference(self.name)

    def __set__(self, owner: Parameters, value: Any) -> None:
        if owner.node.GetNodeReference(self.name) is not value:
            owner.node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)


class _Nodes(_Node):
    """References to several nodes."""

    def __get__(self, owner: Parameters, cls: type | None = None) -> list[Any]:
        count = owner.node.GetNumberOfNodeReferences(self.name)
        nodes = [owner.node.GetNthNodeReference(self.name, n) for n in range(count)]
        return [node for node in nodes if node is not None]

    def __set__(self, owner: Parameters, value: list[Any]) -> None:
        if [node.GetID() for node in self.__get__(owner)] != [node.GetID() for node in value]:
            owner.node.RemoveNodeReferenceIDs(self.name)
            for node in value:
                owner.node.AddNodeReferenceID(self.name, node.GetID())


class Parameters:
    """Typed access to a ``vtkMRMLScriptedModuleNode``.

    segments: names of the structures to keep; None for all. calibrationVolumes, compareVolume: nodes.
    """

    volume = _Node()
    channels = _Nodes()
    output = _Node()
    region = _Node()
    model = _Field("demo")
    engine = _Field("auto")
    precision = _Field("auto")
    device = _Field("auto")
    segments: _Field[list[str] | None] = _Field(None)
    surface = _Field(True)
    replace = _Field(False)
    terminology = _Field("")
    checkShare = _Field("")

    calibrationVolumes = _Nodes()
    calibrationFolder = _Field("")
    patches = _Field(20)
    method = _Field("max")
    agreement = _Field(0.99)
    fallback = _Field(True)
    effort = _Field("normal")
    weightBits = _Field(8)
    worstStructure = _Field(0.0)
    transposed = _Field(False)
    buildEngine = _Field("auto")

    compareVolumes = _Nodes()

    def __init__(self, node: Any) -> None:
        self.node = node
