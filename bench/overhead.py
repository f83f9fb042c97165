"""What a Session costs over the raw runtime: `python -m bench.overhead` (writes results/overhead.json).

Both sides get the same arrays and one thread, in one interleaved run; the difference is taken session by session, of
the lower deciles of both: other work on the machine only adds time. Calls are timed on a tiny model, the isolated
ones with 602 kB of input, and opening on models of the zoo where it is there (bench.opening: in new processes).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter_ns, process_time_ns

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgerun
from bench import overhead_raw as raw
from edgerun import files, registry
from edgerun.measure.latency import Run, in_sessions
from edgerun.measure.stats import Estimate, median, quantile
from edgerun.runtime import Options

RESULTS = Path(__file__).parent / "results" / "overhead.json"
ONE = Options(threads=1)
OPENED = ("silero", "mobilenet_v2", "minilm", "resnet50")
DECILE = 0.1
WARM = 20  # calls, before one tells how many fill the time: a worker's second one takes milliseconds on OpenVINO
Open = Callable[[], AbstractContextManager[Run]]


def tiny() -> onnx.ModelProto:
    """Two inputs, one Add, one MatMul of 4 x 4: next to no work, so that the call itself is what is measured."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("MatMul", ["sum", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def picture() -> onnx.ModelProto:
    """The mean of a float32 [1, 3, 224, 224]: 602 kB in, 4 bytes out."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])]
    graph = helper.make_graph([node], "mean", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@contextmanager
def ours(
    target: str, data: bytes, feeds: dict[str, np.ndarray], out: dict[str, np.ndarray] | None, isolated: bool = False
) -> Iterator[Run]:
    """`Session.run`, with or without arrays to write into, here or in a worker."""
    with edgerun.load(data, target, ONE, isolated=isolated) as session:
        yield lambda: session.run(feeds, out)


@contextmanager
def shared(target: str, data: bytes, feeds: dict[str, np.ndarray]) -> Iterator[Run]:
    """The same in a worker, of feeds that lie in memory which it shares: `Session.empty` gave them."""
    with edgerun.load(data, target, ONE, isolated=True) as session:
        given = {name: session.empty(name, array.shape) for name, array in feeds.items()}
        for name, array in feeds.items():
            given[name][...] = array
        yield lambda: session.run(given)


@contextmanager
def opening(target: str, path: Path) -> Iterator[Run]:
    """`edgerun.load` of a file, and closing it."""
    yield lambda: edgerun.load(path, target, ONE).close()


def calls(seconds: float, sessions: int) -> Iterator[dict[str, object]]:
    """A row for each way to call: lower deciles and their difference in µs."""
    data, feeds = tiny().SerializeToString(), {name: np.ones((1, 4), np.float32) for name in ("a", "b")}
    out = {"y": np.zeros((1, 4), np.float32)}
    image = {"x": np.random.default_rng(0).random((1, 3, 224, 224), np.float32)}
    for target, sides in {"onnxruntime": raw.ONNXRUNTIME, "openvino": raw.OPENVINO}.items():
        if registry.target(target, usable=False).available():
            continue
        pairs: dict[str, tuple[Open, Open, float]] = {
            "feeds": (partial(sides.plain, data, feeds), partial(ours, target, data, feeds, None), 10.0),
            "pre-allocated": (partial(sides.bound, data, feeds, out), partial(ours, target, data, feeds, out), 3.0),
            "isolated, 602 kB": (
                partial(ours, target, picture().SerializeToString(), image, None),
                partial(ours, target, picture().SerializeToString(), image, None, True),
                60.0,
            ),
            "isolated, 602 kB from Session.empty": (
                partial(ours, target, picture().SerializeToString(), image, None),
                partial(shared, target, picture().SerializeToString(), image),
                60.0,
            ),
        }
        for how, (bare, own, goal) in pairs.items():
            times = in_sessions({"bare": bare, "own": own}, sessions=sessions, seconds=seconds, warmup=WARM)
            typical = {key: [np.quantile(rounds, DECILE) for rounds in taken] for key, taken in times.items()}
            more = median([float(b - a) for a, b in zip(typical["bare"], typical["own"], strict=True)])
            yield {
                "call": how, "target": target, "goal_us": goal, "sessions": sessions,
                "bare_us": _us(quantile(times["bare"], DECILE)), "own_us": _us(quantile(times["own"], DECILE)),
                "more_us": _us(more),
            }  # fmt: skip


def loads(seconds: float, sessions: int, busy: bool) -> Iterator[dict[str, object]]:
    """A row for each target and model: how many times as long opening takes, again and again in one process."""
    from bench import zoo

    clock = process_time_ns if busy else perf_counter_ns
    both = {"onnxruntime": raw.ONNXRUNTIME, "openvino": raw.OPENVINO}
    for (target, sides), name in itertools.product(both.items(), OPENED):
        path = zoo.model(name).onnx
        if not path.is_file() or registry.target(target, usable=False).available():
            continue
        pair: dict[str, Open] = {"own": partial(opening, target, path), "bare": partial(sides.opening, path)}
        times = in_sessions(pair, sessions=sessions, rounds=3, seconds=seconds, warmup=1, clock=clock)
        pairs = zip(times["own"], times["bare"], strict=True)
        ratio = median([float(np.quantile(own, DECILE) / np.quantile(bare, DECILE)) for own, bare in pairs])
        low, high = ratio.interval.low, ratio.interval.high
        yield {
            "call": f"load {name}", "target": target, "goal_ratio": 1.05, "sessions": sessions,
            "clock": "CPU time" if busy else "wall",
            "bare_ms": quantile(times["bare"], DECILE).value * 1e3,
            "own_ms": quantile(times["own"], DECILE).value * 1e3,
            "ratio": {"value": ratio.value, "low": low, "high": high},
        }  # fmt: skip


def _us(estimate: Estimate) -> dict[str, float]:
    low, high = estimate.interval.low, estimate.interval.high
    return {"value": estimate.value * 1e6, "low": low * 1e6, "high": high * 1e6}


@click.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Measured time per row.")
@click.option("--sessions", type=int, default=9, show_default=True, help="How often both sides are opened anew.")
@click.option("--busy", is_flag=True, help="Count the CPU time of opening: other work holds the machine.")
def main(seconds: float, sessions: int, busy: bool) -> None:
    """Print the difference or ratio with its 95 % interval, and keep them."""
    rows = []
    for row in itertools.chain(calls(seconds, sessions), loads(seconds, sessions, busy)):
        rows.append(row)
        told = row.get("more_us") or row["ratio"]
        unit = "us more" if "more_us" in row else "times as long"
        goal = row.get("goal_us") or row["goal_ratio"]
        assert isinstance(told, dict)
        interval = f"[{told['low']:.2f}, {told['high']:.2f}], n={sessions} sessions; goal <= {goal:g}"
        click.echo(f"{row['target']:<12}{row['call']:<18}{told['value']:>8.2f} {unit} {interval}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept |= {"machine": dict(registry.target("onnxruntime").device()), "rows": rows}
    files.write_bytes(RESULTS, json.dumps(kept, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
