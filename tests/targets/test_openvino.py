"""OpenVINO: what the contract cannot know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper, numpy_helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.metrics import Difference, sqnr_db
from edgerun.model import Model, Step
from edgerun.runtime import Engine, Options
from edgerun.targets import _openvino_dynamic as dynamic
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import openvino as target
from edgerun.verbs.compress import compress

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
ONE = Options(1)
X = {"x": np.ones((1, 6), np.float32)}


def test_history_travels_in_the_ir(dense: Model, tmp_path: Path) -> None:
    step = Step("quantize/static_int8", "1", {"scheme": "w8a8"}, "a", "b", "c")
    target.save(target.compile(dense.with_step(step), ONE), tmp_path / "small.xml")
    told = ir.told(ir.core().read_model(str(tmp_path / "small.xml")))
    assert told["history"][0]["name"] == "quantize/static_int8" and told["history"][0]["options"] == {"scheme": "w8a8"}
    assert told["digest"] == dense.digest() and told["inputs"] == dense.inputs


def test_a_pair_of_different_ages_never_runs(dense: Model, rounded: Model, tmp_path: Path) -> None:
    target.save(target.compile(dense, ONE), tmp_path / "a.xml")
    other = dense.to_proto()
    weight = np.frombuffer(other.graph.initializer[0].raw_data, np.float32)
    other.graph.initializer[0].raw_data = (weight * 2).tobytes()
    target.save(target.compile(Model.from_proto(other), ONE), tmp_path / "b.xml")
    (tmp_path / "b.bin").replace(tmp_path / "a.bin")
    with pytest.raises(EdgerunError, match="not this graph's"):
        edgerun.load(tmp_path / "a.xml")


@pytest.mark.parametrize("damage", ["no bin", "short bin", "short xml", "no json"])
def test_damaged_files_are_refused(dense: Model, tmp_path: Path, damage: str) -> None:
    xml, weights = tmp_path / "a.xml", tmp_path / "a.bin"
    target.save(target.compile(dense, ONE), xml)
    if damage == "no bin":
        weights.unlink()
    elif damage == "short bin":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "short xml":
        xml.write_bytes(xml.read_bytes()[:-100])
    else:
        xml.write_bytes(xml.read_bytes().replace(b"{&quot;digest", b"{digest"))
    with pytest.raises(EdgerunError):
        edgerun.load(xml)


def test_an_ir_from_elsewhere_loads(dense: Model, tmp_path: Path) -> None:
    graph = ir.core().read_model(dense.to_bytes())
    ir.runtime().serialize(graph, str(tmp_path / "plain.xml"), str(tmp_path / "plain.bin"))
    with edgerun.load(tmp_path / "plain.xml") as session:
        assert str(session.inputs[0]) == "x:float32[x_0,6]"
        np.testing.assert_allclose(session.run(X)["y"], edgerun.load(target.compile(dense, ONE)).run(X)["y"], rtol=1e-6)


def test_float_kernels_run_in_f32(dense: Model) -> None:
    compiled = target._compiled(ir.read(dense.to_bytes()), Options(1))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1 and compiled.get_property("NUM_STREAMS") == 1
    kernels = target.profile(target.compile(dense, ONE), [X], ONE)
    assert all(kernel.precision.endswith("f32") for kernel in kernels)


def test_failed_and_missing_translations_are_told_apart(build: Callable[..., Model]) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["a"], ["p"], "unknown"),
        helper.make_node("Sort", ["a"], ["q"], "foreign", domain="my.ops"),
        helper.make_node("Mod", ["a", "a"], ["m"], "misused"),
    ]
    shape: list[int | str] = [2]
    issues = target.check(build(nodes, {"a": shape}, {n: shape for n in ("p", "q", "m")}, domains=("my.ops",)))
    reasons = {issue.node: issue.reason for issue in issues}
    assert "no translation" in reasons["unknown"] and "no translation" in reasons["foreign"]
    assert "fmod" in reasons["misused"]


def test_one_session_serves_several_threads(dense: Model) -> None:
    with edgerun.load(target.compile(dense, ONE), options=ONE) as session, ThreadPoolExecutor(4) as pool:
        feeds = [np.full((1, 6), i, np.float32) for i in range(40)]
        together = list(pool.map(lambda x: session.run({"x": x})["y"], feeds))
        alone = [session.run({"x": x})["y"] for x in feeds]
    np.testing.assert_array_equal(together, alone)


def test_nothing_at_all_that_is_read_only(dense: Model) -> None:
    nothing = np.zeros((0, 6), np.float32)
    nothing.flags.writeable = False
    with edgerun.load(target.compile(dense, ONE)) as session:
        assert session.run({"x": nothing})["y"].shape == (0, 4)


def test_damaged_containers_are_refused(dense: Model) -> None:
    payload = target.compile(dense, ONE).payload
    assert isinstance(payload, bytes)
    with pytest.raises(EdgerunError):
        edgerun.load(Engine("openvino", payload[: len(ir.MAGIC) + 4]))


def test_no_telemetry(dense: Model, tmp_path: Path, in_clean_home: Callable[[str], list[Path]]) -> None:
    dense.save(tmp_path / "dense.onnx")
    code = """
