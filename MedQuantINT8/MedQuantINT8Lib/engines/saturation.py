"""How many bits of a weight OpenVINO's kernels take on this processor without saturating.

A processor with VNNI or AMX adds products of UINT8 and INT8 in 32 bits. Without them the kernels add each two products
in 16 bits first: 2 x 255 x 127 does not fit, and the sum is cut off without a word. Weights of 7 bits fit
(2 x 255 x 64 = 32640). The processor's flags tell the usual case at once; where they do not, or where oneDNN is told to
leave instructions out, one layer is computed and compared with its exact result.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..models.onnx_graph import require_onnx
from ..system import cpu_features

#: What is said where weights are kept to 7 bits.
SEVEN_BIT_NOTE = "weights are kept to 7 bits: this processor, without VNNI, adds products of 8-bit weights in 16 bits, where they overflow"
#: Instruction sets whose INT8 products are added in 32 bits.
_EXACT = ("avx512_vnni", "amx_int8")
#: Environment variables by which oneDNN leaves instruction sets out.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_CHANNELS, _SIDE = 16, 4


@functools.cache
def weight_bits(core: Callable[[], Any]) -> int:
    """8, or 7 where the kernels of this process would saturate.

    Args:
        core: gives the process's ``openvino.Core``; it is asked for only where flags do not tell.
    """
    known = any(name in cpu_features() for name in _EXACT) and not any(name in os.environ for name in _LIMITS)
    return 8 if known or not _saturates(core()) else 7


def _saturates(core: Any) -> bool:
    """Whether a convolution of the largest weights on the largest activations comes out wrong."""
    try:
        compiled = core.compile_model(
            core.read_model(_probe().SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        output = compiled(np.full((1, _CHANNELS, *[_SIDE] * 3), 127, np.float32))[0]
    except RuntimeError:
        # Nothing is known then; every engine is compared with its simulation all the same.
        return False
    exact = 127 * 127 * _CHANNELS * 27
    return not np.allclose(output[0, :, 1:-1, 1:-1, 1:-1], exact, rtol=1e-3)


def _probe() -> Any:
    """One quantized convolution of 3 x 3 x 3, every weight 127."""
    onnx = require_onnx()
    arrays = {
        "one": np.float32(1),
        "middle": np.uint8(128),
        "weight": np.full((_CHANNELS, _CHANNELS, 3, 3, 3), 127, np.int8),
        "ones": np.ones(_CHANNELS, np.float32),
        "zeros": np.zeros(_CHANNELS, np.int8),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "one", "middle"], ["quantized"]),
        onnx.helper.make_node("DequantizeLinear", ["quantized", "one", "middle"], ["activation"]),
        onnx.helper.make_node("DequantizeLinear", ["weight", "ones", "zeros"], ["weights"], axis=0),
        onnx.helper.make_node("Conv", ["activation", "weights"], ["y"], pads=[1] * 6),
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, _CHANNELS, *[_SIDE] * 3]) for name in "xy"
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "probe",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
