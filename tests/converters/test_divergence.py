"""A wrong conversion names the first node that differs from the source, with both numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import divergence  # noqa: E402
from edgerun.converters import _normalize, _ort  # noqa: E402
from edgerun.errors import GateFailed  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.taps import Tap  # noqa: E402
from edgerun.verbs.convert import convert  # noqa: E402

RNG = np.random.default_rng(0)
W = [RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(3)]


def _chain(path: Path) -> Path:
    """x -> a -> b -> y, three products with a Relu behind each."""
    nodes, last = [], "x"
    for index, name in enumerate("aby"):
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"{name}_p"], f"product_{name}"))
        nodes.append(helper.make_node("Softplus", [f"{name}_p"], [name], f"soft_{name}"))
        last = name
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(W)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None]) -> None:
    """Every converted graph is changed as its shapes are inferred, the last step of a conversion."""
    infer = _normalize.infer_shapes

    def planted(proto: onnx.ModelProto) -> onnx.ModelProto:
        change(proto)
        return infer(proto)

    monkeypatch.setattr(_normalize, "infer_shapes", planted)


def _add(proto: onnx.ModelProto, node: str, by: float) -> None:
    """Change the weight that the node called so reads, at one place."""
    names = next(list(n.input) for n in proto.graph.node if n.name == node)
    tensor = next(t for t in proto.graph.initializer if t.name in names)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_onnx_names_the_node_and_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, lambda proto: _add(proto, "product_b", 0.5))
    with pytest.raises(GateFailed, match="does not compute what its source computes") as caught:
        _here(tmp_path)
    told = str(caught.value.got)
    assert "first difference: node 'product_b' (MatMul), MatMul 'product_b' of the source" in told
    assert "2 values before it agree" in told
    wanted, got, error = map(
        float, re.findall(r"source has ([-\d.e+]+), the model ([-\d.e+]+) \(max abs error ([-\d.e+]+)", told)[0]
    )
    assert abs(got - wanted) == pytest.approx(error, rel=1e-2) and error > 0.1


def _here(folder: Path) -> None:
    """Convert in this process, where the planted fault is."""
    from edgerun.verbs.convert import convert_here

    (folder / "made").mkdir()
    convert_here(str(_chain(folder / "chain.onnx")), str(folder / "made"), "onnx", [], None, 21)


def test_of_several_nodes_behind_agreement_all_are_named(tmp_path: Path) -> None:
    """The source tells a and y only: the fault lies in what is between them."""
    model = Model.load(_chain(tmp_path / "chain.onnx"))
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    inside = {name: tap.value for name, tap in _ort.inside(tmp_path / "chain.onnx")({"x": x}).items()}
    taps = {"a": Tap("a", inside["a"]), "y": Tap("the end", inside["y"] + 1), "gone": Tap("gone", x)}
    found = divergence.find(model, [lambda _: taps], _ort.runner, {"x": x})
    assert found is not None and found.node == "soft_y" and found.agreeing == 1
    assert found.between == ("product_b", "soft_b", "product_y", "soft_y")
    assert found.max_error == pytest.approx(1, abs=1e-5) and found.wanted - found.got == pytest.approx(1, abs=1e-5)
    assert "one of 4 nodes" in str(found)


def test_what_agrees_has_no_difference(tmp_path: Path) -> None:
    model = Model.load(_chain(tmp_path / "chain.onnx"))
    x = {"x": RNG.standard_normal((2, 4)).astype(np.float32)}
    assert divergence.find(model, [_ort.inside(tmp_path / "chain.onnx")], _ort.runner, x) is None
    assert divergence.find(model, [], _ort.runner, x) is None


def test_another_shape_is_a_difference(tmp_path: Path) -> None:
    model = Model.load(_chain(tmp_path / "chain.onnx"))
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    found = divergence.find(model, [lambda _: {"b": Tap("b", np.zeros((1, 4)))}], _ort.runner, {"x": x})
    assert found is not None and found.node == "soft_b" and found.shapes == ((1, 4), (2, 4))
    assert "its shape is [2, 4], the source's [1, 4]" in str(found)


def test_nan_and_infinity_are_found(tmp_path: Path) -> None:
    model = Model.load(_chain(tmp_path / "chain.onnx"))
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    value = _ort.inside(tmp_path / "chain.onnx")({"x": x})["a"].value.copy()
    value[1, 2] = np.nan
    found = divergence.find(model, [lambda _: {"a": Tap("a", value)}], _ort.runner, {"x": x})
    assert found is not None and found.node == "soft_a" and found.index == (1, 2) and np.isnan(found.wanted)


def _torch_net() -> Any:
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.two(torch.tanh(self.one(x)) * 2)

    torch.manual_seed(0)
    return torch.nn.Sequential(Block(), torch.nn.Tanh(), Block())


@pytest.mark.parametrize("by", [1.0, 3e-4])
def test_torch_export_names_the_node_the_module_and_the_line(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """A fault that the ladder sees (every route has it), and one that only the comparison sees."""
    net = _torch_net()
    _plant(monkeypatch, lambda proto: _add(proto, "2.one/Gemm", by))
    with pytest.raises(GateFailed) as caught:
        convert(net, inputs=["input:float32[batch,4]"])
    told = str(caught.value.got)
    assert "first difference: node '2.one/Gemm' (Gemm), aten.linear in 2.one (Linear)" in told
    assert "the source has" in told and "values before it agree" in told


def test_tracing_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a torch.export program, modules' results are compared."""
    from edgerun.converters import _torch_ladder

    net = _torch_net()
    monkeypatch.setattr(_torch_ladder, "EXPORT", _torch_ladder.TRACE)
    monkeypatch.setattr(_torch_ladder, "SCRIPT", _torch_ladder.TRACE)
    _plant(monkeypatch, lambda proto: _add(proto, "2.one/Gemm", 3e-4))
    with pytest.raises(GateFailed, match=r"node '2.one/Gemm' \(Gemm\), the result of 2.one \(Linear\)"):
        convert(net, inputs=["input:float32[batch,4]"])


