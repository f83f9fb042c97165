"""Time all variants of one zoo model on one target, interleaved, batch 1, one thread, in a process of its own.

    python -m bench.latency ZOO TARGET SECONDS BASELINE [FILE …]

Every variant, float32 and the peers' too, is opened for the shapes that it is timed with: kernels for known shapes are
not what is compared. Prints JSON: per file p50, p90, p99 in ms and the speed-up over the baseline, each with its 95 %
interval.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import edgerun
from bench import zoo
from edgerun.measure.stats import Estimate

THREADS, ROUNDS = 1, 100


def main(name: str, target: str, seconds: str, *models: str) -> None:
    """Time and print."""
    chosen = zoo.model(name)
    feeds = chosen.latency_feeds()
    # Of a model with state a row is a whole feed.
    shapes = {name: array.shape[bool(chosen.state) :] for name, array in feeds.items()}
    result = edgerun.benchmark(
        models,
        target=target,
        options=edgerun.Options(threads=THREADS, usual=shapes),
        data=feeds,
        batch=None if chosen.state else 1,  # a model with state has no batch axis
        seconds=float(seconds),
        rounds=ROUNDS,
    )
    rows = [
        {
            "verdict": t.verdict,
            "runs": t.runs,
            "p50_ms": _estimate(t.p50, 1e3),
            "p90_ms": _estimate(t.p90, 1e3),
            "p99_ms": _estimate(t.p99, 1e3),
            "speedup": _estimate(t.speedup) if t.speedup else None,
        }
        for t in result.timings
    ]
    print(json.dumps({"rows": rows, "rounds": result.rounds, "device": dict(result.timings[0].device)}))


def _estimate(estimate: Estimate, factor: float = 1.0) -> dict[str, Any]:
    low, high = estimate.interval.low, estimate.interval.high
    return {"value": estimate.value * factor, "low": low * factor, "high": high * factor}


if __name__ == "__main__":
    main(*sys.argv[1:])
