"""ONNX files as they come: right, or refused by what stands in the way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from MedQuantINT8Lib.cli.main import main
from MedQuantINT8Lib.engines.onnxruntime import session
from MedQuantINT8Lib.errors import PackageError
from MedQuantINT8Lib.importers import onnx_trial
from MedQuantINT8Lib.importers.onnx import draft_for, draft_spec, import_onnx, prepare_network
from MedQuantINT8Lib.importers.onnx_trial import ending_of
from MedQuantINT8Lib.models import onnx_graph as graph
from MedQuantINT8Lib.models.package import FP32, INT8, ModelPackage, write_package
from MedQuantINT8Lib.models.spec import Output

SIZE = 8
FULL, SCORES = [1, 1, SIZE, SIZE, SIZE], [1, 2, SIZE, SIZE, SIZE]
RNG = np.random.default_rng(3)
WEIGHT, BIAS = (
    RNG.normal(size=(2, 1, 3, 3, 3)).astype(np.float16).astype(np.float32),
    np.array([0.25, -0.5], np.float32),
)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"{kind}_{outputs.split()[0]}", **attributes)


CONV = node("Conv", "x w b", "y", pads=[1] * 6)


def save(
    path,
    nodes,
    *,
    weights=(WEIGHT, BIAS),
    more=(),
    x=FULL,
    y=SCORES,
    types=(1, 1),
    opsets=(("", 19),),
    ir=9,
    outputs=None,
):
    """A network of ``nodes`` on x, with a convolution's weights w and b."""
    constants = [numpy_helper.from_array(a, n) for a, n in zip(weights, "wb", strict=True)]
    constants += [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(more).items()]
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", types[0], x)],
        outputs or [helper.make_tensor_value_info("y", types[1], y)],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=ir)
    onnx.save(model, str(path))
    return path


