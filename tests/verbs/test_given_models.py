"""What a verb is given for a model: a path, bytes where it takes such, and one clear error for all else."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.model import Model


@pytest.mark.parametrize("source", [b"junk" * 20, 5, None, onnx.ModelProto(doc_string="long" * 99)])
def test_what_is_no_path_is_told_by_its_kind_and_not_printed(source: Any) -> None:
    for verb in (edgerun.compile, edgerun.compress):
        with pytest.raises(EdgerunError, match="a file is given by its path") as caught:
            verb(source, target="onnxruntime")
        assert "from_bytes" in str(caught.value) and "junk" not in str(caught.value) and "long" not in str(caught.value)
    if not isinstance(source, bytes):
        with pytest.raises(EdgerunError, match="a file is given by its path"):
            edgerun.load(source)
        with pytest.raises(EdgerunError, match="a file is given by its path"):
            edgerun.load(source, device="CPU")


def test_a_model_in_memory_is_compiled_before_it_is_loaded() -> None:
    model: Any = Model.from_proto(helper.make_model(helper.make_graph([], "g", [], [])))
    with pytest.raises(EdgerunError, match=r"got: Model[\s\S]*compile"):
        edgerun.load(model)


def test_options_are_options() -> None:
    options: Any = {"threads": 1}
    with pytest.raises(EdgerunError, match="options are no Options"):
        edgerun.load("net.onnx", options=options)
