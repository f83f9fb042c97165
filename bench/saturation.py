"""CPUs that saturate, before the repair and after: `python -m bench.saturation`.

OpenVINO plays each class of CPU that this machine can be: ONEDNN_MAX_CPU_ISA is read when a process starts, so each is
a process of its own. Every model is quantized three times: with 127 steps for all weights, with 63 for all, and
repaired where something can saturate. The same file is then run on every class, and compared bit by bit with what it
gives on a CPU that has VNNI, and with the float model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

import edgerun
from bench import zoo
from edgerun import files, registry
from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.quantize.graphs import saturation
from edgerun.runtime import machine

CLASSES = ("SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
EXACT = "AVX512_CORE_VNNI"
WAYS = ("127 steps", "63 steps", "repaired")
RESULTS = Path(__file__).with_name("results") / "saturation.json"
PLANTED = ("extreme weights", "Gaussian weights")


@dataclass(frozen=True)
class Row:
    """One file on one class of CPU. `differ` counts outputs that are not the bits that VNNI gives.

    `largest` is the largest such difference over the largest output; `sqnr_db` and `agreement` (top-1) are with the
    float model; `saturates` is what the target's rules say of this class here.
    """

    model: str
    weights: str
    cpu: str
    saturates: bool
    samples: int
    outputs: int
    differ: int
    largest: float
    sqnr_db: float
    agreement: float


def planted(kind: str) -> Model:
    """Two convolutions and a classifier: extreme weights are ±1 and a little, Gaussian ones N(0, 1/K)."""
    import onnx
    from onnx import numpy_helper

    generator = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        drawn = generator.standard_normal(shape)
        array = np.sign(drawn) * generator.uniform(0.9, 1, shape) if kind == PLANTED[0] else drawn
        scaled: np.ndarray = (array / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return scaled

    text = """<ir_version: 8, opset_import: ["": 17]> planted (float[n,16,16,16] x) => (float[n,10] y) {
        a = Conv<kernel_shape=[3,3]>(x, w1) b = Relu(a) c = Conv<kernel_shape=[3,3]>(b, w2) d = Relu(c)
        e = GlobalAveragePool(d) f = Flatten(e) y = Gemm<transB=1>(f, w3) }"""
    proto = onnx.parser.parse_model(text)
    given = {"w1": weight(32, 16, 3, 3), "w2": weight(64, 32, 3, 3), "w3": weight(10, 64)}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in given.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


def noise(seed: int, count: int) -> dict[str, np.ndarray]:
    """Feeds of the planted models: |N(0, 1)|, as behind a Relu."""
    drawn = np.abs(np.random.default_rng(seed).standard_normal((count, 16, 16, 16)))
    return {"x": drawn.astype(np.float32)}


def source(name: str) -> tuple[Model, Any]:
    """The float model and its calibration data."""
    if name in PLANTED:
        return planted(name), noise(1, 64)
    return Model.load(zoo.model(name).onnx), zoo.model(name).calibration


def test_feeds(name: str, samples: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches of test data, `samples` at most; never what was calibrated with."""
    if name in PLANTED:
        yield noise(2, samples)
        return
    for feeds, _ in zoo.model(name).test(20):
        if samples <= 0:
            return
        yield feeds
        samples -= len(next(iter(feeds.values())))


def quantized(name: str, way: str) -> tuple[Model, dict[str, Any]]:
    """The model for OpenVINO with one way of choosing weight steps, and the certificate in its history."""
    target, (model, calibration) = registry.target("openvino"), source(name)
    rules = replace(target.quantization(), reduced_range=way != "127 steps")

    def all_63(node: Any, weight: np.ndarray, power: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        steps, could = repair(node, weight, power)
        return np.full_like(steps, 63), could

    repair = saturation.repair
    chosen = all_63 if way == "63 steps" else repair
    with (
        mock.patch.object(target, "quantization", lambda device="": rules),
        mock.patch.object(saturation, "repair", chosen),
    ):
        made = edgerun.compress(model, target="openvino", calibration=calibration, ranges="minmax", placement="rules")
    return made, made.history[-1].options["saturation"]


def run(path: Path, target: str, name: str, samples: int) -> np.ndarray:
    """The first output over the test data."""
    with edgerun.load(path, target, edgerun.Options(threads=1)) as session:
        return np.concatenate([next(iter(session.run(f).values())) for f in test_feeds(name, samples)])


def play(path: Path, cpu: str, name: str, samples: int) -> tuple[np.ndarray, bool]:
    """The outputs of the file on one class of CPU, and whether the rules say that it saturates."""
    out = path.with_suffix(f".{cpu}.npy")
    command = [sys.executable, "-m", "bench.saturation", "--play", str(path), str(out), name, str(samples)]
    told = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": cpu}
    )
    return np.load(out), bool(json.loads(told.stdout))


def rows(name: str, samples: int, folder: Path, certificates: dict[str, Any]) -> Iterator[Row]:
    """Every way on every class; the certificates go into `certificates` by way."""
    source(name)[0].save(folder / "float.onnx")
    truth = run(folder / "float.onnx", "onnxruntime", name, samples)
    for way in WAYS:
        made, certificates[way] = quantized(name, way)
        path = folder / f"{way.replace(' ', '')}.onnx"
        made.save(path)
        played = {cpu: play(path, cpu, name, samples) for cpu in CLASSES}
        exact = played[EXACT][0]
        for cpu, (outputs, saturates) in played.items():
            gap = np.abs(outputs - exact)
            yield Row(
                name, way, cpu, saturates, len(outputs), outputs.size, int(np.count_nonzero(gap)),
                float(gap.max() / np.abs(exact).max()), Difference.of(truth, outputs).sqnr_db,
                float((outputs.argmax(axis=1) == truth.argmax(axis=1)).mean()),
            )  # fmt: skip


def line(row: Row) -> str:
    """A row as text."""
    kind = "saturates" if row.saturates else "exact"
    return (
        f"{row.model:16} {row.weights:9} {row.cpu:16} {kind:9} {row.differ:7} of {row.outputs} outputs differ, by "
        f"{row.largest:.2e} at most; SQNR {row.sqnr_db:5.2f} dB, agreement {row.agreement:.3f} (n={row.samples})"
    )


@click.command()
@click.option("--samples", type=click.IntRange(min=20), default=200, show_default=True, help="Test samples per model.")
@click.option("--play", "one", nargs=4, type=str, help="MODEL OUT NAME SAMPLES: run one file in this process.")
@click.argument("names", nargs=-1)
def main(samples: int, one: tuple[str, str, str, str] | None, names: tuple[str, ...]) -> None:
    """Print and keep the table; NAMES of the zoo's models, default cifar_cnn and mobilenet_v2."""
    if one:
        np.save(one[1], run(Path(one[0]), "openvino", one[2], int(one[3])))
        print(json.dumps(registry.target("openvino").quantization().reduced_range))
        return
    kept: dict[str, Any] = {"cpu": machine.cpu(), "isa": machine.isa(), "rows": [], "certificates": {}}
    for name in (*PLANTED, *(names or ("cifar_cnn", "mobilenet_v2"))):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(name, samples, Path(folder), kept["certificates"].setdefault(name, {})):
                kept["rows"].append(asdict(row))
                click.echo(line(row))
    files.write_bytes(RESULTS, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