def scores_of(package, x):
    run = session((package.folder / FP32).read_bytes(), "fp32")
    return run.run(None, {run.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Voxels, and the convolution's scores of them, as ONNX Runtime computes the plain network."""
    path = save(tmp_path_factory.mktemp("plain") / "plain.onnx", [CONV])
    x = RNG.normal(size=FULL).astype(np.float32)
    return x, session(path.read_bytes(), "fp32").run(None, {"x": x})[0]


def as_type(kind):
    return {
        "weights": (WEIGHT.astype(kind), BIAS.astype(kind)),
        "types": (helper.np_dtype_to_tensor_dtype(np.dtype(kind)),) * 2,
    }


LAST = [1, SIZE, SIZE, SIZE, 1], [1, SIZE, SIZE, SIZE, 2]
SMALL = helper.make_tensor_value_info("z", 1, [1, 2, 4, 4, 4])
RIGHT = {
    "float16 throughout": ([CONV], as_type(np.float16), "float16 numbers are kept exactly"),
    "float64 throughout": ([CONV], as_type(np.float64), "float64 numbers are rounded"),
    "float32 around float16": (
        [node("Cast", "x", "h", to=10), node("Conv", "h w b", "c", pads=[1] * 6), node("Cast", "c", "y", to=1)],
        {"weights": as_type(np.float16)["weights"]},
        "kept exactly",
    ),
    "a domain of others named first": ([CONV], {"opsets": (("com.microsoft", 1), ("", 17))}, ""),
    "opset 9": ([CONV], {"opsets": (("", 9),), "ir": 4}, ""),
    "opset 25": ([CONV], {"opsets": (("", 25),), "ir": 12}, ""),
    "a batch of four": ([CONV], {"x": [4, *FULL[1:]], "y": [4, *SCORES[1:]]}, "batch was fixed to 4"),
    "channels last": (
        [node("Transpose", "x", "t", perm=[0, 4, 1, 2, 3]), node("Conv", "t w b", "c", pads=[1] * 6), node("Transpose", "c", "y", perm=[0, 2, 3, 4, 1])],
        {"x": LAST[0], "y": LAST[1]},
        "takes channels last",
    ),
    "two outputs": (
        [CONV, node("AveragePool", "y", "z", kernel_shape=[2, 2, 2], strides=[2, 2, 2])],
        {"outputs": [SMALL, helper.make_tensor_value_info("y", 1, SCORES)]},
        "'y' was taken",
    ),
    "one symbol for all sizes": ([CONV], {"x": ["s", 1, "s", "s", "s"], "y": ["s", 2, "s", "s", "s"]}, ""),
    "sizes of 0 and -1": ([CONV], {"x": [-1, 1, 0, -1, 0], "y": [-1, 2, 0, -1, 0]}, ""),
    "a pad at the end, by numbers that are computed": (
        [node("Conv", "x w b", "v"), node("Concat", "one one", "p", axis=0), node("Cast", "p", "q", to=7), node("Pad", "v q", "y")],
        {"more": {"one": np.array([0, 0, 1, 1, 1], np.float32)}, "y": [None] * 5},
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", RIGHT)
def test_forms_that_are_taken_compute_what_they_did(form, expected, tmp_path):
    nodes, changes, note = RIGHT[form]
    path = save(tmp_path / "net.onnx", nodes, **changes)
    facts = prepare_network(path, tmp_path / "out.onnx", (SIZE,) * 3)
    assert (facts.channels, facts.classes, facts.ending) == (1, 2, "logits") and note in " ".join(facts.notes)
    unknown = form == "float64 throughout"  # ONNX Runtime has no such convolution
    assert (
        len(facts.comparisons) == 1
        and ("not compared" if unknown else "equal to those of the file") in facts.comparisons[0]
    )
    package = import_onnx(path, draft_for("net", 1, 2, (SIZE,) * 3), tmp_path / "package")
    x, scores = expected
    if "pad" in form:
        scores = np.pad(scores[:, :, 1:-1, 1:-1, 1:-1], [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])
    assert np.allclose(scores_of(package, x), scores, atol=1e-5)
    model = graph.load_network(package.onnx_path("fp32"))
    shape = graph.network_shape(model)
    assert shape.classes == 2 and graph.opset_of(model) in (19, 21) and [o.domain for o in model.opset_import] == [""]
    two = np.concatenate([x, x])
    assert np.allclose(scores_of(package, two)[1], scores[0], atol=1e-5), "the batch is open"


BRANCH = helper.make_node(
    "If", ["flag"], ["y"], name="Choice",
    then_branch=helper.make_graph([node("Conv", "x w b", "t", pads=[1] * 6)], "t", [], [helper.make_tensor_value_info("t", 1, SCORES)]),
    else_branch=helper.make_graph([node("Conv", "x w b", "e", pads=[1] * 6)], "e", [], [helper.make_tensor_value_info("e", 1, SCORES)]),
)  # fmt: skip
REFUSED = {
    "uint8 voxels": ([node("Cast", "x", "f", to=1), node("Conv", "f w b", "y", pads=[1] * 6)], {"types": (2, 1)}, "uint8 voxels"),
    "a batch of four inside": (
        [node("Reshape", "x s", "r"), node("Conv", "r w b", "y", pads=[1] * 6)],
        {"x": [4, *FULL[1:]], "y": [4, *SCORES[1:]], "more": {"s": np.array([4, *FULL[1:]])}},
        "4 windows at once",
    ),
    "half the size": (
        [node("Conv", "x w b", "c", pads=[1] * 6), node("AveragePool", "c", "y", kernel_shape=[2, 2, 2], strides=[2, 2, 2])],
        {"y": [1, 2, 4, 4, 4]},
        "4 x 4 x 4 voxels of scores for a window of 8 x 8 x 8",
    ),
    "convolutions without padding": ([node("Conv", "x w b", "y")], {"y": [1, 2, 6, 6, 6]}, "6 x 6 x 6"),
    "quantized": (
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("Conv", "d w b", "y", pads=[1] * 6)],
        {"more": {"s": np.float32(0.1), "z": np.int8(0)}},
        "quantized already",
    ),
    "a branch": ([BRANCH], {"more": {"flag": np.array(True)}}, "'Choice' .If. is control flow"),
    "chance": ([node("Conv", "x w b", "c", pads=[1] * 6), node("RandomNormalLike", "c", "r"), node("Add", "c r", "y")], {}, "chance"),
    "operators of others": ([helper.make_node("Magic", ["x"], ["y"], name="Trick", domain="org.example")], {"opsets": (("", 19), ("org.example", 1))}, "'Trick' .Magic. belongs to org.example"),
    "two dimensions": ([node("Conv", "x w b", "y", pads=[1] * 4)], {"x": [1, 1, 8, 8], "y": [1, 2, 8, 8], "weights": (WEIGHT[:, :, 0], BIAS)}, "4 axes"),
    "labels without scores": ([CONV, node("Greater", "y zero", "g"), node("Cast", "g", "l", to=2)], {"more": {"zero": np.float32(0)}, "outputs": [helper.make_tensor_value_info("l", 2, SCORES)]}, "labels and no scores"),
    "two outputs of one size": ([CONV, node("Relu", "y", "z")], {"outputs": [helper.make_tensor_value_info(n, 1, SCORES) for n in "yz"]}, "which one holds the class scores"),
    "no finite scores": ([CONV, node("Log", "y", "l")], {"outputs": [helper.make_tensor_value_info("l", 1, SCORES)]}, "no finite numbers"),
    "channels left open": ([node("GlobalAveragePool", "x", "p"), node("Sub", "x p", "y")], {"x": [1, "c", 8, 8, 8], "y": [1, "c", 8, 8, 8]}, "number of its input's channels open"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_forms_that_are_not_taken_are_refused_by_name(form, tmp_path, capsys):
    nodes, changes, problem = REFUSED[form]
    path = save(tmp_path / "net.onnx", nodes, **changes)
    with pytest.raises(PackageError, match=problem) as caught:
        import_onnx(path, draft_for("net", 1, 2, (SIZE,) * 3), tmp_path / "package")
    assert caught.value.hint and not (tmp_path / "package").exists()


def test_an_input_that_nothing_reads_and_weights_among_the_inputs_do_no_harm(expected, tmp_path):
    path = save(tmp_path / "net.onnx", [CONV], ir=4, opsets=(("", 11),))
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", 1, WEIGHT.shape))
    model.graph.input.insert(0, helper.make_tensor_value_info("mask", 1, FULL))
    onnx.save(model, path)
    package = import_onnx(path, draft_for("net", 1, 2, (SIZE,) * 3), tmp_path / "package")
    assert np.allclose(scores_of(package, expected[0]), expected[1], atol=1e-5)
    model.graph.node[0].input[0] = "sum"
    model.graph.node.insert(0, node("Add", "x mask", "sum"))
    onnx.save(model, path)
    with pytest.raises(PackageError, match=r"2 inputs \(mask, x\)"):
        import_onnx(path, draft_for("net", 1, 2, (SIZE,) * 3), tmp_path / "package")


def test_external_data_outside_of_the_folder_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    path = save(tmp_path / "inside" / "net.onnx", [CONV])
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "missing.bin"):
        model = onnx.load(path)
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        (tmp_path / "inside" / "bad.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(PackageError, match="bad.onnx"):
            graph.load_network(tmp_path / "inside" / "bad.onnx")


# How a network ends

ENDINGS = {
    "Sigmoid": ([node("Sigmoid", "c", "y")], "sigmoid"),
    "Sigmoid, Identity, Cast": ([node("Sigmoid", "c", "s"), node("Identity", "s", "i"), node("Cast", "i", "y", to=1)], "sigmoid"),
    "HardSigmoid": ([node("HardSigmoid", "c", "y")], "sigmoid"),
    "Softmax": ([node("Softmax", "c", "y", axis=1)], "softmax"),
    "Softmax, squeezed and back": ([node("Softmax", "c", "s", axis=-4), node("Unsqueeze", "s a", "u"), node("Squeeze", "u a", "y")], "softmax"),
    "softmax written out": (
        [node("ReduceMax", "c a", "m", keepdims=1), node("Sub", "c m", "d"), node("Exp", "d", "e"), node("ReduceSum", "e a", "t", keepdims=1), node("Div", "e t", "y")],
        "softmax",
    ),
    "sigmoid written out": ([node("Neg", "c", "n"), node("Exp", "n", "e"), node("Add", "e one", "p"), node("Reciprocal", "p", "y")], "sigmoid"),
    "tanh, moved": ([node("Tanh", "c", "t"), node("Add", "t one", "p"), node("Mul", "p half", "y")], "sigmoid"),
    "one minus sigmoid": ([node("Sigmoid", "c", "s"), node("Sub", "one s", "y")], "sigmoid"),
    "LogSoftmax": ([node("LogSoftmax", "c", "y", axis=1)], "log_softmax"),
    "an attention gate": ([node("Sigmoid", "c", "s"), node("Mul", "s c", "y")], "logits"),
    "Relu": ([node("Relu", "c", "y")], "logits"),
}  # fmt: skip
MORE = {"a": np.array([1]), "one": np.float32(1), "half": np.float32(0.5)}


@pytest.mark.parametrize("ending", ENDINGS)
def test_how_a_network_ends_is_seen_and_described(ending, tmp_path):
    nodes, kind = ENDINGS[ending]
    path = save(tmp_path / "net.onnx", [node("Conv", "x w b", "c", pads=[1] * 6), *nodes], more=MORE)
    assert prepare_network(path, tmp_path / "out.onnx", None).ending == kind
    spec = draft_spec(path)
    assert spec.output.activated == (kind in ("softmax", "sigmoid"))
    assert spec.output.activation == ("sigmoid" if kind == "sigmoid" else "softmax")
    import_onnx(path, spec, tmp_path / "package")
    wrong = replace(spec, output=replace(spec.output, activated=not spec.output.activated))
    with pytest.raises(PackageError, match=r"output\.activated"):
        import_onnx(path, wrong, tmp_path / "wrong")


def test_an_untrained_network_is_not_taken_for_probabilities():
    nothing = np.zeros((1, 2, 4, 4, 4))
    assert ending_of(nothing, nothing, "") == "logits"
    small = 0.4 + 0.1 * RNG.random((1, 2, 4, 4, 4))
    assert ending_of(small, 1000 * small, "") == "logits"
    assert ending_of(small, small, "") == "sigmoid"


def test_a_log_softmax_described_as_regions_is_refused(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Conv", "x w b", "c", pads=[1] * 6), node("LogSoftmax", "c", "y", axis=1)])
    with pytest.raises(PackageError, match="LogSoftmax"):
        import_onnx(path, draft_for("net", 1, 2, (SIZE,) * 3, Output("sigmoid")), tmp_path / "package")


def test_a_network_that_ends_in_sigmoid_finds_what_is_above_one_half(tmp_path, capsys):
    """From the command to the label map: a second sigmoid would find nearly everything."""
    import nibabel

    volume = np.random.default_rng(0).standard_normal((10, 10, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    four, minus = np.full((1, 1, 1, 1, 1), 4, np.float32), np.array([-4], np.float32)
    path = save(
        tmp_path / "net.onnx", [node("Conv", "x w b", "c"), node("Sigmoid", "c", "y")], weights=(four, minus), y=FULL
    )
    package = str(tmp_path / "package")
    assert main(["import", "onnx", str(path), "-o", package, "-q"]) == 0
    assert main(["import", "onnx", str(path), "--spec", f"{package}.draft.json", "-o", package, "-q"]) == 0
    assert "ends in Sigmoid" in capsys.readouterr().out
    found = tmp_path / "labels.nii.gz"
    assert (
        main(
            [
                "segment",
                package,
                str(tmp_path / "scan.nii.gz"),
                "-o",
                str(found),
                "--engine",
                "onnxruntime",
                "--precision",
                "fp32",
                "-q",
            ]
        )
        == 0
    )
    labels = np.asarray(nibabel.load(found).dataobj) > 0
    assert np.array_equal(labels, (volume - volume.mean()) / volume.std() > 1)


def test_a_package_of_an_old_opset_that_import_did_not_make_is_quantized(tmp_path, capsys):
    import nibabel

    weights = RNG.normal(size=(16, 1, 3, 3, 3)).astype(np.float32), np.zeros(16, np.float32)
    nodes = [node("Conv", "x w b", "c", pads=[1] * 6), node("Relu", "c", "r"), node("Conv", "r v", "y")]
    head = RNG.normal(size=(2, 16, 1, 1, 1)).astype(np.float32)
    path = save(tmp_path / "net.onnx", nodes, weights=weights, more={"v": head}, opsets=(("", 13),), ir=7)
    write_package(tmp_path / "old", draft_for("old", 1, 2, (SIZE,) * 3), {FP32: path})
    nibabel.save(
        nibabel.Nifti1Image(RNG.normal(size=(12, 12, 12)).astype(np.float32), np.eye(4)), tmp_path / "scan.nii"
    )
    assert (
        main(["quantize", str(tmp_path / "old"), "--calibrate", str(tmp_path / "scan.nii"), "--patches", "2", "-q"])
        == 0
    ), capsys.readouterr().err
    assert ModelPackage.load(tmp_path / "old").has(INT8)
    assert json.loads((tmp_path / "old" / "calibration.json").read_text())["patches_used"] == 2


@pytest.mark.parametrize("ties", [False, True], ids=["open", "a batch of one inside"])
def test_a_large_window_is_run_as_seldom_as_can_be(tmp_path, monkeypatch, ties):
    """Once in the file as it came and once in the form that engines take; two windows a call are tried in small ones first."""
    shapes = []
    outputs_for = onnx_trial.outputs_for

    def counted(network, image):
        shapes.append(image.shape)
        return outputs_for(network, image)

    monkeypatch.setattr(onnx_trial, "outputs_for", counted)
    axes = ["n", 1, "a", "b", "c"]
    nodes = [node("Reshape", "y1 s", "y", allowzero=0)] if ties else []
    source = save(
        tmp_path / "net.onnx",
        [node("Conv", "x w b", "y1" if ties else "y", pads=[1] * 6), *nodes],
        x=axes,
        y=["n", 2, "a", "b", "c"],
        more={"s": np.array([1, 0, 0, 0, -1])} if ties else {},
    )
    facts = prepare_network(source, tmp_path / "prepared.onnx", (64, 64, 64))
    small, large = (32, 32, 32), (64, 64, 64)
    assert facts.one_window == ties
    tried = [(1, 1, *large), (1, 1, *small), (2, 1, *small), *([(2, 1, *large)] if ties else []), (1, 1, *large)]
    assert shapes == tried
    assert "scores equal to those of the file as it came" in facts.comparisons[0]
