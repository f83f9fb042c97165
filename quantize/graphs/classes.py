"""What a classifier's answers say of its pictures: right colours, and numbers of the right form, tell most classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs.looks import Judgement, Picture
from edgerun.quantize.numerics import paired, plausibility
from edgerun.quantize.numerics.plausibility import FORMS, Form

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Opener
    from edgerun.runtime import Session

FINE, WRONG, IN_THE_END = 1.0, -3.0, -2.5  # t values of how much less sure a classifier is with colours swapped
OTHERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1))  # orders of colours beside the one given and the reverse
# How much of what is won in entropy by the reverse is not won by OTHERS, which are wrong too: photos' classifiers have
# 0.52 to 2.1, one that looks at red alone 0.38; of 300 whose classes mean nothing by colour 3 have more, and tell more.
ALONE = 0.35
FIRST, MOST = 8, 64  # samples for a first look, that calls most things fine; to give up
LEAST = 3  # different winners among the answers of what is a classifier
SURE = 0.6  # of ln C: the most entropy of what counts as a classifier's scores
LOOKS = (8, 16, 32, 64)  # samples
PROMISING, GAIN, SURELY = (
    0.1,
    0.25,
    4.0,
)  # what another form must win: nats, to be looked at again and in the end; errors


class Classifier:
    """A running classifier, `[n, C]` classes of a picture, and what it answered."""

    def __init__(self, session: Session, output: str, number: int, picture: Picture) -> None:
        self._session, self._output, self.number, self.picture = session, output, number, picture
        self._known: dict[int, tuple[Feeds, np.ndarray, np.ndarray]] = {}  # by the feed's id, which lives as long

    def answers(self, feeds: Iterable[Feeds]) -> np.ndarray:
        """Logits `[n, C]` of all feeds."""
        runs = in_lanes(self._session.run, feeds, 2)
        return np.concatenate([plausibility.logits(run[self._output]) for _, run in runs])

    def both(self, feed: Feeds) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the feed, and of it with red and blue swapped, on a core each."""
        if id(feed) not in self._known:
            pixels = feed[self.picture.name]
            swapped = np.ascontiguousarray(np.flip(pixels, axis=self.picture.axis))
            found = self.answers([feed, {**feed, self.picture.name: swapped}])
            self._known[id(feed)] = feed, found[: len(pixels)], found[len(pixels) :]
        return self._known[id(feed)][1:]


@contextmanager
def opened(model: ir.Model, open: Opener, picture: Picture) -> Iterator[Classifier | None]:
    """A model whose one output is `[n, C]`, C at least three; None for any other."""
    outputs = list(model.graph.outputs)
    shape = outputs[0].shape if len(outputs) == 1 else None
    number = shape[1] if shape is not None and len(shape) == 2 else None
    if not isinstance(number, int) or number < LEAST:
        yield None
        return
    with open(model, lanes=2) as session:
        yield Classifier(session, str(outputs[0].name), number, picture)


def colour(asked: Classifier, feeds: Iterable[Feeds], judgement: Judgement) -> None:
    """A classifier is less sure of pictures whose red and blue are swapped: the entropies of its classes, paired.

    Looked at after every batch, so that the right order is mostly done with after FIRST samples. Surer alone is no
    mistake: where classes mean nothing by colour, any other colours are further from all that was learned, and one
    class or another surely gets them. So the other order must also tell more of the pictures (`plausibility.told`), by
    a standard error, and stand alone: of the right order, and not of every other, classes are surer (ALONE).
    """
    given, other, less, t = np.zeros((0, asked.number)), np.zeros((0, asked.number)), np.zeros(0), 0.0
    seen: list[Feeds] = []
    for feed in feeds:
        seen.append(feed)
        scores, swapped = asked.both(feed)
        given, other = np.concatenate([given, scores]), np.concatenate([other, swapped])
        less = plausibility.entropy(other) - plausibility.entropy(given)
        t = plausibility.t_value(less)
        if len(less) >= MOST or (t >= FINE and len(less) >= FIRST) or (t <= WRONG and len(less) >= 2 * FIRST):
            break
    winners = len({*given.argmax(axis=1).tolist(), *other.argmax(axis=1).tolist()})
    surest = min((float(plausibility.entropy(z).mean()) for z in (given, other) if len(z)), default=0.0)
    if winners < LEAST or surest > SURE * np.log(asked.number):
        return  # an embedding or a regression, or too unsure to be asked
    judgement.judged.append("colour order by the entropy of the classes")
    if len(less) < 2 * FIRST or t > IN_THE_END or (t > WRONG and len(less) < MOST):
        return
    (now, now_without), (then, then_without) = (_told(scores, level=False) for scores in (given, other))
    if then - now > paired.jackknife(then_without - now_without) and _alone(asked, seen, given, other):
        judgement.warnings.append(
            f"input {asked.picture.name!r}: red and blue seem swapped: the classes are surer with the other order "
            f"({less.mean():+.2f} nats of entropy, t = {t:.1f}, {len(less)} samples), and tell {then - now:.2f} nats "
            "more of the pictures"
        )


