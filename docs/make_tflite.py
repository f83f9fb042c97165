"""Writes docs/tflite.md from the rules in converters/_tflite_*.py: `make docs`. A test fails while the two differ."""

from __future__ import annotations

from pathlib import Path

from edgerun import files
from edgerun.converters import tflite

PAGE = Path(__file__).with_name("tflite.md")
HEAD = """# TFLite operators

Written by `make docs` from the rules of `edgerun convert model.tflite`; a test fails while the two differ. What is not
here, custom operators and whatever keeps a state from run to run among it, is refused, all of it named at once.
[How it works](how-it-works.md#tflite).

Where TFLite computes on codes (INT8), the ONNX operators stand between DequantizeLinear and QuantizeLinear, with the
file's own scales and zero points. *Steps*: by how much a code may differ from TFLite's own, made of the same codes.

| operator | written as | must be | steps |
|---|---|---|---|
"""


def page() -> str:
    """The whole page: a line for every operator, by name."""
    rules = sorted(tflite.rules().items())
    return HEAD + "".join(f"| {kind} | {rule.to[kind]} | {rule.limits} | {rule.steps} |\n" for kind, rule in rules)


if __name__ == "__main__":
    files.write_bytes(PAGE, page().encode())
    print(PAGE)
