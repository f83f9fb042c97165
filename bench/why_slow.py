"""How much of a measured difference does `edgerun why-slow` explain? fp32 against INT8: `python -m bench.why_slow`.

The INT8 models are those that `bench.compare_peers` made. A row says what the two models' p50 differ by without a
profiler, and which share of it the kernels' times and what the runtime takes between them, both measured apart from it,
add up to, with the interval over the sessions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from bench import zoo
from edgerun import files
from edgerun.measure.accounting import Whole
from edgerun.measure.stats import Estimate
from edgerun.runtime import Options, machine
from edgerun.verbs.why_slow import WhySlow, why_slow

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "why_slow.json"
NAMES = ("cifar_cnn", "mobilenet_v2", "minilm", "silero")
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def explained(name: str, target: str, seconds: float) -> WhySlow:
    """The account of one model on one target, at the sizes that latency is told for, on one thread."""
    model = zoo.model(name)
    folder = Path(os.environ.get("EDGERUN_BENCH") or ROOT / ".cache" / "bench")
    int8 = folder / name / f"edgerun_{target}{SUFFIXES[target]}"
    shapes = [f"{key}:[{','.join(map(str, shape[1:]))}]" for key, shape in model.latency.items()]
    fed: dict[str, Any] = {"shapes": shapes} if model.state else {"data": model.calibration, "batch": 1}
    return why_slow(model.onnx, int8, target=target, options=Options(1), seconds=seconds, **fed)


def row(name: str, found: WhySlow) -> dict[str, Any]:
    """What is kept: times in milliseconds, shares in per cent, intervals of 95 %."""
    account = found.difference
    return {
        "model": name,
        "target": found.target,
        "times as fast": _span(found.speedup, 1),
        "fp32 p50": _span(found.fp32_p50, 1e3),
        "INT8 p50": _span(found.int8_p50, 1e3),
        "measured": _span(account.measured, 1e3),
        "attributed": _span(account.attributed, 1e3),
        "between kernels": _span(account.between, 1e3),
        "unexplained": _span(account.unexplained, 1e3),
        "sessions": found.sessions,
        "explained": None if account.explained is None else _span(account.explained, 100),
        "wholes": [_whole(whole) for whole in account.wholes],
        "restless": round(found.restless, 3),
        "waits": round(found.waits, 3),
        "causes": {cause: round(1e3 * e.value, 4) for cause, e in account.causes.items()},
    }


def _whole(whole: Whole) -> dict[str, Any]:
    parts = {"run": whole.run, "kernels": whole.kernels, "between": whole.between, "call": whole.call}
    return {"nodes": whole.nodes} | {name: _span(part, 1e3) for name, part in (parts | {"rest": whole.rest}).items()}


def _span(estimate: Estimate, factor: float) -> list[float]:
    ends = (estimate.value, estimate.interval.low, estimate.interval.high)
    return [round(factor * end, 4) for end in ends]


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="Time and profile a pair for about so long.")
@click.argument("names", nargs=-1)
def main(seconds: float, names: tuple[str, ...]) -> None:
    """Print one line a pair; NAMES of the zoo's models. What is measured replaces its own rows, no others."""
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in names or NAMES:
        for target in SUFFIXES:
            made = row(name, explained(name, target, seconds))
            click.echo(json.dumps(made))
            kept = [r for r in kept if (r["model"], r["target"]) != (name, target)] + [made]
            told = {"cpu": machine.cpu(), "isa": machine.isa(), "rows": kept}
            files.write_bytes(RESULTS, (json.dumps(told, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
