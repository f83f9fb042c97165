"""Every real model as engines of tensorrt_rtx, which builds them without a GPU: `python -m bench.engines [MODEL]…`.

Each model in float and by every scheme that `edgerun compress` has for TensorRT, each built for all GPUs together
("portable") and for each compute capability by itself. Kept are what came out (bytes, kernels, products on 8 bits,
quantizers that got a kernel of their own) or the builder's reason for refusing it. Writes results/engines.json and
docs/engines.md, unless models are named. Nothing is run, so there is no time in it but the builder's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import click

import edgerun
from bench import zoo
from bench.engines_page import write
from bench.processes import measured
from edgerun import files
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_kernels as kernels
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target
from edgerun.verbs.fallbacks import meant

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results/engines.json"
MODELS = ("cifar_cnn", "mobilenet_v2", "resnet50", "minilm", "silero", "ppocr_det", "nudenet", "magika", "speaker")
FLOAT = "float"
Size = tuple[int, int, int]
SAMPLES = 64  # of the calibration data
SIZES = {"minilm": {"seq": (128, 128, 128)}}  # of open dimensions beside the batch
CHILD = "import sys; from bench.engines import one; one(*sys.argv[1:])"


def made(model: zoo.ZooModel, scheme: str, path: Path) -> Path:
    """The model file by that scheme; `path` is where a new one goes."""
    if scheme == FLOAT:
        return model.onnx
    data = model.folder / "calibration.npz"
    edgerun.compress(model.onnx, output=path, target="tensorrt", scheme=scheme, calibration=data, limit=SAMPLES)
    return path


def built(model: Model, pairs: Set[str], capability: str, sizes: Mapping[str, Size]) -> dict[str, Any]:
    """What the engine for a compute capability ("portable", "SM89") is made of, or `refused`: why there is none.

    `pairs` are the products between Q/DQ, of which several may become one kernel.
    """
    options = Options(extra={build.CAPABILITY: capability}, sizes=sizes)
    try:
        plan = build.build(tensorrt.library(), model.to_bytes(), options)
    except EdgerunError as error:
        return {"refused": str(error.got or error.what)}
    found = kernels.read(plan.kernels)
    products = [kernel for kernel in found if kernel.multiplies]
    alone = [kernel for kernel in found if kernel.covers and all("uantizeLinear" in node for node in kernel.covers)]
    return {
        "bytes": len(plan.data),
        "kernels": len(found),
        "products": len(products),
        "on 8 bits": len(pairs & {node for kernel in found if kernel.integer for node in kernel.covers}),
        "quantizers alone": [node for kernel in alone for node in kernel.covers],
    }


def one(name: str, scheme: str, output: str) -> None:
    """A model by a scheme for every capability, into the file `output`: the work of a process of its own."""
    model, chosen = zoo.model(name), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = made(model, scheme, Path(folder) / "model.onnx")
        except EdgerunError as error:
            chosen = {"refused": f"{error.what}: {error.got}" if error.got else error.what}
        else:
            loaded = Model.load(path)
            pairs = {str(node.name) for node in meant(loaded, target.quantization())}
            known = build.capabilities(tensorrt.library())
            engines = {capability: built(loaded, pairs, capability, SIZES.get(name, {})) for capability in known}
            chosen = {"bytes": path.stat().st_size, "products between Q/DQ": len(pairs), "engines": engines}
    files.write_bytes(Path(output), json.dumps(chosen).encode())


def rows(names: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Model, scheme, and what came out; a process that died is a refusal with its last words."""
    for name in names:
        zoo.build(zoo.model(name))
        for scheme in (FLOAT, *target.quantization().schemes):
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "row.json"
                try:
                    measured([sys.executable, "-c", CHILD, name, scheme, str(output)], ROOT)
                    row = json.loads(output.read_text())
                except EdgerunError as error:
                    row = {"refused": str(error.got).strip().splitlines()[-1]}
            click.echo(f"{name} {scheme}: {json.dumps(row)[:200]}", err=True)
            yield name, scheme, row


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL]…")
def main(names: tuple[str, ...]) -> None:
    """Build the named zoo models, or all."""
    if reason := target.available():
        raise Unsupported("TensorRT does not build here", got=reason)
    found: dict[str, dict[str, Any]] = {}
    for name, scheme, row in rows(names or MODELS):
        found.setdefault(name, {})[scheme] = row
    trt = tensorrt.library()
    kept = {"library": f"{tensorrt.name_of(trt)} {trt.__version__}", "samples": SAMPLES, "models": found}
    if names:
        click.echo(json.dumps(kept, indent=1))
    else:
        files.write_bytes(RESULTS, (json.dumps(kept, indent=1) + "\n").encode())
        write(kept)


if __name__ == "__main__":
    try:
        main()
    except EdgerunError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
