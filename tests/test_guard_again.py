"""The static guard on models that it has seen: a verdict is what a first walk would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import _passed, _wire, guard  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402

WEIGHT = np.arange(600, dtype=np.float32).reshape(3, 200)


def _model() -> onnx.ModelProto:
    """Weights in three places: 2,400 bytes beside the graph's nodes, as many in one of them, 12 short ones."""
    again, bias = numpy_helper.from_array(WEIGHT, "again"), numpy_helper.from_array(WEIGHT[0, :3], "bias")
    nodes = [
        helper.make_node("Constant", [], ["v"], "constant", value=again),
        helper.make_node("Add", ["x", "bias"], ["moved"], "add"),
        helper.make_node("MatMul", ["moved", "w"], ["product"], "product"),
        helper.make_node("MatMul", ["moved", "v"], ["other"], "second"),
        helper.make_node("Sub", ["product", "other"], ["y"], "difference"),
    ]
    doors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 3), ("y", 200))]
    graph = helper.make_graph(nodes, "graph", doors[:1], doors[1:], [numpy_helper.from_array(WEIGHT, "w"), bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


DATA = _model().SerializeToString()
PLACES = [at for at in range(len(DATA)) if DATA.startswith(WEIGHT.tobytes(), at)]
REST = [at for at in range(len(DATA)) if not any(place <= at < place + WEIGHT.nbytes for place in PLACES)]


def _verdict(data: bytes) -> object:
    try:
        return guard.check_bytes(data)
    except EdgerunError as error:
        return str(error)


def _first(data: bytes) -> object:
    _passed._passed.clear()
    return _verdict(data)


@given(st.lists(st.tuples(st.sampled_from(REST), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_bytes_that_differ_anywhere_are_judged_as_at_first(changes: list[tuple[int, int]]) -> None:
    changed = bytearray(DATA)
    for at, value in changes:
        changed[at] = value
    wanted = _first(bytes(changed))
    assert _first(DATA) == {TensorProto.FLOAT}
    assert _verdict(bytes(changed)) == wanted
    assert _verdict(DATA) == {TensorProto.FLOAT}


def test_the_same_structure_is_not_walked_again_whatever_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PLACES) == 2
    _passed._passed.clear()
    guard.check_bytes(DATA)
    walked: list[int] = []
    walk = guard._Model.walk

    def counted(self: guard._Model, data: memoryview) -> None:
        walked.append(len(data))
        walk(self, data)

    monkeypatch.setattr(guard._Model, "walk", counted)
    other = bytearray(DATA)
    for at in PLACES:
        other[at : at + WEIGHT.nbytes] = b"\xff" * WEIGHT.nbytes
    assert guard.check_bytes(bytes(other)) == guard.check_bytes(DATA) == {TensorProto.FLOAT}
    assert not walked
    guard.check_bytes(DATA + b"\x32\x01x")  # a doc_string
    assert len(walked) == 1


@pytest.mark.parametrize("at", [REST[0], REST[40], REST[-1], PLACES[0], PLACES[1] + WEIGHT.nbytes - 1])
def test_a_file_is_read_but_for_its_weights_and_judged_as_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    file, mapped, view = tmp_path / "m.onnx", list[bytes | Path](), _wire.view
    changed = DATA[:at] + bytes([DATA[at] ^ 0xFF]) + DATA[at + 1 :]
    wanted = {data: _first(data) for data in (DATA, changed)}

    def counted(source: bytes | Path) -> memoryview:
        mapped.append(source)
        return view(source)

    monkeypatch.setattr(_wire, "view", counted)
    _passed._passed.clear()
    for data, walks in ((DATA, 1), (DATA, 0), (changed, int(at in REST)), (DATA, 0)):
        file.write_bytes(data)
        mapped.clear()
        try:
            found: object = guard.check_onnx(file)
        except EdgerunError as error:
            found = str(error).replace(str(file), "these bytes")
        assert (found, len(mapped)) == (wanted[data], walks)


def test_few_models_are_remembered() -> None:
    for number in range(3 * _passed.MOST):
        model = _model()
        model.graph.name = "n" * number
        guard.check_bytes(model.SerializeToString())
    assert len(_passed._passed) == _passed.MOST
    assert all(len(one.text) < len(DATA) - 2 * WEIGHT.nbytes + 100 for one in _passed._passed)


def test_files_beside_a_model_are_looked_at_each_time(tmp_path: Path) -> None:
    model = _model()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for _ in range(2):
        assert guard.beside(tmp_path / "m.onnx") == [tmp_path / "w.bin"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(EdgerunError, match="is missing"):
        guard.check_onnx(tmp_path / "m.onnx")


def test_a_second_graph_is_refused(tmp_path: Path) -> None:
    """Parsers join the two: what the first one says would not have been looked at."""
    hidden = onnx.ModelProto()
    tensor = hidden.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "m.onnx").write_bytes(hidden.SerializeToString() + DATA)
    assert onnx.ModelProto.FromString((tmp_path / "m.onnx").read_bytes()).graph.initializer[0].name == "w"
    with pytest.raises(EdgerunError, match="two graphs"):
        guard.check_onnx(tmp_path / "m.onnx")
