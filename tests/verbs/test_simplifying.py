"""A foreign ONNX graph comes out with fewer nodes and the same numbers, or as it came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.quantize import fold  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402
from tests.verbs.simplified import FLOAT, floats, network, ops, run, saved  # noqa: E402


def _net(last: str = "Relu", gain: float = 1.0) -> onnx.ModelProto:
    """Conv, BatchNormalization, a bias by a reshaped constant, and two Reshapes whose sizes are computed."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["normal"]),
        node("Reshape", ["row", "column"], ["bias"]),
        node("Add", ["normal", "bias"], ["sum"]),
        node("Relu", ["sum"], ["relu"]),
        node("Shape", ["relu"], ["sizes"]),
        node("Slice", ["sizes", "zero", "one"], ["batch"]),
        node("Concat", ["batch", "rest"], ["flat_sizes"], axis=0),
        node("Reshape", ["relu", "flat_sizes"], ["flat"]),
        node("Unsqueeze", ["flat", "one"], ["wide"]),
        node("Unsqueeze", ["wide", "one"], ["wider"]),
        node(last, ["wider"], ["y"]),
    ]
    weights = {
        "w": floats(4, 3, 3, 3) * gain, "scale": floats(4), "shift": floats(4), "mean": floats(4),
        "variance": np.abs(floats(4)) + 0.5, "row": floats(4), "column": np.array([1, 4, 1, 1]),
        "zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]),
    }  # fmt: skip
    return network(nodes, weights, ["batch", 3, 8, 8], ["batch", 1, 1, 256])


def test_maps_go_into_layers_and_what_is_constant_is_computed(tmp_path: Path) -> None:
    source = saved(_net(), tmp_path)
    model = convert(source, output=tmp_path / "out.onnx")
    assert set(ops(tmp_path / "out.onnx")) <= {"Conv", "Relu", "Reshape", "Unsqueeze", "Shape", "Slice", "Concat"}
    assert ops(tmp_path / "out.onnx")["Unsqueeze"] == 1
    told = model.history[-1].options["nodes"]
    assert told["before"] == 12 and told["after"] == ops(tmp_path / "out.onnx").total() <= 8
    x = floats(3, 3, 8, 8)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), rtol=0, atol=1e-5)
    assert Parity.of(model).passed and Parity.of(model).outputs[0].relative_error < 1e-5


