"""How many times faster one graph is than another on ONNX Runtime, in CPU time: other work counts little.

One thread, in turns: in every session both are opened in an order drawn anew, and in every round both run in another.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.measure import stats

SESSIONS, ROUNDS = 21, 8
LEAST = 2e-3  # seconds of CPU time in one measurement: shorter runs are repeated


def measured(other: bytes, ours: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """CPU time of `other` over that of `ours`, which take the same inputs in the same order, with its 95 % interval.

    `n` are the rounds. Where either does not run on the feeds, "failed" says why instead.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[np.ndarray]] = {"other": [], "ours": []}
    try:
        for _ in range(SESSIONS):
            for name, samples in _session({"other": other, "ours": ours}, list(feeds.values()), rng).items():
                times[name].append(samples)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        return {"failed": str(error)[:300]}
    found = stats.speedup(times["other"], times["ours"])
    micro = {name: round(1e6 * float(np.median(np.concatenate(samples)))) for name, samples in times.items()}
    low, high = found.interval.low, found.interval.high
    return {"value": round(found.value, 3), "low": round(low, 3), "high": round(high, 3),
            "verdict": stats.verdict(found.interval), "n": SESSIONS * ROUNDS, "cpu_us": micro}  # fmt: skip


def _session(models: Mapping[str, bytes], arrays: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Seconds of CPU time [rounds, 1] of every model, in one session of each."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    names = list(models)
    runs: dict[str, tuple[Any, Mapping[str, np.ndarray]]] = {}
    for name in rng.permutation(names):
        session = ort.InferenceSession(models[name], options, providers=["CPUExecutionProvider"])
        runs[name] = (session, dict(zip((door.name for door in session.get_inputs()), arrays, strict=True)))
    for run in runs.values():
        _seconds(run, 1)
    repeats = {name: max(1, int(LEAST / max(_seconds(run, 3), 1e-6))) for name, run in runs.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in rng.permutation(names):
            taken[name].append([_seconds(runs[name], max(repeats.values()))])
    return {name: np.array(samples) for name, samples in taken.items()}


def _seconds(run: tuple[Any, Mapping[str, np.ndarray]], repeats: int) -> float:
    session, fed = run
    start = time.process_time()
    for _ in range(repeats):
        session.run(None, fed)
    return (time.process_time() - start) / repeats
