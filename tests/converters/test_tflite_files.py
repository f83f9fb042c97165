"""Foreign `.tflite` files: every damage is one clear error, before and behind the static guard."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun import guard_tflite  # noqa: E402
from edgerun.converters import _door, _ort, _tflite_files, _tflite_graph, tflite  # noqa: E402
from edgerun.converters._tflite_graph import Value  # noqa: E402
from edgerun.converters._tflite_sparse import dense  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from tests.converters.conftest import judged, packed  # noqa: E402
from tests.converters.tflite_cases import weight  # noqa: E402

Lite = Callable[..., Path]


@pytest.fixture
def whole(lite: Lite, tf: Any) -> bytes:
    """A small INT8 net: a padded convolution, a pool, a reshape, a dense layer."""

    def net(x: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), weight(3, 3, 2, 4), 2, "VALID"))
        return tf.reshape(tf.nn.max_pool2d(x, 2, 2, "SAME"), [-1, 16]) @ weight(16, 3)

    return lite(net, (None, 8, 8, 2), kind="int8").read_bytes()


def _read(path: Path) -> None:
    """Everything that is done with a file before the interpreter sees it."""
    net = _tflite_files.load(path)
    specs = [_door.spec(name, net.tensors[i].dtype, net.tensors[i].shape) for name, i in net.inputs.items()]
    tflite.write(net, specs, 20)


def test_damage_is_one_clear_error(whole: bytes, tmp_path: Path) -> None:
    """600 files with one to eight bytes changed, 60 cut short: read, or refused by an EdgerunError; nothing else."""
    rng, path, refused = np.random.default_rng(0), tmp_path / "net.tflite", 0
    for number in range(660):
        data = bytearray(whole)
        if number < 60:
            data = data[: len(data) * number // 60]
        else:
            for place in rng.integers(0, rng.choice([len(data), 1200]), rng.integers(1, 9)):
                data[place] = rng.choice([0, 255, data[place] ^ (1 << int(rng.integers(8)))])
        path.write_bytes(bytes(data))
        try:
            _read(path)
        except EdgerunError as error:
            assert error.what and "\n" not in error.what and error.exit_code in (2, 3)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"TFL3", "not a TFLite model"),
        (b"\x10\0\0\0ONNX" + bytes(64), "not a TFLite model"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(64), "truncated or damaged"),
        (b"\x10\0\0\0TFL3" + bytes(64), "another version"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(data)
    with pytest.raises(EdgerunError, match=words):
        edgerun.convert(path, output=tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_huge_vector_is_refused(whole: bytes, tmp_path: Path) -> None:
    """A length of four billion, wherever a vector's length stands, costs no memory and no time."""
    path = tmp_path / "net.tflite"
    for place in range(0, 1600, 4):
        (word,) = struct.unpack_from("<I", whole, place)
        if 1 <= word <= 64:
            path.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
            try:
                _read(path)
            except EdgerunError:
                continue


def _changed(whole: bytes, change: Callable[[Any], None], path: Path) -> Path:
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(whole, 0)
    change(model)
    path.write_bytes(packed(model))
    return path


def _beyond(model: Any) -> None:
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 1 << 40, 16


def _size(model: Any) -> None:
    model.subgraphs[0].tensors[1].shape = np.asarray([1 << 20, 1 << 10], np.int32)


