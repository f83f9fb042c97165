"""What feeds have to be, on every target that runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import pytest

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, Session
from tests.runtime.conftest import RUNNERS, feeds

TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[batch, seq] ids, float[batch, seq] mask, float[free] other) => (float[batch, seq] y, float[free] z) {
    s = Relu(mask)
    y = Mul(ids, s)
    z = Relu(other)
}"""


@pytest.fixture(params=[name for name in RUNNERS if name != "reference"])
def two(request: pytest.FixtureRequest) -> Any:
    """y = ids * relu(mask), z = relu(other); two inputs have the same open dimensions."""
    data = onnx.parser.parse_model(TWO).SerializeToString()
    with edgerun.load(data, request.param, Options(threads=1)) as session:
        yield session


def _feeds(ids: tuple[int, int], mask: tuple[int, int], other: int = 4) -> dict[str, np.ndarray]:
    return {"ids": np.ones(ids, np.float32), "mask": np.ones(mask, np.float32), "other": np.ones(other, np.float32)}


@pytest.mark.parametrize("mask", [(2, 4), (1, 8)], ids=str)
def test_a_dimension_of_one_name_has_one_size(two: Session, mask: tuple[int, int]) -> None:
    """A mask of another length, which would broadcast where it is 1: refused, before and after good feeds."""
    good, bad = _feeds((2, 8), (2, 8)), _feeds((2, 8), mask)
    for _ in range(2):
        with pytest.raises(EdgerunError, match=r"different sizes of '(seq|batch)'\n  got: ids: \d, mask: \d"):
            two.run(bad)
        with pytest.raises(EdgerunError, match="different sizes"):
            two.run(bad, {"y": np.empty((2, 8), np.float32)})
        with pytest.raises(EdgerunError, match="different sizes"):
            next(iter(two.stream([bad])))
        assert two.run(good)["y"].tolist() == np.ones((2, 8)).tolist()
    assert two.run(_feeds((3, 5), (3, 5), 7))["z"].shape == (7,)


def test_a_size_for_a_dimension_that_there_is_none_of_is_refused(two: Session) -> None:
    two.warm_up(sizes={"seq": 64, "batch": 2})
    with pytest.raises(EdgerunError, match="unknown open dimension 'sq'") as told:
        two.warm_up(sizes={"sq": 64})
    assert told.value.wanted == "one of batch, free, seq" and "seq" in str(told.value.do)


TEXT = '<ir_version: 8, opset_import: ["" : 17]> net (string[n] s) => (string[n] t) { t = Identity(s) }'


@pytest.mark.parametrize("isolated", [False, True])
def test_texts_are_texts(isolated: bool) -> None:
    """ONNX Runtime takes what is printed of anything else: of b'a' four letters, of None four others."""
    data = onnx.parser.parse_model(TEXT).SerializeToString()
    with edgerun.load(data, "onnxruntime", Options(1), isolated=isolated) as session:
        for good in (["a", "ü\0"], np.array(["a", "ü\0"], object), np.array([np.str_("a"), "ü\0"], object)):
            assert session.run({"s": good})["t"].tolist() == ["a", "ü\0"]
        for bad, kind in (([b"a"], "bytes"), ([1], "int"), ([None], "NoneType"), ([["a"], ["b", "c"]], "list")):
            for given in (bad, np.array([*bad, "x"], object)[:-1]):
                with pytest.raises(EdgerunError, match="'s' holds more than texts") as error:
                    session.run({"s": given})
                assert error.value.got == kind


def test_what_is_no_array_or_no_number_of_anything_is_one_clear_error(session: Session) -> None:
    wrong: Any = session
    good: Any = {"x": np.ones((2, 3), np.float32), "c": np.ones(4, np.float32)}
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: wrong.run({**good, "x": [[1.0, 2.0], [3.0]]}), "input 'x' is no array"),
        (lambda: wrong.run(good, {1: np.ones(4), "y": np.ones(4)}), "unknown output 1"),
        (lambda: next(wrong.stream([good], in_flight="2")), "nothing can be in flight"),
        (lambda: wrong.empty("x", ("batch", 3)), "no size below 0"),
        (lambda: wrong.empty("x", (2.0, 3)), "no size below 0"),
        (lambda: wrong.empty("x", 6), "wrong shape"),
        (lambda: wrong.empty(3, (2, 3)), "unknown tensor '3'"),
        (lambda: wrong.warm_up("2"), "counted from 0"),
        (lambda: wrong.warm_up(sizes={"batch": 1.5}), "counted from 0"),
    ]
    for call, message in calls:
        with pytest.raises(EdgerunError, match=message):
            call()


@pytest.mark.parametrize("wrong", [None, np.ones((2, 3), np.float32), [1, 2], "x"], ids=lambda v: type(v).__name__)
def test_feeds_that_are_no_names_are_one_clear_error(session: Session, wrong: Any) -> None:
    with pytest.raises(EdgerunError, match="feeds are arrays by name"):
        session.run(wrong)
    with pytest.raises(EdgerunError, match="feeds are arrays by name"):
        next(iter(session.stream([wrong])))
    for _ in range(2):  # and where other arrays are bound already
        with pytest.raises(EdgerunError, match="feeds are arrays by name"):
            session.run(wrong, {"y": np.empty((2, 4), np.float32)})
        session.run(feeds(1), {"y": np.empty((2, 4), np.float32)})
    with pytest.raises(EdgerunError, match="out are arrays by name"):
        session.run(feeds(1), np.empty((2, 4), np.float32))  # type: ignore[arg-type]


def test_names_that_are_no_text_are_told(session: Session) -> None:
    with pytest.raises(EdgerunError, match="unknown input"):
        session.run({**feeds(1), 3: np.ones(1), "a": np.ones(1)})  # type: ignore[dict-item]
