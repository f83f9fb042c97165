"""The plug-ins that CONTRIBUTING.md shows are whole: they are found, and do what the page says."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerun import parity, quantize, registry
from edgerun.contents import Telling
from edgerun.model import Model
from edgerun.passes import Building, Finishing, Quantization, Request, Target, Writing
from edgerun.runtime import Engine, Options

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+/\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every example as a file of its package, for the time of a test."""
    for place, code in EXAMPLES.items():
        package = importlib.import_module(f"edgerun.{place.split('/')[0]}")
        folder = tmp_path / place.split("/")[0]
        folder.mkdir(exist_ok=True)
        (tmp_path / f"{place}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for place in EXAMPLES:
        sys.modules.pop(f"edgerun.{place.replace('/', '.')}", None)


def test_the_examples_are_registered() -> None:
    assert set(EXAMPLES) == {"converters/linear", "quantize/prune_small"}
    assert "linear" in registry.names("converter") and "prune_small" in registry.names("pass")


def test_the_converter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(size=(6, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    np.savez(tmp_path / "a.linear.npz", **arrays)  # type: ignore[arg-type]
    linear = registry.converter("linear")
    assert linear.recognises(tmp_path / "a.linear.npz") and not linear.recognises(tmp_path / "a.npz")
    found = linear.convert(tmp_path / "a.linear.npz", inputs=(), factory=None, opset=17)
    with registry.target("onnxruntime").load(Engine("onnxruntime", found.model.to_bytes()), Options(1)) as session:
        assert parity.check(found.model, session.run, found.run, found.run64).passed


def test_the_pass() -> None:
    weight = np.random.default_rng(1).normal(size=(10, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    request = Request(Quantization(("w8a8",)), lambda graph, emulated=False, lanes=1: pytest.fail("nothing is run"))
    result = quantize.apply("prune_small", model, request)
    (kept,) = result.to_proto().graph.initializer
    assert int((onnx.numpy_helper.to_array(kept) == 0).sum()) == 10
    assert result.history[-1].options == {"pruned": 10}


def test_every_function_of_a_target_is_explained() -> None:
    members = {**vars(Target), **vars(Writing), **vars(Finishing), **vars(Building), **vars(Telling)}
    functions = [name for name, member in members.items() if inspect.isfunction(member) and not name.startswith("_")]
    assert {"written", "finish", "tried", "contents"} <= set(functions)
    for name in {**Target.__annotations__, **Writing.__annotations__}:
        assert f"`{name}`" in PAGE
    assert [name for name in functions if f"| `{name}(" not in PAGE] == []
