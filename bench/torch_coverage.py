"""PyTorch networks through `convert`, one after the other: `python -m bench.torch_coverage`; writes ../docs/pytorch.md.

Plain networks of `torch_nets`, `torch_sequences` and `torch_graphs`, and families of `transformers` where that is
installed. With onnxslim installed, each graph is counted beside what it makes of the same export, and timed in turns
with it on ONNX Runtime (`cpu_ratio`). Results are kept by name in results/pytorch.json: what is named on the command
line, or missing, runs again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import cpu_ratio, torch_families, torch_nets, torch_page
from edgerun import draws, files, input_ranges
from edgerun.converters import _ort, _torch_export
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.verbs.convert import Parity, convert

RESULTS = Path(__file__).parent / "results" / "pytorch.json"
Case = tuple[str, Callable[[], Any], tuple[str, ...]]


def cases() -> dict[str, Case]:
    """Every case by name: what it is from, the factory, the inputs. Families are there where `transformers` is."""
    for module in ("torch_sequences", "torch_graphs"):  # which register their own
        importlib.import_module(f"bench.{module}")
    found: dict[str, Case] = {name: ("plain", build, inputs) for name, (build, inputs) in torch_nets.CASES.items()}
    if importlib.util.find_spec("transformers") is not None:
        for name, (_, _, _, inputs) in torch_families.FAMILIES.items():
            found[name] = ("transformers", torch_families.factory(name), inputs)
    return found


def row(name: str, case: Case, keep: Path | None = None) -> dict[str, Any]:
    """One case: what `convert` says of it, and the nodes of the same export after onnxslim."""
    import torch

    kind, build, inputs = case
    torch.manual_seed(0)
    model = build().eval()
    made: dict[str, Any] = {"kind": kind, "inputs": list(inputs), "torch": torch.__version__}
    start = time.perf_counter()
    with exports() as kept:
        try:
            found = convert(model, inputs=inputs)
        except EdgerunError as error:
            made |= {"refused": error.what, "got": str(error.got), "do": error.do}
            return made | {"seconds": round(time.perf_counter() - start, 1)}
    made["seconds"] = round(time.perf_counter() - start, 1)
    parity, routes = Parity.of(found), found.history[-1].options["routes"]
    made |= {
        "route": next((r["route"] for r in routes if not r["failed"]), ""),
        "failed": [r for r in routes if r["failed"]],
        "nodes": len(list(found.ir.graph)),
        "relative_error": max(output.relative_error for output in parity.outputs),
        "reference": parity.reference,
        "outputs": [str(spec) for spec in found.outputs],
    }
    slim = slimmed(kept[-1])
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        found.save(folder / f"{name}.onnx")
        if slim is not None:
            (folder / f"{name}.slim.onnx").write_bytes(slim.SerializeToString())
            made |= timed(folder, name)
    return made


def timed(folder: Path, name: str) -> dict[str, Any]:
    """Nodes of both graphs that --keep left in a folder, and how many times faster ours runs."""
    ours, slim = (Model.load(folder / f"{name}{kind}.onnx") for kind in ("", ".slim"))
    nodes, others = (len(list(model.ir.graph)) for model in (ours, slim))
    told = cpu_ratio.measured(slim.to_bytes(), ours.to_bytes(), feeds(ours))
    return {"nodes": nodes, "slim": others, "speedup": told}


def feeds(model: Any) -> dict[str, Any]:
    """One example at batch 1, or the next that the model takes, 32 or more along what else is free.

    Token ids are below what the model's table holds.
    """
    below, run, drawn = input_ranges.ranges(model.ir), _ort.runner(model.to_bytes()), dict[str, Any]()
    for batch, other in itertools.product((1, 2), (32, *draws.SIZES[2:], 2048)):
        drawn = draws.feeds(model.inputs, draws.sizes(model.inputs, batch, other), 0, below)
        with contextlib.suppress(Exception):  # the model's own complaint about a size
            run(drawn)
            break
    return drawn


@contextlib.contextmanager
def exports() -> Iterator[list[Any]]:
    """What the exporters make meanwhile, before the converter changes it."""
    import onnx_ir as ir

    kept: list[Any] = []
    finish = _torch_export._finish

    def keeping(model: Any, *args: Any) -> Any:
        kept.append(ir.to_proto(model.clone()))
        return finish(model, *args)

    _torch_export._finish = keeping  # type: ignore[assignment]
    try:
        yield kept
    finally:
        _torch_export._finish = finish


def slimmed(proto: Any) -> Any:
    """The model after onnxslim; None where that is not installed, or fails."""
    if importlib.util.find_spec("onnxslim") is None:
        return None
    import onnxslim  # type: ignore[import-not-found]

    try:
        return onnxslim.slim(proto)
    except Exception as error:  # whatever another tool raises
        print(f"  onnxslim: {type(error).__name__}: {str(error)[:200]}")
        return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the cases to run again; without any, those that are missing")
    parser.add_argument("--keep", type=Path, help="a folder for the models, ours and onnxslim's")
    parser.add_argument("--time", type=Path, metavar="FOLDER", help="time what --keep left there, and convert nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    every = cases()
    have = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.names or [name for name in every if name not in have]:
        if arguments.time:
            made = {**have[name], **timed(arguments.time, name)}
        else:
            made = row(name, every[name], arguments.keep)
        have = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another run may have added to it
        have[name] = made
        told = made.get("refused") or f"{made['route']}, {made['nodes']} nodes, {made['relative_error']:.1g}"
        print(f"{name}: {told}, {made['seconds']} s", flush=True)
        files.write_bytes(RESULTS, (json.dumps(dict(sorted(have.items())), indent=1) + "\n").encode())
        gc.collect()
    torch_page.write(have)


if __name__ == "__main__":
    main()
