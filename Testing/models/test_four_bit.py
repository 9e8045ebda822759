"""Weights of 4 bits: packed by standard operators, and INT8 again when the network is read, to the last number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from data_models import ROOT
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.models import four_bit, packed_constants, qdq
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.package import INT8, ModelPackage
from tiny import convolutions, package, quantized, random_weights, run


def int8_network(seed=0, widths=(3, 8, 8, 2), side=3, fine=False):
    """A network whose INT8 weights are whole multiples of their groups' factors."""
    rng = np.random.default_rng(seed)
    model = quantized(convolutions(*random_weights(widths, side=side)))
    found = graph.Graph(model)
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = found.producer[node.input[1]].input[0]
        shape = found.array(name).shape
        rows = rng.integers(-8, 8, (shape[0], int(np.prod(shape[1:]))))
        length = four_bit.group_length(rows.shape[1], int(np.prod(shape[2:])), fine=fine)
        factors = rng.integers(1, 16, (shape[0], rows.shape[1] // length)).repeat(length, 1)
        found.initializers[name].CopyFrom(
            onnx.numpy_helper.from_array((rows * factors).astype(np.int8).reshape(shape), name)
        )
    return model


def blocks(packed):
    """The lengths of the groups of a packed network's weights."""
    return {a.i for node in packed.graph.node for a in node.attribute if a.name == "block_size"}


def same_weights(first, second):
    """Whether two networks have the same INT8 weights, scales and zero points in layers of the same name."""
    ours, theirs = graph.Graph(first), graph.Graph(second)
    nodes = {node.name: node for node in second.graph.node if node.op_type == "Conv"}
    return all(
        np.array_equal(ours.array(a), theirs.array(b))
        for node in first.graph.node
        if node.op_type == "Conv"
        for a, b in zip(
            ours.producer[node.input[1]].input, theirs.producer[nodes[node.name].input[1]].input, strict=True
        )
    )


@pytest.mark.parametrize(
    ("inputs", "taps", "expected"),
    # Four input channels of 27 weights, one channel; all of few inputs; halves of 192; kernels of 2 and of 5.
    [
        (64 * 27, 27, (108, 27)),
        (27, 27, (27, 27)),
        (16, 1, (16, 16)),
        (192, 1, (96, 32)),
        (512, 8, (128, 32)),
        (1000, 125, (125, 125)),
    ],
)
def test_groups_are_whole_input_channels(inputs, taps, expected):
    assert tuple(four_bit.group_length(inputs, taps, fine=fine) for fine in (False, True)) == expected


def test_the_longest_groups_that_hold_the_weights_are_stored():
    for fine, expected in ((False, {27, 108}), (True, {27})):
        model = int8_network(widths=(1, 8, 8, 2), fine=fine)
        packed, layers = four_bit.packed(model)
        assert len(layers) == 3 and blocks(packed) == expected and same_weights(model, four_bit.unpacked(packed))


def test_a_file_of_an_earlier_version_is_read():
    """Written with groups of 27 and scales in FP32, before groups were longer."""
    model = int8_network(seed=5, widths=(4, 8, 6, 2), fine=True)
    read = graph.load_network(ROOT / "Testing" / "Networks" / "four_bits_of_november.onnx")
    assert graph.opset_of(read) == 19 and qdq.check_int8(read) == [] and same_weights(model, read)


def with_table(model, bits):
    """The network with a table that is added to its output, rounded to so many bits."""
    table = np.random.default_rng(1).normal(size=(1, 2, 8, 8, 8)).astype(np.float32)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "positions"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "positions"))
    packed_constants.round_constants(model, table_bits=bits)
    return model