@pytest.mark.parametrize("padded", [0, 1])
def test_hard_swish_is_one_operator(tmp_path: Path, padded: int) -> None:
    """Its ÷ 6 does not go into the layer behind, from where it would have to come back."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Add", ["c", "three"], ["more"]),
        node("Clip", ["more", "zero", "six"], ["clip"]),
        node("Mul", ["c", "clip"], ["product"]),
        node("Div", ["product", "six"], ["swish"]),
        node("Conv", ["swish", "w"], ["y"], pads=[padded] * 4),
    ]
    weights = {name: np.array(n, np.float32) for name, n in (("zero", 0), ("three", 3), ("six", 6))}
    wide = 6 + 2 * padded
    model = network(nodes, {"w": floats(3, 3, 2, 2), **weights}, ["batch", 3, 8, 8], ["batch", 3, wide, wide], opset=11)
    convert(source := saved(model, tmp_path), output=tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx") == {"Conv": 2, "HardSwish": 1}
    x = floats(3, 3, 8, 8)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), rtol=0, atol=1e-4)


def test_as_is_leaves_the_graph(tmp_path: Path) -> None:
    source = saved(_net(), tmp_path)
    model = convert(source, output=tmp_path / "out.onnx", as_is=True)
    assert ops(tmp_path / "out.onnx") == ops(source)
    assert "nodes" not in model.history[-1].options
    assert Parity.of(model).outputs[0].relative_error == 0


def test_as_is_is_for_onnx_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(EdgerunError, match="only an ONNX file's graph"):
        convert(torch.nn.Linear(3, 2), inputs=["x:float32[batch,3]"], as_is=True)


def test_saturated_outputs_are_proven_by_what_stands_before(tmp_path: Path) -> None:
    """y = sigmoid(d − 14), where d is what two orders of the same large sums differ by: some 1e-4, of 14 and of y."""
    node, gain, own = helper.make_node, np.array([0.7, 1.3, 0.9, 1.1], np.float32), np.random.default_rng(7)
    weights = {
        "w": own.standard_normal((4, 3, 3, 3)).astype(np.float32) * 200, "g": gain, "far": np.array(14, np.float32),
        "t": own.random(4, np.float32), "m": own.random(4, np.float32), "v": np.ones(4, np.float32),
    }  # fmt: skip
    weights["w2"] = weights["w"] * gain.reshape(4, 1, 1, 1)
    weights["b2"] = weights["t"] - weights["m"] * gain
    nodes = [
        node("Conv", ["x", "w"], ["conv"]),
        node("BatchNormalization", ["conv", "g", "t", "m", "v"], ["normal"], epsilon=0.0),
        node("Conv", ["x", "w2", "b2"], ["other"]),
        node("Sub", ["normal", "other"], ["difference"]),
        node("Sub", ["difference", "far"], ["low"]),
        node("Sigmoid", ["low"], ["y"]),
    ]
    source = saved(network(nodes, weights, ["batch", 3, 8, 8], ["batch", 4, 6, 6]), tmp_path)
    made = convert(source, output=tmp_path / "out.onnx")
    options = made.history[-1].options
    assert options["compared before"] == {"y": "Sigmoid"}
    assert ops(tmp_path / "out.onnx")["BatchNormalization"] == 0
    assert Parity.of(made).passed and 1e-6 < Parity.of(made).outputs[0].relative_error < 1e-4


def test_the_command_says_so(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from edgerun.cli import edgerun

    source = saved(_net(), tmp_path)
    told = CliRunner().invoke(edgerun, ["convert", str(source), "-o", str(tmp_path / "out.onnx")])
    assert told.exit_code == 0 and "nodes of 12" in told.output
    told = CliRunner().invoke(
        edgerun, ["convert", str(source), "-o", str(tmp_path / "as_is.onnx"), "--as-is", "--json"]
    )
    assert told.exit_code == 0 and '"nodes"' not in told.output
    assert ops(tmp_path / "as_is.onnx") == ops(source)


def test_a_simplified_graph_that_is_wrong_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerun.verbs import convert as verb

    honest = fold.maps

    def wrong(model: object) -> None:
        honest(model)  # type: ignore[arg-type]
        for name, value in model.graph.initializers.items():  # type: ignore[attr-defined]
            if value.const_value.numpy().ndim == 4:
                model.graph.initializers[name].const_value = onnx_ir.tensor(value.const_value.numpy() * 1.01, name=name)  # type: ignore[attr-defined]

    onnx_ir = pytest.importorskip("onnx_ir")
    monkeypatch.setattr(fold, "maps", wrong)
    source = saved(_net(), tmp_path)
    (tmp_path / "made").mkdir()
    verb.convert_here(str(source), str(tmp_path / "made"), "onnx", [], None, 21)
    assert ops(tmp_path / "made" / "model.onnx") == ops(source)


def test_quantized_models_stay_as_they_are(tmp_path: Path) -> None:
    model = _net()
    scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]), *model.graph.node]  # fmt: skip
    nodes[2].input[0] = "d"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")])
    source = saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx") == ops(source)


def test_sizes_that_a_file_declares_are_no_proof(tmp_path: Path) -> None:
    """value_info says that the Relu's batch is 1: a Reshape made constant by that would join samples."""
    model = _net()
    model.graph.value_info.append(helper.make_tensor_value_info("relu", FLOAT, [1, 4, 8, 8]))
    source = saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    x = floats(2, 3, 8, 8)
    assert run(tmp_path / "out.onnx", x).shape == (2, 1, 1, 256)


