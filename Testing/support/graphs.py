"""ONNX graphs from a list of nodes, with random constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.models import onnx_graph as graph

SIZE = (8, 6, 10)


def network(nodes, constants, channels=1, classes=3, size=SIZE, out_size=SIZE):
    """A graph from "x" (1, channels, *size) to "y" (1, classes, *out_size), of inferred shapes."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *size]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes, *out_size]),
    ]
    made = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(a, n) for n, a in constants.items()]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return graph.inferred(model)


def weights(seed=0, **shapes):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
