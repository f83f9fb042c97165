"""Real trained files of strangers through `edgerun convert`: `python -m bench.converters [NAME…]`.

Each is fetched (pinned version and SHA-256), converted in the limited child as a user's file is, and counted beside the
other route where there is one (`converter_peers`). What must be refused is, with the right words. Adds to
results/converters.json; writes ../docs/converters.md. Without names, every row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx

import edgerun
from bench import converter_page, cpu_ratio, torch_coverage
from bench.converter_rows import ROWS, Row
from edgerun import files
from edgerun.converters._bodies import nodes
from edgerun.errors import EdgerunError, unknown
from edgerun.model import Model
from edgerun.parity import Parity

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results") / "converters.json"
PATIENCE = 900  # seconds that the other route may take


def lacking(row: Row) -> str:
    """The package that a row needs and that is not installed here; "" where there is none."""
    return row.needs if row.needs and importlib.util.find_spec(row.needs) is None else ""


def converted(row: Row, source: Path, output: Path) -> tuple[dict[str, Any], Model | None]:
    """What `convert` says of one file, and the model; a refusal with its words, and whether they are those meant."""
    start = time.perf_counter()
    made: dict[str, Any] = {
        "framework": row.framework, "package": f"{row.archive.package} {row.archive.version}", "member": row.member,
    }  # fmt: skip
    try:
        model = edgerun.convert(source, output=output, **row.options)
    except EdgerunError as error:
        said = {"what": error.what, "got": str(error.got), "do": error.do}
        meant = bool(row.refused) and all(word in str(error) for word in row.refused)
        return made | {"refused": said, "meant": meant}, None
    made["seconds"] = round(time.perf_counter() - start, 1)
    parity = Parity.of(model)
    made |= {
        "nodes": computing(output),
        "relative_error": max(one.relative_error for one in parity.outputs), "reference": parity.reference,
        "inputs": [str(spec) for spec in model.inputs], "meant": not row.refused,
    }  # fmt: skip
    if parity.codes:
        made["steps"] = max(kind.steps for kind in parity.codes)
        made["differing"] = sum(kind.differing for kind in parity.codes) / sum(kind.elements for kind in parity.codes)
    return made, model


def computing(path: Path) -> int:
    """The nodes that a run computes, those of subgraphs included. A Cast of a weight, which keeps a file of float16
    weights at half its size, is not one: runtimes compute it when they load the model."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return sum(1 for node in nodes(graph) if not (node.op_type == "Cast" and node.input[0] in weights))


def measure(name: str, alone: bool = False) -> dict[str, Any]:
    """The row of one file: converted, counted and, unless `alone`, timed beside the other route."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = row.source(folder)
        made, model = converted(row, source, folder / "ours.onnx")
        if (
            alone or model is None or row.framework in ("scikit-learn", "XGBoost")
        ):  # whose other route is what ours goes through
            return made
        theirs = folder / "theirs.onnx"
        command = [sys.executable, "-m", "bench.converter_peers", name, str(source), str(theirs)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
            reason = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1][:200]
        except subprocess.TimeoutExpired:
            reason = f"no answer in {PATIENCE} s"
        if not theirs.exists():
            return made | {"other": {"failed": reason}}
        made["other"] = {"nodes": computing(theirs)}
        made["speedup"] = cpu_ratio.measured(theirs.read_bytes(), model.to_bytes(), torch_coverage.feeds(model))
    return made


def main() -> None:
    """Measure the named rows, or all, and keep them by name. Raises EdgerunError for a name that is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the rows; without any, all")
    parser.add_argument("--alone", action="store_true", help="leave the other route as it was measured before")
    arguments = parser.parse_args()
    names = arguments.names
    for name in names:
        if name not in ROWS:
            raise unknown("row", name, ROWS)
    for name in names or list(ROWS):
        if package := lacking(ROWS[name]):
            print(f"{name}: skipped, {package} is not installed", flush=True)
            continue
        made = measure(name, arguments.alone)
        print(name, json.dumps(made), flush=True)
        have = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another run may have added to it
        if arguments.alone and "refused" not in made:
            made = {key: value for key, value in have.get(name, {}).items() if key in ("other", "speedup")} | made
        have[name] = made
        ordered = {name: have[name] for name in ROWS if name in have}
        files.write_bytes(RESULTS, (json.dumps(ordered, indent=1) + "\n").encode())
    converter_page.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
