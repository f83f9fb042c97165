"""Does the data look as the model was trained to see it? Asked of the model: usual preprocessing mistakes are tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs import classes
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.graphs.looks import SMOOTH, Judgement, Picture, layout, picture_input, values
from edgerun.quantize.numerics import paired, plausibility
from edgerun.quantize.numerics.plausibility import FORMS, Form

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Opener
    from edgerun.runtime import Session, TensorSpec

LOOK = 8  # samples that the preprocessing is judged on, at a time
MOST_FEEDS = 4 * LOOK  # that are read for them, where pictures differ in size
LAYERS = 3  # BatchNormalizations, the first ones: the farther from the input, the less is its scale felt
# A mistake is named when its repair fits so much better: as a share, in standard errors, and at all.
BETTER, SURELY, LEAST = 0.75, 4.0, 0.05
SATURATED = 0.1  # of a first ReLU6: trained ones end there in less than 1 % of their outputs
_BENDING = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish")


def suspect(model: ir.Model, inputs: Sequence[TensorSpec], open: Opener, feeds: Iterable[Feeds]) -> Judgement:
    """Does the data look as the *unfolded* float `model` was trained to see it? Tries the usual mistakes.

    Layout is told by the pictures alone; the scale by the running statistics of the first BatchNormalizations, or,
    where they are folded away, by what a classifier's classes tell, or by a first ReLU6 that saturates; the colour
    order by the entropy of the classes. Reads as many `feeds` as that takes (8 to 64 samples). Models without a picture
    input are not judged. Raises EdgerunError for a layout that is surely another.
    """
    picture, judgement = picture_input(inputs), Judgement()
    if picture is None:
        return judgement
    stream = iter(feeds)
    few = list(_some(stream, picture))
    pixels = np.concatenate([f[picture.name] for f in few])
    known = layout(pixels, picture, judgement)
    values(pixels, picture, judgement)
    if not known or plausibility.roughness(pixels, picture.last) > SMOOTH:
        return judgement
    over = tuple(axis for axis in range(4) if axis != picture.axis)
    forms = plausibility.forms_of(pixels.min(axis=over).astype(np.float64), pixels.max(axis=over).astype(np.float64))
    feeds, again = itertools.tee(itertools.chain(few, stream))
    with classes.opened(model, open, picture) as classifier:
        if norms := _first_norms(model.graph):
            repair = _scale(model, open, few, norms, forms, picture, judgement)
        else:
            repair = classes.form(classifier, again, forms, judgement) if classifier else None
            if repair is None:
                _saturation(model, open, few, forms, judgement)
        # On a scale that is wrong, and cannot be put right here, the classes mean nothing.
        if classifier and (repair or not judgement.warnings):
            right = feeds if repair is None else classes.reformed(feeds, picture, *repair)
            classes.colour(classifier, right, judgement)
    return judgement


def _some(stream: Iterator[Feeds], picture: Picture) -> Iterator[Feeds]:
    """Pictures of one size, the first one's."""
    rows, size = 0, None
    for feeds in itertools.islice(stream, MOST_FEEDS):
        pictures = feeds[picture.name]
        size = size or pictures.shape[1:]
        if pictures.shape[1:] == size:
            yield feeds
            rows += len(pictures)
        if rows >= LOOK:
            return


def _scale(
    model: ir.Model, open: Opener, few: Sequence[Feeds], norms: Sequence[ir.Node], forms: Sequence[Form],
    picture: Picture, judgement: Judgement,
) -> tuple[Form, Form] | None:  # fmt: skip
    """Name the form that fits the model far better than the one given; the pair (given, wanted), or None."""
    judgement.judged.append("scale by BatchNorm statistics")
    pairs = [(have, want) for have in forms for want in FORMS if want is not have]
    with open(_probed(model, [norm.inputs[0] for norm in norms]), lanes=2) as session:

        def begun(pair: tuple[Form, Form] | None) -> float:
            feeds = few[:1] if pair is None else classes.reformed(few[:1], picture, *pair)
            return _misfit(norms, _moments(session, feeds, len(norms)))

        first, *fits = (fit for _, fit in in_lanes(begun, [None, *pairs], 2))
        # What fits the first batch worse than the form given is no repair.
        likely = [pair for pair, fit in zip(pairs, fits, strict=True) if fit <= first]
        if not likely:
            return None
        given = _moments(session, few, len(norms))
        others = (_moments(session, classes.reformed(few, picture, *pair), len(norms)) for pair in likely)
        tried = [(*_misfits(norms, given, other), *pair) for pair, other in zip(likely, others, strict=True)]
    now = _misfit(norms, given)
    fit, error, have, want = min(tried, key=lambda trial: trial[0])
    if fit > BETTER * now or now - fit < max(LEAST, SURELY * error):
        return None
    judgement.warnings.append(
        f"input {picture.name!r}: the pictures look like {have.name}; the model was trained on {want.name} "
        f"(its BatchNorm statistics differ by {now:.2f} nats per channel, with that by {fit:.2f})"
    )
    return have, want