def _alone(asked: Classifier, seen: Sequence[Feeds], given: np.ndarray, other: np.ndarray) -> bool:
    """Whether `other` logits `[n, C]` are surer than `given` ones in a way that further wrong orders of colours, of the
    same pictures, are not."""
    name, axis = asked.picture.name, asked.picture.axis
    orders = [[{**f, name: np.ascontiguousarray(f[name].take(order, axis))} for f in seen] for order in OTHERS]
    wrong = np.mean([plausibility.entropy(asked.answers(feeds)).mean() for feeds in orders])
    surely, unsurely = plausibility.entropy(other).mean(), plausibility.entropy(given).mean()
    return bool(wrong - surely > ALONE * (unsurely - surely))


@dataclass(frozen=True)
class _Trial:
    """Pictures of form `have` as `want`: the logits `[n, C]` of them, and nats told more, with the standard error."""

    have: Form
    want: Form
    scores: np.ndarray
    gain: float = 0.0
    error: float = np.inf

    @property
    def sure(self) -> bool:
        return self.gain > max(GAIN, SURELY * self.error)

    def grown(self, more: np.ndarray, given: np.ndarray) -> _Trial:
        """With `more` logits, beside those of the same pictures as `given`."""
        scores = np.concatenate([self.scores, more])
        # Without normalization a network is surer of larger numbers, whatever they show: only like scales compare.
        alike = self.have.scale == self.want.scale and self.have.std == self.want.std
        (now, now_without), (then, then_without) = (_told(z, level=not alike) for z in (given, scores))
        return replace(self, scores=scores, gain=then - now, error=paired.jackknife(then_without - now_without))


def form(
    asked: Classifier, feeds: Iterable[Feeds], forms: Sequence[Form], judgement: Judgement
) -> tuple[Form, Form] | None:
    """Name the form in which pictures tell a classifier more than in the one given: the pair (given, wanted), or None.

    Told is the information between pictures and classes (`plausibility.told`). `forms` are those that the data can
    have. Those that win next to nothing in a first look are left; another must win GAIN nats, surely by SURELY
    standard errors (jackknife), in a later one.
    """
    if not forms:
        return None
    picture, none = asked.picture, np.zeros((0, asked.number))
    given, trials = none, [_Trial(have, want, none) for have in forms for want in FORMS if want is not have]
    for batches in _looks(feeds, picture.name):
        given = np.concatenate([given, *(asked.both(feed)[0] for feed in batches)])
        if np.log(min(len(given), asked.number)) - _told(given)[0] < GAIN:
            trials = []  # no form could tell so much more
        more = [asked.answers(reformed(batches, picture, t.have, t.want)) for t in trials]
        trials = [t.grown(scores, given) for t, scores in zip(trials, more, strict=True)]
        trials = [t for t in trials if t.gain > PROMISING]
        if not trials or (len(given) >= LOOKS[1] and any(t.sure for t in trials)):
            break
    best = max((t for t in trials if t.sure), key=lambda t: _told(t.scores)[0], default=None)
    if _unsure(given if best is None else best.scores, asked.number):
        return None
    judgement.judged.append("scale by what the classes tell (no BatchNorm statistics)")
    if best is None or len(given) < LOOKS[1]:
        return None
    judgement.warnings.append(
        f"input {picture.name!r}: the pictures look like {best.have.name}; the model was trained on {best.want.name} "
        f"(its classes tell {best.gain:.2f} nats more of them so, +- {best.error:.2f}, {len(given)} samples)"
    )
    return best.have, best.want


def reformed(feeds: Iterable[Feeds], picture: Picture, have: Form, want: Form) -> Iterator[Feeds]:
    """`feeds` with pictures of form `have` as `want`."""
    for feed in feeds:
        yield {**feed, picture.name: plausibility.reform(feed[picture.name], have, want, picture.axis)}


def _told(scores: np.ndarray, level: bool = True) -> tuple[float, np.ndarray]:
    """`plausibility.told` of logits `[n, C]`, with `level` whatever their scale."""
    return plausibility.told(plausibility.shares(plausibility.levelled(scores) if level else scores))


def _looks(feeds: Iterable[Feeds], name: str) -> Iterator[list[Feeds]]:
    """`feeds` of one picture size, the first one's, in as many as each of LOOKS has samples more."""
    size: tuple[int, ...] | None = None
    batches: list[Feeds] = []
    seen, looks = 0, iter(LOOKS)
    look = next(looks)
    for feed in feeds:
        size = size or feed[name].shape[1:]
        if feed[name].shape[1:] != size:
            continue
        batches.append(feed)
        seen += len(feed[name])
        if seen >= look:
            yield batches
            batches = []
            look = next((more for more in looks if more > seen), 0)
            if not look:
                return
    if batches:
        yield batches


def _unsure(scores: np.ndarray, number: int) -> bool:
    """Whether these are no answers of a classifier that knows its pictures."""
    winners = len(np.unique(scores.argmax(axis=1)))
    return winners < LEAST or float(plausibility.entropy(scores).mean()) > SURE * np.log(number)
