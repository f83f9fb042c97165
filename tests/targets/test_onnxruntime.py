"""ONNX Runtime: what the contract cannot know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Limits
from edgerun.runtime import Engine, Options, machine
from edgerun.targets import onnxruntime as target

ONE = Options(1)


@pytest.mark.skipif(onnxruntime.__version__ != "1.31.1", reason="states what 1.31.1 reads")
def test_limits_of_the_pinned_version() -> None:
    assert target.limits() == Limits(ir_version=13, opset=26)


def test_each_unsupported_node_is_named(build: Callable[..., Model]) -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["r"], "fine"),
        helper.make_node("Frobnicate", ["r"], ["p"], "unknown"),
        helper.make_node("Sort", ["a"], ["q"], "foreign", domain="my.ops"),
        helper.make_node("Mod", ["h", "h"], ["m"], "no_kernel"),
        helper.make_node("Neg", ["p"], ["n"], "behind"),
    ]
    shape: list[int | str] = [2]
    model = build(nodes, {"a": shape}, {name: shape for name in ("n", "q", "m")}, domains=("my.ops",))
    proto = model.to_proto()
    proto.graph.input.append(helper.make_tensor_value_info("h", TensorProto.BFLOAT16, shape))
    for value in proto.graph.output:
        if value.name == "m":
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    issues = target.check(Model.from_proto(proto))
    assert [issue.node for issue in issues] == ["unknown", "foreign", "no_kernel"]
    assert all(issue.op in issue.reason and "/onnxruntime_src" not in issue.reason for issue in issues)


def test_threads_and_spinning_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible", lambda: 4)
    monkeypatch.setattr(machine, "quota", lambda: 2)
    settings = target._settings(Options())
    assert settings.intra_op_num_threads == 2 and settings.inter_op_num_threads == 1
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    monkeypatch.setattr(machine, "quota", lambda: 4)
    assert not settings_has(target._settings(Options(3)), "session.intra_op.allow_spinning")
    assert target._settings(Options(3)).intra_op_num_threads == 3
    more = target._settings(Options(8))  # than there are: one that spins keeps another from its core
    assert more.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def settings_has(settings: object, key: str) -> bool:
    try:
        return bool(settings.get_session_config_entry(key))  # type: ignore[attr-defined]
    except RuntimeError:
        return False


def test_optimizations_can_be_off(dense: Model) -> None:
    engine = target.compile(dense, ONE)
    x = np.ones((2, 6), np.float32)
    with target.load(engine, Options(1, {"graph_optimization_level": "off"})) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], edgerun.load(engine).run({"x": x})["y"], rtol=1e-6)
    with pytest.raises(EdgerunError, match="graph_optimization_level=most"):
        target.load(engine, Options(1, {"graph_optimization_level": "most"}))


def test_what_is_no_array_is_unsupported() -> None:
    """A map, what classifiers of ai.onnx.ml give: a sequence of dictionaries."""
    node = helper.make_node("ZipMap", ["x"], ["z"], "zip", domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    value = helper.make_value_info("z", helper.make_sequence_type_proto(kind))
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])], [value])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(Unsupported, match="no array"):
        target.load(Engine("onnxruntime", proto.SerializeToString()), ONE)


def test_a_failing_run_is_one_clear_error(build: Callable[..., Model]) -> None:
    model = build([helper.make_node("Add", ["a", "b"], ["c"], "add")], {"a": ["n"], "b": ["m"]}, {"c": ["k"]})
    with target.load(target.compile(model, ONE), ONE) as session:
        with pytest.raises(EdgerunError, match="add"):
            session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
        assert session.run({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})["c"].tolist() == [2, 2]


def test_loads_bytes_and_paths_without_a_target(dense: Model, tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    dense.save(path)
    x = {"x": np.ones((1, 6), np.float32)}
    results = [edgerun.load(source).run(x)["y"] for source in (path, str(path), path.read_bytes())]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_leaves_no_file_behind(
    dense: Model, tmp_path: Path, in_clean_home: Callable[[str], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense.save(tmp_path / "dense.onnx")
    code = """
import edgerun, numpy as np
from edgerun.runtime import Engine, Options
from edgerun.targets import onnxruntime as target
x = {"x": np.ones((1, 6), np.float32)}
edgerun.load("dense.onnx", "onnxruntime").run(x)
target.profile(Engine("onnxruntime", open("dense.onnx", "rb").read()), [x], Options(1))
"""
    assert in_clean_home(code) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["dense.onnx"]
