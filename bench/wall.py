"""How long a whole compression takes beside the faster peer: `python -m bench.wall` (writes results/wall.json).

Both are processes of their own, imports included, in turns and in changing order, so that they share the machine's good
and bad moments; every run has an empty cache. The peer is ONNX Runtime's `quantize_static` with min-max ranges: NNCF
takes longer on each of these models (results/README.md).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from bench import zoo
from bench.environments import ENVIRONMENTS, made
from bench.processes import Measured, measured
from edgerun import files
from edgerun.measure.stats import median

HERE = Path(__file__).parent
MODELS, TARGETS = ("cifar_cnn", "mobilenet_v2", "minilm", "resnet50"), {"onnxruntime": ".onnx", "openvino": ".xml"}
PEER = "ort_minmax"


def run(model: zoo.ZooModel, name: str, peers: Path) -> Measured:
    """One compression for the target `name`, or by the peer of that name."""
    with tempfile.TemporaryDirectory() as folder:
        if name == PEER:
            paths = [str(model.onnx), str(model.calibration), f"{folder}/small.onnx"]
            command = [str(peers), str(HERE / "peers.py"), PEER, *paths, *(["--transformer"] * model.transformer)]
            return measured(command, Path(folder), {"TMPDIR": folder})
        command = [sys.executable, "-m", "edgerun", "compress", str(model.onnx), "--target", name, "-o",
                   f"{folder}/small{TARGETS[name]}", "--calibration", str(model.calibration)]  # fmt: skip
        return measured(command, HERE.parent, {"EDGERUN_CACHE": f"{folder}/cache"})


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", type=click.IntRange(min=6), default=6, show_default=True, help="Runs of each.")
def main(names: tuple[str, ...], rounds: int) -> None:
    """Time compressions of the named zoo models beside the faster peer."""
    peers = made(ENVIRONMENTS["peers"], HERE.parent / ".cache" / "peers")
    path = HERE / "results" / "wall.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    for name in names or MODELS:
        model, order = zoo.MODELS[name], [*TARGETS, PEER]
        taken: dict[str, list[Measured]] = {variant: [] for variant in order}
        for number in range(rounds):
            for variant in order if number % 2 else order[::-1]:
                taken[variant].append(run(model, variant, peers))
        for target in TARGETS:
            ratio = median([own.seconds / peer.seconds for own, peer in zip(taken[target], taken[PEER], strict=True)])
            seconds = {v: sorted(round(m.seconds, 2) for m in taken[v]) for v in (target, PEER)}
            peaks = {v: round(max(m.peak_mb for m in taken[v])) for v in (target, PEER)}
            told[f"{name} {target}"] = {
                "runs": rounds, "seconds": seconds, "peak MB": peaks, "ratio": ratio.value,
                "interval (95 %)": [ratio.interval.low, ratio.interval.high],
            }  # fmt: skip
            low, high = ratio.interval.low, ratio.interval.high
            click.echo(f"{name} {target}: {ratio.value:.2f} [{low:.2f}, {high:.2f}] times {PEER}'s, {seconds[target]}")
        files.write_bytes(path, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
