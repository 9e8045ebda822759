"""The CUDA INT8 engine on transformers: following movements, recognizing attention, and what becomes of both in a plan."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from cuda_networks import NETWORKS, Made, fixed, plan_of, size_of
from MedQuantINT8Lib.engines.base import UnsupportedNetwork
from MedQuantINT8Lib.engines.cuda import device as cuda
from MedQuantINT8Lib.engines.cuda_int8.frontend.attention import regions_of
from MedQuantINT8Lib.engines.cuda_int8.frontend.constant_folding import folded
from MedQuantINT8Lib.engines.cuda_int8.plan.index_maps import IndexMap, Mixed, joined
from MedQuantINT8Lib.engines.cuda_int8.plan.kernel_plan import KernelPlan
from MedQuantINT8Lib.engines.cuda_int8.reference.executor import ReferenceExecutor
from MedQuantINT8Lib.engines.cuda_int8.runtime.autotuning import tuned
from MedQuantINT8Lib.engines.cuda_int8.runtime.program import attention_program
from MedQuantINT8Lib.engines.cuda_int8.tiling.candidates import Machine
from MedQuantINT8Lib.engines.onnxruntime import session


def values_of(index_map, base):
    """The tensor itself; ``base`` is (1, C, A0, A1, A2)."""
    flat = base.reshape(base.shape[1], -1)
    rows, columns = np.broadcast_arrays(index_map.rows, index_map.columns)
    return np.where((rows < 0) | (columns < 0), 0, flat[columns, rows]) * index_map.scale


BASE = np.arange(1, 1 + 6 * 4 * 3 * 2).reshape(1, 6, 4, 3, 2)
STILL = IndexMap.still("base", BASE.shape)


def test_movements_take_each_number_where_numpy_takes_it():
    # Into windows of (2, 3, 1) and heads of three channels, padded, rolled, cut and out again.
    index_map, array = STILL, BASE
    for step in (
        ("transpose", (0, 2, 3, 4, 1)),
        ("pad", ([0, 0, 1, 0, 0], [0, 0, 2, 0, 0])),
        ("roll", (1, 1)),
        ("reshape", (1, 2, 2, 2, 3, 2, 1, 6)),
        ("transpose", (0, 1, 3, 5, 2, 4, 6, 7)),
        ("reshape", (8, 6, 6)),
        ("reshape", (8, 6, 2, 3)),
        ("transpose", (2, 0, 1, 3)),
        ("take", (0, [1])),
        ("reshape", (8, 6, 3)),
        ("cut", (1, slice(1, None, 2))),
    ):
        match step:
            case ("transpose", order):
                index_map, array = index_map.transposed(order), array.transpose(order)
            case ("pad", (before, after)):
                index_map, array = (
                    index_map.padded(before, after, False),
                    np.pad(array, list(zip(before, after, strict=True))),
                )
            case ("roll", (axis, by)):
                index_map = joined([index_map.cut(axis, slice(by, None)), index_map.cut(axis, slice(0, by))], axis)
                array = np.roll(array, -by, axis)
            case ("reshape", shape):
                index_map, array = index_map.reshaped(shape), array.reshape(shape)
            case ("take", (axis, indices)):
                index_map, array = index_map.take(axis, np.array(indices)), array.take(indices, axis)
            case ("cut", (axis, part)):
                index_map, array = index_map.cut(axis, part), array[(slice(None),) * axis + (part,)]
        assert index_map.shape == array.shape
        np.testing.assert_array_equal(values_of(index_map, BASE), array)
    assert not index_map.has_gaps or (array == 0).any()


def test_channels_are_filled_up_and_repeated():
    padded = STILL.padded([0, 2, 0, 0, 0], [0, 1, 0, 0, 0], False)
    np.testing.assert_array_equal(values_of(padded, BASE), np.pad(BASE, [(0, 0), (2, 1), (0, 0), (0, 0), (0, 0)]))
    one = STILL.take(1, np.array([4]))
    many = one.broadcast((1, 3, 4, 3, 2), [False, True, False, False, False])
    np.testing.assert_array_equal(values_of(many, BASE), np.repeat(BASE[:, 4:5], 3, 1))
    wide = STILL.take(4, np.array([1])).broadcast((1, 6, 4, 3, 5), [False] * 5)
    np.testing.assert_array_equal(values_of(wide, BASE), np.repeat(BASE[..., 1:], 5, 4))


def test_what_takes_voxels_and_channels_together_is_refused():
    with pytest.raises(Mixed):
        STILL.reshaped((1, 24, 3, 2))
    with pytest.raises(Mixed):
        STILL.padded([0, 1, 0, 0, 0], [0] * 5, True)
    other = IndexMap.still("other", BASE.shape)
    assert joined([STILL, other], 2) is None and joined([STILL, STILL], 1) is None


def test_only_a_tensor_as_it_is_is_still():
    assert STILL.is_still(BASE.shape) and STILL.in_order and STILL.has_all_channels(6)
    assert not STILL.transposed((0, 1, 3, 2, 4)).is_still(BASE.shape)
    assert not STILL.cut(1, slice(0, 3)).has_all_channels(6)


def test_regions_are_found_in_a_mask_and_nowhere_else():
    regions = np.array([[0, 1, 0, 2], [0, 0, 0, 0]])
    mask = np.where(regions[:, :, None] == regions[:, None], 0, -100).astype(np.float32)
    found, value = regions_of(mask)
    assert value == -100 and ((found[:, :, None] == found[:, None]) == (mask == 0)).all()
    mask[0, 0, 1] = -50
    assert regions_of(mask) is None
    # Not the same from both sides: no mask of regions.
    assert regions_of(np.array([[[0, 0], [-1, 0]]], np.float32)) is None


def test_windows_are_moved_once_where_they_are_normalised_and_once_back():
    plan = plan_of(NETWORKS["shifted_windows"](), size_of("shifted_windows"))
    kinds = [step.kind for step in plan.steps]
    attention = [step for step in plan.steps if step.kind == "attention"]
    assert len(attention) == 2 and kinds.count("layernorm") == 5
    # Two LayerNorms take their voxels out of shifted or padded windows themselves.
    assert sum(step.kind == "layernorm" and len(step.tables) == 3 for step in plan.steps) == 2
    # Back out of the windows twice, eight neighbors put side by side, into a volume for the convolution behind them, and the last cut.
    assert kinds.count("move") == 2 + 8 + 1 + 1
    assert all(any(op.kind == "add" for op in step.ops) for step in [s for s in plan.steps if s.kind == "move"][:2])
    first, second = (step.attention for step in attention)
    assert (first.windows, first.tokens, first.heads, first.width, first.starts) == (8, 64, 2, 16, (0, 32, 64))
    assert first.scale == pytest.approx(0.25) and first.apart == 0 and second.apart == -100
    assert [bool(name) for name in attention[0].tables] == [False, True, False] and [
        bool(name) for name in attention[1].tables
    ] == [False, True, True]
    # Products of queries and keys are work, and not in INT8.
    assert all(step.macs == 2 * 8 * 2 * 64 * 64 * 16 and not step.int8 for step in attention)


def test_blocks_that_only_change_places_are_never_moved():
    plan = plan_of(NETWORKS["tokens"](), size_of("tokens"))
    assert not any(step.kind == "move" for step in plan.steps)
    attention = [step for step in plan.steps if step.kind == "attention"]
    assert [(step.attention.heads, step.attention.width) for step in attention] == [(3, 32), (12, 4), (2, 24), (3, 4)]
    # The first sees all voxels in order, the others blocks of them: a table says where they lie.
    assert [bool(step.tables[0]) for step in attention] == [False, True, True, True]
    assert sum(op.kind == "offset" for step in plan.steps for op in step.ops) == 1


def test_a_plan_with_attention_is_kept_and_read_again(tmp_path):
    plan = plan_of(NETWORKS["shifted_windows"](), size_of("shifted_windows"))
    plan.save(tmp_path)
    again = KernelPlan.load(tmp_path)
    assert again.steps == plan.steps
    x = np.random.default_rng(2).normal(size=(1, 1, *plan.size)).astype(np.float32)
    np.testing.assert_array_equal(ReferenceExecutor(again).run(x), ReferenceExecutor(plan).run(x))


def test_what_is_normalised_only_to_be_added_is_not_stored():
    plan = plan_of(NETWORKS["normalized"](), (9, 9, 9))
    adding = [step for step in plan.steps for op in step.ops if op.kind == "add" and op.norm]
    assert len(adding) == 1 and adding[0].kind == "elementwise"
    # One pass for both sides: that of the projection is gone.
    beside = next(op for op in adding[0].ops if op.kind == "add")
    assert not any(op.kind == "norm" and op.norm == beside.norm for step in plan.steps for op in step.ops)
    assert any(node.startswith("InstanceNormalization") for node in adding[0].sources)


def test_constants_of_any_size_are_computed_beforehand_but_quantized_weights_are_kept():
    m = Made(1)
    x = m.turned(m.conv("image", 1, 32), 0, 2, 3, 4, 1)
    # A table of 8 x 8 x 8 x 32 numbers that the graph computes.
    table = m.op(
        "Transpose",
        m.op("Mul", m.constant(m.rng.normal(size=(1, 32, 8, 8, 8)).astype(np.float32)), m.constant(np.float32(2))),
        perm=(0, 2, 3, 4, 1),
    )
    x = m.op("Add", x, table)
    model = m.finished(m.conv(m.turned(x, 0, 4, 1, 2, 3), 32, 2), 2)
    kept = [node.op_type for node in folded(fixed(model, (8, 8, 8))).graph.node]
    assert kept.count("Mul") == 0 and kept.count("Transpose") == 2 and kept.count("DequantizeLinear") == 4
    agrees(model, (8, 8, 8))


def agrees(model, size):
    plan = plan_of(model, size)
    x = np.random.default_rng(3).normal(size=(1, plan.channels, *size)).astype(np.float32)
    expected = session(fixed(model, size).SerializeToString(), "int8").run(None, {"image": x})[0]
    found = ReferenceExecutor(plan).run(x)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    return plan


def test_a_layer_of_two_axes_and_constants_on_either_side():
    m = Made(1)
    x = m.shaped(m.turned(m.conv("image", 1, 24), 0, 2, 3, 4, 1), 60, 24)
    weight, bias = (
        m.constant(m.rng.normal(size=(16, 24)).astype(np.float32) / 5),
        m.constant(m.rng.normal(size=16).astype(np.float32)),
    )
    x = m.op("Gemm", x, weight, bias, transB=1)
    x = m.op("Sub", m.constant(m.rng.normal(size=16).astype(np.float32)), x)
    x = m.op("Sub", x, m.constant(m.rng.normal(size=(60, 16)).astype(np.float32)))
    x = m.op("Mul", m.op("Tanh", x), m.constant(m.rng.normal(size=(1, 16)).astype(np.float32)))
    x = m.turned(m.shaped(x, 1, 5, 4, 3, 16), 0, 4, 1, 2, 3)
    agrees(m.finished(m.conv(x, 16, 2), 2), (5, 4, 3))


def test_separate_queries_keys_and_values_are_put_side_by_side():
    m = Made(1)
    x = m.shaped(m.turned(m.conv("image", 1, 32), 0, 2, 3, 4, 1), 1, 60, 32)
    q, k, v = (m.turned(m.shaped(m.linear(m.layernorm(x, 32), 32, 32), 1, 60, 2, 16), 0, 2, 1, 3) for _ in range(3))
    # As scaled_dot_product_attention is exported: both sides by the root of the scale.
    root = m.constant(np.float32(0.5))
    scores = m.op("MatMul", m.op("Mul", q, root), m.op("Mul", m.turned(k, 0, 1, 3, 2), root))
    found = m.op("MatMul", m.op("Softmax", m.op("Div", scores, m.constant(np.float32(2))), axis=-1), v)
    x = m.op("Add", x, m.shaped(m.turned(found, 0, 2, 1, 3), 1, 60, 32))
    plan = agrees(m.finished(m.conv(m.turned(m.shaped(x, 1, 5, 4, 3, 32), 0, 4, 1, 2, 3), 32, 2), 2), (5, 4, 3))
    attention = next(step.attention for step in plan.steps if step.kind == "attention")
    assert attention.starts == (0, 32, 64) and attention.scale == pytest.approx(0.5)


def attention_with(m, width=16, bias=None, quantized=False, keys=None):
    """A network of one attention of 2 windows of 30 tokens, one head."""
    x = m.shaped(m.turned(m.conv("image", 1, width), 0, 2, 3, 4, 1), 2, 30, width)
    q, k, v = (m.turned(m.shaped(m.linear(x, width, width), 2, 30, 1, width), 0, 2, 1, 3) for _ in range(3))
    k = k if keys is None else keys(m, k)
    scores = m.op("MatMul", q, m.turned(k, 0, 1, 3, 2))
    scores = scores if bias is None else m.op("Add", scores, m.constant(bias))
    chances = m.op("Softmax", scores, axis=-1)
    found = m.op("MatMul", m.rounded(chances) if quantized else chances, v)
    x = m.turned(m.shaped(m.turned(found, 0, 2, 1, 3), 1, 5, 4, 3, width), 0, 4, 1, 2, 3)
    return m.finished(m.conv(x, width, 2), 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 6}, "heads of 6 channels"),
        ({"quantized": True}, "QuantizeLinear"),
        ({"bias": np.random.default_rng(0).normal(size=(2, 1, 30, 30)).astype(np.float32)}, "no mask of regions"),
        ({"keys": lambda m, k: m.op("Gather", k, m.constant(np.array([1, 0])), axis=0)}, "others than themselves"),
    ],
)
def test_attention_that_the_kernel_does_not_take_is_named(given, words):
    agrees(attention_with(Made(1)), (5, 4, 3))
    with pytest.raises(UnsupportedNetwork) as caught:
        plan_of(attention_with(Made(1), **given), (5, 4, 3))
    assert words in str(caught.value) and "--engine" in str(caught.value)


def test_attention_that_does_not_fit_is_refused_with_its_size():
    plan = plan_of(attention_with(Made(1), width=128), (5, 4, 3))
    step = next(step for step in plan.steps if step.attention)
    large = replace(step, attention=replace(step.attention, tokens=600))
    assert attention_program(plan, step, Machine((8, 6), 82)).shared < 100 * 1024
    with pytest.raises(UnsupportedNetwork, match="600 tokens with heads of 128 channels take"):
        attention_program(plan, large, Machine((9, 0), 132))
    # Nothing of a GPU is needed to say so: neither compiler nor memory.
    plan.steps[plan.steps.index(step)] = large
    with pytest.raises(UnsupportedNetwork, match="600 tokens"):
        tuned(SimpleNamespace(info=SimpleNamespace(capability=(9, 0)), processors=132), plan, 1)


@pytest.mark.parametrize(
    ("operator", "attributes", "constants", "words"),
    [
        ("Reshape", {}, [np.array([1, -1, 4, 4], np.int64)], "voxels and channels together"),
        ("Pad", {"mode": "edge"}, [np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], np.int64)], "repeats channels at the edge"),
        ("ReduceMean", {"keepdims": 0}, [np.array([2, 3, 4], np.int64)], "over other axes than those of space"),
        (
            "Einsum",
            {"equation": "abcde,abcde->abcde"},
            [np.ones((1, 4, 4, 4, 4), np.float32)],
            "other axes than those of attention",
        ),
        ("Pad", {"mode": "reflect"}, [np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0], np.int64)], "mode reflect"),
        ("LayerNormalization", {"axis": -1}, [np.ones(4, np.float32)], "over other axes"),
        ("MatMul", {}, [np.ones((4, 4), np.float32)], "not along the last axis"),
    ],
)
def test_tokens_that_have_no_kernel_are_named(operator, attributes, constants, words):
    m = Made(1)
    inputs = [m.conv("image", 1, 4), *(m.constant(value) for value in constants)]
    m.nodes.append(onnx.helper.make_node(operator, inputs, ["odd_out"], name="odd", **attributes))
    with pytest.raises(UnsupportedNetwork, match=words):
        plan_of(m.finished(m.conv("odd_out", 4, 2), 2), (4, 4, 4))


def test_a_tensor_whose_shape_is_computed_is_named():
    m = Made(1)
    x = m.conv("image", 1, 4)
    # As many voxels as the image has above 0: nobody knows beforehand.
    count = m.op(
        "ReduceSum", m.op("Cast", m.op("Greater", x, m.constant(np.float32(0))), to=onnx.TensorProto.INT64), keepdims=0
    )
    x = m.op(
        "Expand",
        x,
        m.op(
            "Concat",
            m.constant(np.ones(4, np.int64)),
            m.op("Unsqueeze", count, m.constant(np.array([0], np.int64))),
            axis=0,
        ),
    )
    with pytest.raises(UnsupportedNetwork, match=r"Greater|ReduceSum|Expand"):
        plan_of(m.finished(m.conv(x, 4, 2), 2), (4, 4, 4))


def test_channels_are_picked_repeated_and_filled_up_exactly():
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 20))
    gate = m.op("Sigmoid", m.conv(x, 20, 1, kernel=1))
    # A gate of one channel over all (attention U-Net), one channel many times (V-Net), channels with zeros beside (HighResNet).
    gated = m.op("Mul", x, gate)
    repeated = m.op("Add", gated, m.op("Expand", m.conv(x, 20, 1), m.constant(np.array([1, 20, 1, 1, 1], np.int64))))
    first, second = m.cut(repeated, 1, 0, 8), m.cut(repeated, 1, 19, 7, -1)
    padded = m.op(
        "Pad",
        m.op("Add", first, m.cut(second, 1, 0, 8)),
        m.constant(np.array([0, 3, 0, 0, 0, 0, 1, 0, 0, 0], np.int64)),
        mode="constant",
    )
    tiled = m.op("Tile", m.conv(x, 20, 6), m.constant(np.array([1, 2, 1, 1, 1], np.int64)))
    plan = agrees(m.finished(m.conv(m.op("Add", padded, tiled), 12, 3), 3), (6, 5, 4))
    picked = [step for step in plan.steps if "_picked" in step.name]
    assert len(picked) == 6 and all(step.kind == "conv" and not step.int8 for step in picked)
    # What is picked is the same number: zeros and ones, and no bias.
    assert all(set(np.unique(plan.arrays[step.weights].astype(np.float32))) <= {0.0, 1.0} for step in picked)
    assert not any(step.kind == "move" for step in plan.steps)


@pytest.mark.parametrize("squared", ["Pow", "Mul"])
def test_a_layer_norm_in_single_operators_is_one(squared):
    m = Made(1)
    x = m.shaped(m.turned(m.conv("image", 1, 24), 0, 2, 3, 4, 1), 60, 24)
    last = m.constant(np.array([-1], np.int64))
    centered = m.op("Sub", x, m.op("ReduceMean", x, last))
    square = m.op("Pow", centered, m.constant(np.float32(2))) if squared == "Pow" else m.op("Mul", centered, centered)
    x = m.op("Div", centered, m.op("Sqrt", m.op("Add", m.op("ReduceMean", square, last), m.constant(np.float32(1e-5)))))
    x = m.op(
        "Add",
        m.op("Mul", x, m.constant(m.rng.uniform(0.5, 1.5, 24).astype(np.float32))),
        m.constant(m.rng.normal(size=24).astype(np.float32)),
    )
    plan = agrees(m.finished(m.conv(m.turned(m.shaped(x, 1, 5, 4, 3, 24), 0, 4, 1, 2, 3), 24, 2), 2), (5, 4, 3))
    norm = next(step for step in plan.steps if step.kind == "layernorm")
    assert (
        [op.kind for op in norm.ops] == ["affine", "store"]
        and len(norm.sources) == 9
        and norm.epsilon == pytest.approx(1e-5)
    )


@pytest.mark.parametrize("mean", ["GlobalAveragePool", "ReduceMean"])
def test_a_gate_of_the_mean_of_all_voxels_is_averaged_in_parts(mean):
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 20))
    gate = m.op(mean, x, *([m.constant(np.array([2, 3, 4], np.int64))] if mean == "ReduceMean" else []))
    gate = m.op("Sigmoid", m.conv(m.op("Relu", m.conv(gate, 20, 6, kernel=1)), 6, 20, kernel=1))
    plan = agrees(m.finished(m.conv(m.op("Mul", x, gate), 20, 3), 3), (16, 14, 11))
    assert [step.geometry.kernel for step in plan.steps if step.kind == "avgpool"] == [(8, 7, 11), (2, 2, 1)]


def test_what_is_filled_up_is_no_zero_behind_a_function_and_parts_meet_their_own_constants():
    m = Made(1)
    x = m.conv("image", 1, 12)
    # The sigmoid of a channel that was filled up is a half.
    padded = m.op(
        "Sigmoid", m.op("Pad", x, m.constant(np.array([0, 2, 1, 0, 0, 0, 2, 0, 0, 1], np.int64)), mode="constant")
    )
    part = m.cut(padded, 1, 1, 9)
    scaled = m.op(
        "Add",
        m.op("Mul", part, m.constant(m.rng.normal(size=(1, 8, 1, 1, 1)).astype(np.float32))),
        m.constant(m.rng.normal(size=(8, 1, 1, 1)).astype(np.float32)),
    )
    sloped = m.op(
        "PRelu", m.cut(padded, 1, 15, 7, -1), m.constant(m.rng.uniform(0, 1, (8, 1, 1, 1)).astype(np.float32))
    )
    joined = m.op("Concat", scaled, m.cut(sloped, 1, 2, 5), axis=1)
    agrees(m.finished(m.conv(joined, 11, 3), 3), (6, 5, 4))


def test_one_channel_is_put_beside_itself_and_filled_up():
    m = Made(1)
    x = m.op("Relu", m.conv("image", 1, 1))
    # As V-Net's older exports repeat a channel; and an image beside its shifted self.
    many = m.op("Concat", x, x, x, axis=1)
    ends = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0, 0], np.int64)
    shifted = m.op("Pad", m.cut(x, 2, 1, 1 << 40), m.constant(np.roll(ends, 1)), mode="constant")
    padded = m.op("Pad", x, m.constant(ends), mode="constant")
    x = m.op("Concat", many, x, shifted, padded, axis=1)
    agrees(m.finished(m.conv(x, 7, 3), 3), (6, 5, 4))


def test_parts_of_the_last_axis_keep_their_own_factors_and_meet_layers():
    m = Made(1)
    x = m.shaped(m.turned(m.conv("image", 1, 32), 0, 2, 3, 4, 1), 1, 60, 32)
    first, second = m.cut(x, 2, 0, 16), m.op("Mul", m.cut(x, 2, 16, 32), m.constant(np.float32(3)))
    gated = m.op(
        "Mul", m.linear(first, 16, 32, quantized=False), m.op("Sigmoid", m.op("Concat", first, second, axis=-1))
    )
    x = m.op("Concat", gated, m.layernorm(second, 16), axis=-1)
    x = m.turned(m.shaped(x, 1, 5, 4, 3, 48), 0, 4, 1, 2, 3)
    agrees(m.finished(m.conv(x, 48, 2, scale=0.05), 2), (5, 4, 3))


def test_products_with_letters_are_attention():
    m = Made(1)
    x = m.shaped(m.turned(m.conv("image", 1, 32), 0, 2, 3, 4, 1), 1, 60, 32)
    q, k, v = (m.turned(m.shaped(m.linear(x, 32, 32), 1, 60, 2, 16), 0, 2, 1, 3) for _ in range(3))
    scores = m.op("Mul", m.op("Einsum", q, k, equation="blxd,blyd->blxy"), m.constant(np.float32(0.25)))
    found = m.op("Einsum", m.op("Softmax", scores, axis=-1), v, equation="bhxy, bhyd -> bhxd")
    x = m.shaped(m.turned(found, 0, 2, 1, 3), 1, 5, 4, 3, 32)
    plan = agrees(m.finished(m.conv(m.turned(x, 0, 4, 1, 2, 3), 32, 2), 2), (5, 4, 3))
    assert [step.attention.scale for step in plan.steps if step.attention] == [pytest.approx(0.25)]


def test_the_only_gpu_is_not_opened_to_ask_for_its_memory(monkeypatch):
    monkeypatch.setattr(
        cuda, "gpus", lambda: [cuda.GpuInfo(0, "Old", (7, 0), 8 << 30), cuda.GpuInfo(1, "New", (9, 0), 80 << 30)]
    )
    monkeypatch.setattr(cuda, "free_memory", lambda index: pytest.fail("it was opened"))
    assert cuda.choose_gpu("gpu").name == "New"
