"""The whole way on real data, in one table: `make demo`, or `python -m bench.demo`.

Trains a small CNN on scikit-learn's handwritten digits in PyTorch and in Keras, saves both as a user would, and then
uses nothing but the command line: convert, compress for two runtimes, compare, eval and bench on held-out digits.
Everything is made in the folder `demo-out`; no network is used.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench import demo_nets
from edgerun.cli._table import table
from edgerun.errors import EdgerunError

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("demo-out")
BIN = Path(sys.executable).parent
TARGETS = {"onnxruntime": ".onnx", "openvino": ".xml"}
MAX_DROP = 2.0  # points: what counts as kept accuracy
SECONDS = "4"  # of timing per pair


@dataclass(frozen=True)
class Framework:
    """One trained network: the file a user has, and what `edgerun convert` must be told about it."""

    name: str
    source: str
    layout: str
    options: tuple[str, ...] = ()


FRAMEWORKS = (
    Framework(
        "PyTorch", "pytorch.pt", "NCHW",
        ("--factory", "bench.demo_nets:cnn", "--input", f"image:float32[batch,1,{demo_nets.SIZE},{demo_nets.SIZE}]"),
    ),
    Framework("Keras", "keras.keras", "NHWC"),
)  # fmt: skip


def edgerun(*words: str | Path, answers: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run one command as a user would and return its JSON. Raises EdgerunError unless its exit code is in `answers`."""
    command = [str(word) for word in words]
    click.echo(f"$ edgerun {shlex.join(command)}", err=True)
    done = subprocess.run([BIN / "edgerun", *command, "--json"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in answers:
        raise EdgerunError(f"edgerun {command[0]} failed (exit {done.returncode})", got=done.stderr.strip()[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def prepare() -> None:
    """Train both networks and lay their files and data into OUT."""
    folder = ROOT / OUT
    folder.mkdir(exist_ok=True)
    train, calibration, test = demo_nets.digits()
    click.echo(
        f"{len(train.labels)} digits to train on, {len(calibration.labels)} to calibrate with, "
        f"{len(test.labels)} held out; no digit is in two parts",
        err=True,
    )
    for framework, fit in zip(FRAMEWORKS, (demo_nets.train_pytorch, demo_nets.train_keras), strict=True):
        start = time.monotonic()
        fit(train, folder / framework.source)
        click.echo(
            f"trained in {framework.name}: {time.monotonic() - start:.0f} s -> {OUT / framework.source}", err=True
        )
        for name, part in (("calibration", calibration), ("test", test)):
            part.save(folder / f"{name}.{framework.layout}.npz", framework.layout)


def measured(framework: Framework, target: str, model: Path) -> dict[str, Any]:
    """Compress the converted `model` for `target`, and what compare, eval and bench say about the result."""
    small = model.with_suffix(f".int8{TARGETS[target]}")
    calibration, test = (OUT / f"{name}.{framework.layout}.npz" for name in ("calibration", "test"))
    before, after = f"{model}@{target}", f"{small}@{target}"
    made = edgerun("compress", model, "-o", small, "--target", target, "--calibration", calibration, "--force")
    return {
        "framework": framework.name,
        "target": target,
        "made": made,
        "compare": edgerun("compare", before, after, "--data", test),
        "eval": edgerun(
            "eval", after, "--baseline", before, "--data", test, "--max-drop", f"{MAX_DROP:g}", answers=(0, 1)
        ),
        "bench": edgerun("bench", before, after, "--data", test, "--seconds", SECONDS, "--threads", "1"),
    }


def row(found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    score, drop = found["eval"], found["eval"]["against"]
    baseline, small = found["bench"]["timings"]
    ratio, made = small["speedup"], found["made"]
    return [
        f"{found['framework']}, {found['target']}",
        f"{100 * drop['baseline_accuracy']:.1f} -> {100 * score['accuracy']:.1f} %",
        f"{100 * drop['drop']:+.2f} [{100 * drop['interval']['low']:+.2f}, {100 * drop['interval']['high']:+.2f}]",
        f"{made['bytes before'] / 1e3:.0f} -> {made['bytes'] / 1e3:.0f} kB",
        f"{1e6 * baseline['p50']['value']:.0f} -> {1e6 * small['p50']['value']:.0f} µs",
        f"{ratio['value']:.2f} [{ratio['interval']['low']:.2f}, {ratio['interval']['high']:.2f}]",
        verdict(found),
    ]


def verdict(found: dict[str, Any]) -> str:
    """What the numbers allow to be said, and no more."""
    accuracy = {
        "yes": "as accurate",
        "no": "LESS ACCURATE",
        "undecided": "accuracy undecided: needs more test data",
    }[found["eval"]["gate"]["answer"]]
    speed = {
        "faster": "faster",
        "slower": "SLOWER",
        "no difference": "not faster",
        "outputs differ": "speed proves nothing: the timed outputs differ",
    }[found["bench"]["timings"][1]["verdict"]]
    size = "smaller" if found["made"]["bytes"] < found["made"]["bytes before"] else "not smaller"
    return f"{size}, {speed}, {accuracy}"


HEADERS = ("fp32 -> INT8", "accuracy", "points lost [95 %]", "size", "p50 latency", "times as fast [95 %]", "verdict")


def main() -> None:
    """Run everything and print the table."""
    start = time.monotonic()
    prepare()
    found = []
    for framework in FRAMEWORKS:
        model = OUT / f"{Path(framework.source).stem}.onnx"
        edgerun("convert", OUT / framework.source, "-o", model, *framework.options, "--force")
        found += [measured(framework, target, model) for target in TARGETS]
    device = found[0]["bench"]["timings"][0]["device"]
    click.echo("")
    click.echo(table(HEADERS, [row(result) for result in found]))
    same = min(result["compare"]["outputs"][0]["agreement"] for result in found)
    click.echo(
        f"\nAccuracy: {found[0]['eval']['samples']} held-out digits, fp32 and INT8 paired digit by digit; as accurate: "
        f"surely less than {MAX_DROP:g} points lost.\n"
        f"INT8 and fp32 give the same answer on at least {100 * same:.1f} % of them.\n"
        f"Latency: one digit, one thread, fp32 and INT8 interleaved in {found[0]['bench']['sessions']} sessions, "
        f"on {device['cpu']} ({device['isa']}).\n"
        f"This is a small network; bench/results/README.md has real ones. The files in {OUT} tell their own life:\n"
        f"  edgerun inspect {OUT}/pytorch.int8.onnx\n"
        f"({time.monotonic() - start:.0f} s in all)"
    )


if __name__ == "__main__":
    try:
        main()
    except EdgerunError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
