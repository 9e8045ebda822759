"""Constants in fewer bytes: each comes back to the last bit, positions and biases once they are rounded, and damage is refused in words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from MedQuantINT8Lib.models import packed_constants

RNG = np.random.default_rng(0)
make, array = onnx.helper.make_node, onnx.numpy_helper.from_array


def constants():
    """Arrays by the operator that reads them."""
    return {
        "index": np.arange(40 * 50, dtype=np.int64).reshape(40, 50) * 30,
        "negative": RNG.integers(-100, 100, 300),
        "zeros": np.zeros((1, 20, 30, 1), np.float32),
        "ones": np.ones(500, np.int64),
        "positions": RNG.normal(size=(1, 64, 96)).astype(np.float32),
        "narrow": (RNG.normal(size=(700, 8)) * 10.0 ** np.arange(-4, 4)).astype(np.float32),
        "bias": RNG.normal(size=192).astype(np.float32),
        "regions": RNG.integers(0, 27, (5000,)).astype(np.float32),
        "few": RNG.normal(size=5).astype(np.float32),
    }


def network(values):
    """Each constant is read by an Identity, or by what lets it be rounded."""
    nodes, outputs = [], []
    for name, value in values.items():
        kind = "Add" if name in ("positions", "narrow", "bias") else "Identity"
        nodes.append(make(kind, [name, name] if kind == "Add" else [name], [f"{name}_out"], name=f"read_{name}"))
        outputs.append(
            onnx.helper.make_tensor_value_info(
                f"{name}_out", onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
        )
    graph = onnx.helper.make_graph(nodes, "n", [], outputs, [array(value, name) for name, value in values.items()])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def arrays_of(model):
    return {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def outputs_of(model):
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})


def test_every_constant_comes_back_to_the_last_bit():
    model = network(constants())
    packed_constants.round_constants(model)
    packed = copied(model)
    packed_constants.pack_constants(packed)
    onnx.checker.check_model(packed)
    assert packed.ByteSize() < 0.32 * model.ByteSize()
    read = copied(packed)
    packed_constants.unpack_constants(read)
    before, after = arrays_of(model), arrays_of(read)
    assert before.keys() == after.keys() and [n.name for n in read.graph.node] == [n.name for n in model.graph.node]
    for name, value in before.items():
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        assert after[name].tobytes() == value.tobytes(), name
    # The file as it is computes the same: its nodes are standard operators.
    for expected, result in zip(outputs_of(model), outputs_of(packed), strict=True):
        assert np.array_equal(expected, result)


def test_tables_that_are_added_can_have_4_bits():
    """Positions and narrow tables take half; a table that values are looked up in keeps 8 bits."""
    looked_up = RNG.normal(size=(100, 64)).astype(np.float32)
    sizes = {}
    for bits in (8, 4):
        model = network({**constants(), "looked up": looked_up})
        reader = next(node for node in model.graph.node if "looked up" in node.input)
        reader.op_type, reader.input[:] = "Gather", ["looked up", "few index"]
        model.graph.initializer.append(array(np.arange(100), "few index"))
        packed_constants.round_constants(model, table_bits=bits)
        again = copied(model)
        packed_constants.round_constants(again, table_bits=bits)
        assert again == model, "rounded once is rounded"
        packed = copied(model)
        packed_constants.pack_constants(packed)
        onnx.checker.check_model(packed)
        kinds = sorted(c.data_type for c in packed.graph.initializer if len(c.dims) == 2 and c.dims[0] >= 64)
        assert kinds.count(onnx.TensorProto.INT4) == (2 if bits == 4 else 0) and kinds.count(onnx.TensorProto.INT8) >= 1
        read = copied(packed)
        packed_constants.unpack_constants(read)
        before, after = arrays_of(model), arrays_of(read)
        assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
        for expected, result in zip(outputs_of(model), outputs_of(packed), strict=True):
            assert np.array_equal(expected, result)
        sizes[bits] = packed.ByteSize()
    assert sizes[8] - sizes[4] > 0.45 * (64 * 96 + 700 * 8)


def test_what_is_rounded_stays_near_and_what_is_compared_stays_as_it_is():
    before = constants()
    model = network(before)
    packed_constants.round_constants(model)
    after = arrays_of(model)
    for name in ("index", "negative", "zeros", "ones", "regions", "few"):
        assert np.array_equal(after[name], before[name]), name
    # Half a step of a row's 127, of a column's where rows are short, and 11 digits of a bias.
    for name, axis in (("positions", 2), ("narrow", 0)):
        step = np.abs(before[name]).max(axis=axis, keepdims=True) / 127
        assert (np.abs(after[name] - before[name]) <= 0.51 * step).all() and (after[name] != before[name]).any()
    assert np.abs(after["bias"] - before["bias"]).max() < 2**-11 * np.abs(before["bias"]).max()


def test_tables_of_16_bits_are_rounded_too():
    positions = constants()["positions"]
    model = network({"positions": positions})
    model.graph.initializer[0].CopyFrom(array(positions.astype(np.float16), "half"))
    model.graph.node.insert(0, make("Cast", ["half"], ["positions"], to=onnx.TensorProto.FLOAT))
    packed_constants.round_constants(model)
    packed_constants.pack_constants(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Reshape", "Add"]
    assert model.ByteSize() < 1.2 * positions.size


def test_a_cast_of_16_bits_to_another_type_stays():
    model = network({"numbers": np.arange(200)})
    model.graph.initializer[0].CopyFrom(array(np.arange(200, dtype=np.float16), "half"))
    # In a file, attributes stand in any order: here saturate comes first, and is 1, as FLOAT is.
    model.graph.node.insert(0, make("Cast", ["half"], ["numbers"], to=onnx.TensorProto.INT64, saturate=1))
    assert [a.name for a in model.graph.node[0].attribute] == ["saturate", "to"]
    packed_constants.round_constants(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Identity"]
    assert arrays_of(model)["half"].dtype == np.float16


def test_minus_zero_and_numbers_that_are_not_finite_are_kept():
    odd = np.array([0.0, -0.0] * 100, np.float32)
    infinite = np.full(300, np.inf, np.float32)
    infinite[0] = np.nan
    model = network({"odd": odd, "infinite": infinite})
    packed_constants.round_constants(model)
    packed_constants.pack_constants(model)
    packed_constants.unpack_constants(model)
    after = arrays_of(model)
    assert after["odd"].tobytes() == odd.tobytes() and after["infinite"].tobytes() == infinite.tobytes()


@pytest.mark.parametrize("what", ["shape", "scale", "no shape", "huge", "negative"])
def test_parts_that_do_not_fit_together_are_refused(what):
    model = network({"positions": constants()["positions"], "zeros": constants()["zeros"]})
    packed_constants.round_constants(model)
    packed_constants.pack_constants(model)
    node = {n.op_type: n for n in model.graph.node}
    name = {
        "shape": lambda: node["Reshape"].input[1],
        "scale": lambda: node["DequantizeLinear"].input[1],
        "no shape": lambda: "",
        "huge": lambda: node["ConstantOfShape"].input[0],
        "negative": lambda: node["ConstantOfShape"].input[0],
    }[what]()
    wrong = {
        "shape": np.array([1, 2, 3]),
        "scale": np.ones(3, np.float32),
        "huge": np.array([1 << 40]),
        "negative": np.array([-1]),
    }
    if what == "no shape":
        node["Reshape"].op_type = "Identity"
        del node["Reshape"].input[1:]
    else:
        constant = next(c for c in model.graph.initializer if c.name == name)
        constant.CopyFrom(array(wrong[what], name))
    with pytest.raises(ValueError, match="table|constant of one value"):
        packed_constants.unpack_constants(model)