def _operator(op_type: str, other: str) -> Callable[[onnx.ModelProto], None]:
    """The first operator of that type becomes another one."""

    def change(proto: onnx.ModelProto) -> None:
        next(node for node in proto.graph.node if node.op_type == op_type).op_type = other

    return change


def test_keras_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels lie first inside; the folded BatchNormalization and the nested model agree before it."""
    keras = pytest.importorskip("keras")
    inner = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, name="first")], name="inner")
    x = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(5, 3, name="conv")(inner(x)))
    y = keras.layers.Dropout(0.5)(keras.layers.ReLU(name="cut")(y))
    net = keras.Model(x, keras.layers.Dense(2, name="last")(keras.layers.Flatten()(y)))
    _plant(monkeypatch, _operator("Relu", "Softplus"))
    with pytest.raises(GateFailed, match="does not compute what its source computes") as caught:
        convert(net)
    told = str(caught.value.got)
    assert "first difference: node 'cut/Relu' (Softplus), the result of cut (ReLU): at [" in told
    assert "the source has" in told and "2 values before it agree" in told


def test_tflite_names_the_operator(lite: Any, tf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = tf.constant(RNG.standard_normal((3, 3, 3, 4)), tf.float32)
    path = lite(lambda x: tf.nn.softmax(tf.nn.elu(tf.nn.conv2d(x, w, 1, "SAME"))), (None, 8, 8, 3))
    _plant(monkeypatch, _operator("Elu", "Softplus"))
    from edgerun.verbs.convert import convert_here

    with pytest.raises(GateFailed) as caught:
        convert_here(str(path), str(path.parent), "tflite", [], None, 20)
    told = str(caught.value.got)
    assert "(Softplus), the result of ELU " in told and "1 values before it agree" in told
