"""Several ranges of sizes in one engine: what the builder is told, and what its log says that it built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
TWO = {"length": (1, 16, 32, 64, 128, 256), "batch": (1, 2, 4)}


@pytest.fixture
def sequence(build: Callable[..., Model]) -> Model:
    weights = {"w": np.ones((6, 4), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    return build([node], {"x": ["batch", "length", 6]}, {"y": ["batch", "length", 4]}, weights)


class Watched:
    """The library's builder, with the profiles that it made and what it said."""

    def __init__(self, builder: Any, log: Any) -> None:
        self._builder, self.log, self.profiles = builder, log, list[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def create_optimization_profile(self) -> Any:
        self.profiles.append(self._builder.create_optimization_profile())
        return self.profiles[-1]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    found, make = list[Watched](), tensorrt.builder

    def builder(trt: Any, log: Any) -> Watched:
        found.append(Watched(make(trt, log), log))
        return found[-1]

    monkeypatch.setattr(tensorrt, "builder", builder)
    return found


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"length": (1, 16, 32)}, [[(1, 1), (1, 16), (16, 32)]]),
        (TWO, [[(1, 1), (2, 16), (4, 32)], [(1, 64), (2, 128), (4, 256)]]),
        (
            {"length": (1, 16, 32, 64, 128, 256), "batch": (1, 8, 16, 1, 1, 2)},
            [[(1, 1), (8, 16), (16, 32)], [(1, 64), (1, 128), (2, 256)]],
        ),
    ],
)
def test_each_range_is_a_profile(sequence: Model, watched: list[Watched], sizes: Any, wanted: Any) -> None:
    """The library's own profiles are read, and its log."""
    engine = target.compile(sequence, Options(sizes=sizes))
    (builder,) = watched
    read_back = [[tuple(end)[:2] for end in profile.get_shape("x")] for profile in builder.profiles]
    assert read_back == wanted and engine.inputs == sequence.inputs
    said = [text for text in builder.log.told if text.startswith("Constructing optimization profile number")]
    assert len(said) == len(wanted) and f"[{len(wanted)}/{len(wanted)}]" in said[-1]


def test_a_dla_takes_one_size(build: Callable[..., Model]) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=10), helper.make_node("Cast", ["h"], ["y"], to=1)]
    half = build(nodes, {"x": ["batch", "length"]}, {"y": ["batch", "length"]}, {})
    asked = Options(extra={"DLA": "0"}, sizes={"length": (4, 4, 4, 8, 8, 8), "batch": (1, 1, 1)})
    with pytest.raises(EdgerunError, match=r"a DLA takes one size of 'length'[\s\S]*4 to 8"):
        target.ranges(half, asked, None)
