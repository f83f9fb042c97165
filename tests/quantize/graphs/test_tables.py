"""Products with one-hot rows become lookups, and what follows a lookup element by element goes into its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.model import Model
from edgerun.quantize import fold

HOT = """({kind}[n,m,1] ids) => (float[n,m,4] y)
         {{ e = Equal({sides}) c = Cast<to=1>(e) y = MatMul(c, table) }}"""
IDS = np.array([[0, 3, 8], [5, -1, -7], [9, 100, -2]])[..., None]


def table(rows: int = 9, columns: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def folded(model: Model) -> Model:
    return Model.of(fold.apply(model.ir.clone()))


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
@pytest.mark.parametrize("sides", ["ids, row", "row, ids"])
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_one_hot_product_is_a_lookup(
    net: Any, evaluate: Any, ops: Callable[[Model], dict[str, int]], kind: str, sides: str, opset: int
) -> None:
    """Of ids that have no row, too: they give zeros."""
    row = np.arange(9).astype(kind).reshape(1, 1, 9)
    model = net(HOT.format(kind=kind, sides=sides), opset=opset, table=table(), row=row)
    made = folded(model)
    assert {"MatMul", "Equal"} & set(ops(made)) == set() and ops(made)["Gather"] == 1
    ids = np.abs(IDS).astype(kind) if kind == "uint8" else IDS.astype(kind)
    (wanted,), (found,) = (evaluate(one, {"ids": ids}) for one in (model, made))
    np.testing.assert_array_equal(found, wanted)
    assert not wanted[2, 1].any() and wanted[0, 1].any()


@pytest.mark.parametrize("opset", [9, 12])
def test_older_opsets_are_left_alone(net: Any, ops: Callable[[Model], dict[str, int]], opset: int) -> None:
    row = np.arange(9, dtype=np.int32).reshape(1, 1, 9)
    model = net(HOT.format(kind="int32", sides="ids, row"), opset=opset, table=table(), row=row)
    assert ops(folded(model))["MatMul"] == 1


@pytest.mark.parametrize(
    ("row", "ids", "values"),
    [
        (np.arange(1, 10), "int32[n,m,1]", table()),
        (np.arange(9), "int32[n,m,9]", table()),  # one id for each column
        (np.arange(9), "int32[n,m,1]", np.where(table() > 1, np.float32(np.inf), table())),  # 0 · ∞ is no number
    ],
    ids=["from one", "many hot", "infinite"],
)
def test_what_is_no_lookup(
    net: Any, ops: Callable[[Model], dict[str, int]], row: np.ndarray, ids: str, values: np.ndarray
) -> None:
    text = HOT.replace("{kind}[n,m,1]", ids).format(kind="", sides="ids, row")
    model = net(text, table=values, row=row.astype(np.int32).reshape(1, 1, 9))
    assert ops(folded(model))["MatMul"] == 1


BEHIND = "(int64[n,m] ids, float[n,m,4] z) => (float[n,m,4] y) { r = Gather(table, ids) %s y = Add(last, z) }"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("last = Add(r, bias)", 1),
        ("a = Add(bias, r) b = Mul(a, two) t = Tanh(b) last = Mul(t, a)", 1),
        ("a = Relu(r) b = Sub(r, a) last = Div(b, two)", 1),
        ("a = Clip(r, low) last = Max(a, wide)", 1),
        ("a = Relu(r) b = Add(a, z) last = Add(a, b)", 4),  # read at two places: a Gather each would be more
        ("a = Mul(r, z) last = Relu(a)", 4),
        ("last = Softmax(r)", 3),
    ],
    ids=["bias", "chain", "twice", "ends", "read twice", "another input", "over rows"],
)
def test_what_follows_goes_into_the_table(net: Any, evaluate: Any, text: str, left: int) -> None:
    held = {"bias": table(1)[0] + 1, "two": np.float32(2), "low": np.float32(-0.2), "wide": table(1).reshape(1, 1, 4)}
    used = {name: array for name, array in held.items() if name in text}
    model = net(BEHIND % text, table=table(), **used)
    made = folded(model)
    assert len(list(made.ir.graph)) == left + (left == 1)
    feeds = {"ids": np.random.default_rng(1).integers(0, 9, (3, 5)), "z": table(15).reshape(3, 5, 4)}
    (wanted,), (found,) = (evaluate(one, feeds) for one in (model, made))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_large_table_that_is_read_elsewhere_is_not_copied(net: Any) -> None:
    text = """(int64[n,m] ids, int64[n,m] others) => (float[n,m,4] y, float[n,m,4] z)
              { r = Gather(table, ids) y = Relu(r) z = Gather(table, others) }"""
    made = folded(net(text, table=table(60_000)))
    assert sorted(node.op_type for node in made.ir.graph) == ["Gather", "Gather", "Relu"]


def test_an_output_of_the_model_comes_from_the_table_too(net: Any, evaluate: Any) -> None:
    model = net("(int64[n,m] ids) => (float[n,m,4] y) { r = Gather(table, ids) y = Exp(r) }", table=table())
    made = folded(model)
    assert [node.op_type for node in made.ir.graph] == ["Gather"] and made.outputs == model.outputs
    (wanted,), (found,) = (evaluate(one, {"ids": np.array([[1, 8]])}) for one in (model, made))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
