"""Small networks of every kind of step, as ONNX with Q/DQ nodes, for the tests of the CUDA INT8 engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from MedQuantINT8Lib.engines.cuda_int8.frontend.onnx_reader import read_network
from MedQuantINT8Lib.engines.cuda_int8.plan.kernel_plan import KernelPlan
from MedQuantINT8Lib.engines.cuda_int8.plan.planner import plan_network
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.halves import with_halves
from MedQuantINT8Lib.models.weight_halves import with_weight_halves


class Made:
    """An ONNX network under construction; every method returns the name of what it made."""

    def __init__(self, channels=1, seed=0):
        self.rng, self.channels = np.random.default_rng(seed), channels
        self.nodes, self.constants, self.count = [], [], 0

    def name(self, word="t"):
        self.count += 1
        return f"{word}{self.count}"

    def constant(self, values):
        name = self.name("c")
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, kind, *inputs, **attributes):
        out = self.name()
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}_{out}", **attributes))
        return out

    def rounded(self, x, scale=0.03):
        s, z = self.constant(np.float32(scale)), self.constant(np.int8(0))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, z), s, z)

    def weight(self, shape, axis, stored=True):
        fan = np.prod(shape) / shape[axis]
        values = self.rng.normal(size=shape) / np.sqrt(fan)
        if not stored:
            return self.constant(values.astype(np.float32))
        others = tuple(a for a in range(5) if a != axis)
        scales = np.maximum(np.abs(values).max(others), 1e-6) / 127
        shaped = scales.reshape([-1 if a == axis else 1 for a in range(5)])
        q = self.constant(np.rint(values / shaped).astype(np.int8))
        return self.op(
            "DequantizeLinear",
            q,
            self.constant(scales.astype(np.float32)),
            self.constant(np.zeros(len(scales), np.int8)),
            axis=axis,
        )

    def conv(self, x, ins, out, kernel=3, stride=1, dilation=1, pads=None, group=1, quantized=True, scale=0.03):
        kernel, stride, dilation = (tuple(v) if isinstance(v, tuple) else (v,) * 3 for v in (kernel, stride, dilation))
        pads = pads if pads is not None else [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)] * 2
        taken = self.rounded(x, scale) if quantized else x
        bias = self.constant(self.rng.normal(size=out).astype(np.float32) * 0.1)
        attributes = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": pads, "group": group}
        return self.op("Conv", taken, self.weight((out, ins // group, *kernel), 0, quantized), bias, **attributes)

    def deconv(self, x, ins, out, kernel=2, stride=2, pads=(0,) * 6, output_padding=(0, 0, 0), quantized=False):
        taken = self.rounded(x) if quantized else x
        attributes = {
            "kernel_shape": (kernel,) * 3,
            "strides": (stride,) * 3,
            "pads": pads,
            "output_padding": output_padding,
        }
        return self.op(
            "ConvTranspose",
            taken,
            self.weight((ins, out, *(kernel,) * 3), 1, quantized),
            self.constant(np.zeros(out, np.float32)),
            **attributes,
        )

    def linear(self, x, ins, out, quantized=True):
        """A layer of the last axis, as torch writes it: MatMul, then Add."""
        weight = self.rng.normal(size=(ins, out)) / np.sqrt(ins)
        if quantized:
            scales = np.abs(weight).max(0) / 127
            q, s, z = (
                self.constant(np.rint(weight / scales).astype(np.int8)),
                self.constant(scales.astype(np.float32)),
                self.constant(np.zeros(out, np.int8)),
            )
            x, weight = self.rounded(x), self.op("DequantizeLinear", q, s, z, axis=1)
        else:
            weight = self.constant(weight.astype(np.float32))
        return self.op(
            "Add", self.op("MatMul", x, weight), self.constant(self.rng.normal(size=out).astype(np.float32) * 0.1)
        )

    def layernorm(self, x, channels):
        gamma, beta = (
            self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
            self.rng.normal(size=channels).astype(np.float32) * 0.2,
        )
        return self.op("LayerNormalization", x, self.constant(gamma), self.constant(beta), axis=-1)

    def gelu(self, x):
        erf = self.op(
            "Add",
            self.op("Erf", self.op("Div", x, self.constant(np.float32(np.sqrt(2))))),
            self.constant(np.float32(1)),
        )
        return self.op("Mul", self.op("Mul", x, erf), self.constant(np.float32(0.5)))

    def shaped(self, x, *shape):
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def turned(self, x, *order):
        return self.op("Transpose", x, perm=order)

    def cut(self, x, axis, start, end, step=1):
        return self.op("Slice", x, *(self.constant(np.array([v], np.int64)) for v in (start, end, axis, step)))

    def rolled(self, x, by):
        """Along the three axes of (1, a, b, c, channels)."""
        for axis in (1, 2, 3):
            x = self.op("Concat", self.cut(x, axis, by, 1 << 40), self.cut(x, axis, 0, by), axis=axis)
        return x

    def attention(self, x, windows, tokens, heads, width, bias=None, mask=None, split=False):
        """Of (windows, tokens, channels), as Swin (one product cut by Gather) or as ViT (cut by Split) write it."""
        channels = heads * width
        joint = self.linear(x, channels, 3 * channels)
        if split:
            names = [self.name() for _ in range(3)]
            self.nodes.append(helper.make_node("Split", [joint], names, name=self.name("split"), axis=2, num_outputs=3))
            q, k, v = (self.turned(self.shaped(n, windows, tokens, heads, width), 0, 2, 1, 3) for n in names)
        else:
            joint = self.turned(self.shaped(joint, windows, tokens, 3, heads, width), 2, 0, 3, 1, 4)
            q, k, v = (self.op("Gather", joint, self.constant(np.int64(n)), axis=0) for n in range(3))
        q = self.op("Mul", q, self.constant(np.float32(1 / np.sqrt(width))))
        scores = self.op("MatMul", q, self.turned(k, 0, 1, 3, 2))
        if bias is not None:
            scores = self.op("Add", scores, self.constant(bias))
        if mask is not None:
            scores = self.op("Add", self.shaped(scores, 1, windows, heads, tokens, tokens), self.constant(mask))
            scores = self.shaped(scores, windows, heads, tokens, tokens)
        found = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.linear(self.shaped(self.turned(found, 0, 2, 1, 3), windows, tokens, channels), channels, channels)

    def norm(self, x, channels):
        gamma, beta = (
            self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
            self.rng.normal(size=channels).astype(np.float32) * 0.2,
        )
        return self.op("InstanceNormalization", x, self.constant(gamma), self.constant(beta))

    def finished(self, output, classes):
        x = helper.make_tensor_value_info("image", 1, ["N", self.channels, "a", "b", "c"])
        y = helper.make_tensor_value_info("scores", 1, ["N", classes, "d", "e", "f"])
        self.nodes.append(helper.make_node("Identity", [output], ["scores"], name="last"))
        body = helper.make_graph(self.nodes, "made", [x], [y], self.constants)
        return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def kernels_and_strides() -> onnx.ModelProto:
    m = Made(2)
    x = m.op("Relu", m.conv("image", 2, 20, kernel=3))
    x = m.op("LeakyRelu", m.conv(x, 20, 33, kernel=(1, 3, 5), pads=[0, 1, 2, 0, 1, 2]), alpha=0.1)
    x = m.op("Elu", m.conv(x, 33, 48, kernel=3, stride=2))
    x = m.op("Sigmoid", m.conv(x, 48, 32, kernel=(2, 2, 2), stride=(1, 2, 1), pads=[0, 0, 0, 1, 1, 1]))
    return m.finished(m.conv(x, 32, 3, kernel=1), 3)


def dilations() -> onnx.ModelProto:
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 16))
    for dilation in (2, 4, (1, 2, 3)):
        x = m.op("Relu", m.conv(x, 16, 16, dilation=dilation))
    x = m.op("Relu", m.conv(x, 16, 24, dilation=2, stride=2, group=2))
    return m.finished(m.conv(x, 24, 2, kernel=1), 2)


def far_first() -> onnx.ModelProto:
    """A first layer that looks so far about that a tile's part of the input does not fit shared memory."""
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 20, dilation=(8, 16, 16)))
    return m.finished(m.conv(x, 20, 2, kernel=1), 2)


