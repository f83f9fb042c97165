"""docs/engines.md, written from results/engines.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgerun import files

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
SHOWN = "SM89"
HEAD = """# Engines

Every real model of the bench as engines of {library}, which builds without a GPU: in float, and by every scheme that
`edgerun compress --target tensorrt` has, on {samples} calibration samples. Written by `python -m bench.engines` from
[results](../bench/results/engines.json). Nothing here was run; on a GPU, `tests/targets/test_tensorrt_gpu.py` does.

- **file, engine**: MB of the ONNX file and of the engine for compute capability 8.9.
- **on 8 bits**: products (convolutions and matrix products) that a kernel on 8 bits covers, of those that the file has
  between Q/DQ; several may be one kernel. A 4-bit weight is unpacked for a product in float16.
- **alone**: quantizers inside the model that got a kernel of their own, in place of being part of another.
- **built for**: the compute capabilities that the builder takes; the others stand below with its reason.
"""


def write(kept: Mapping[str, Any]) -> None:
    """The page: a table, the quantizers that stand alone, and the refusals."""
    lines = [HEAD.format(**kept)]
    lines += ["| model | scheme | file | engine | kernels | products | on 8 bits | alone | built for |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(*told) for told in _rows(kept)]
    for title, found in (("Quantizers with a kernel of their own", _alone(kept)), ("Refused", _refused(kept))):
        listed = list(found)
        lines += ["", f"## {title}", ""] + (listed or ["None."])
    files.write_bytes(PAGE, ("\n".join(lines) + "\n").encode())


def _rows(kept: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for model, schemes in kept["models"].items():
        for scheme, row in schemes.items():
            yield model, scheme, row


def _row(model: str, scheme: str, row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"| {model} | {scheme} | | | | | | | not compressed |"
    engines = row["engines"]
    taken = [name.replace("SM", "") for name, engine in engines.items() if "refused" not in engine]
    where = "all" if len(taken) == len(engines) else ", ".join(_dotted(name) for name in taken) or "none"
    cells = [model, scheme, f"{row['bytes'] / 1e6:.2f}"]
    if "refused" in (engine := engines[SHOWN]):
        return "| " + " | ".join([*cells, "", "", "", "", "", where]) + " |"
    pairs = row["products between Q/DQ"]
    eight = f"{engine['on 8 bits']} of {pairs}" if pairs else ""
    cells += [f"{engine['bytes'] / 1e6:.2f}", str(engine["kernels"]), str(engine["products"]), eight]
    return "| " + " | ".join([*cells, str(len(engine["quantizers alone"])), where]) + " |"


def _dotted(name: str) -> str:
    return f"{name[:-1]}.{name[-1]}" if name.isdigit() else name


def _alone(kept: Mapping[str, Any]) -> Iterator[str]:
    for model, scheme, row in _rows(kept):
        if nodes := row.get("engines", {}).get(SHOWN, {}).get("quantizers alone"):
            yield f"- {model}, {scheme}: {', '.join(f'`{node}`' for node in nodes)}"


def _refused(kept: Mapping[str, Any]) -> Iterator[str]:
    for model, scheme, row in _rows(kept):
        if "refused" in row:
            yield f"- {model}, {scheme}: {row['refused']}"
        by_reason: dict[str, list[str]] = {}
        for name, engine in row.get("engines", {}).items():
            if "refused" in engine:
                by_reason.setdefault(engine["refused"], []).append(_dotted(name.replace("SM", "")))
        for reason, names in by_reason.items():
            yield f"- {model}, {scheme}, {', '.join(names)}: {reason}"
