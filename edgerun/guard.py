"""Static checks before any parser sees a file: whole, ordinary, sized as declared, and touching no file but its own."""

from __future__ import annotations

import functools
import math
import stat
from pathlib import Path

from edgerun import _beside, _calls, _passed, _wire, files
from edgerun.errors import EdgerunError, Unsupported

NEWEST_OPSET = 28  # of the default domain, and the newest IR version: what the pinned onnx knows
NEWEST_IR = 14
_SHORT = 64  # bytes of an attribute that may stand at many nodes
DEEPEST = 40  # nested subgraphs; protobuf's own parsers stop at 100 messages
# onnx.TensorProto.DataType -> bits of one element; strings (8) have no fixed size
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


def check_file(path: Path) -> None:
    """Raise unless `path` is a readable, non-empty, ordinary file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        files.check_name(path)
        raise EdgerunError("the file does not exist", got=path, do="check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise EdgerunError("not a file", got=path, wanted="a model file")
    if found.st_size == 0:
        raise EdgerunError("the file is empty", got=path, do="export or download it again")
    _check_pointer(path, found.st_size)


def _check_pointer(path: Path, size: int) -> None:
    if size < 1000 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise EdgerunError("Git LFS's pointer to a file, not the file", got=path, do="git lfs pull")


def check_onnx(path: Path) -> frozenset[int]:
    """The element types of the tensors in `path`, as numbers of onnx.TensorProto.DataType.

    Raise unless it is a whole ONNX model whose sizes add up and whose external data stays in its folder.

    Reads the structure only, through a memory map: weights are not copied. What the graph means is for onnx.checker,
    in a limited child.
    """
    check_file(path)
    known = _passed.kinds_of(path)
    return _Model(path, path).check(_wire.view(path)) if known is None else known


def beside(path: Path) -> list[Path]:
    """The files that hold weights of the ONNX model at `path`, in name order; raises as `check_onnx`."""
    check_file(path)
    (model := _Model(path, path)).check(_wire.view(path))
    return sorted(model.files)


def check_bytes(data: bytes, place: str | Path = "these bytes") -> frozenset[int]:
    """As `check_onnx`, for a model in memory, or inside the file `place`: none of its data may be external."""
    if not data:
        raise EdgerunError("the model is empty", got="0 bytes", do="export or download it again")
    return _Model(place, None).check(memoryview(data))


class _Model:
    """One walk over one model, of `file` or (None) in memory."""

    def __init__(self, path: Path | str, file: Path | None) -> None:
        self.path, self.file = path, file
        self.kinds, self.plain, self.files = set[int](), set[bytes](), set[Path]()
        self.weights, self.alone, self.divides = list[memoryview](), True, False  # it names no file

    def refuse(self, what: str, **more: str) -> EdgerunError:
        return EdgerunError(f"{self.path}: {what}", **more)

    @functools.cached_property
    def folder(self) -> Path | None:
        """Where the files lie that it names."""
        return self.file.resolve().parent if self.file else None

    def check(self, data: memoryview) -> frozenset[int]:
        if (known := _passed.kinds(data)) is not None:
            return known
        self.walk(data)
        if self.alone:
            _passed.keep(data, self.weights, frozenset(self.kinds))
        return frozenset(self.kinds)

    def walk(self, data: memoryview) -> None:
        graph: memoryview | None = None
        functions: list[memoryview] = []
        opsets: dict[str, int] = {}
        ir_version = 0
        try:
            for number, value in _wire.fields(data):
                if number == 1:
                    ir_version = _wire.signed(value)
                elif number == 7:
                    if graph is not None:  # a parser would join them, and none was looked at with the other
                        raise self.refuse("the model has two graphs")
                    graph = _wire.message(value)
                elif number == 8:
                    domain, version = self.opset(_wire.message(value))
                    opsets[domain] = version
                elif number == 25:
                    functions.append(_wire.message(value))
            self.header(ir_version, opsets, graph)
            if unknown := self.graph(graph or data[:0], 0):
                raise self.refuse("a value is used that nothing produces", got=min(unknown))
            for function in functions:
                for number, value in _wire.fields(function):
                    if number == 7:
                        self.node(_wire.message(value), 0, set(), set())
            if fault := _calls.fault(functions):
                raise self.refuse(fault[0], got=fault[1])
            if self.divides:
                from edgerun import _divided

                _divided.check(self, data)
        except _wire.Malformed as error:
            if not ir_version or (graph is None and not isinstance(error, _wire.Truncated)):
                raise self.refuse("not an ONNX model", got=str(error), wanted="a protobuf of onnx.ModelProto") from None
            kind = "truncated" if isinstance(error, _wire.Truncated) else "damaged"
            raise self.refuse(f"the file is {kind}", got=str(error), do="export or download it again") from None

    def header(self, ir_version: int, opsets: dict[str, int], graph: memoryview | None) -> None:
        if not ir_version:
            raise self.refuse("not an ONNX model", got="no ir_version", wanted="a protobuf of onnx.ModelProto")
        if graph is None:
            raise self.refuse("the model has no graph; the file may be truncated", do="export or download it again")
        opset = opsets.get("", opsets.get("ai.onnx", 0))
        if not opsets:
            raise self.refuse("the model names no opset; the file may be truncated", do="export or download it again")
        if opset > NEWEST_OPSET:
            raise Unsupported(f"{self.path}: the opset is from the future", got=opset, wanted=f"at most {NEWEST_OPSET}",
                              do=f"export with opset_version={NEWEST_OPSET} or older")  # fmt: skip
        if ir_version > NEWEST_IR:
            raise Unsupported(f"{self.path}: the IR version is from the future", got=ir_version,
                              wanted=f"at most {NEWEST_IR}")  # fmt: skip

    def opset(self, data: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, value in _wire.fields(data):
            if number == 1:
                domain = _wire.text(value)
            elif number == 2:
                version = _wire.signed(value)
        return domain, version

    def graph(self, data: memoryview, depth: int) -> set[str]:
        """Check one graph; the names it uses and does not define, which must stand in the graph around it."""
        if depth > DEEPEST:
            raise self.refuse("subgraphs are nested too deeply", wanted=f"at most {DEEPEST} levels")
        initializers: set[str] = set()
        produced: set[str] = set()
        inputs: set[str] = set()
        outputs: set[str] = set()
        used: set[str] = set()
        for number, value in _wire.fields(data):
            if number == 1:
                self.node(_wire.message(value), depth, used, produced)
            elif number == 5:
                name = self.tensor(_wire.message(value))
                if name in initializers:
                    raise self.refuse("two initializers share a name", got=name)
                if name:
                    initializers.add(name)
            elif number == 15:  # a sparse initializer is named by its values
                initializers |= {self.tensor(_wire.message(v)) for n, v in _wire.fields(_wire.message(value)) if n == 1}
            elif number in (11, 12):
                names = (_wire.text(v) for n, v in _wire.fields(_wire.message(value)) if n == 1)
                (inputs if number == 11 else outputs).update(names)
        if both := sorted(initializers & produced):
            raise self.refuse("an initializer is also a node's output", got=both[0])
        if depth == 0 and not outputs:
            raise self.refuse("the graph has no output; the file may be truncated", do="export it again")
        return (used | outputs) - initializers - produced - inputs - {""}

    def node(self, data: memoryview, depth: int, used: set[str], produced: set[str]) -> None:
        """Check what the node carries; the names it reads, its subgraphs included, join `used`, and those it writes
        `produced`."""
        kind: object = None
        for number, value in _wire.fields(data):
            if number == 5:
                attribute = _wire.message(value)
                text = bytes(attribute) if len(attribute) <= _SHORT else b""
                if text not in self.plain:  # most nodes carry the same few: each is read once
                    used |= self.attribute(attribute, text, depth)
            elif number == 1:
                used.add(_wire.text(value))
            elif number == 2:
                name = _wire.text(value)
                if name in produced and name:
                    raise self.refuse("two nodes write the same value", got=name)
                produced.add(name)
            elif number == 4:
                kind = value
        self.divides |= kind in (b"Div", b"Mod")
        if kind == _beside.CONTEXT:
            for name in _beside.named(data):
                self.alone = False
                _beside.place(self.path, self.folder, name, f"an {_beside.CONTEXT.decode()} node")

    def attribute(self, data: memoryview, text: bytes, depth: int) -> set[str]:
        """Check the tensors and subgraphs that an attribute carries; the names that those read. `text` is all of it,
        where that is short."""
        names, plain = set[str](), bool(text)
        for number, value in _wire.fields(data):
            if number in (5, 10):
                self.tensor(_wire.message(value))
                plain = False
            elif number in (6, 11):
                names |= self.graph(_wire.message(value), depth + 1)
                plain = False
        if plain:
            self.plain.add(text)
        return names

    def tensor(self, data: memoryview) -> str:
        """Check declared size against stored bytes; the tensor's name."""
        name, kind, raw = "", 0, -1
        dims: list[int] = []
        external: dict[str, str] = {}
        for number, value in _wire.fields(data):
            if number == 1:
                if isinstance(value, int):
                    dims.append(_wire.signed(value))
                else:
                    dims.extend(_wire.integers(value))
            elif number == 2:
                kind = _wire.signed(value)
            elif number == 8:
                name = _wire.text(value)
            elif number == 9:
                raw = len(_wire.message(value))
                self.weights.append(_wire.message(value))
            elif number == 13:
                pair = {n: _wire.text(v) for n, v in _wire.fields(_wire.message(value))}
                external[pair.get(1, "")] = pair.get(2, "")
        self.kinds.add(kind)
        if dims and min(dims) < 0:
            raise self.refuse(f"tensor {name!r} has a negative dimension", got=str(dims))
        size = (math.prod(dims) * BITS[kind] + 7) // 8 if kind in BITS else -1
        if external:
            self.external(name, external, size)
        elif raw >= 0 and size >= 0 and raw != size:
            what = f"tensor {name!r} does not have the size it declares"
            raise self.refuse(what, got=f"{raw} bytes", wanted=f"{size} bytes for {dims}")
        return name

    def external(self, name: str, entries: dict[str, str], size: int) -> None:
        """The weights' file: inside the model's folder, ordinary, not hard-linked, and long enough."""
        location = entries.get("location", "")
        file = _beside.place(self.path, self.folder, location, f"tensor {name!r}")
        self.files.add(file)
        self.alone = False
        stored = file.stat().st_size
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or max(size, 0))
        except ValueError:
            raise self.refuse(f"the range of tensor {name!r} is no number", got=str(entries)) from None
        if offset < 0 or length < 0 or offset + length > stored:
            _check_pointer(file, stored)
            got, wanted = f"bytes {offset}..{offset + length}", f"within {stored} bytes of {location}"
            raise self.refuse(f"the weights of {name!r} reach beyond their file", got=got, wanted=wanted)
        if size >= 0 and length < size:
            what = f"tensor {name!r} is larger than its stored weights"
            raise self.refuse(what, got=f"{length} bytes", wanted=f"{size}")