def read_often() -> onnx.ModelProto:
    """The input, by layers of several strides, dilations and paddings, rounded to two scales and not at all, and pooled."""
    m = Made(2)
    x = m.op("Relu", m.conv("image", 2, 20, kernel=(1, 3, 5), dilation=(1, 3, 2), pads=(0, 3, 4, 0, 3, 4)))
    x = m.op("Add", x, m.conv("image", 2, 20, kernel=1, scale=0.05))
    x = m.op("Relu", m.op("Add", x, m.conv("image", 2, 20, kernel=(3, 1, 2), pads=(2, 0, 1, 0, 0, 0), quantized=False)))
    small = m.conv("image", 2, 20, kernel=(2, 3, 2), stride=2, pads=(0, 1, 0, 0, 1, 0))
    small = m.op("Add", small, m.conv(m.op("MaxPool", "image", kernel_shape=(2, 2, 2), strides=(2, 2, 2)), 2, 20))
    x = m.op("Concat", x, m.deconv(m.op("Relu", small), 20, 12, quantized=True), axis=1)
    return m.finished(m.conv(x, 32, 2, kernel=1), 2)


def transposed() -> onnx.ModelProto:
    m = Made(3)
    x = m.op("Relu", m.conv("image", 3, 24, stride=2))
    x = m.op("Relu", m.deconv(x, 24, 20, quantized=True))
    y = m.op("Relu", m.conv(x, 20, 40, stride=2))
    y = m.deconv(y, 40, 16, kernel=3, pads=(1,) * 6, output_padding=(1, 1, 1), quantized=True)
    z = m.op("Relu", m.conv(y, 16, 16, stride=2))
    z = m.deconv(z, 16, 20, kernel=4, pads=(1,) * 6)
    w = m.op("Relu", m.conv(z, 20, 32, kernel=3, stride=3))
    w = m.deconv(w, 32, 12, kernel=3, stride=3)
    return m.finished(m.conv(w, 12, 4, kernel=1), 4)