def test_the_form_of_a_packed_file_is_written_down_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    """Tables of 4 bits are of the second form; a third is of a version to come."""
    monkeypatch.setattr(packed_constants, "_LARGE_TABLE", 512)
    for bits, form in ((8, []), (4, ["2"])):
        model = with_table(int8_network(), bits)
        packed, _ = four_bit.packed(model)
        onnx.checker.check_model(packed, full_check=True)
        notes = {entry.key: entry for entry in packed.metadata_props}
        assert [notes[key].value for key in notes if "form" in key] == form
        read = four_bit.unpacked(packed)
        assert not read.metadata_props and same_weights(model, read)
        patch = np.random.default_rng(0).normal(size=(3, 8, 8, 8)).astype(np.float32)
        assert np.array_equal(run(model, patch), run(read, patch))
    next(entry for entry in packed.metadata_props if "form" in entry.key).value = "3"
    (tmp_path / "n.onnx").write_bytes(packed.SerializeToString())
    with pytest.raises(PackageError, match="packed by form 3.*knows 1 and 2: update it"):
        graph.load_network(tmp_path / "n.onnx")


def test_scales_that_16_bits_hold_are_stored_in_16_bits():
    sizes = []
    for digits in (np.float16, np.float32):
        model = int8_network(widths=(3, 64, 64, 64))
        found = graph.Graph(model)
        for node in model.graph.node:
            if node.op_type == "Conv":
                name = found.producer[node.input[1]].input[1]
                scale = found.array(name).astype(digits).astype(np.float32)
                found.initializers[name].CopyFrom(onnx.numpy_helper.from_array(scale, name))
        packed, _ = four_bit.packed(model)
        sizes.append(packed.ByteSize())
        assert same_weights(model, four_bit.unpacked(packed))
    assert sizes[0] < sizes[1] - 3 * 2 * 64 + 150


def test_names_are_short_but_those_of_layers_and_of_both_ends_stay():
    model = int8_network()
    packed, _ = four_bit.packed(model)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    names = {name for node in packed.graph.node for name in (*node.input, *node.output) if name}
    assert ends == {value.name for value in (*packed.graph.input, *packed.graph.output)} <= names
    assert all(len(name) <= 2 for name in names - ends)
    assert {"a", "b", "c"} <= {node.name for node in packed.graph.node}


def test_a_node_without_inputs_may_be_called_a_table():
    model = int8_network()
    value = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["own"], name="table", value=value))
    assert same_weights(model, four_bit.unpacked(four_bit.packed(model)[0]))


@pytest.mark.parametrize(("side", "widths"), [(3, (3, 8, 8, 2)), (1, (3, 64, 40, 37, 2))])
def test_packed_weights_come_back_to_the_last_number(side, widths, tmp_path):
    model = int8_network(side=side, widths=widths)
    packed, layers = four_bit.packed(model)
    assert sorted(layers) == list("abcdefgh"[: len(widths) - 1])
    onnx.checker.check_model(packed, full_check=True)
    (tmp_path / "n.onnx").write_bytes(packed.SerializeToString())
    read = graph.load_network(tmp_path / "n.onnx")
    assert graph.opset_of(read) == graph.opset_of(model) == 19 and qdq.check_int8(read) == []
    assert same_weights(model, read)
    patch = np.random.default_rng(0).normal(size=(3, 8, 8, 8)).astype(np.float32)
    assert np.array_equal(run(model, patch), run(read, patch))
    # Any software that knows opset 21 runs the file as it is; its products round otherwise, which may turn an activation's last bit.
    assert (np.abs(run(model, patch) - run(packed, patch)) > 1e-3).mean() < 0.02


def test_the_file_has_about_half_of_int8():
    model = int8_network(widths=(16, 64, 64, 16))
    packed, _ = four_bit.packed(qdq.compacted(model))
    weights = 27 * (16 * 64 + 64 * 64 + 64 * 16)
    assert packed.ByteSize() < 0.505 * weights + 3000


