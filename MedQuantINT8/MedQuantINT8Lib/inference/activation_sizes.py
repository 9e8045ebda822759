"""How many bytes a network's intermediate results take, reckoned from its graph once and kept beside the engines.

Reading the graph needs the package ``onnx``, which takes longer to load than the engine that was built before.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..engines.cache import key_of, read_notes, write_notes
from ..errors import DependencyError, StorageError
from ..models.package import FP32, INT8, ModelPackage

_FILE = "activations.json"
#: Sizes that are kept: whole volumes have one for each shape of a scan.
_MOST_KEPT = 500


def activation_bytes(package: ModelPackage, precision: str, patch: tuple[int, int, int]) -> int:
    """Return the most bytes of intermediate results that a network needs at once for one patch, run operator by operator.

    Engines that fuse operators need less.

    Args:
        precision: "int8" for the package's INT8 network, else the FP32 one.
        patch: (p0, p1, p2) along the network's axes.

    Raises:
        PackageError: the package has no such network, or it is damaged.
    """
    path = package.onnx_path(precision)
    return _kept(path, package.hashes[INT8 if precision == "int8" else FP32], patch)


@lru_cache(maxsize=16)
def _kept(path: Path, digest: str, patch: tuple[int, int, int]) -> int:
    key = key_of({"network": digest, "patch": patch, "medquant": __version__})
    size = read_notes(_FILE).get(key)
    if isinstance(size, int) and size >= 0:
        return size
    from ..models import onnx_graph as graph

    try:
        onnx = graph.require_onnx()
    except DependencyError:
        # An engine that is built already runs without it; then its weights are all that is counted.
        return 0
    with graph.damage(path.name):
        size = _activation_bytes(onnx.load(str(path)), patch)
    others = {other: value for other, value in read_notes(_FILE).items() if other != key}
    # A cache that cannot be written is no fault of this run: it is looked at again.
    with suppress(StorageError):
        write_notes(_FILE, {**dict(list(others.items())[1 - _MOST_KEPT :]), key: size})
    return size


def _activation_bytes(model: Any, patch: tuple[int, int, int]) -> int:
    from ..models import onnx_graph as graph

    initializer_names = {i.name for i in model.graph.initializer}
    for initializer in model.graph.initializer:
        if len(initializer.raw_data) > 1 << 16:
            # Shapes do not depend on weights, and copies of them would take the memory that is asked about.
            initializer.raw_data = b""
    shapes = graph.Graph(graph.fixed_shape(model, patch))
    last = {name: number for number, node in enumerate(shapes.nodes) for name in node.input}
    alive: dict[str, int] = {}
    most = 0
    for number, node in enumerate(shapes.nodes):
        itemsize = 1 if node.op_type == "QuantizeLinear" else 4
        for name in node.output:
            if name and not all(i in initializer_names for i in node.input):
                alive[name] = int(np.prod([max(1, n) for n in shapes.shapes.get(name, [])])) * itemsize
        most = max(most, sum(alive.values()))
        for name in [n for n in alive if last.get(n, number) <= number]:
            del alive[name]
    return most