def test_a_large_tensor_of_one_number_stays_a_node(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("ConstantOfShape", ["sizes"], ["zeros"]), node("ConstantOfShape", ["few"], ["small"]),
             node("Add", ["x", "zeros"], ["sum"]), node("Add", ["sum", "small"], ["y"])]  # fmt: skip
    model = network(
        nodes, {"sizes": np.array([512, 512]), "few": np.array([512])}, ["batch", 512, 512], ["batch", 512, 512]
    )
    convert(saved(model, tmp_path), output=tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx")["ConstantOfShape"] == 1
    assert (tmp_path / "out.onnx").stat().st_size < 50_000


def test_older_softmax_along_the_last_axis_is_one_node(tmp_path: Path) -> None:
    model = network([helper.make_node("Softmax", ["x"], ["y"], axis=2)], {}, ["batch", 5, 7], ["batch", 5, 7], opset=11)
    source = saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx") == {"Softmax": 1}
    x = floats(2, 5, 7)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), rtol=1e-6)


TURNS = ["first", "last", "Relu", "Mul", "Clip"]


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.sampled_from(TURNS), min_size=1, max_size=8))
def test_transposes_meet(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any chain of two turns and of what looks at elements alone keeps one Transpose at most."""
    from edgerun.model import Model
    from edgerun.verbs.simplifying import simplified

    folder, value, nodes, order = tmp_path_factory.mktemp("turns"), "x", [], [0, 1, 2, 3]
    turns = {"first": [0, 3, 1, 2], "last": [0, 2, 3, 1]}
    for i, step in enumerate(steps):
        out, more = f"v{i}", {"Mul": ["half"], "Clip": ["low", "high"]}.get(step, [])
        if step in turns:
            nodes.append(helper.make_node("Transpose", [value], [out], perm=turns[step]))
            order = [order[axis] for axis in turns[step]]
        else:
            nodes.append(helper.make_node(step, [value, *more], [out]))
        value = out
    nodes.append(helper.make_node("Neg", [value], ["y"]))
    numbers = {name: np.array(n, np.float32) for name, n in (("half", 0.5), ("low", -1), ("high", 0.75))}
    source = saved(network(nodes, numbers, [1, 2, 3, 5], [None] * 4), folder)
    made = simplified(Model.load(source))
    made.save(folder / "out.onnx")
    assert ops(folder / "out.onnx")["Transpose"] <= (order != [0, 1, 2, 3])
    x = floats(1, 2, 3, 5)
    np.testing.assert_array_equal(run(folder / "out.onnx", x), run(source, x))


@settings(deadline=None, max_examples=25)
@given(steps=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div", "Relu", "BatchNormalization", "Conv"]), max_size=7))
def test_any_chain_of_maps_and_layers_computes_the_same(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from edgerun.model import Model
    from edgerun.verbs.simplifying import simplified

    folder, value, nodes, weights = tmp_path_factory.mktemp("chain"), "x", [], {}
    for i, op in enumerate([*steps, "Conv"]):
        out, names = f"v{i}", [f"v{i}_{k}" for k in range(4)]
        if op == "Conv":
            inputs, weights[names[0]] = [value, names[0]], floats(3, 3, 3, 3)
        elif op == "BatchNormalization":
            inputs = [value, *names]
            weights |= {name: np.abs(floats(3)) + 0.5 for name in names}
        else:
            inputs = [value] if op == "Relu" else [value, names[0]]
            weights |= {} if op == "Relu" else {names[0]: np.abs(floats(3, 1, 1)) + 0.5}
        nodes.append(helper.make_node(op, inputs, [out]))
        if op == "Conv" and i % 2:
            nodes[-1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
        value = out
    nodes[-1].output[0] = "y"
    source = saved(network(nodes, weights, [1, 3, 20, 20], [None] * 4), folder)
    made = simplified(Model.load(source))
    made.save(folder / "out.onnx")
    assert len(made.ir.graph) <= len(nodes)
    x = floats(1, 3, 20, 20)
    wanted = run(source, x)
    np.testing.assert_allclose(run(folder / "out.onnx", x), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_the_passes_cannot_take_stays_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerun.verbs import convert as verb

    def refuses(model: object) -> None:
        raise RuntimeError("no such node")

    monkeypatch.setattr(fold, "constants", refuses)
    source = saved(_net(), tmp_path)
    (tmp_path / "made").mkdir()
    verb.convert_here(str(source), str(tmp_path / "made"), "onnx", [], None, 21)
    assert ops(tmp_path / "made" / "model.onnx") == ops(source)
