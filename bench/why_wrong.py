"""Does `edgerun why-wrong` find what was planted? `python -m bench.why_wrong [--held-out] [NAME…]`.

Plants are defined in bench/plants.py and bench/plant_suite.py. A plant counts when it costs at least 1 dB of SQNR on
samples that the diagnosis never sees; it is found when the worst row names its layer and its cause; it is recovered by
the share of the noise that it added which that row's fix takes away again, on those same other samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import zoo
from bench.plant_suite import RANGES, Build, Feeds, Planted, suite
from edgerun import files
from edgerun.data import open_data
from edgerun.metrics import wilson
from edgerun.quantize import diagnosis
from edgerun.quantize.diagnosis import fixes, trials
from edgerun.verbs.compress import compress
from edgerun.verbs.why_wrong import opened_here

RESULTS = Path(__file__).resolve().parent / "results" / "why_wrong.json"
LEAST_DB = 1.0
SEEDS = {False: (0, 1), True: (400,)}


@dataclass(frozen=True)
class Result:
    """What came out for one plant; noises are relative to the signal, on the fresh samples."""

    plant: str
    net: str
    seed: int
    planted_layer: str
    planted_cause: str
    found_layer: str
    found_cause: str
    evidence: str
    fix: str
    good_db: float
    bad_db: float
    fixed_db: float
    recovered: float
    seconds: float

    @property
    def found(self) -> bool:
        """Layer and cause are both right."""
        return self.found_layer == self.planted_layer and self.found_cause == self.planted_cause


def run(name: str, build: Build, seed: int) -> Result | None:
    """Plant, diagnose, and measure the worst row's fix on fresh samples. None when the plant does no damage."""
    planted = build(seed)
    outputs = [spec.name for spec in planted.float.outputs]
    judged, fresh = (_trials(planted, feeds, outputs) for feeds in (planted.data, planted.fresh))
    good = replace(fresh, saturating=False).measure(planted.good.ir)
    bad = fresh.measure(planted.bad.ir)
    if good.sqnr_db - bad.sqnr_db < LEAST_DB:
        return None
    start = time.perf_counter()
    remake, data = None, open_data(planted.data, planted.float.inputs, batch=8)
    if planted.bad.history:  # as the verb does: what edgerun made it can make again, on the data that it is given
        remake = lambda: compress(planted.float, calibration=data, ranges=RANGES, placement="rules").ir  # noqa: E731
    found = diagnosis.diagnose(
        planted.bad.ir, planted.float.ir, judged, 5, lambda *_: None, planted.saturating, remake, data
    )  # fmt: skip
    seconds = time.perf_counter() - start
    row = found.findings[0]
    fixed = bad
    if row.tried is not None:
        made = fixes.applied(found.case, planted.bad.ir, found.case.counterpart, row.tried.fix)
        assert made is not None
        fixed = fresh.measure(made[0])
    noises = [float(m.noise.mean()) for m in (good, bad, fixed)]
    net, plant = name.split("/")
    return Result(
        plant, net, seed, planted.layer, planted.cause, row.layer, row.cause.name, row.cause.evidence,
        row.tried.fix.name if row.tried else "", good.sqnr_db, bad.sqnr_db, fixed.sqnr_db,
        (noises[1] - noises[2]) / (noises[1] - noises[0]), seconds,
    )  # fmt: skip


def _trials(planted: Planted, feeds: Feeds, outputs: list[str]) -> trials.Trials:
    data = open_data(feeds, planted.float.inputs, batch=8)
    count = min(len(next(iter(feeds.values()))), 8 if planted.float.weight_bytes() > 8 << 20 else 32)
    batched = data.batch is not None
    made = trials.collect(opened_here, planted.float.ir, data, outputs, count, lambda *_: None, batched)
    return replace(made, saturating=planted.saturating)


def _named(name: str, names: tuple[str, ...]) -> bool:
    return any(wanted in name for wanted in names)


def _results(held_out: bool, names: tuple[str, ...]) -> Iterator[Result]:
    for name, build in suite().items():
        net = name.split("/")[0]
        if names and not _named(name, names):
            continue
        if net in zoo.MODELS and not zoo.model(net).ready:
            click.echo(f"{name}: not in the cache", err=True)
            continue
        for seed in SEEDS[held_out] if net not in zoo.MODELS else SEEDS[held_out][:1]:
            result = run(name, build, seed)
            if result is None:
                click.echo(f"{name} ({seed}): costs less than {LEAST_DB:g} dB, not counted", err=True)
                continue
            mark = "found " if result.found else "MISSED"
            layers = f"{result.planted_layer} -> {result.found_layer}, {result.found_cause} ({result.evidence})"
            path = " -> ".join(f"{db:.1f}" for db in (result.good_db, result.bad_db, result.fixed_db))
            share = f"{100 * result.recovered:6.1f} %"
            click.echo(f"{mark} {share}  {name} ({seed}): {layers}; {result.fix}; {path} dB, {result.seconds:.1f} s")
            yield result


@click.command()
@click.argument("names", nargs=-1)
@click.option("--held-out", is_flag=True, help="The seeds that nothing was tuned on; writes the results.")
def main(names: tuple[str, ...], held_out: bool) -> None:
    """Plant, diagnose, count. What is named replaces its own rows in the kept results, no others; each as it comes."""
    before = json.loads(RESULTS.read_text())["plants"] if held_out and RESULTS.exists() else []
    results: list[dict[str, Any]] = []
    for made in _results(held_out, names):
        results.append({**asdict(made), "found": made.found})
        if held_out:  # a run that is stopped leaves what it has found
            done = {(r["net"], r["plant"]) for r in results}
            _write([*(r for r in before if (r["net"], r["plant"]) not in done), *results])
    if held_out:
        results = [*(r for r in before if names and not _named(f"{r['net']}/{r['plant']}", names)), *results]
        _write(results)
    total = _total(results)
    bounds = "95 % interval {:.1f} to {:.1f}".format(*(100 * total["interval"][end] for end in ("low", "high")))
    click.echo(f"{total['found']} of {total['plants']} found ({100 * total['share']:.1f} %, {bounds})")
    click.echo(f"{total['recovered 80 %']} recovered by 80 % or more; median {100 * total['median recovered']:.1f} %")


def _total(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found, recovered = sum(r["found"] for r in results), sum(r["recovered"] >= 0.8 for r in results)
    return {
        "plants": len(results), "found": found, "share": found / len(results),
        "interval": asdict(wilson(found, len(results))), "recovered 80 %": recovered,
        "median recovered": float(np.median([r["recovered"] for r in results])),
    }  # fmt: skip


def _write(results: Sequence[Mapping[str, Any]]) -> None:
    text = json.dumps({"total": _total(results), "plants": list(results)}, indent=1)
    files.write_bytes(RESULTS, (text + "\n").encode())


if __name__ == "__main__":
    main()
