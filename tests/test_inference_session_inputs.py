"""What an InferenceSession is fed, beside onnxruntime's own: inputs that may be left out, lists, words, sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.runtime import InferenceSession

CPU = ["CPUExecutionProvider"]
X = np.ones((1, 2), np.float32)
BOTH: Any = (onnxruntime.InferenceSession, InferenceSession)
openvino = pytest.mark.skipif(registry.target("openvino", usable=False).available() is not None, reason="no openvino")
value = helper.make_tensor_value_info


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: tuple[Any, ...] = ()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(proto.SerializeToString())


@pytest.fixture
def overridable() -> bytes:
    """y = x·w, where w = [2, 3] is an input too."""
    weight = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    doors = [value("x", 1, [None, 2]), value("w", 1, [2])]
    return _model([helper.make_node("Mul", ["x", "w"], ["y"])], doors, [value("y", 1, [None, 2])], (weight,))


def _doors(found: Any) -> list[tuple[Any, ...]]:
    return [(door.name, door.type, door.shape) for door in found]


def test_initializers_that_are_inputs_are_fed_or_left_out(overridable: bytes) -> None:
    theirs, ours = (kind(overridable, providers=CPU) for kind in BOTH)
    assert _doors(ours.get_inputs()) == _doors(theirs.get_inputs()) == [("x", "tensor(float)", [None, 2])]
    assert _doors(ours.get_overridable_initializers()) == _doors(theirs.get_overridable_initializers())
    assert _doors(ours.get_outputs()) == _doors(theirs.get_outputs())
    weight = np.array([10, 20], np.float32)
    for feeds, found in (({}, [[2, 3]]), ({"w": weight}, [[10, 20]]), ({"w": None}, [[2, 3]]), ({}, [[2, 3]])):
        for session in (theirs, ours):
            assert session.run(None, {"x": X, **feeds})[0].tolist() == found
    for session in (theirs, ours):
        bound = session.io_binding()
        bound.bind_cpu_input("x", X)
        bound.bind_ortvalue_input("w", onnxruntime.OrtValue.ortvalue_from_numpy(weight))
        bound.bind_output("y")
        session.run_with_iobinding(bound)
        assert bound.copy_outputs_to_cpu()[0].tolist() == [[10, 20]]
        with pytest.raises(Exception, match=r"invalid dimensions for input: w|'w' has the wrong shape"):
            session.run(None, {"x": X, "w": np.ones(3, np.float32)})
    old = onnx.load_from_string(overridable)
    old.ir_version = 3  # in which every initializer has to be an input, and none can be fed
    theirs, ours = (kind(old.SerializeToString(), providers=CPU) for kind in BOTH)
    assert ours.get_overridable_initializers() == theirs.get_overridable_initializers() == []
    for session in (theirs, ours):
        assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
        with pytest.raises(Exception, match=r"Invalid input name: w|unknown input 'w'"):
            session.run(None, {"x": X, "w": weight})


def test_sessions_take_defaults_too(overridable: bytes) -> None:
    """The session of `edgerun.load`: fed, left out, into given arrays, in turns; other names are not taken."""
    weight, place = np.array([10, 20], np.float32), np.empty((1, 2), np.float32)
    with edgerun.load(overridable) as session:
        assert [str(spec) for spec in session.inputs] == ["x:float32[x_0,2]"]
        assert [str(spec) for spec in session.defaults] == ["w:float32[2]"]
        for feeds, found in (({"x": X}, [[2, 3]]), ({"x": X, "w": weight}, [[10, 20]])) * 3:
            assert session.run(feeds)["y"].tolist() == found
            for _ in range(3):  # the third time they would be bound, if they could
                place[:] = 0
                assert session.run(feeds, {"y": place})["y"] is place and place.tolist() == found
        with pytest.raises(EdgerunError, match="unknown input 'v'"):
            session.run({"x": X, "v": weight})
        with pytest.raises(EdgerunError, match="'w' is missing"):
            session.run({"x": X, "w": None})


def test_narrow_defaults_are_fed_or_left_out() -> None:
    narrow = pytest.importorskip("ml_dtypes").bfloat16
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [2.0, 3.0])
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=1), helper.make_node("Mul", ["x", "f"], ["y"])]
    doors = [value("x", 1, [1, 2]), value("w", TensorProto.BFLOAT16, [2])]
    session = InferenceSession(_model(nodes, doors, [value("y", 1, [1, 2])], (weight,)))
    assert session.get_overridable_initializers()[0].type == "tensor(bfloat16)"
    assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
    assert session.run(None, {"x": X, "w": np.array([4, 8], narrow)})[0].tolist() == [[4, 8]]


def test_optional_inputs_are_left_out_or_none() -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, ["n"]))
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    doors = [helper.make_value_info("o", optional), value("x", 1, [1, 2])]
    model = _model(nodes, doors, [value("y", TensorProto.BOOL, []), value("z", 1, [1, 2])])
    for kind in BOTH:
        session = kind(model, providers=CPU)
        assert _doors(session.get_inputs())[0] == ("o", "optional(tensor(float))", ["n"])
        given: list[tuple[dict[str, Any], bool]] = [({}, False), ({"o": None}, False), ({"o": X[0]}, True),
                                                    ({"o": [1.0]}, True)]  # fmt: skip
        for feeds, found in given:
            has, same = session.run(None, {"x": X, **feeds})
            assert bool(has) is found and has.dtype == np.bool_ and same.tolist() == [[1, 1]]
    with pytest.raises(EdgerunError, match="unknown input 'p'"):
        InferenceSession(model).run(None, {"x": X, "p": X})


def test_lists_words_and_sequences_go_in_and_out() -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    nodes = [helper.make_node("SequenceInsert", ["s", "x"], ["t"]), helper.make_node("SequenceLength", ["s"], ["n"]),
             helper.make_node("Identity", ["w"], ["v"])]  # fmt: skip
    doors = [helper.make_value_info("s", sequence), value("x", 1, [None]), value("w", TensorProto.STRING, [None])]
    outputs = [helper.make_value_info("t", sequence), value("n", TensorProto.INT64, []),
               value("v", TensorProto.STRING, [None])]  # fmt: skip
    theirs, ours = (kind(_model(nodes, doors, outputs), providers=CPU) for kind in BOTH)
    assert _doors(ours.get_inputs()) == _doors(theirs.get_inputs())
    words = (["a", "ü"], np.array(["a", "ü"]), np.array(["a", "ü"], object), np.array([b"a", 7], object))
    for word in words:
        for parts in ([X[0], X[0] * 2], []):
            feeds = {"s": parts, "x": [3, 4.5], "w": word}
            other, own = theirs.run(None, feeds), ours.run(None, feeds)
            assert type(own[0]) is type(other[0]) is list and len(own[0]) == len(parts) + 1
            for one, two in zip((*own[0], *own[1:]), (*other[0], *other[1:]), strict=True):
                assert type(one) is type(two) and one.dtype == two.dtype
                np.testing.assert_array_equal(one, two)


@openvino
def test_openvino_takes_what_the_model_has(overridable: bytes) -> None:
    session = InferenceSession(overridable, providers=["OpenVINOExecutionProvider"])
    assert session.get_overridable_initializers() == [] and session.run(None, {"x": X})[0].tolist() == [[2, 3]]
    with pytest.raises(EdgerunError, match="unknown input 'w'"):
        session.run(None, {"x": X, "w": X[0]})