def residuals() -> onnx.ModelProto:
    m = Made(1)
    x = m.conv("image", 1, 32)
    for _ in range(2):
        y = m.op("Relu", m.conv(m.op("Relu", x), 32, 32))
        x = m.op("Add", m.conv(y, 32, 32), x)
    gate = m.op("Sigmoid", m.conv(x, 32, 32, kernel=1))
    x = m.op("Mul", x, gate)
    x = m.op("PRelu", x, m.constant(m.rng.uniform(0, 0.5, (32, 1, 1, 1)).astype(np.float32)))
    x = m.op(
        "Sub",
        m.op("Div", x, m.constant(np.float32(2))),
        m.constant(m.rng.normal(size=(1, 32, 1, 1, 1)).astype(np.float32)),
    )
    return m.finished(m.conv(x, 32, 2, kernel=1), 2)


def normalized() -> onnx.ModelProto:
    m = Made(1)
    x = m.op("LeakyRelu", m.norm(m.conv("image", 1, 24), 24), alpha=0.01)
    # A residual block with a projection, as UNETR has it: both sides are normalized, then added.
    beside, y = m.norm(m.conv(x, 24, 24, kernel=1), 24), m.norm(m.conv(x, 24, 24), 24)
    x = m.op("LeakyRelu", m.op("Add", y, beside), alpha=0.01)
    x = m.conv(x, 24, 32)
    # GroupNorm as torch writes it.
    shape = m.op("Shape", x)
    grouped = m.op("Reshape", x, m.constant(np.array([0, 8, -1], np.int64)))
    grouped = m.op(
        "InstanceNormalization", grouped, m.constant(np.ones(8, np.float32)), m.constant(np.zeros(8, np.float32))
    )
    x = m.op("Reshape", grouped, shape)
    x = m.op("Mul", x, m.constant(m.rng.uniform(0.5, 1.5, (32, 1, 1, 1)).astype(np.float32)))
    x = m.op("Relu", m.op("Add", x, m.constant(m.rng.normal(size=(32, 1, 1, 1)).astype(np.float32))))
    # GELU, and SiLU.
    x = m.conv(x, 32, 16)
    erf = m.op("Add", m.op("Erf", m.op("Div", x, m.constant(np.float32(np.sqrt(2))))), m.constant(np.float32(1)))
    x = m.op("Mul", m.op("Mul", x, erf), m.constant(np.float32(0.5)))
    x = m.conv(x, 16, 16)
    x = m.op("Mul", x, m.op("Sigmoid", x))
    return m.finished(m.conv(x, 16, 3, kernel=1), 3)


