"""What Session.run costs over the raw runtime call, on a tiny model: `python -m bench.overhead`.

Both calls get the same arrays and one thread, in one interleaved run; the difference is taken session by session.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgerun import registry
from edgerun.measure.latency import Run, in_sessions
from edgerun.measure.stats import quantile
from edgerun.model import Model
from edgerun.runtime import Options

GOAL_US = 10.0


def tiny() -> onnx.ModelProto:
    """Two inputs, one Add, one MatMul of 4 x 4: next to no work, so that the call itself is what is measured."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("MatMul", ["sum", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@contextmanager
def raw_onnxruntime(data: bytes, feeds: dict[str, np.ndarray]) -> Iterator[Run]:
    """`InferenceSession.run` with the output names given."""
    import onnxruntime  # type: ignore[import-untyped]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    yield lambda: session.run(["y"], feeds)


@contextmanager
def raw_openvino(data: bytes, feeds: dict[str, np.ndarray]) -> Iterator[Run]:
    """`InferRequest.infer` with shared inputs, the vendor's fast way that still gives arrays of one's own."""
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(data), "CPU", settings).create_infer_request()
    yield lambda: request.infer(feeds, share_inputs=True)


@contextmanager
def ours(name: str, data: bytes, feeds: dict[str, np.ndarray]) -> Iterator[Run]:
    """`Session.run` of the same model."""
    target, options = registry.target(name), Options(threads=1)
    with target.load(target.compile(Model.from_proto(onnx.load_model_from_string(data)), options), options) as session:
        yield lambda: session.run(feeds)


@click.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Measured time per target.")
@click.option("--sessions", type=int, default=9, show_default=True, help="How often both are opened anew.")
def main(seconds: float, sessions: int) -> None:
    """Print medians, and the median difference with its 95 % interval, in microseconds."""
    data = tiny().SerializeToString()
    feeds = {name: np.ones((1, 4), np.float32) for name in ("a", "b")}
    click.echo(f"{'target':<14}{'raw':>9}{'Session.run':>13}{'difference':>12}  95 % interval, goal <= {GOAL_US:g} us")
    for name, raw in {"onnxruntime": raw_onnxruntime, "openvino": raw_openvino}.items():
        opened = {"raw": partial(raw, data, feeds), "ours": partial(ours, name, data, feeds)}
        times = in_sessions(opened, sessions=sessions, seconds=seconds)
        medians = {key: [np.median(rounds, axis=1) for rounds in taken] for key, taken in times.items()}
        differences = [own - bare for own, bare in zip(medians["ours"], medians["raw"], strict=True)]
        bare, own, more = (quantile(values, 0.5) for values in (medians["raw"], medians["ours"], differences))
        click.echo(
            f"{name:<14}{bare.value * 1e6:>6.1f} us{own.value * 1e6:>10.1f} us{more.value * 1e6:>9.1f} us"
            f"  [{more.interval.low * 1e6:.1f}, {more.interval.high * 1e6:.1f}], n={sessions} sessions"
        )


if __name__ == "__main__":
    main()