def _scales(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None and tensor.quantization.scale is not None:
            tensor.quantization.scale = np.full(3, np.nan, np.float32)


def _cycle(model: Any) -> None:
    first = model.subgraphs[0].operators[0]
    first.inputs = np.asarray([first.outputs[0], *first.inputs[1:]], np.int32)


def _stranger(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = np.asarray([99999], np.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_beyond, "reaches beyond the file"),
        (_size, "does not have the size it declares"),
        (_scales, "scales do not fit"),
        (_cycle, "which nothing makes"),
        (
            lambda m: setattr(m.subgraphs[0].operators[0], "inputs", np.asarray([99999], np.int32)),
            "named that is not there",
        ),
        (lambda m: setattr(m.subgraphs[0].operators[0], "opcodeIndex", 77), "named that is not there"),
        (lambda m: setattr(m.subgraphs[0].tensors[0], "buffer", 4000), "named that is not there"),
        (lambda m: setattr(m, "subgraphs", []), "no graph"),
        (lambda m: setattr(m, "version", 9), "another version"),
    ],
)
def test_what_does_not_add_up_is_refused(
    change: Callable[[Any], None], words: str, whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(EdgerunError, match=words):
        _read(_changed(whole, change, tmp_path / "net.tflite"))


def test_several_signatures_need_one_to_serve(whole: bytes, tmp_path: Path) -> None:
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")

    def sign(model: Any) -> None:
        model.signatureDefs = []
        for key in (b"encode", b"decode"):
            entry = schema.SignatureDefT()
            entry.signatureKey, entry.inputs, entry.outputs, entry.subgraphIndex = key, [], [], 0
            model.signatureDefs.append(entry)

    with pytest.raises(Unsupported, match="several signatures"):
        _read(_changed(whole, sign, tmp_path / "net.tflite"))


def test_weights_behind_the_tables_are_found(whole: bytes, tmp_path: Path) -> None:
    """What files over 2 GB do: buffers behind the tables, by offset and size."""
    path = _changed(whole, lambda model: None, tmp_path / "net.tflite")
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    held = {i: bytes(b.data) for i, b in enumerate(model.buffers) if b.data is not None and len(b.data)}
    for index in held:
        model.buffers[index].data, model.buffers[index].offset, model.buffers[index].size = None, 2, 1
    place, tail = len(packed(model)) + 64 & ~63, b""
    for index, data in held.items():
        model.buffers[index].offset, model.buffers[index].size = place + len(tail), len(data)
        tail += data + bytes(-len(data) % 16)
    tables = packed(model)
    path.write_bytes(tables + bytes(place - len(tables)) + tail)
    guard_tflite.check(path)
    found = _tflite_files.load(path)
    plain = _tflite_files.parsed(whole)
    for have, want in zip(found.tensors, plain.tensors, strict=True):
        assert (have.data is None) == (want.data is None)
        np.testing.assert_array_equal(have.data, want.data) if want.data is not None else None
    judged(path)


def _level(size: int, segments: Any = None, indices: Any = None) -> Any:
    sparse = segments is not None
    return SimpleNamespace(format=int(sparse), denseSize=size, arraySegments=SimpleNamespace(values=segments),
                           arrayIndices=SimpleNamespace(values=indices))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_sparse_constants_are_written_out(rows: int, columns: int, seed: int, turned: bool) -> None:
    """Compressed rows, or columns, of random matrices come back whole."""
    rng = np.random.default_rng(seed)
    want = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.4)
    order = [1, 0] if turned else [0, 1]
    along = np.transpose(want, order)
    segments = np.cumsum([0, *(along != 0).sum(1)])
    levels = [_level(along.shape[0]), _level(along.shape[1], segments, np.nonzero(along)[1])]
    sparsity = SimpleNamespace(traversalOrder=order, blockMap=None, dimMetadata=levels)
    np.testing.assert_array_equal(dense(along[along != 0], want.shape, sparsity), want)


def _entry(data: st.DataObject, size: int) -> int | slice:
    if data.draw(st.booleans()):
        return data.draw(st.integers(-size, size - 1))
    ends = st.none() | st.integers(-size, size)
    return slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from([1, 2, -1, -2])))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_strided_slices_mean_what_numpy_means(data: st.DataObject) -> None:
    """Masks, negative strides, new axes and "…": the written nodes, run by ONNX Runtime, against numpy's indexing."""
    importlib.import_module("edgerun.converters.tflite").rules()
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    count = data.draw(st.integers(0, len(shape)))
    rest = data.draw(st.integers(0, count))  # where "…" stands, if it does
    index: list[Any] = [_entry(data, size) for size in [*shape[:rest], *shape[len(shape) - count + rest :]]]
    index.insert(rest, ...)
    if data.draw(st.booleans()):
        index.insert(data.draw(st.integers(0, len(index))), None)
    want = array[tuple(index)]
    masks = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
    rows = []
    for bit, entry in enumerate(index):
        rows.append((0, 1, 1))
        if entry is None or entry is ...:
            masks["newAxisMask" if entry is None else "ellipsisMask"] |= 1 << bit
        elif isinstance(entry, int):
            rows[-1] = (entry, entry + 1, 1)
            masks["shrinkAxisMask"] |= 1 << bit
        else:
            rows[-1] = (entry.start or 0, entry.stop or 0, entry.step)
            masks["beginMask"] |= (entry.start is None) << bit
            masks["endMask"] |= (entry.stop is None) << bit
    graph = _tflite_graph.Graph(20)
    constants = [
        Value("", (len(rows),), "int32", data=np.asarray(column, np.int32)) for column in zip(*rows, strict=True)
    ]
    made = _tflite_files.Tensor("y", want.shape, "float32", None, None, False)
    options = SimpleNamespace(**masks, offset=False)
    call = _tflite_graph.Call("STRIDED_SLICE", options, [Value("x", array.shape, "float32"), *constants], [made])
    result = _tflite_graph.RULES["STRIDED_SLICE"].emit(graph, call)
    assert isinstance(result, Value)
    graph.nodes.append(onnx.helper.make_node("Identity", [result.name], ["y"]))
    doors = [onnx.helper.make_tensor_value_info(name, 1, a.shape) for name, a in (("x", array), ("y", want))]
    body = onnx.helper.make_graph(graph.nodes, "g", doors[:1], doors[1:], list(graph.initializers.values()))
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    np.testing.assert_array_equal(_ort.runner(model.SerializeToString())({"x": array})["y"], want)
