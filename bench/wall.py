"""How long a whole compression takes beside a peer: `python -m bench.wall` (writes results/wall.json).

All are processes of their own, imports included, in turns and in changing order, so that they share the machine's good
and bad moments; every run has an empty cache. The peer is NNCF, for each target in the form that it has for it: its
time is what the default preset may take, and a third of it what `fast` may.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench import zoo
from bench.environments import ENVIRONMENTS, made
from bench.processes import Measured, measured
from edgerun import files
from edgerun.measure.stats import median

HERE = Path(__file__).parent
MODELS = ("cifar_cnn", "mobilenet_v2", "minilm", "resnet50", "silero", "magika", "nudenet", "ppocr_det")
TARGETS = {"onnxruntime": ".onnx", "openvino": ".xml"}
PRESETS = ("default", "fast")
PEERS = {"onnxruntime": "nncf_onnx", "openvino": "nncf_ir"}  # by target, whom it is timed beside
SUFFIXES = {"nncf_ir": ".xml"}  # of what a peer writes; .onnx where it is not here


def run(model: zoo.ZooModel, name: str, preset: str, peers: Path) -> Measured:
    """One compression for the target `name`, or by the peer of that name."""
    with tempfile.TemporaryDirectory() as folder:
        if name not in TARGETS:
            paths = [str(model.onnx), str(model.calibration), f"{folder}/small{SUFFIXES.get(name, '.onnx')}"]
            command = [str(peers), str(HERE / "peers.py"), name, *paths, *(["--transformer"] * model.transformer)]
            command += ["--whole-feeds"] if model.state else []
            return measured(command, Path(folder), {"TMPDIR": folder})
        command = [sys.executable, "-m", "edgerun", "compress", str(model.onnx), "--target", name, "-o",
                   f"{folder}/small{TARGETS[name]}", "--calibration", str(model.calibration),
                   "--preset", preset]  # fmt: skip
        return measured(command, HERE.parent, {"EDGERUN_CACHE": f"{folder}/cache"})


def beside(own: list[Measured], peers: list[Measured], names: tuple[str, str]) -> dict[str, Any]:
    """Runs in pairs, one after the other each: both one's seconds, and the median ratio of own to peer's."""

    def ratio(of: Callable[[Measured], float]) -> list[float]:
        found = median([of(one) / of(other) for one, other in zip(own, peers, strict=True)])
        return [round(x, 4) for x in (found.value, found.interval.low, found.interval.high)]

    pairs = dict(zip(names, (own, peers), strict=True))
    value, *interval = ratio(lambda run: run.seconds)
    cpu, *cpu_interval = ratio(lambda run: run.cpu_seconds)
    return {
        "runs": len(own),
        "seconds": {name: sorted(round(run.seconds, 2) for run in runs) for name, runs in pairs.items()},
        "CPU seconds": {name: sorted(round(run.cpu_seconds, 2) for run in runs) for name, runs in pairs.items()},
        "peak MB": {name: round(max(run.peak_mb for run in runs)) for name, runs in pairs.items()},
        "ratio": value,
        "interval (95 %)": interval,
        "CPU ratio": cpu,
        "CPU interval (95 %)": cpu_interval,
    }


@click.command()
@click.argument("names", nargs=-1)
@click.option("--preset", type=click.Choice(PRESETS), default="default", show_default=True)
@click.option("--target", "targets", multiple=True, type=click.Choice(sorted(TARGETS)), help="Only this one.")
@click.option("--rounds", type=click.IntRange(min=6), default=6, show_default=True, help="Runs of each.")
@click.option("--peers-python", type=click.Path(path_type=Path), help="A Python with the peers; default: make one.")
def main(names: tuple[str, ...], preset: str, targets: tuple[str, ...], rounds: int, peers_python: Path | None) -> None:
    """Time compressions of the named zoo models beside a peer."""
    python = (peers_python or made(ENVIRONMENTS["peers"], HERE.parent / ".cache" / "peers")).absolute()
    path = HERE / "results" / "wall.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    timed = targets or tuple(TARGETS)
    order = list(dict.fromkeys([*timed, *(PEERS[target] for target in timed)]))
    for name in names or MODELS:
        taken: dict[str, list[Measured]] = {variant: [] for variant in order}
        for number in range(rounds):
            for variant in order if number % 2 else order[::-1]:
                taken[variant].append(run(zoo.model(name), variant, preset, python))
        for target in timed:
            peer = PEERS[target]
            found = told[" ".join([name, target, *([preset] * (preset != "default"))])] = beside(
                taken[target], taken[peer], (target, peer)
            )
            low, high = found["interval (95 %)"]
            click.echo(f"{name} {target} {preset}: {found['ratio']:.2f} [{low:.2f}, {high:.2f}] times {peer}'s time, "
                       f"{found['CPU ratio']:.2f} times its CPU time, {found['seconds'][target]} s")  # fmt: skip
        files.write_bytes(path, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
