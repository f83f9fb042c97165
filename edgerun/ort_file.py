"""ONNX Runtime's own format, `.ort`: static checks before it sees the file, and what the file tells of itself.

Field numbers are those of onnxruntime/core/flatbuffers/schema/ort.fbs; ONNX Runtime verifies offsets once more.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgerun import _beside, _flat, guard
from edgerun.errors import EdgerunError
from edgerun.guard import BITS, DEEPEST

SUFFIX, IDENTIFIER = ".ort", b"ORTM"
MODEL, GRAPH, PROPS = 1, 7, 9  # of InferenceSession and Model
INITIALIZERS, NODES, SPARSE = 0, 2, 7  # of Graph; a SparseTensor's values and indices are 0 and 1
DOMAIN, OP, ATTRIBUTES = 2, 5, 10  # of Node
TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS = 6, 7, 11, 12  # of Attribute, whose name, integer and text are 0, 4 and 5
NAME, DIMS, DTYPE, RAW, OUTSIDE = 0, 2, 3, 4, 6  # of Tensor
STRINGS = 8  # TensorProto.DataType
MOST = 1_000_000  # tables; parts of a file may stand for one another, and so for more work than its size
BLOCKED = "com.microsoft.nchwc"  # the domain of nodes on a layout that one kind of CPU has


def recognised(data: bytes) -> bool:
    """Whether bytes begin as such a file does."""
    return data[4:8] == IDENTIFIER


def view(source: bytes | Path) -> memoryview:
    """The bytes in memory, or a map of the file."""
    if isinstance(source, bytes):
        return memoryview(source)
    guard.check_file(source)
    with source.open("rb") as file:  # unmapped when the last view of it goes
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check(source: bytes | Path) -> frozenset[int]:
    """The element types of its tensors, as numbers of onnx.TensorProto.DataType.

    Raise unless it is a whole file in which every tensor has the size that it declares and lies in the file itself.
    """
    place = source if isinstance(source, Path) else "these bytes"
    try:
        walk = _Walk(_model(view(source)))
        return frozenset(walk.kinds)
    except _flat.Malformed as error:
        raise _refused(place, error) from None


def metadata(source: bytes | Path) -> dict[str, str]:
    """Its metadata_props. Raises EdgerunError for what is no such file."""
    place = source if isinstance(source, Path) else "these bytes"
    try:
        return {pair.text(0): pair.text(1) for pair in _model(view(source)).tables(PROPS)}
    except _flat.Malformed as error:
        raise _refused(place, error) from None


def parts(source: bytes | Path) -> tuple[dict[str, int], dict[int, tuple[int, int, int]]]:
    """How many nodes it has of each op, subgraphs included, by falling count; and of its tensors, by the number of
    their type, how many there are, their elements and bytes."""
    walk = _Walk(_model(view(source)))
    return dict(walk.ops.most_common()), walk.stored


def blocked(source: bytes | Path) -> bool:
    """Whether any node computes on a layout that one kind of CPU has."""
    return _Walk(_model(view(source))).blocked


def _refused(place: object, error: Exception) -> EdgerunError:
    return EdgerunError(
        f"{place}: damaged, or not in ONNX Runtime's format", got=str(error), do="compile or download it again"
    )


def _model(data: memoryview) -> _flat.Table:
    model = _flat.root(data, IDENTIFIER).table(MODEL)
    if model is None or model.table(GRAPH) is None:
        raise _flat.Malformed("no model in it")
    return model


class _Walk:
    """Every tensor and node of a model, subgraphs included."""

    def __init__(self, model: _flat.Table) -> None:
        self.kinds, self.blocked = set[int](), False
        self.ops, self.stored = Counter[str](), dict[int, tuple[int, int, int]]()
        self._seen, self._left = set[int](), MOST
        graph = model.table(GRAPH)
        assert graph is not None
        self.graph(graph, 0)

    def graph(self, graph: _flat.Table, depth: int) -> None:
        if depth > DEEPEST or graph.at in self._seen:
            raise _flat.Malformed("subgraphs are nested too deeply, or in each other")
        self._seen.add(graph.at)
        for tensor in graph.tables(INITIALIZERS):
            self.tensor(tensor)
        for sparse in graph.tables(SPARSE):
            for tensor in filter(None, (sparse.table(0), sparse.table(1))):
                self.tensor(tensor)
        for node in graph.tables(NODES):
            self.counted()
            domain = node.text(DOMAIN)
            self.blocked = self.blocked or domain == BLOCKED
            self.ops[f"{domain}.{node.text(OP)}" if domain not in ("", "ai.onnx") else node.text(OP)] += 1
            compiled = node.text(OP) == _beside.CONTEXT.decode()
            for attribute in node.tables(ATTRIBUTES):
                self.counted()
                told = attribute.text(0), attribute.integer(4, "q"), attribute.vector(5, 1)[1]
                if compiled and _beside.outside(*told):
                    raise _flat.Malformed("a node that a provider compiled names a file")
                for tensor in _both(attribute, TENSOR, TENSORS):
                    self.tensor(tensor)
                for inner in _both(attribute, SUBGRAPH, SUBGRAPHS):
                    self.graph(inner, depth + 1)

    def counted(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _flat.Malformed(f"it has more than {MOST} parts")

    def tensor(self, tensor: _flat.Table) -> None:
        self.counted()
        kind, dims = tensor.integer(DTYPE, "i"), tensor.integers(DIMS, "q")
        self.kinds.add(kind)
        if tensor.integer(OUTSIDE, "q", -1) != -1:
            raise _flat.Malformed(f"tensor {tensor.text(NAME)!r} lies in another file")
        _, stored = tensor.vector(RAW, 1)
        have = self.stored.get(kind, (0, 0, 0))
        self.stored[kind] = (have[0] + 1, have[1] + max(0, math.prod(dims)), have[2] + stored)
        if kind == STRINGS:
            return
        if kind not in BITS or not tensor.has(RAW) or any(d < 0 for d in dims):
            raise _flat.Malformed(f"tensor {tensor.text(NAME)!r} has no size")
        if stored != (size := (math.prod(dims) * BITS[kind] + 7) // 8):
            raise _flat.Malformed(f"tensor {tensor.text(NAME)!r} has {stored} bytes and declares {size}")


def _both(attribute: _flat.Table, one: int, many: int) -> Iterator[_flat.Table]:
    single = attribute.table(one)
    if single is not None:
        yield single
    yield from attribute.tables(many)