def joined() -> onnx.ModelProto:
    m = Made(1)
    a = m.op("Relu", m.conv("image", 1, 20))
    b = m.op("Relu", m.conv(m.op("MaxPool", a, kernel_shape=(2, 2, 2), strides=(2, 2, 2)), 20, 36))
    c = m.op("AveragePool", b, kernel_shape=(3, 3, 3), strides=(1, 1, 1), pads=[1] * 6)
    sizes = m.constant(np.array([1, 1, 2, 2, 2], np.float32))
    up = m.op("Resize", c, "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    smooth = m.op("Resize", b, "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    x = m.op("Concat", a, up, smooth, axis=1)
    y = m.op("Relu", m.conv(x, 92, 16))
    z = m.norm(m.op("Concat", y, a, axis=1), 36)
    return m.finished(m.conv(z, 36, 5), 5)


def cut_and_padded() -> onnx.ModelProto:
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 16))
    x = m.op("Pad", x, m.constant(np.array([0, 0, 1, 0, 2, 0, 0, 0, 1, 3], np.int64)), mode="edge")
    x = m.op("Pad", x, m.constant(np.array([0, 0, 0, 1, 0, 0, 0, 2, 0, 0], np.int64)), mode="constant")
    x = m.op("Clip", m.conv(x, 16, 16), m.constant(np.float32(0)), m.constant(np.float32(6)))
    ends = [m.constant(np.array(v, np.int64)) for v in ([0, 1, 2], [-1, -2, -3], [2, 3, 4])]
    x = m.op("Slice", x, *ends)
    return m.finished(m.op("Softmax", m.conv(x, 16, 4, kernel=1), axis=1), 4)


