"""Writes docs/keras.md from bench/results/: `make docs`. A test fails while the two differ."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import convert, keras_cases, keras_coverage, keras_ops, keras_routes
from edgerun import files
from edgerun.converters._keras_refused import NO_LAYERS, REASONS

PAGE = Path(__file__).with_name("keras.md")
HEAD = """# Keras

What of Keras {version} converts, each case compared with Keras itself on random inputs, by the check that ends every
conversion. Written by `make docs` from [results](../bench/results/keras.json), which
`python -m bench.keras_coverage` measures; a test fails while the two differ, while a public layer is missing, or where
a case does not convert.

Error: max|e| / max|reference|, the largest of a case's outputs, against Keras in float64, or where Keras leaves float64
(`own`) in its own precision. Weights are drawn, moving statistics and biases among them. Nodes: of the ONNX graph.

"""
APPLICATIONS = """## Architectures

Every one of `keras.applications` at a small size, with drawn weights; seconds of one run on a busy machine, comparison
included. NASNet is built on TensorFlow: Keras cannot build it on torch. ConvNeXtLarge takes 5.6 GB of memory for that,
XLarge 9.2, the others up to 3.8.
MobileNetV2 at full size, from a `.keras` file to a compared ONNX file, takes {ours} of processor time; tf2onnx takes
{export} with Keras's export to a SavedModel and {theirs} without
(`python -m bench.convert`: whole processes in turns, n = {n}). {nodes[0]} nodes, tf2onnx's {nodes[1]}.

"""
ROUTES = """## Beside tf2onnx

The same model by both routes: edgerun from the `.keras` file, tf2onnx from Keras's SavedModel (both opset 18, full
size, drawn weights). ms: ONNX Runtime, one thread, batch 1, in processor time; ratio: tf2onnx's time by edgerun's,
with its 95 % interval over n sessions, opened anew and timed in turns. error: as above, against Keras in float64.
Written by `python -m bench.keras_routes`; an architecture that is not here has not been measured.

"""
LAYERS = """## Layers

Shapes are without the batch, `None` where a size is free, and with the batch behind `@`; `x` are the inputs.

"""
REFUSED = """## Layers that do not convert

"""
OPERATIONS = """## Operations

Functions of `keras.ops` in a functional model, in a subclassed one, and in layers of one's own.

"""


def page() -> str:
    """The whole page."""
    table = keras_coverage.kept()
    rows = [_row("architecture", "parameters", "error", "nodes", "seconds"), _row(*["---"] * 5)]
    for name in keras_coverage.architectures():
        found = table["applications"].get(name, {"refused": "not measured"})
        cells = (_error(found), _cell(found, "nodes"), _cell(found, "seconds"))
        rows.append(_row(name, f"{found.get('parameters', 0) / 1e6:.1f} M" if "parameters" in found else "", *cells))
    parts = [
        HEAD.format(version=table["keras"]),
        _applications(),
        "\n".join(rows),
        "\n\n",
        ROUTES,
        _routes(),
        "\n\n",
        LAYERS,
    ]
    parts += [_cases(table["layers"], keras_cases.layer_of), "\n\n", REFUSED, _refused(), "\n\n", OPERATIONS]
    parts += [_cases(table["operations"], keras_ops.operation_of)]
    return "".join(parts) + "\n"


def _applications() -> str:
    found = json.loads(convert.RESULTS.read_text())
    ours, export, theirs = (convert.told(found["processor"], name) for name in convert.NAMES)
    count = len(found["processor"][convert.NAMES[0]])
    return APPLICATIONS.format(ours=ours, export=export, theirs=theirs, n=count, nodes=found["nodes"])


def _routes() -> str:
    rows = [
        _row("architecture", "nodes", "tf2onnx's", "error", "tf2onnx's", "ms", "tf2onnx's", "ratio", "n"),
        _row(*["---"] * 9),
    ]
    notes = []
    for name, found in json.loads(keras_routes.RESULTS.read_text()).items():
        nodes, errors, times = (found[word].get("tf2onnx", "") for word in ("nodes", "errors", "ms"))
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*found["ratio"]) if "ratio" in found else "does not run"
        cells = (found["nodes"]["edgerun"], nodes, found["errors"]["edgerun"], errors, found["ms"]["edgerun"], times)
        rows.append(_row(name, *map(str, cells), ratio, str(found["sessions"])))
        if "failed" in found:
            notes.append(f"tf2onnx's {name} does not run on ONNX Runtime: {found['failed']}.")
    return "\n".join([*rows, *(["", *notes] if notes else [])])


def _cases(found: dict[str, dict[str, Any]], name_of: Any) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for case, figures in found.items():
        shapes, text = case.split(maxsplit=1)
        groups[name_of(case)].append(_row("{}", f"`{shapes}`", f"`{text}`", _error(figures), _cell(figures, "nodes")))
    rows = [_row("name", "inputs", "case", "error", "nodes"), _row(*["---"] * 5)]
    for name in sorted(groups):
        for index, row in enumerate(groups[name]):
            rows.append(row.replace("{}", f"`{name}`" if index == 0 else "", 1))
    return "\n".join(rows)


def _refused() -> str:
    rows = [_row("name", "why"), _row("---", "---")]
    return "\n".join(rows + [_row(f"`{name}`", why) for name, why in sorted({**REASONS, **NO_LAYERS}.items())])


def _error(found: dict[str, Any]) -> str:
    if "error" not in found:
        return str(found.get("refused", ""))
    return f"{found['error']:.1e}" + ("" if found["against"] == "float64" else " own")


def _cell(found: dict[str, Any], word: str) -> str:
    return str(found.get(word, ""))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    files.write_bytes(PAGE, page().encode())
    print(PAGE)
