"""A network's last layer is taken off where it is a wide convolution of 1 x 1 x 1, and gives the same scores beside the network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from graphs import SIZE, network, weights
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.pointwise_head import PointwiseHead, without_head
from tiny import quantized, run

FEATURES, CLASSES = 4, 9


def wide(classes=CLASSES, kernel=1, bias=True, tail=(), **attributes):
    """A convolution of 3 x 3 x 3, a ReLU, and a head."""
    shapes = {"w": (FEATURES, 1, 3, 3, 3), "h": (classes, FEATURES, kernel, kernel, kernel)}
    constants = weights(**shapes, **({"b": (classes,)} if bias else {}))
    end = "s" if tail else "y"
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["f"], name="body", pads=[1] * 6),
        helper.make_node("Relu", ["f"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "h", "b"] if bias else ["r", "h"], [end], name="head", **attributes),
    ]
    return network([*nodes, *tail], constants, classes=classes)


def patch():
    return np.random.default_rng(0).normal(size=(1, *SIZE)).astype(np.float32)


def scores_of(model, head):
    features = run(model, patch())[0]
    scores = np.empty((head.classes, features[0].size), np.float32)
    head.scores(features.reshape(len(features), -1), scores)
    return scores.reshape(head.classes, *features.shape[1:])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("int8", [False, True])
def test_the_network_and_its_head_give_what_the_whole_gives(bias, int8):
    model = quantized(wide(bias=bias)) if int8 else wide(bias=bias)
    rest, head = without_head(model)
    onnx.checker.check_model(rest)
    assert head is not None and (head.classes, head.features, head.name) == (CLASSES, FEATURES, "head")
    assert "head" not in [node.name for node in rest.graph.node] and "h" not in [i.name for i in rest.graph.initializer]
    np.testing.assert_allclose(scores_of(rest, head), run(model, patch())[0], rtol=1e-5, atol=1e-5)
    assert [node.name for node in model.graph.node][-1:] == ["head"]


@pytest.mark.parametrize(
    "model",
    [
        wide(classes=7),
        wide(kernel=3, pads=[1] * 6),
        wide(tail=[helper.make_node("Softmax", ["s"], ["y"], name="softmax", axis=1)]),
        network([helper.make_node("Conv", ["x", "h"], ["y"], name="alone")], weights(h=(9, 1, 1, 1, 1)), classes=9),
    ],
    ids=["few classes", "a wider kernel", "something behind it", "nothing before it"],
)
def test_any_other_network_stays_whole(model):
    assert without_head(model) == (model, None)


def test_weights_that_a_network_computes_are_no_head():
    model = wide(bias=False)
    model.graph.node.insert(2, helper.make_node("Neg", ["h"], ["n"], name="negative"))
    model.graph.node[3].input[1] = "n"
    assert without_head(graph.inferred(model))[1] is None


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = without_head(wide())[1]
    assert head is not None and PointwiseHead.load(tmp_path) is None
    head.save(tmp_path)
    read = PointwiseHead.load(tmp_path)
    assert read is not None and read.name == "head"
    assert np.array_equal(read.weights, head.weights) and np.array_equal(read.bias, head.bias)
