"""What Session.run costs over the raw runtime call, on a tiny model: `python -m bench.overhead`.

Both calls get the same arrays and one thread, in one interleaved run; the difference is taken round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgerun import registry
from edgerun.measure.latency import interleaved
from edgerun.measure.stats import quantile
from edgerun.model import Model
from edgerun.runtime import Options

GOAL_US = 10.0
Call = Callable[[], object]


def tiny() -> onnx.ModelProto:
    """Two inputs, one Add, one MatMul of 4 x 4: next to no work, so that the call itself is what is measured."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("MatMul", ["sum", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def raw_onnxruntime(data: bytes, feeds: dict[str, np.ndarray]) -> Call:
    """`InferenceSession.run` with the output names given."""
    import onnxruntime  # type: ignore[import-untyped]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(["y"], feeds)


def raw_openvino(data: bytes, feeds: dict[str, np.ndarray]) -> Call:
    """`InferRequest.infer` with shared inputs, the vendor's fast way that still gives arrays of one's own."""
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(data), "CPU", settings).create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True)


@contextmanager
def ours(name: str, data: bytes, feeds: dict[str, np.ndarray]) -> Iterator[Call]:
    """`Session.run` of the same model."""
    target, options = registry.target(name), Options(threads=1)
    with target.load(target.compile(Model.from_proto(onnx.load_model_from_string(data)), options), options) as session:
        yield lambda: session.run(feeds)


@click.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Measured time per target.")
@click.option("--rounds", type=int, default=100, show_default=True, help="Interleaved rounds per target.")
def main(seconds: float, rounds: int) -> None:
    """Print medians, and the median difference with its 95 % interval, in microseconds."""
    data = tiny().SerializeToString()
    feeds = {name: np.ones((1, 4), np.float32) for name in ("a", "b")}
    click.echo(f"{'target':<14}{'raw':>9}{'Session.run':>13}{'difference':>12}  95 % interval, goal <= {GOAL_US:g} us")
    for name, raw in {"onnxruntime": raw_onnxruntime, "openvino": raw_openvino}.items():
        with ours(name, data, feeds) as run:
            times = interleaved({"raw": raw(data, feeds), "ours": run}, rounds=rounds, seconds=seconds)
        medians = {key: np.median(np.asarray(t), axis=1) * 1e6 for key, t in times.items()}
        difference = quantile((medians["ours"] - medians["raw"])[:, None], 0.5)
        low, high = difference.interval.low, difference.interval.high
        click.echo(
            f"{name:<14}{np.median(medians['raw']):>6.1f} us{np.median(medians['ours']):>10.1f} us"
            f"{difference.value:>9.1f} us  [{low:.1f}, {high:.1f}], n={len(medians['raw'])} rounds"
        )


if __name__ == "__main__":
    main()