def test_transposed_convolutions_and_products_are_packed_too():
    rng = np.random.default_rng(0)
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    transposed, product = (rng.integers(-8, 8, shape).astype(np.int8) for shape in ((4, 6, 2, 2, 2), (6, 5)))
    nodes = [
        make("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        make("ConvTranspose", ["x", "wd"], ["t"], name="up", strides=[2, 2, 2]),
        make("Transpose", ["t"], ["last"], perm=[0, 2, 3, 4, 1]),
        make("DequantizeLinear", ["m", "ms", "mz"], ["md"], axis=1),
        make("MatMul", ["last", "md"], ["p"], name="product"),
        make("Transpose", ["p"], ["y"], perm=[0, 4, 1, 2, 3]),
    ]
    constants = [array(transposed, "w"), array(product, "m")]
    for name, count in (("w", 6), ("m", 5)):
        constants += [
            array(rng.random(count).astype(np.float32), f"{name}s"),
            array(np.zeros(count, np.int8), f"{name}z"),
        ]
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 4, 2, 2, 2]), ("y", [1, 5, 4, 4, 4]))]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "n", ends[:1], ends[1:], constants),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    packed, layers = four_bit.packed(model)
    onnx.checker.check_model(packed, full_check=True)
    assert layers == ["up", "product"] and packed.ByteSize() > 0
    read = four_bit.unpacked(packed)
    patch = rng.normal(size=(4, 2, 2, 2)).astype(np.float32)
    assert np.array_equal(run(model, patch), run(read, patch))


def test_weights_that_do_not_fit_stay_int8():
    model = quantized(convolutions(*random_weights((2, 8, 2), side=3)))
    packed, layers = four_bit.packed(model)
    assert not layers and packed == model and four_bit.unpacked(packed) is packed


def spoil(model, what):
    constants = {c.data_type: c for c in model.graph.initializer}
    integers, factors = constants[onnx.TensorProto.INT4], constants[onnx.TensorProto.UINT4]
    if what == "short":
        integers.raw_data = integers.raw_data[:-3]
    elif what == "zero factors":
        factors.raw_data = bytes(len(factors.raw_data))
    elif what == "block":
        node = next(n for n in model.graph.node if integers.name in n.input)
        next(a for a in node.attribute if a.name == "block_size").i = 5
    elif what == "shape":
        shape = next(c for c in model.graph.initializer if c.data_type == onnx.TensorProto.INT64)
        shape.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 2, 3]), shape.name))
    elif what == "no shape":
        node = next(n for n in model.graph.node if n.op_type == "Reshape")
        node.op_type = "Identity"
        del node.input[1:]
    return model


@pytest.mark.parametrize("what", ["short", "zero factors", "block", "shape", "no shape"])
def test_damaged_weights_are_refused_in_words(what, tmp_path):
    packed, _ = four_bit.packed(int8_network())
    (tmp_path / "n.onnx").write_bytes(spoil(packed, what).SerializeToString())
    with pytest.raises(PackageError, match="no valid ONNX network"):
        graph.load_network(tmp_path / "n.onnx")


def test_a_package_with_packed_weights_runs_and_its_hash_guards_it(tmp_path):
    from MedQuantINT8Lib.engines import BuildOptions, backend

    fp32 = convolutions(*random_weights((1, 8, 2), side=3))
    packed, layers = four_bit.packed(int8_network(widths=(1, 8, 2)))
    assert layers
    made = package(tmp_path, fp32, packed)
    options = BuildOptions("int8", (8, 8, 8))
    backend("onnxruntime").build(made.onnx_path("int8"), tmp_path, options)
    engine = backend("onnxruntime").load(tmp_path, options)
    patch = np.random.default_rng(0).normal(size=(1, 1, 8, 8, 8)).astype(np.float32)
    assert np.array_equal(engine.infer(patch), run(graph.load_network(made.onnx_path("int8")), patch[0]))
    content = bytearray((made.folder / INT8).read_bytes())
    content[len(content) // 2] ^= 1
    (made.folder / INT8).write_bytes(content)
    with pytest.raises(PackageError, match="damaged or was changed"):
        ModelPackage.load(made.folder)
