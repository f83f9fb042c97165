"""Small models that ask ONNX Runtime what it takes."""

from __future__ import annotations


def identity(ir_version: int, opset: int) -> bytes:
    """A float32[1] Identity model as ONNX protobuf; both numbers below 128, so each is one varint byte."""
    graph = b'\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x01g'
    for field, name in ((b"Z", b"a"), (b"b", b"b")):
        graph += field + b"\x0f\n\x01" + name + b"\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    return b"\x08" + bytes([ir_version]) + b":" + bytes([len(graph)]) + graph + b"B\x04\n\x00\x10" + bytes([opset])