def _first_norms(graph: ir.Graph) -> list[ir.Node]:
    """The first BatchNormalizations whose statistics are constants, in graph order."""
    norms = [n for n in graph if n.op_type == "BatchNormalization" and n.domain == ""]
    return [n for n in norms if len(n.inputs) == 5 and all(constant(v) is not None for v in n.inputs[3:5])][:LAYERS]


def _probed(model: ir.Model, values: Sequence[ir.Value | None]) -> ir.Model:
    """A clone that ends in the mean and the mean square over positions, `[n, C, …]`, of each of `values`."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    clone = model.clone()
    graph = clone.graph
    known = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
    graph.outputs.clear()
    for index, original in enumerate(values):
        assert original is not None
        value = known[original.name]
        square = ir.node("Mul", [value, value], name=f"edgerun/squared/{index}")
        graph.append(square)
        for kind, source in (("mean", value), ("square", square.outputs[0])):
            # GlobalAveragePool is the one reduction over positions that is the same in every opset.
            op = "Identity" if value.shape is not None and len(value.shape) == 2 else "GlobalAveragePool"
            probe = ir.node(op, [source], name=f"edgerun/{kind}/{index}")
            graph.append(probe)
            result = probe.outputs[0]
            result.name, result.type = f"edgerun/{kind}/{index}", ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(result)
    common.RemoveUnusedNodesPass()(clone)
    return clone


Moments = list[tuple[np.ndarray, np.ndarray]]  # per layer: means and mean squares, [n, C]


def _moments(session: Session, feeds: Iterable[Feeds], layers: int) -> Moments:
    runs = [run for _, run in in_lanes(session.run, feeds, 2)]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([run[name].reshape(run[name].shape[:2]) for run in runs])

    return [(joined(f"edgerun/mean/{i}"), joined(f"edgerun/square/{i}")) for i in range(layers)]


def _misfit(norms: Sequence[ir.Node], moments: Moments, without: int | None = None) -> float:
    """Mean misfit over layers, of all samples or all but one."""
    total = 0.0
    for norm, (means, squares) in zip(norms, moments, strict=True):
        mean, variance = constant(norm.inputs[3]), constant(norm.inputs[4])
        assert mean is not None and variance is not None
        if without is not None:
            means, squares = np.delete(means, without, axis=0), np.delete(squares, without, axis=0)
        total += plausibility.misfit(means, squares, mean, variance)
    return total / len(norms)


def _misfits(norms: Sequence[ir.Node], given: Moments, other: Moments) -> tuple[float, float]:
    """The misfit of `other`, and the standard error of its difference to that of `given`, sample by sample."""
    full = _misfit(norms, other)
    samples = range(len(given[0][0]))
    if len(samples) < 2:
        return full, float("inf")
    left_out = np.array([_misfit(norms, given, i) - _misfit(norms, other, i) for i in samples])
    return full, paired.jackknife(left_out)


def _saturation(
    model: ir.Model, open: Opener, few: Sequence[Feeds], forms: Sequence[Form],
    judgement: Judgement,
) -> None:  # fmt: skip
    """Where BatchNormalization is folded away: bytes where small numbers belong drive the first ReLU6 into its stop."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    first = next((node for node in model.graph if node.op_type in _BENDING), None)
    if first is None or not _relu6(first):
        return
    judgement.judged.append("scale by the first ReLU6 (too large only: no BatchNorm statistics)")
    clone = model.clone()
    result = next(o for node in clone.graph for o in node.outputs if o.name == first.outputs[0].name)
    result.type = ir.TensorType(ir.DataType.FLOAT)
    clone.graph.outputs.clear()
    clone.graph.outputs.append(result)
    common.RemoveUnusedNodesPass()(clone)
    with open(clone) as session:
        share = float(np.mean([(session.run(feed)[str(result.name)] >= 6.0).mean() for feed in few]))
    if share > SATURATED:
        looks = f"; the pictures look like {forms[0].name}" if forms else ""
        judgement.warnings.append(
            f"the first ReLU6 is at its stop in {share:.0%} of its outputs: the model was trained on smaller numbers, "
            f"as 0..1 or less mean over std{looks}"
        )


def _relu6(node: ir.Node) -> bool:
    """Whether it is Clip(x, 0, 6) by itself: behind x + 3 it is a part of hard-swish, which is often at its stop."""
    add, ends = node.inputs[0].producer() if node.inputs[0] else None, [constant(value) for value in node.inputs[1:3]]
    terms = [constant(value) for value in add.inputs] if add is not None and add.op_type in ("Add", "Sub") else []
    if any(term is not None and term.size == 1 for term in terms):  # a bias has a number for every channel
        return False
    numbers = [float(end.item()) for end in ends if end is not None and end.size == 1]
    return node.op_type == "Clip" and numbers == [0.0, 6.0]
