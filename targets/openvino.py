"""OpenVINO on the CPU; compiled models are IR, a graph (.xml) beside its weights (.bin)."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options, Session, TensorSpec, machine
from edgerun.target import Feeds, Issue, Limits, NodeTime, Quantization
from edgerun.targets import _openvino_dynamic as dynamic
from edgerun.targets import _openvino_edges as edges
from edgerun.targets import _openvino_forks as forks
from edgerun.targets import _openvino_fq as fake_quantize
from edgerun.targets import _openvino_half as half
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_options as asked
from edgerun.targets import _openvino_rules as rules
from edgerun.targets import _openvino_sequences as sequences
from edgerun.targets import _openvino_shapes as shapes
from edgerun.targets import _openvino_ties as ties
from edgerun.targets._openvino_session import OvSession

if TYPE_CHECKING:
    import onnx

    from edgerun.contents import Contents
    from edgerun.devices import Device
    from edgerun.model import Model

# What only a workstation asks for is imported where it is: the device's install goes without.
summary = "OpenVINO on the CPU"
requires = ("openvino",)
extra = "openvino"
suffixes = (".xml", ".onnx")
takes = asked.TAKES
device_option = asked.DEVICE  # the key in `takes` that says which hardware
keeps = dict[str, tuple[str, ...]]()  # of the options: none is in the files, all are for `load`

# OpenVINO takes any IR version and opset without a word, so the newest ones come from the ONNX that each release is
# built with (2024.5: ONNX 1.16, 2025.0: 1.17; 2026.4's ONNX frontend library carries the schemas of opset 26).
reads = {(2026, 4): Limits(13, 26), (2025, 0): Limits(10, 22), (0, 0): Limits(10, 21)}
_SUMMARY = (
    (r"-- No conversion rule found for operations: (.*)", "OpenVINO has no translation of this op"),
    (r"-- Conversion is failed for: (.*)", "OpenVINO cannot translate this use of the op"),
)


def available() -> str | None:
    """None, or what to install."""
    return registry.missing(requires, extra)


def runnable() -> str | None:
    """None: what compiles here runs here."""
    return None


def device() -> Mapping[str, str]:
    """Runtime, version, architecture, CPU, instruction sets, threads, and the precision of float kernels.

    `max_isa` stands there where the environment makes oneDNN play another class of CPU: its times are others.
    """
    cap = rules.cap()
    return {**machine.fingerprint("openvino", ir.version()), "precision": "f32", **({"max_isa": cap} if cap else {})}


def limits() -> Limits:
    """What the installed version was built to read."""
    major, minor = (int(part) for part in ir.version().split(".")[:2])
    return reads[max(release for release in reads if release <= (major, minor))]


def check(model: Model) -> list[Issue]:
    """Nodes that OpenVINO does not translate, or the CPU plugin's reason when it cannot compile the rest."""
    from edgerun.targets import _alone as alone
    from edgerun.targets import _openvino_faults as faults

    if found := limits().exceeded(model) or faults.found(model.to_proto()):
        return found
    try:
        _compiled(ir.read(model.to_bytes()), Options(1))
    except EdgerunError as error:
        proto = model.to_proto()
        named = list(_untranslated(proto, str(error.__cause__))) or list(alone.blame(proto, _refusal))
        return named or [Issue("", "", str(error.got))]
    return []


def compile(model: Model, options: Options) -> Engine:
    """Translate to IR, with the model's door, history, contract and digest in `rt_info/edgerun`. Deterministic.

    What `options.extra` says (`takes`) is for `load`: the IR is the same for all.
    """
    from edgerun.targets import _openvino_faults as faults
    from edgerun.targets import _openvino_reduces as reduces
    from edgerun.targets import _openvino_turns as turns
    from edgerun.targets import _openvino_zeros as zeros

    if wrong := faults.found(model.to_proto()):
        raise Unsupported("OpenVINO would compute something else", got=f"{wrong[0].node}: {wrong[0].reason}")
    graph, digest = _read(model.to_bytes()), model.digest()
    ops = ir.by_kind(graph)
    if zeros.fold(ops) + turns.turn(ops) + reduces.part(ops):
        graph.validate_nodes_and_infer_types()
    told = {
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "preprocessing": model.preprocessing,
        "postprocessing": model.postprocessing,
        "history": [asdict(step) for step in model.history],
        "digest": digest,
        "weights": ir.DIGEST,
    }
    if usual := shapes.known(model.inputs, options.usual):
        told["usual"] = usual
    graph.set_rt_info(json.dumps(told, sort_keys=True), ["edgerun"])
    xml, weights = ir.serialized(graph)
    payload = ir.MAGIC + len(xml).to_bytes(8, "little") + xml + weights
    here = {**device(), **asked.choice(options, half.precision(graph)).told()}
    return Engine("openvino", payload, model.inputs, model.outputs, here, digest, usual=usual)


def save(engine: Engine, path: Path) -> None:
    """Write `NAME.xml` and `NAME.bin`, the weights in place before the graph.

    The graph names the weights' SHA-256, and `load` compares it: a pair of different ages never runs.
    """
    if path.suffix != ".xml":
        raise EdgerunError("OpenVINO writes IR", got=path.name, wanted="-o NAME.xml (weights go to NAME.bin beside it)")
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy the .xml and its .bin")
    xml, weights = ir.split(engine.payload)
    files.write_bytes(path.with_suffix(".bin"), weights)
    files.write_bytes(path, xml)


