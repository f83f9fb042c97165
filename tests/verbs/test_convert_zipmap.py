"""Dictionaries of scores (ZipMap), as scikit-learn's exporters write them by default, become tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun.errors import Unsupported
from edgerun.verbs.inspect import Inspection

X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
KEYS: list[tuple[str, list[Any]]] = [("classlabels_int64s", [7, 2, 9]), ("classlabels_strings", ["cat", "dog", "é"])]


def scored(path: Path, **labels: Any) -> Path:
    """Softmax, and its rows as dictionaries."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], "softmax"),
        helper.make_node("ZipMap", ["p"], ["scores"], "zip", domain="ai.onnx.ml", **labels),
    ]
    kind = TensorProto.INT64 if "classlabels_int64s" in labels else TensorProto.STRING
    row = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    graph = helper.make_graph(
        nodes,
        "scored",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_value_info("scores", helper.make_sequence_type_proto(row))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(("attribute", "keys"), KEYS)
def test_dictionaries_become_a_table(attribute: str, keys: list[Any], tmp_path: Path, cli: Callable[..., Any]) -> None:
    path, made = scored(tmp_path / "m.onnx", **{attribute: keys}), tmp_path / "made.onnx"
    told = cli("convert", path, "-o", made)
    assert told.code == 0 and f"in this order: {', '.join(map(str, keys))}" in told.err, told.err
    assert "ZipMap" not in {node.op_type for node in onnx.load(made).graph.node}
    results: Any = onnxruntime.InferenceSession(path).run(None, {"x": X})
    with edgerun.load(made) as session:
        scores = session.run({"x": X})["scores"]
        assert json.loads(session.metadata["classes"]) == keys
    assert scores.tolist() == [[row[key] for key in keys] for row in results[0]]


def test_other_verbs_say_that_convert_makes_tables(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = scored(tmp_path / "m.onnx", classlabels_int64s=[0, 1, 2])
    for command in (
        ("check", path, "--fix", tmp_path / "f.onnx"),
        ("run", path, "--data", "random"),
        ("compile", path, "-o", tmp_path / "m.ort"),
    ):
        told = cli(*command)
        assert told.code == 3 and "edgerun convert the model" in told.err, told.err
    with pytest.raises(Unsupported, match="becomes a table"):
        edgerun.load(path)


@pytest.mark.parametrize(("attribute", "keys"), KEYS)
def test_what_is_in_them_can_be_looked_at(attribute: str, keys: list[Any], tmp_path: Path, cli: Any) -> None:
    """The door as it is, every node; and whether a target runs it: none gives out dictionaries, some lack more."""
    path = scored(tmp_path / "m.onnx", **{attribute: keys})
    told, key = cli("inspect", path), "object" if attribute.endswith("strings") else "int64"
    assert told.code == 0 and f"scores:sequence_map_{key}(float32)" in told.out and "x:float32[n,3]" in told.out
    found = edgerun.inspect(path)
    assert found.ops == {"Softmax": 1, "ai.onnx.ml.ZipMap": 1} and found.digest == ""
    assert isinstance(found, Inspection) and found.opsets == {"ai.onnx": 17, "ai.onnx.ml": 1}
    told = cli("check", path)
    assert told.code == 1 and "does not run: zip (ZipMap): no session gives out dictionaries" in told.out, told.err
    made = tmp_path / "made.onnx"
    assert cli("convert", path, "-o", made).code == 0 and cli("check", made).code == 0


def test_of_operators_of_other_domains_alone(tmp_path: Path, cli: Any) -> None:
    """No opset of ONNX's own is imported."""
    proto = onnx.load(scored(tmp_path / "m.onnx", classlabels_int64s=[0, 1, 2]))
    proto.graph.node[0].CopyFrom(helper.make_node("Normalizer", ["x"], ["p"], "norm", domain="ai.onnx.ml"))
    del proto.opset_import[0]
    onnx.save(proto, tmp_path / "m.onnx")
    told = cli("inspect", tmp_path / "m.onnx")
    assert told.code == 0 and "ai.onnx.ml.ZipMap" in told.out and "opset ai.onnx.ml 1\n" in told.out, told.err
    told = cli("check", tmp_path / "m.onnx")
    assert told.code == 1 and "zip (ZipMap)" in told.out and "norm" not in told.out, told.err


def test_a_classifier_of_skl2onnx(tmp_path: Path) -> None:
    skl2onnx, linear = pytest.importorskip("skl2onnx"), pytest.importorskip("sklearn.linear_model")
    answers = np.digitize(X[:, 0], [-0.3, 0.3])
    found = linear.LogisticRegression().fit(X, answers)
    path = tmp_path / "m.onnx"
    path.write_bytes(skl2onnx.to_onnx(found, X[:1]).SerializeToString())
    with edgerun.load(edgerun.compile(edgerun.convert(path), "onnxruntime")) as session:
        results = session.run({"X": X})
    np.testing.assert_array_equal(results["output_label"], found.predict(X))
    np.testing.assert_allclose(results["output_probability"], found.predict_proba(X), atol=1e-6)
