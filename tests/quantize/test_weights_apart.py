"""Weights go to the runtime beside the graph, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import external
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize.graphs.edit import initializer
from edgerun.runtime import Options
from edgerun.verbs.compress import compress
from edgerun.verbs.why_wrong import opened_here


def test_what_no_node_reads_stays_in_the_graph(net: Any, weights: Any) -> None:
    """ONNX Runtime forgets such initializers before it looks for their content: it would refuse the model."""
    made: Model = net("(float[n,32] x) => (float[n,32] y) { y = MatMul(x, w) }", w=weights(1, 32, 32))
    graph = made.clone()
    unread = initializer(graph.graph, "unread", np.ones(1024, np.float32))
    data, apart, folder = external.apart(graph)
    assert folder is None and list(apart) == ["w"] and unread.const_value is not None and len(data) > 4096
    feeds = {"x": np.eye(32, dtype=np.float32)}
    with opened_here(graph) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], apart["w"], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w4a16_b32"])
def test_a_table_that_is_transposed_for_the_last_product(net: Any, weights: Any, scheme: str) -> None:
    """Tied embeddings: the folded Transpose is a view of the table that is looked up, in another order of memory."""
    text = "e = Gather(table, ids) h = Relu(e) t = Transpose<perm=[1,0]>(table) y = MatMul(h, t)"
    model = net(f"(int64[n,6] ids) => (float[n,6,200] y) {{ {text} }}", table=weights(1, 200, 32))
    ids = {"ids": np.random.default_rng(0).integers(0, 200, (24, 6))}
    result = compress(model, scheme=scheme, calibration=ids)
    found = []
    for each in (model, result):
        with edgerun.load(edgerun.compile(each, "onnxruntime", Options(1)), "onnxruntime") as session:
            found.append(session.run(ids)["y"])
    table = model.ir.graph.initializers["table"].const_value.numpy()
    np.testing.assert_allclose(found[0], np.maximum(table[ids["ids"]], 0) @ table.T, rtol=1e-4, atol=1e-6)
    assert sqnr_db(*found) > 20