def shifted_windows() -> onnx.ModelProto:
    """Two blocks of Swin on (7, 6, 5): padded to (8, 8, 8), windows of 4, the second shifted; then neighbors merged, and back."""
    m = Made(1)
    size, heads, width = (7, 6, 5), 2, 16
    channels, tokens = heads * width, 64
    x = m.turned(m.conv("image", 1, channels), 0, 2, 3, 4, 1)
    for shift in (0, 1):
        y = m.op(
            "Pad",
            m.layernorm(x, channels),
            m.constant(np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 0], np.int64)),
            mode="constant",
        )
        y = m.rolled(y, shift) if shift else y
        y = m.shaped(m.turned(m.shaped(y, 1, 2, 4, 2, 4, 2, 4, channels), 0, 1, 3, 5, 2, 4, 6, 7), -1, tokens, channels)
        regions = m.rng.integers(0, 3, (8, tokens))
        mask = (
            np.where(regions[:, :, None] == regions[:, None], 0, -100).astype(np.float32)[None, :, None]
            if shift
            else None
        )
        bias = m.rng.normal(size=(1, heads, tokens, tokens)).astype(np.float32)
        y = m.attention(y, 8, tokens, heads, width, bias, mask)
        y = m.shaped(m.turned(m.shaped(y, 1, 2, 2, 2, 4, 4, 4, channels), 0, 1, 4, 2, 5, 3, 6, 7), 1, 8, 8, 8, channels)
        y = m.rolled(y, -shift) if shift else y
        for axis, n in enumerate(size):
            y = m.cut(y, axis + 1, 0, n)
        x = m.op("Add", x, y)
        y = m.linear(m.gelu(m.linear(m.layernorm(x, channels), channels, 48)), 48, channels)
        x = m.op("Add", x, y)
    finer = m.turned(x, 0, 4, 1, 2, 3)
    x = m.op("Pad", x, m.constant(np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 0], np.int64)), mode="constant")
    parts = []
    for place in np.ndindex(2, 2, 2):
        part = x
        for axis, begin in enumerate(place):
            part = m.cut(part, axis + 1, begin, 1 << 40, 2)
        parts.append(part)
    x = m.linear(m.layernorm(m.op("Concat", *parts, axis=-1), 8 * channels), 8 * channels, 40)
    x = m.conv(m.turned(x, 0, 4, 1, 2, 3), 40, 16)
    x = m.op(
        "Resize",
        x,
        "",
        m.constant(np.array([1, 1, 2, 2, 2], np.float32)),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    for axis, n in enumerate(size):
        x = m.cut(x, axis + 2, 0, n)
    return m.finished(m.conv(m.op("Concat", x, finer, axis=1), 16 + channels, 3, kernel=1), 3)


def tokens() -> onnx.ModelProto:
    """A vision transformer on the voxels of (6, 5, 3), and blocks of UNesT's kind: voxels put in blocks and taken out of them again."""
    m = Made(2)
    heads, width, count = 3, 32, 90
    channels = heads * width
    x = m.turned(m.shaped(m.conv("image", 2, channels), 1, channels, count), 0, 2, 1)
    x = m.op("Add", x, m.constant(m.rng.normal(size=(1, count, channels)).astype(np.float32)))
    x = m.op("Add", x, m.attention(m.layernorm(x, channels), 1, count, heads, width, split=True))
    x = m.shaped(m.turned(m.layernorm(x, channels), 0, 2, 1), 1, channels, 6, 5, 3)
    x = m.op("Relu", m.conv(x, channels, 48))
    blocks = m.turned(m.shaped(x, 1, 48, 3, 2, 5, 1, 1, 3), 0, 2, 4, 6, 3, 5, 7, 1)
    blocks = m.shaped(blocks, 15, 6, 48)
    for heads, width in ((12, 4), (2, 24)):
        blocks = m.op("Add", blocks, m.attention(m.layernorm(blocks, 48), 15, 6, heads, width))
    # Channels that fill no whole sixteen.
    blocks = m.linear(blocks, 48, 12)
    blocks = m.op("Add", blocks, m.attention(m.layernorm(blocks, 12), 15, 6, 3, 4))
    x = m.shaped(m.turned(m.shaped(blocks, 1, 3, 5, 1, 2, 1, 3, 12), 0, 7, 1, 4, 2, 5, 3, 6), 1, 12, 6, 5, 3)
    return m.finished(m.conv(x, 12, 3), 3)


def gated() -> onnx.ModelProto:
    """Gates of one channel for all voxels, and of one voxel for all channels; channels repeated, cut, turned round and filled up."""
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 20))
    x = m.op("Mul", x, m.op("Sigmoid", m.conv(x, 20, 1, kernel=1)))
    squeezed = m.op("Relu", m.conv(m.op("GlobalAveragePool", x), 20, 6, kernel=1))
    x = m.op("Mul", x, m.op("Sigmoid", m.conv(squeezed, 6, 20, kernel=1)))
    x = m.op("Add", x, m.op("Expand", m.conv(x, 20, 1), m.constant(np.array([1, 20, 1, 1, 1], np.int64))))
    x = m.op("Add", m.cut(x, 1, 0, 8), m.cut(x, 1, 19, 11, -1))
    x = m.op("Pad", x, m.constant(np.array([0, 3, 0, 0, 0, 0, 1, 0, 0, 0], np.int64)), mode="constant")
    return m.finished(m.conv(x, 12, 3), 3)


