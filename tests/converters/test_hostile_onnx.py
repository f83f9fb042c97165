"""Hostile ONNX files, made here: bytes, names, sizes and files beside the model that are not what they say.

Each ends in one clear error, quickly, with nothing run and nothing written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.converters.hostile import graph_file, ints, model, node, one_clear_error  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Maker = Callable[[Path], "bytes | onnx.ModelProto"]


GOOD = model([node("MatMul", "x w")], numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))


def bit(place: bytes, ahead: int, bits: int) -> bytes:
    """The good model with bits flipped so far ahead of `place`."""
    data = bytearray(GOOD.SerializeToString())
    data[data.find(place) - ahead] ^= bits
    return bytes(data)


def messages_a_thousand_deep(folder: Path) -> bytes:
    def wrapped(data: bytes, field: int) -> bytes:
        length, size = len(data), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([field << 3 | 2]) + size + bytes([length]) + data

    graph = b""
    for _ in range(1000):  # GraphProto.node -> NodeProto.attribute -> AttributeProto.g
        graph = wrapped(wrapped(wrapped(graph, 6), 5), 1)
    data: bytes = GOOD.SerializeToString() + wrapped(graph, 7)
    return data


def external_link(folder: Path) -> onnx.ModelProto:
    (folder / "link.bin").symlink_to("../secret")
    return external("link.bin")


def external_hard_link(folder: Path) -> onnx.ModelProto:
    os.link(folder.parent / "secret", folder / "hard.bin")
    return external("hard.bin")


def external_pipe(folder: Path) -> onnx.ModelProto:
    os.mkfifo(folder / "pipe.bin")
    return external("pipe.bin")


def declared(dims: list[int], **content: Any) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, **content)
    return model([node("Add", "x w")], tensor)


def sparse(dims: list[int], index: int) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    made = model([node("Add", "x w")])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, ints("", index), dims))
    return made


def external(location: str, offset: str = "0", length: str = "48") -> onnx.ModelProto:
    made: onnx.ModelProto = onnx.ModelProto.FromString(GOOD.SerializeToString())
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return made


def _beside(folder: Path, offset: str, length: str) -> onnx.ModelProto:
    (folder / "w.bin").write_bytes(bytes(64))
    return external("w.bin", offset, length)


def _told(key: str, text: str) -> onnx.ModelProto:
    made: onnx.ModelProto = onnx.ModelProto.FromString(GOOD.SerializeToString())
    made.metadata_props.add(key=key, value=text)
    return made


def products(count: int, size: int = 30_000) -> onnx.ModelProto:
    """A matrix of 3.6 GB, written as two numbers, squared again and again."""
    steps = [node("MatMul", f"m{step} m{step}", f"m{step + 1}") for step in range(count)]
    ends = [node("ReduceMax", f"m{count}", "max", keepdims=1), node("Add", "x max")]
    return model([node("ConstantOfShape", "sizes", "m0"), *steps, *ends], ints("sizes", size, size))


MAKERS: dict[str, Maker] = {
    "half": lambda folder: GOOD.SerializeToString()[:60],
    "bit_in_an_operator": lambda folder: bit(b"MatMul", 0, 0x21),
    "bit_in_a_length": lambda folder: bit(b"MatMul", 1, 0x40),
    "noise": lambda folder: bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "overlong_varint": lambda folder: b"\x08" + b"\xff" * 30 + b"\x01",
    "groups_without_end": lambda folder: b"\x08\x08" + b"\x3b" * 100_000,
    "length_beyond_all_memory": lambda folder: b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01",
    "messages_a_thousand_deep": messages_a_thousand_deep,
    "a_pickle_with_our_ending": lambda folder: b"cos\nsystem\n(S'touch canary'\ntR.",
    "name_of_ten_megabytes": lambda folder: model(
        [node("Relu", "x"), helper.make_node("NoSuchOp", ["x"], ["z"], name="n" * 10_000_000)]
    ),
    "value_name_of_ten_megabytes": lambda folder: model([helper.make_node("Relu", ["v" * 10_000_000], ["y"])]),
    "name_that_is_not_utf8": lambda folder: GOOD.SerializeToString().replace(b"\x01w", b"\x01\xff"),
    "op_that_is_not_utf8": lambda folder: GOOD.SerializeToString().replace(b"MatMul", b"Mat\xff\xfel"),
    "name_with_a_path": lambda folder: model([node("Relu", "x", "../../canary")]),
    "two_writers": lambda folder: model([node("Relu", "x"), node("Abs", "x")]),
    "two_weights_of_one_name": lambda folder: model([node("Relu", "x")], ints("w", 1), ints("w", 2)),
    "huge_dims_with_raw_data": lambda folder: declared([1 << 40], raw_data=bytes(16)),
    "huge_dims_with_float_data": lambda folder: declared([1 << 40], float_data=[1.0]),
    "huge_dims_without_data": lambda folder: declared([1 << 20, 1 << 20]),
    "dims_that_overflow_64_bits": lambda folder: declared([1 << 32, 1 << 32, 4], raw_data=b""),
    "negative_dims": lambda folder: declared([-1, -4], raw_data=bytes(16)),
    "unknown_element_type": lambda folder: model(
        [node("Add", "x w")], TensorProto(name="w", data_type=99, dims=[4], raw_data=bytes(16))
    ),
    "sparse_weight_of_terabytes": lambda folder: sparse([1 << 40], 3),
    "sparse_index_outside": lambda folder: sparse([4], 1 << 40),
    "external_absolute": lambda folder: external("/etc/passwd"),
    "external_parent": lambda folder: external("../secret"),
    "external_link": external_link,
    "external_hard_link": external_hard_link,
    "external_pipe": external_pipe,
    "external_folder": lambda folder: external("."),
    "external_name_with_nul": lambda folder: external("w.bin\0/../../secret"),
    "external_name_of_a_megabyte": lambda folder: external("w" * 1_000_000),
    "history_that_nests_without_end": lambda folder: _told("edgerun.history", "[" * 200_000),
    "history_of_another_kind": lambda folder: _told("edgerun.history", '[{"name": "x", "version": "1", "evil": 1}]'),
    "contract_that_is_no_contract": lambda folder: _told("edgerun.preprocessing", '["rm"]'),
    "contract_that_nests_without_end": lambda folder: _told("edgerun.preprocessing", "[" * 200_000),
    "opset_of_the_future": lambda folder: model([node("Relu", "x")], opset=999),
    "products_of_hours": lambda folder: products(1000),
    "ir_of_the_future": lambda folder: model([node("Relu", "x")], ir=999),
}  # fmt: skip
for _name, _offset, _length in (
    ("external_beyond_the_end", "17", "48"), ("external_negative_offset", "-1", "48"),
    ("external_negative_length", "0", "-48"), ("external_no_number", "0x10", "1e400"),
    ("external_too_short", "0", "8"), ("external_offset_overflow", str(1 << 63), "48"),
    ("external_endless_digits", "1" * 10_000, "48"),
):  # fmt: skip
    MAKERS[_name] = lambda folder, offset=_offset, length=_length: _beside(folder, offset, length)  # type: ignore[misc]


@pytest.fixture(scope="module")
def told(given_to_convert: Any) -> Any:
    return given_to_convert({f"{name}.onnx": graph_file(maker) for name, maker in MAKERS.items()})


@pytest.mark.parametrize("name", list(MAKERS))
def test_one_clear_error_and_nothing_left(told: Any, name: str) -> None:
    one_clear_error(told, f"{name}.onnx")


def test_what_takes_hours_is_refused_by_its_shapes(told: Any) -> None:
    error, _ = told["products_of_hours.onnx"]
    assert error["what"] == "the model computes too much to be compared in time" and error["wanted"] == "at most 900 s"
