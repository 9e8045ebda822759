"""What a TensorRT engine really runs, from its own inspector: in the JSON forms of TensorRT 10 and 11, and from the builder's log."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..base import LayerRecord

#: Layer types that multiply and add.
_MAC_TYPES = (
    "correlation",
    "runtime_fusion",
    "convolution",
    "deconv",
    "gemm",
    "matrix_multiply",
    "matmul",
    "cask",
    "gemm_sequence",
    "fused_mha",
)


def from_inspector(text: str, macs: Mapping[str, int]) -> tuple[LayerRecord, ...]:
    """Layers of ``IEngineInspector.get_engine_information(JSON)``.

    Args:
        macs: multiply-accumulates of one patch by the name of the ONNX node.
    """
    layers = json.loads(text).get("Layers", [])
    # Without detailed profiling the inspector gives names alone.
    return tuple(_record(layer if isinstance(layer, dict) else {"Name": layer}, macs) for layer in layers)


def from_log(lines: Iterable[str], macs: Mapping[str, int]) -> tuple[LayerRecord, ...]:
    """Layers of the table that a builder with detailed profiling writes to a verbose log."""
    records = []
    for line in lines:
        match = re.search(
            r"Name: (.*?), LayerType: (.*?), Inputs: (.*?), Constants: (.*?), Outputs: (.*?), TacticName: (.*?), StreamId",
            line,
        )
        if match is None:
            continue
        name, kind, inputs, constants, outputs, tactic = match.groups()
        metadata = line.partition("Metadata:")[2]
        layer = {
            "Name": name,
            "LayerType": kind,
            "Inputs": _tensors(inputs),
            "Constants": _tensors(constants),
            "Outputs": _tensors(outputs),
            "TacticName": tactic,
            "Metadata": metadata,
        }
        records.append(_record(layer, macs))
    return tuple(records)


def _tensors(text: str) -> list[dict[str, Any]]:
    tensors = re.findall(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)", text)
    return [{"Dimensions": [abs(int(n)) for n in dims.split(",") if n], "Datatype": kind} for dims, kind in tensors]


_BYTES = {"int8": 1, "half": 2, "float": 4, "int32": 4, "int64": 8, "bool": 1}


def traffic_from_log(lines: Iterable[str]) -> int:
    """Bytes that all layers read and write for one patch (an open batch counts as one): what most kernels here wait for."""
    total = 0
    for line in lines:
        match = re.search(r"LayerType: .*?, Inputs: (.*?), Constants: .*?, Outputs: (.*?), TacticName", line)
        for text in match.groups() if match else ():
            total += sum(math.prod(t["Dimensions"]) * _BYTES.get(t["Datatype"].lower(), 4) for t in _tensors(text))
    return total


def _record(layer: dict[str, Any], macs: Mapping[str, int]) -> LayerRecord:
    kind = str(layer.get("LayerType", ""))
    sources = tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", "")))))
    worked = [name for name in sources if name in macs]
    types = [_datatype(tensor) for tensor in layer.get("Inputs", [])]
    multiplies = _multiplies(kind, str(layer.get("TacticName", "")), bool(worked))
    int8 = multiplies and bool(types) and any(_is_int8(t) for t in types)
    precision = next((t for t in types if t), "")
    return LayerRecord(
        str(layer.get("Name", "")),
        kind,
        precision,
        str(layer.get("TacticName", "")),
        sum(macs[name] for name in worked) if multiplies else 0,
        int8,
        sources,
    )


def _datatype(tensor: dict[str, Any]) -> str:
    """TensorRT 11 has "Datatype"; 10 has both in "Format/Datatype", such as "Thirty-two wide channel vectorized row major Int8 format"."""
    if "Datatype" in tensor:
        return str(tensor["Datatype"])
    return str(tensor.get("Format/Datatype", ""))


def _is_int8(kind: str) -> bool:
    return "int8" in kind.lower()


def _multiplies(kind: str, tactic: str, known: bool) -> bool:
    """Whether the layer does the work of a convolution or matrix product that the network holds.

    Metadata also names the node on layers that only prepare its input or weights, which must not count.
    """
    lowered = kind.lower()
    if any(word in lowered for word in _MAC_TYPES):
        return known
    return known and "myelin" not in lowered and "kgen" not in lowered and "conv" in tactic.lower()


def without_double_work(layers: tuple[LayerRecord, ...]) -> tuple[LayerRecord, ...]:
    """Each ONNX node counts once: where several layers name it, the first that multiplies keeps its work."""
    from dataclasses import replace

    seen: set[str] = set()
    result = []
    for layer in layers:
        if layer.macs and all(name in seen for name in layer.sources):
            layer = replace(layer, macs=0)
        elif layer.macs:
            seen.update(layer.sources)
        result.append(layer)
    return tuple(result)
