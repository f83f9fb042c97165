"""What `--option` takes on every registered target: listed, refused by the same words, and nothing else accepted."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.passes import Target
from edgerun.runtime import Options

ONE = Options(threads=1)


@pytest.fixture
def model() -> Model:
    """y = max(x, 0)."""
    door = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [2, 3]) for tensor in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "tiny", door[:1], door[1:])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_unknown_options_are_refused(target: Target, model: Model) -> None:
    with pytest.raises(EdgerunError, match="no_such_option") as error:
        target.load(target.compile(model, ONE), Options(1, {"no_such_option": "1"}))
    for key in target.takes:
        assert key.partition("=")[0] in str(error.value), "what is listed and what is accepted are one"


def test_options_have_a_line_each(name: str) -> None:
    takes = registry.target(name, usable=False).takes
    assert all(key.split() and text and "\n" not in text and len(text) < 110 for key, text in takes.items())


def test_listed_values_are_the_values(target: Target, model: Model) -> None:
    """Where the values are listed, another one is misuse, whatever else is not here."""
    for key in target.takes:
        option, equals, values = key.partition("=")
        if equals and "|" in values:
            with pytest.raises(EdgerunError):
                target.load(target.compile(model, ONE), Options(1, {option: "no such value"}))
