"""Weights go to the runtime beside the graph, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun import external
from edgerun.model import Model
from edgerun.quantize.graphs.edit import initializer
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
