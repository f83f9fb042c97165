"""The static guard and nodes that a provider compiled: the files that they name lie beside the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from edgerun import guard  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402


def _context(path: Path | None, where: str | bytes, **more: Any) -> bytes:
    """A model whose only node is one that a provider compiled: its binary lies in the file `where`."""
    said: dict[str, Any] = {"embed_mode": 0, "ep_cache_context": where, **more}
    node = helper.make_node("EPContext", ["x"], ["y"], "part_0", domain="com.microsoft", **said)
    door = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", door[:1], door[1:]), opset_imports=opsets, ir_version=8)
    data: bytes = model.SerializeToString()
    if path is not None:
        path.write_bytes(data)
    return data


def test_what_a_provider_compiled_lies_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "m.onnx"
    (folder / "part.bin").write_bytes(b"context")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "hard.bin")
    for inside in ({"where": "part.bin"}, {"where": ""}, {"where": b"\xff\x00 a binary", "embed_mode": 1}):
        _context(file, **inside)
        guard.check_onnx(file)
    outside = "outside the model's folder"
    bad: dict[str, tuple[str | bytes, str]] = {
        "above": ("../secret", outside), "absolute": (str(tmp_path / "secret"), outside), "a link": ("link", outside),
        "there and back": ("../model/../secret", outside), "gone": ("none.bin", "missing"),
        "the folder": (".", "missing"), "hard": ("hard.bin", "hard link"), "a NUL": ("part.bin\0", "cannot be"),
        "no UTF-8": (b"../\xff", outside),
    }  # fmt: skip
    for name, (where, why) in bad.items():
        _context(file, where)
        with pytest.raises(EdgerunError, match=why):
            guard.check_onnx(file)
            pytest.fail(name)
    _context(file, "", embed_mode=1, onnx_model_filename="../secret")  # what a weightless engine is filled from
    with pytest.raises(EdgerunError, match=outside):
        guard.check_onnx(file)
    with pytest.raises(EdgerunError, match="points outside the model"):
        guard.check_bytes(_context(None, "part.bin"))


def test_a_context_cannot_hide_its_file(tmp_path: Path) -> None:
    """Attributes that stand twice, one without its value, an op that is named last, and one that a caller fills in."""
    file = tmp_path / "m.onnx"
    model = onnx.load_from_string(_context(None, "../secret"))
    node = model.graph.node[0]
    twice = onnx.ModelProto.FromString(model.SerializeToString())
    twice.graph.node[0].attribute.append(helper.make_attribute("embed_mode", 1))
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    next(a for a in bare.graph.node[0].attribute if a.name == "embed_mode").ClearField("i")
    late = onnx.ModelProto.FromString(model.SerializeToString())
    late.graph.ClearField("node")
    raw = onnx.NodeProto.FromString(node.SerializeToString())
    raw.ClearField("op_type")
    hidden = raw.SerializeToString() + b"\x22\x09EPContext"  # field 4, after the attributes
    files = [bad.SerializeToString() for bad in (model, twice, bare)]
    graph = late.graph.SerializeToString() + b"\x0a" + bytes([len(hidden) & 0x7F | 0x80, len(hidden) >> 7]) + hidden
    late.ClearField("graph")
    files.append(late.SerializeToString() + b"\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph)
    assert onnx.load_from_string(files[-1]).graph.node[0].op_type == "EPContext"
    for data in files:
        file.write_bytes(data)
        with pytest.raises(EdgerunError, match="outside the model's folder"):
            guard.check_onnx(file)
    del node.attribute[:]
    node.attribute.append(
        onnx.AttributeProto(name="ep_cache_context", ref_attr_name="where", type=onnx.AttributeProto.STRING)
    )
    called = helper.make_function("own", "F", ["x"], ["y"], [node], list(model.opset_import), ["where"])
    model.functions.append(called)
    model.graph.node[0].CopyFrom(helper.make_node("F", ["x"], ["y"], domain="own", where="../secret"))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(EdgerunError, match="to the caller"):
        guard.check_onnx(file)
