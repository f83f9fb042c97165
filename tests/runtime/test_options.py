"""What `Options` refuse, before anything is started. No test here starts what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, machine

HERE = [n for n in ("onnxruntime", "openvino") if not registry.target(n, usable=False).available()]


@pytest.mark.parametrize("count", ["threads", "streams"])
def test_no_more_threads_than_a_machine_runs_at_once(count: str) -> None:
    """100,000 of them took a machine down."""
    wrong: dict[str, Any] = {count: 100_000}
    with pytest.raises(EdgerunError, match=f"so many {count}") as told:
        Options(**wrong)
    assert "at most" in str(told.value.wanted) and told.value.got == "100000"
    assert Options(threads=machine.MOST, streams=machine.MOST).threads == 256  # nothing runs yet


@pytest.mark.skipif("openvino" not in HERE, reason="needs openvino")
@pytest.mark.parametrize("key", ["INFERENCE_NUM_THREADS", "NUM_STREAMS"])
def test_nor_by_openvinos_own_names(dense: bytes, key: str) -> None:
    with pytest.raises(EdgerunError, match="so many threads"):
        edgerun.load(dense, "openvino", Options(1, {key: "100000"}))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"threads": "2"}, "Options(threads=) is no whole number\n  got: '2', of type str"),
        ({"threads": True}, "Options(threads=) is no whole number"),
        ({"streams": 1.5}, "Options(streams=) is no whole number"),
        ({"max_rss": None}, "Options(max_rss=) is no whole number"),
        ({"extra": {"PROVIDER": 1}}, "the option 'PROVIDER' has a value that is no text\n  got: 1, of type int"),
        ({"extra": {"a": True}}, "the option 'a' has a value that is no text\n  got: True, of type bool"),
        ({"extra": None}, "Options(extra=) is no dict\n  got: NoneType"),
        ({"extra": ["a"]}, "Options(extra=) is no dict"),
        ({"sizes": {"n": 3}}, "'n' has no range of sizes"),
        ({"sizes": {"n": ("1", "2", "3")}}, "'n' has no range of sizes"),
        ({"usual": {"x": 3}}, "the usual shape of 'x' is none"),
        ({"usual": {"x": ("batch", 3)}}, "the usual shape of 'x' is none"),
    ],
    ids=str,
)
def test_other_types_are_one_clear_error(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(EdgerunError) as error:
        Options(**wrong)
    assert str(error.value).startswith(told)


def test_numbers_of_numpys_are_numbers() -> None:
    given: dict[str, Any] = {"threads": np.int64(2), "usual": {"x": (np.int32(1), 3)}}
    assert Options(**given).threads == 2


@pytest.mark.parametrize("target", [*HERE, "reference"])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"usual": {"nope": (1, 3)}}, "(unknown|no) input 'nope'"), ({"sizes": {"nope": (1, 2, 3)}}, "unknown open dim")],
)
def test_names_that_the_model_has_not_are_refused(
    dense: bytes, target: str, wrong: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """They were taken without a word, and did nothing."""
    with pytest.raises(EdgerunError, match=told):
        edgerun.load(dense, target, Options(1, **wrong))
    (tmp_path / "m.onnx").write_bytes(dense)
    with pytest.raises(EdgerunError, match=told):
        edgerun.compile(tmp_path / "m.onnx", target, Options(1, **wrong))
    with edgerun.load(dense, target, Options(1, sizes={"batch": (1, 2, 4)}, usual={"x": (2, 3)})) as session:
        assert session.run({"x": np.ones((2, 3), np.float32), "c": np.ones(4, np.float32)})["y"].shape == (2, 4)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(
    ("usual", "told"),
    [
        ({"x": (1, 7)}, "the usual shapes do not fit the model\n  got: x: [1, 7]\n  wanted: x:float32["),
        ({"x": (1, 2, 3)}, "the usual shapes do not fit the model\n  got: x: [1, 2, 3]"),
        ({"z": (1, 6)}, "unknown input 'z'"),
    ],
    ids=str,
)
def test_usual_shapes_fit_the_model_whatever_the_target(
    dense: bytes, target: str, usual: dict[str, tuple[int, ...]], told: str
) -> None:
    with pytest.raises(EdgerunError) as error:
        edgerun.load(dense, target, Options(1, usual=usual))
    assert str(error.value).startswith(told)