def contents(path: Path) -> Contents:
    """What an IR holds and what `compile` wrote into it; the ops are OpenVINO's own."""
    return ir.contents(path)


def load(engine: Engine, options: Options) -> Session:
    """A session with a request a stream, in the model's own precision where no other is asked for: f32, or the
    bfloat16 that it has in its types.

    Kernels are ready for the usual shapes that `options` or the file tell (`_openvino_shapes`). Raises EdgerunError
    when it is refused, and Unsupported where the device asked for is missing: no other is used.
    """
    graph, onnx = _read(engine.payload), ir.of_onnx(engine.payload)
    door, metadata = ir.door(graph, onnx), ir.metadata(graph, onnx)
    usual = _usual(graph, door[0], options)
    if not usual:
        return _opened(graph, options, door, metadata)

    def opened(known: shapes.Shapes) -> OvSession:
        return _opened(shapes.settled(graph, known) if known else graph, options, door, metadata)

    precision = asked.choice(options, half.precision(graph)).precision
    rounds = shapes.rounds(graph) or precision != "f32" or dynamic.group_size(graph) != "0"
    return shapes.ShapedSession(opened(usual), usual, opened, rounds)


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Typical time of every executed kernel over `feeds` (after one warm-up run), slowest first, from PERF_COUNT.

    Raises Unsupported on another device than the CPU, whose kernels are told otherwise.
    """
    from edgerun.targets import _openvino_profile as counters

    if (device := asked.choice(options).device) != "CPU":
        raise Unsupported("kernels are told apart on the CPU alone", got=device, do=f"profile with {asked.DEVICE}=CPU")
    graph, feeds = _read(engine.payload), iter(feeds)
    door, first = ir.door(graph, ir.of_onnx(engine.payload)), next(feeds, None)
    usual = _usual(graph, door[0], options)
    if first is None:
        raise EdgerunError("nothing to profile", got="no feeds", wanted="at least one")
    if usual and all(first[name].shape == shape for name, shape in usual.items()):
        graph = shapes.settled(graph, usual)
    source = counters.Graph(graph)
    counted = Options(options.threads, {**options.extra, "PERF_COUNT": "YES"})
    with OvSession(lambda: _compiled(graph, counted), *door) as session:
        executed = session.compiled.get_runtime_model()
        found = counters.reads(session, itertools.chain([first, first], feeds))
    return counters.kernels(source, executed, found)


def _read(payload: bytes | Path) -> Any:
    # The graph of an engine or an ONNX model, with what OpenVINO has kernels for in the form that it finds them in.
    ops = ir.by_kind(graph := ir.read(payload))  # asked once: a large graph has thousands
    if ops.keys() & sequences.KINDS and sequences.write_out(graph):
        ops = ir.by_kind(graph)
    half.narrow(graph, ops)  # first: weights that are expanded would be taken for integers
    done = [fake_quantize.fuse(ops), forks.mend(ops), ties.mend(ops, payload), edges.mend(ops, payload)]
    if sum([*done, dynamic.fuse(graph, ops, payload)]):
        graph.validate_nodes_and_infer_types()
    return graph


def _usual(graph: Any, inputs: Sequence[TensorSpec], options: Options) -> dict[str, tuple[int, ...]]:
    return shapes.known(inputs, options.usual or ir.told(graph).get("usual", {}))


def _opened(
    graph: Any, options: Options, door: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    metadata: Mapping[str, str],
) -> OvSession:  # fmt: skip
    # The graph costs no memory of its own: its constants are those that the compiled model keeps.
    return OvSession(lambda: _compiled(graph, options), *door, asked.choice(options).streams, metadata)


def _compiled(graph: Any, options: Options) -> Any:
    # Compile for the device of `options`, saying every choice that OpenVINO would otherwise make by the machine.
    chosen = asked.choice(options, half.precision(graph))
    if half.precision(graph) != chosen.precision == "f32":
        half.widen(graph)
    edges.narrow_doors(graph)
    # Activations that the model leaves in float stay so.
    settings = chosen.settings(dynamic.group_size(graph), dynamic.KEY)
    try:
        compiled = ir.core().compile_model(graph, chosen.device, settings)
    except RuntimeError as error:
        raise EdgerunError("OpenVINO cannot compile the model", got=ir.reason(error)) from error
    chosen.check(compiled)
    return compiled


def _refusal(data: bytes) -> str | None:
    """Why these bytes do not compile; None when they do."""
    try:
        _compiled(ir.read(data), Options(1))
    except EdgerunError as error:
        return str(error.got)
    return None


def _untranslated(proto: onnx.ModelProto, report: str) -> Iterator[Issue]:
    # Nodes whose ops stand in the summary of the frontend's report, which writes them as `Op-opset` or `domain.Op`.
    reasons = {}
    for pattern, fixed in _SUMMARY:
        for names in re.findall(pattern, report):
            for name in names.split(", "):
                detail = re.search(rf"-- {re.escape(name)} with a message:\n(.*?)\n(?:\n|-- )", report, re.DOTALL)
                reasons[name.rpartition("-")[0] or name] = f"{fixed}: {ir.reason(detail[1])}" if detail else fixed
    for node in _nodes(proto.graph):
        kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        if kind in reasons:
            yield Issue(node.name or node.output[0], node.op_type, reasons[kind])


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def quantization(device: Device | None = None) -> Quantization:
    """What the CPU plugin's low-precision transformations turn into integer kernels."""
    return rules.quantization(device)