def in_float() -> onnx.ModelProto:
    m = Made(4)
    x = m.op("Tanh", m.conv("image", 4, 12, quantized=False))
    x = m.op("Softplus", m.conv(x, 12, 20, stride=2, quantized=False))
    x = m.op("HardSwish", m.deconv(x, 20, 8))
    return m.finished(m.op("Sigmoid", m.conv(x, 8, 1, kernel=1, quantized=False)), 1)


def halved():
    """Layers whose input is two INT8 halves: at the input, after an activation, of a joined tensor, after pooling, and a transposed one."""
    m = Made(2, seed=21)
    x = m.op("Relu", m.conv("image", 2, 24))
    y = m.op("Elu", m.conv(x, 24, 40), alpha=1.0)
    z = m.op("Concat", x, y, axis=1)
    z = m.op("LeakyRelu", m.conv(z, 64, 32), alpha=0.1)
    down = m.conv(m.op("MaxPool", z, kernel_shape=(2, 2, 2), strides=(2, 2, 2)), 32, 32)
    up = m.deconv(m.op("Relu", down), 32, 16, quantized=True)
    model = m.finished(m.conv(up, 16, 3), 3)
    graph.name_nodes(model)
    layers = {node.name: 0.03 for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")}
    return with_halves(model, layers)


def refined():
    """Layers whose weights are two INT8 halves, one with its input in halves as well, behind curves with a scale for each channel."""
    m = Made(2, seed=22)
    x = m.op("Elu", m.conv("image", 2, 24), alpha=1.0)
    x = m.op("Mul", x, m.constant(np.exp2(np.arange(24) % 4).astype(np.float32).reshape(1, 24, 1, 1, 1)))
    y = m.op("Elu", m.conv(x, 24, 40), alpha=1.0)
    y = m.op("Mul", y, m.constant(np.exp2(-(np.arange(40) % 3)).astype(np.float32).reshape(1, 40, 1, 1, 1)))
    model = m.finished(m.conv(y, 40, 3), 3)
    graph.name_nodes(model)
    network, exact = graph.Graph(model), onnx.ModelProto()
    exact.CopyFrom(model)
    layers = [node for node in exact.graph.node if node.op_type == "Conv"]
    for node in layers:
        integers, scale = (network.array(name) for name in network.producer[node.input[1]].input[:2])
        weight = (integers + m.rng.uniform(-0.5, 0.5, integers.shape)) * scale.reshape(-1, 1, 1, 1, 1)
        node.input[1] = f"{node.name} exact"
        exact.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), node.input[1]))
    names = [node.name for node in layers]
    return with_weight_halves(with_halves(model, {names[1]: 0.03}), exact, names)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    made.__name__: made
    for made in (
        kernels_and_strides,
        dilations,
        far_first,
        read_often,
        transposed,
        residuals,
        normalized,
        joined,
        cut_and_padded,
        in_float,
        shifted_windows,
        tokens,
        gated,
        halved,
        refined,
    )
}
#: Odd along some axes, even where a network halves and doubles.
SIZES = {
    "far_first": (10, 18, 21),
    "joined": (12, 10, 14),
    "transposed": (12, 12, 24),
    "read_often": (10, 12, 16),
    "in_float": (10, 12, 8),
    "halved": (10, 12, 8),
    "shifted_windows": (7, 6, 5),
    "tokens": (6, 5, 3),
}


def size_of(name: str) -> tuple[int, int, int]:
    return SIZES.get(name, (11, 9, 13))


def fixed(model: onnx.ModelProto, size: tuple[int, int, int]) -> onnx.ModelProto:
    model = graph.fixed_shape(model, size)
    graph.name_nodes(model)
    return model


def plan_of(model: onnx.ModelProto, size: tuple[int, int, int]) -> KernelPlan:
    return plan_network(read_network(fixed(model, size)))
