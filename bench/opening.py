"""What opening a model costs, and what is held then: `python -m bench.opening` (writes results/opening.json).

Every measurement is a process of its own, in turns with the others: from nothing imported but numpy and the runtime to
a session (`open` counts edgerun's own imports, `load` does not, as neither counts the runtime's), the first run, the
CPU time of a run, the memory held after twenty runs and a quiet second, and at its fullest, and the CPU time of opening
it once more then (`rested`: what was free has gone back, if it is much) and again at once (`again`). Where other work
holds the CPU, CPU times tell more than the clock; giving memory back, which a thread does while it is quiet, is in none
of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

import edgerun
from bench import zoo
from edgerun import files, registry
from edgerun.measure.stats import median
from edgerun.runtime import Options, machine

RESULTS = Path(__file__).with_name("results") / "opening.json"
MODELS = ("cifar_cnn", "mobilenet_v2", "minilm", "resnet50", "silero")
SIZES = {"batch": 1, "seq": 128}
RAW, ONNX, SMALL, ORT, BOTH = "raw runtime", ".onnx", ".onnx, MEMORY=small", ".ort", ".ort, MEMORY=small"
VARIANTS = {RAW: ".onnx", ONNX: ".onnx", SMALL: ".onnx", ORT: ".ort", BOTH: ".ort"}
RUNS = 20
QUIET = machine.QUIET + 0.5  # seconds
CHILD = """
import json, sys, time
import numpy as np, onnxruntime
path, variant, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

def held(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1000

def bare():
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

def own():
    extra = {"MEMORY": "small"} if "MEMORY" in variant else {}
    return edgerun.load(path, "onnxruntime", Options(threads=1, extra=extra))

start, busy = time.perf_counter(), time.process_time()
if variant != "raw runtime":
    import edgerun
    from edgerun import registry
    from edgerun.runtime import Options
    edgerun.load, registry.target("onnxruntime")
imported = time.process_time()
if variant == "raw runtime":
    session = bare()
    doors = [(i.name, i.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32"), i.shape)
             for i in session.get_inputs()]
    run = lambda feeds: session.run(None, feeds)
else:
    session = own()
    doors, run = [(spec.name, spec.dtype, spec.shape) for spec in session.inputs], session.run
opened, worked = time.perf_counter(), time.process_time()
feeds = {n: np.ones([d if isinstance(d, int) else sizes.get(d, 1) for d in shape], t) for n, t, shape in doors}
ready = time.perf_counter()
run(feeds)
first, times = time.perf_counter(), []
for _ in range(int(sys.argv[4])):
    begin = time.process_time()
    run(feeds)
    times.append(time.process_time() - begin)
time.sleep(float(sys.argv[5]))
memory = {"held_mb": held("VmRSS"), "peak_mb": held("VmHWM")}
del session, run
more = {}
for key in ("rested", "again"):
    begin = time.process_time()
    session = bare() if variant == "raw runtime" else own()
    more[key + "_cpu_ms"] = 1e3 * (time.process_time() - begin)
    del session
print(json.dumps({
    "open_ms": 1e3 * (opened - start), "open_cpu_ms": 1e3 * (worked - busy), "load_cpu_ms": 1e3 * (worked - imported),
    "first_ms": 1e3 * (opened - start + first - ready),
    "run_cpu_ms": 1e3 * sorted(times)[len(times) // 2], **more, **memory,
}))
"""


def measured(path: Path, variant: str) -> dict[str, float]:
    """One process: milliseconds to a session and to its first result, of a run; megabytes held and at most."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", CHILD, str(path), variant, json.dumps(SIZES), str(RUNS), str(QUIET)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", type=click.IntRange(min=6), default=15, show_default=True, help="Processes of each variant.")
def main(names: tuple[str, ...], rounds: int) -> None:
    """Print a line for each model and variant, and keep them."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"models": {}}
    kept |= {"machine": dict(registry.target("onnxruntime").device())}
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            paths = {".onnx": zoo.model(name).onnx, ".ort": Path(folder, f"{name}.ort")}
            edgerun.compile(paths[".onnx"], "onnxruntime", Options(threads=1), output=paths[".ort"])
            taken: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
            for number in range(rounds + 1):
                for variant in list(VARIANTS)[:: 1 if number % 2 else -1]:
                    taken[variant].append(measured(paths[VARIANTS[variant]], variant))
        kept["models"][name] = {"rounds": rounds} | {
            variant: _told(rows[1:], taken[RAW][1:]) for variant, rows in taken.items()
        }
        for variant in VARIANTS:
            told = "  ".join(f"{key} {row['value']:.4g}" for key, row in kept["models"][name][variant].items())
            click.echo(f"{name:<14}{variant:<22}{told}")
        files.write_bytes(RESULTS, json.dumps(kept, indent=1).encode() + b"\n")


def _told(rows: list[dict[str, float]], raw: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Medians with their 95 % intervals, and the ratio of the opening times, round by round."""
    values = {key: [row[key] for row in rows] for key in rows[0]}
    for key in ("open_ms", "open_cpu_ms", "load_cpu_ms", "first_ms", "rested_cpu_ms", "again_cpu_ms"):
        values[f"{key[:-3]}_ratio"] = [own[key] / bare[key] for own, bare in zip(rows, raw, strict=True)]
    found = {key: median(numbers) for key, numbers in values.items()}
    return {k: {"value": e.value, "low": e.interval.low, "high": e.interval.high} for k, e in found.items()}


if __name__ == "__main__":
    main()
