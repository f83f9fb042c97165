"""Products that a model has between Q/DQ and that a target runs in float all the same, why, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgerun import draws, input_ranges, registry
from edgerun.errors import EdgerunError
from edgerun.measure.stats import Estimate, median
from edgerun.passes import Feeds, NodeTime, Quantization
from edgerun.runtime import Options
from edgerun.runtime.progress import listener

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SESSIONS, RUNS = 9, 10  # of a cost: its interval leaves out the fastest session and the slowest
MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity"})


@dataclass(frozen=True)
class Fallback:
    """A product between Q/DQ that runs in float, and why; the seconds that it takes per run, where they were taken, and
    its share of one, where the profiler could tell it."""

    node: str
    op: str
    reason: str
    seconds: Estimate | None = None
    share: Estimate | None = None


def fallbacks(
    model: Model,
    target: str,
    rules: Quantization,
    *,
    timed: bool = False,
    options: Options | None = None,
    kernels: Sequence[NodeTime] = (),
) -> tuple[list[Fallback], list[str]]:
    """Products whose inputs are all dequantized and whose kernel is none on integers, as `target` runs them here; and
    those of which the profile does not tell the kernel.

    `timed` profiles nine sessions, of ten runs each, in place of one, one thread and else as `options` say. Where
    `kernels` of the model are known, these are looked at, and nothing runs.
    Raises Unsupported where nothing of the target runs, and EdgerunError when no drawn input is taken.
    """
    if not (nodes := meant(model, rules)):
        return [], []
    if kernels:
        sessions, timed = [list(kernels)], False
    else:
        sessions = _sessions(model, target, replace(options or Options(), threads=1), timed)
    found, unseen = list[Fallback](), list[str]()
    for node in nodes:
        own = [[k for k in session if set(k.covers) & set(_names(node))] for session in sessions]
        if not all(own):
            unseen.append(_names(node)[0])
        elif not any(k.integer for k in own[0]):
            costs = _cost(own, sessions) if timed else (None, None)
            found.append(Fallback(_names(node)[0], node.op_type, _reason(node, target, rules, own[0]), *costs))
    return found, unseen


def meant(model: Model, rules: Quantization) -> list[ir.Node]:
    """The products that somebody put between Q/DQ."""
    return [node for node in model.ir.graph if _meant(node, rules)]


def _sessions(model: Model, target: str, options: Options, timed: bool) -> list[list[NodeTime]]:
    """The kernels of one session, or of the nine in which they are `timed`, on drawn inputs."""
    feed, found, count = _taken(model, target, options), list[list[NodeTime]](), SESSIONS if timed else 1
    for done in range(count):
        listener()("profiling", done, count)
        found.append(_profiled(model, target, feed, RUNS if timed else 1, options))
    return found


def _profiled(model: Model, target: str, feed: Feeds, runs: int, options: Options) -> list[NodeTime]:
    chosen = registry.target(target)
    return chosen.profile(chosen.compile(model, options), [feed] * runs, options)


def _cost(
    own: Sequence[Sequence[NodeTime]], sessions: Sequence[Sequence[NodeTime]]
) -> tuple[Estimate, Estimate | None]:
    """The seconds of these kernels per run, and their share of all kernels': None where a session could tell none from
    what its profiler adds to each."""
    times = [sum(kernel.seconds for kernel in kernels) for kernels in own]
    whole = [sum(kernel.seconds for kernel in kernels) for kernels in sessions]
    shares = [time / total for time, total in zip(times, whole, strict=True) if total]
    return median(times), median(shares) if len(shares) == len(times) else None


def _taken(model: Model, target: str, options: Options) -> Feeds:
    """Drawn feeds that the target takes, at the first of the usual sizes for open dimensions."""
    chosen, refusal = registry.target(target), EdgerunError("")
    below = input_ranges.ranges(model.ir)
    for other in draws.SIZES:
        feed = draws.feeds(model.inputs, draws.sizes(model.inputs, 1, other), 0, below)
        try:
            with chosen.load(chosen.compile(model, options), options) as session:
                session.run(feed)
            return feed
        except EdgerunError as error:
            refusal = error
            if not draws.sizes(model.inputs, 1, 1):
                break
    raise EdgerunError("every random input that was tried is refused", got=refusal.got) from refusal


def _meant(node: ir.Node, rules: Quantization) -> bool:
    operands = list(node.inputs[:2])
    return node.op_type in PRODUCTS | rules.compute and len(operands) == 2 and all(map(_quantized, operands))


def _quantized(value: ir.Value | None) -> bool:
    return _quantizer(value) is not None


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, perhaps moved."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _names(node: ir.Node) -> list[str]:
    """What a kernel may call it: by its own name, or by what it writes."""
    return [str(name) for name in (node.name, *(value.name for value in node.outputs)) if name]


def _reason(node: ir.Node, target: str, rules: Quantization, kernels: Sequence[NodeTime]) -> str:
    """What the target's rules miss here; else which kernel was chosen."""
    return next(_missed(node, target, rules), None) or (
        f"{target} chose a float kernel: {kernels[0].op} ({kernels[0].precision})"
    )


def _missed(node: ir.Node, target: str, rules: Quantization) -> Iterator[str]:
    if node.op_type not in rules.compute:
        yield f"{target} has no integer kernel for {node.op_type} that pays"
    stored = _stored(node)
    if stored.get("weight", "int8") not in ("int8", rules.activation):
        yield f"its weight is {stored['weight']}, and integer kernels take int8"
    if stored.get("input", rules.activation) not in ("int8", "uint8"):
        yield f"its input is {stored['input']}, and integer kernels take {rules.activation}"
    after = [user for value in node.outputs for user, _ in value.uses()]
    if node.op_type not in rules.float_output and not any(_writes_integers(user, rules) for user in after):
        yield f"no QuantizeLinear follows it, and the integer kernel of {node.op_type} writes integers only"


def _writes_integers(node: ir.Node, rules: Quantization) -> bool:
    """Whether it is a quantizer, or an activation before one that is fused into the product."""
    if node.op_type == "QuantizeLinear":
        return True
    follows = [user for value in node.outputs for user, _ in value.uses()]
    return node.op_type in rules.absorbed and any(user.op_type == "QuantizeLinear" for user in follows)


def _stored(node: ir.Node) -> Mapping[str, str]:
    """The dtypes that input and weight are dequantized from, where they are known."""
    found = {}
    for name, value in zip(("input", "weight"), node.inputs[:2], strict=True):
        quantizer = _quantizer(value)
        source = quantizer.inputs[0] if quantizer is not None else None
        zero = quantizer.inputs[2] if quantizer is not None and len(quantizer.inputs) > 2 else None
        kind = next((v.dtype for v in (zero, source) if v is not None and v.dtype is not None), None)
        if kind is not None:
            found[name] = kind.numpy().name
    return found
