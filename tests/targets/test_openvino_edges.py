"""What OpenVINO computes otherwise than ONNX at an operator's edges is mended. Numpy is the judge."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest

pytest.importorskip("openvino")

import edgerun
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.targets import _openvino_edges as edges
from edgerun.targets import _openvino_ir as ir

ONE = edgerun.Options(threads=1)
INF = np.float32(np.inf)
LEAST = {"float": -3.4028235e38, "float16": -65504.0, "bfloat16": -3.3895314e38}  # finite
RANGE = "r ({0} a, {0} b, {0} c) => ({0}[n] y) {{ y = Range(a, b, c) }}"


def _model(text: str) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}'))


def _run(text: str, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the file itself gives, and the engine that compile makes of it, which is IR."""
    model = _model(text)
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        found = session.run(feeds)
    with edgerun.load(edgerun.compile(model, "openvino", ONE, feeds=[feeds]), options=ONE) as session:
        for name, array in session.run(feeds).items():
            np.testing.assert_array_equal(array, found[name])
    return found


def _mended(text: str) -> int:
    data = _model(text).to_bytes()
    return edges.mend(ir.by_kind(ir.read(data)), data)


@pytest.mark.parametrize(("op", "sign"), [("ReduceMax", 1), ("ReduceMin", -1)])
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float", "4, 5"), ("float", "n, m"), ("float16", "n, m"), ("bfloat16", "n, m")]
)
def test_the_most_of_infinities_is_one(op: str, sign: int, dtype: str, shape: str) -> None:
    """Rows that a mask hides altogether, in part, not at all; and the least finite number stays what it is."""
    kind = np.dtype({"float": np.float32, "bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(kind)
    x[0], x[1, :3], x[3] = -INF, -INF, -INF
    x[3, 2] = LEAST[dtype]
    text = f"r ({dtype}[{shape}] x) => ({dtype}[a, b] y, {dtype}[c] z) <int64[1] k = {{1}}, int64[1] all = {{0}}>"
    body = f" {{ y = {op}<keepdims = 1>(x, k) z = {op}<keepdims = 0>(x, all) }}"
    found = _run(text + body, {"x": x * kind.type(sign)})
    np.testing.assert_array_equal(found["y"], x.max(axis=1, keepdims=True) * kind.type(sign))
    np.testing.assert_array_equal(found["z"], x.max(axis=0) * kind.type(sign))


def test_the_most_of_nothing_is_infinite() -> None:
    text = "r (float[n, 4] x) => (float[1, 4] y, float[1, 4] z) <int64[1] k = {0}> { y = ReduceMax(x, k) z = Relu(y) }"
    found = _run(text, {"x": np.zeros((0, 4), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((1, 4), -INF))
    np.testing.assert_array_equal(found["z"], np.zeros((1, 4), np.float32))


def test_a_mask_within_a_model_hides_whole_rows() -> None:
    """The softmax that ONNX writes Attention's functions with: rows of nothing but -infinity become zeros."""
    text = """m (float[n, 6] x, bool[n, 6] mask) => (float[n, 6] y)
        <float low = {-inf}, float zero = {0}, int64[1] k = {1}> {
        a = Mul(x, x) s = Where(mask, a, low) most = ReduceMax(s, k) hidden = Equal(most, low)
        p = Softmax<axis = 1>(s) y = Where(hidden, zero, p) }"""
    generator = np.random.default_rng(1)
    x, mask = generator.standard_normal((5, 6)).astype(np.float32), generator.random((5, 6)) < 0.5
    mask[2] = False
    found = _run(text, {"x": x, "mask": mask})["y"]
    e = np.where(mask, np.exp(x * x), 0.0)
    np.testing.assert_allclose(found, e / np.maximum(e.sum(axis=1, keepdims=True), 1e-30), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_repeats_that_are_an_input(dtype: str, rank: int) -> None:
    generator, kind = np.random.default_rng(rank), {"float32": "float"}.get(dtype, dtype)
    names = ", ".join(f"d{axis}" for axis in range(rank))
    out = ", ".join(f"e{axis}" for axis in range(rank))
    text = f"t ({kind}[{names}] x, int64[{rank}] r) => ({kind}[{out}] y) {{ y = Tile(x, r) }}"
    model = _model(text)
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        for _ in range(12):
            x = (generator.random(generator.integers(1, 5, rank)) * 100).astype(dtype)
            r = generator.integers(1, 6, rank)
            np.testing.assert_array_equal(session.run({"x": x, "r": r})["y"], np.tile(x, r))
    feeds = {"x": np.ones([2] * rank, dtype), "r": np.arange(rank) + 2}
    np.testing.assert_array_equal(_run(text, feeds)["y"], np.tile(feeds["x"], feeds["r"]))


def _pooled(x: np.ndarray, size: int, stride: int, begin: int, end: int) -> np.ndarray:
    """Maxima of windows that begin within the data or the padding before it, as ONNX says."""
    counts = [-(-(side + begin + end - size) // stride) + 1 for side in x.shape]
    counts = [n - ((n - 1) * stride >= side + begin) for n, side in zip(counts, x.shape, strict=True)]
    wide = np.pad(x, (begin, end + size + stride), constant_values=-INF)
    rows, columns = (np.arange(n) * stride for n in counts)
    return np.array([[wide[r : r + size, c : c + size].max() for c in columns] for r in rows])


@pytest.mark.parametrize("sizes", ["h, w", None])
@pytest.mark.parametrize(
    ("size", "stride", "begin", "end", "mended"),
    [
        (1, 2, 0, 0, 1),
        (2, 3, 0, 0, 1),
        (2, 2, 1, 1, 1),
        (3, 2, 0, 0, 0),
        (2, 2, 0, 0, 0),
        (3, 2, 1, 1, 0),
        (3, 3, 1, 1, 1),
    ],
)
def test_the_last_window_begins_in_the_data(
    sizes: str | None, size: int, stride: int, begin: int, end: int, mended: int
) -> None:
    generator = np.random.default_rng(0)
    for h, w in itertools.product(range(3, 8), (4, 7)) if sizes is None else [(5, 6)]:
        text = f"""p (float[1, 1, {sizes or f"{h}, {w}"}] x) => (float[1, 1, a, b] y) {{
            y = MaxPool<ceil_mode = 1, kernel_shape = [{size}, {size}], strides = [{stride}, {stride}],
                pads = [{begin}, {begin}, {end}, {end}]>(x) }}"""
        assert _mended(text) == mended
        model = _model(text)
        with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
            for sides in itertools.product(range(3, 8), (4, 7)) if sizes else [(h, w)]:
                x = generator.standard_normal(sides).astype(np.float32)
                np.testing.assert_array_equal(
                    session.run({"x": x[None, None]})["y"][0, 0], _pooled(x, size, stride, begin, end)
                )


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_no_number_in_four_bits(dtype: str) -> None:
    """The others round as ml_dtypes has it, and saturate at 6."""
    kind = np.dtype({"float": np.float32}.get(dtype, dtype))
    x = np.array([0.48, 0.25, 1.05, -3.5, -8, 9, 60000, 1e-7, np.nan, INF, -INF, -0.0, 2.5, -5.0, np.nan], kind)
    m = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT4E2M1)], "c",
            [onnx.helper.make_tensor_value_info("x", getattr(onnx.TensorProto, dtype.upper()), ["n"])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT4E2M1, ["n"])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11,
    )  # fmt: skip
    with edgerun.load(edgerun.compile(Model.from_proto(m), "openvino", ONE, feeds=[{"x": x}]), options=ONE) as session:
        got = session.run({"x": x})["y"].astype(np.float32)
    wanted = np.where(np.isnan(x), 0, np.clip(x, -6, 6)).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(got, wanted)
    assert np.signbit(got[np.isnan(x)]).all()


LOOP = """l (int64 trips, bool first, float[2] x) => (float[2] last, float[n] sums) {
    last, sums = Loop <body = b (int64 i, bool c, float[2] a) => (bool go, float[2] next, float s) {
        go = Identity(c) next = Add(a, a) s = ReduceSum <keepdims = 0> (next) }> (trips, first, x) }"""


@pytest.mark.parametrize("order", [(3, 0, 2, 0, 0, 5), (0, 4, 0)])
def test_loops_of_no_iteration_collect_nothing(order: tuple[int, ...]) -> None:
    """By their count and by their condition, whatever ran before; what goes on stays as it was."""
    model, x = _model(LOOP), np.array([1, 2], np.float32)
    for source in (model.to_bytes(), edgerun.compile(model, "openvino", ONE)):
        with edgerun.load(source, "openvino", ONE) as session:
            for trips, first in itertools.product(order, (True, False)):
                got = session.run({"trips": np.array(trips), "first": np.array(first), "x": x})
                count = trips if first else 0
                np.testing.assert_array_equal(got["last"], x * 2**count)
                np.testing.assert_array_equal(got["sums"], 3 * 2.0 ** np.arange(1, count + 1))


def test_integers_of_more_than_32_bits_are_refused() -> None:
    """Below, they are computed, whatever the bound arrays hold meanwhile."""
    model = _model("i (int64[n] x) => (int64[n] y) <int64 one = {1}> { y = Sub(x, one) }")
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        x, y = np.array([2**31 - 1, -(2**31) + 1, 7]), np.zeros(3, np.int64)
        for out in (None, {"y": y}, {"y": y}, {"y": y}):
            np.testing.assert_array_equal(session.run({"x": x}, out)["y"], x - 1)
        assert session.run({"x": x[:0]})["y"].shape == (0,)
        for wrong in (2**31, -(2**31) - 1, 2**40):
            x[1] = wrong
            for out in (None, {"y": y}):
                with pytest.raises(EdgerunError, match="computes in 32 bits, and input 'x' has more"):
                    session.run({"x": x}, out)
            with pytest.raises(EdgerunError, match="32 bits"):
                session.run_async({"x": x}).result()


@pytest.mark.parametrize("kind", ["int64", "int32", "float"])
def test_a_range_that_ends_behind_its_begin_is_empty(kind: str) -> None:
    dtype = np.dtype("float32" if kind == "float" else kind)
    cases = [(0, -2, 1), (0, 2, -1), (5, 5, 1), (0, 4, 1), (4, 0, -1), (3, -7, 2), (1, 8, 3)]
    with edgerun.load(_model(RANGE.format(kind)).to_bytes(), "openvino", ONE) as session:
        for case in cases:
            feeds = {name: np.array(number, dtype) for name, number in zip("abc", case, strict=True)}
            np.testing.assert_array_equal(session.run(feeds)["y"], np.arange(*case, dtype=dtype))


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("r (float[n, 4] x) => (float[n, 1] y) <int64[1] k = {1}> { y = ReduceMax(x, k) }", 1),
        ("r (float[n, 4] x) => (float[n, 1] y) <int64[1] k = {1}> { a = Relu(x) y = ReduceMax(a, k) }", 0),
        (
            """r (float[n, 4] x, float[n, 4] m) => (float[n, 1] y) <int64[1] k = {1}> {
                a = Relu(x) s = Add(a, m) y = ReduceMax(s, k) }""", 1,
        ),
        (
            """r (float[n, 4] x) => (float[n, 1] y, bool[n, 4] z) <int64[1] k = {1}, float low = {-inf}> {
                a = Relu(x) z = Equal(a, low) y = ReduceMax(a, k) }""", 0,
        ),
        ("r (int32[n, 4] x) => (int32[n, 1] y) <int64[1] k = {1}> { y = ReduceMax(x, k) }", 0),
        ("t (float[n, 4] x) => (float[n, 8] y) <int64[2] r = {1, 2}> { y = Tile(x, r) }", 0),
        (LOOP, 1),
        (LOOP.replace("int64 trips, bool first, ", "").replace("(trips", "(three").replace(", first", ", yes").replace(
            "sums) {", "sums) <int64 three = {3}, bool yes = {1}> {", 1), 0),
        (RANGE.format("int64"), 1),
        ("""r (float[n, 4] x) => (int64[n] y) <int64 begin = {0}, int64 step = {1}, int64 first = {0}> {
            s = Shape(x) n = Gather(s, first) y = Range(begin, n, step) }""", 0),
    ],
    ids=["given", "finite", "mask", "elsewhere", "integers", "constant", "loop", "three times", "range", "size"],
)  # fmt: skip
def test_what_is_mended(text: str, mended: int) -> None:
    assert _mended(text) == mended


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows_count_to_a_size_that_is_an_input(op: str) -> None:
    """Their Range begins with a float and ends with an integer, and ran into OpenVINO's own exception."""
    text, feeds = f"r (int32 x) => (float[n] y) {{ y = {op}(x) }}", {"x": np.array(10, np.int32)}
    evaluated: Any = onnx.reference.ReferenceEvaluator(_model(text).to_proto()).run(None, feeds)
    np.testing.assert_allclose(_run(text, feeds)["y"], evaluated[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("body", "out"), [
    ("y = Identity(x)", "double"), ("y = Neg(x)", "double"), ("y = Cast<to = 1>(x)", "float"),
    ("y = Cast<to = 11>(f)", "double"), ("c = Cast<to = 11>(f) y = Add(x, c)", "double"),
])  # fmt: skip
def test_infinities_in_float64(body: str, out: str) -> None:
    """At both doors, for shapes of every order, and as often as it takes to free what a run has left."""
    names = [name for name in "xf" if f"({name}" in body]
    text = (
        f"r ({', '.join({'x': 'double[n,3] x', 'f': 'float[n,3] f'}[n] for n in names)}) => ({out}[n,3] y) {{ {body} }}"
    )
    wide = np.array([[1.5, np.inf, -np.inf], [np.nan, 1e30, -2.0], [0.0, 3e-7, np.inf]])
    all_feeds = {"x": wide, "f": wide[::-1].astype(np.float32)}
    feeds = {name: all_feeds[name] for name in names}
    found = _run(text, feeds)["y"]
    evaluated: Any = onnx.reference.ReferenceEvaluator(_model(text).to_proto()).run(None, feeds)
    (want,) = evaluated
    assert found.dtype == want.dtype
    np.testing.assert_allclose(found, want, rtol=1e-6)
    with edgerun.load(_model(text).to_bytes(), "openvino", ONE) as session:
        for rows in (1, 3, 2, 40, 1, 5, 40, 2) * 3:
            taken = {name: np.resize(array, (rows, 3)) for name, array in feeds.items()}
            np.testing.assert_array_equal(session.run(taken)["y"][:3], found[:rows])


def test_float64_into_given_memory() -> None:
    """What is cast is no feed of the caller's, and so nothing is bound to that."""
    out, x = {"y": np.zeros((2, 3))}, {"x": np.ones((2, 3))}
    with edgerun.load(
        _model("r (double[n,3] x) => (double[n,3] y) { y = Neg(x) }").to_bytes(), "openvino", ONE
    ) as session:
        for value in (2.0, 3.0):
            x["x"][:] = value
            session.run(x, out=out)
            assert (out["y"] == -value).all()


def test_ir_is_left_as_it_is() -> None:
    """Ours is mended once; what is in another's means OpenVINO's operators."""
    text = "r (float[n, 4] x) => (float[n, 1] y) <int64[1] k = {1}> { y = ReduceMax(x, k) }"
    engine = edgerun.compile(_model(text), "openvino", ONE)
    assert isinstance(engine.payload, bytes)
    assert edges.mend(ir.by_kind(ir.read(engine.payload)), engine.payload) == 0