import edgerun, json, sys, numpy as np
edgerun.load("dense.onnx", "openvino").run({"x": np.ones((1, 6), np.float32)})
assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
"""
    assert in_clean_home(code) == []


def test_same_bytes_in_any_process(dense: Model, tmp_path: Path, in_clean_home: Callable[[str], list[Path]]) -> None:
    dense.save(tmp_path / "dense.onnx")
    code = """
import pathlib
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import openvino as target
model = Model.load("dense.onnx")
target.compile(model, Options(1))
target.save(target.compile(model, Options(1)), pathlib.Path("again.xml"))
"""
    in_clean_home(code)
    target.save(target.compile(Model.load(tmp_path / "dense.onnx"), ONE), tmp_path / "once.xml")
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"once{suffix}").read_bytes()
    assert json.dumps(ir.told(ir.core().read_model(str(tmp_path / "once.xml")))["digest"])


def test_transposed_convolutions_run_on_integers() -> None:
    """As in the head of a segmentation net; what follows is fused into them."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[n,16,12,12] x) => (float[n,1,48,48] y) {'
        " c = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(c)"
        " t = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(r, w1, b1) u = Relu(t)"
        " v = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(u, w2, b2) y = Sigmoid(v) }"
    )
    for index, shape in enumerate([(16, 16, 3, 3), (16, 8, 2, 2), (8, 1, 2, 2)]):
        weight = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        bias = 0.1 * generator.standard_normal(shape[0] if index == 0 else shape[1])
        for name, array in ((f"w{index}", weight), (f"b{index}", bias)):
            proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model, x = Model.from_proto(proto), generator.standard_normal((64, 16, 12, 12)).astype(np.float32)
    small = compress(model, target="openvino", calibration={"x": x[:48]})
    engine, found = target.compile(small, ONE), Difference()
    with target.load(target.compile(model, ONE), ONE) as fp32, target.load(engine, ONE) as int8:
        for row in x[48:, None]:
            found += Difference.of(fp32.run({"x": row})["y"], int8.run({"x": row})["y"])
    assert found.sqnr_db > 28
    kernels = target.profile(engine, [{"x": x[:1]}], ONE)
    transposed = [kernel for kernel in kernels if kernel.op == "ConvolutionBackpropData"]
    assert len(transposed) == 2 and all(kernel.integer for kernel in transposed)
    assert not any(kernel.op in ("Sigmoid", "Relu") for kernel in kernels)


@pytest.mark.parametrize("bias", [None, 0.0, 0.1])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("door", ["n,8,12,12", "1,8,h,w", "n,8,h,w", "1,8,12,12"])
@pytest.mark.parametrize("readers", ["r = Relu(c) y = Add(c, r)", "p = GlobalAveragePool(c) y = Mul(c, p)"])
def test_a_convolution_on_integers_may_have_several_readers(
    readers: str, door: str, groups: int, bias: float | None
) -> None:
    """OpenVINO itself loses the scale for one of them, where the shape is open and there is no bias: 0 to 20 dB."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.integers(-127, 128, (8, 8 // groups, 3, 3)).astype(np.int8), "wz": np.zeros(8, np.int8),
               "ws": rng.uniform(1e-3, 1e-2, 8).astype(np.float32), "s": np.float32(0.02)}  # fmt: skip
    weights["z"] = np.uint8(120)
    if bias is not None:
        weights["b"] = np.full(8, bias, np.float32)
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[{door}] x) => (float[n,8,p,q] y) {{'
        " xq = QuantizeLinear(x, s, z) d = DequantizeLinear(xq, s, z) k = DequantizeLinear<axis=0>(w, ws, wz)"
        f" c = Conv<group={groups}>(d, k{', b' if bias is not None else ''}) {readers} }}"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items())
    x = {"x": rng.standard_normal((1, 8, 12, 12)).astype(np.float32)}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with target.load(target.compile(Model.from_proto(proto), ONE), ONE) as ours:
        assert sqnr_db(np.asarray(session.run(None, x)[0]), ours.run(x)["y"]) > 60


def test_float_models_are_opened_as_they_were_read() -> None:
    """No number is added behind a convolution with groups whose weights are float, however many read it."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[n,8,h,w] x) => (float[n,8,p,q] y) {'
        " c = Conv<group=8>(x, w) r = Relu(c) y = Add(c, r) }"
    )
    weight = np.random.default_rng(0).standard_normal((8, 1, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    data = proto.SerializeToString()
    kinds = [Counter(op.get_type_name() for op in graph.get_ops()) for graph in (ir.read(data), target._read(data))]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("place", ["node", "function", "weight"])
def test_what_products_may_compute_with_is_read_from_nodes(place: str, tmp_path: Path) -> None:
    """The bytes of an attribute may stand in a weight by chance, or in a function's node; files are not read whole."""
    said = helper.make_attribute("accuracy_level", 4)
    node = helper.make_node("Identity", ["x"], ["y"])
    stored = said.SerializeToString() if place == "weight" else b"nothing"
    weight = numpy_helper.from_array(np.frombuffer(stored, np.uint8), "w")
    door = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    inside = helper.make_node("Identity", ["x"], ["y"])
    if place != "weight":
        (node if place == "node" else inside).attribute.append(said)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Same", ["x"], ["y"], [inside], opsets[:1])
    graph = helper.make_graph([node], "test", door[:1], door[1:], [weight])
    data = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    wanted = place != "weight"
    assert dynamic._integer_blocks(data) is wanted and dynamic._integer_blocks(tmp_path / "m.onnx") is wanted
