"""One compression, made more than once where the clock wants more nodes in float: what was asked for, and on what."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import quantize, registry
from edgerun.adequacy import FeedCheck
from edgerun.checkpoint import Checkpoint
from edgerun.data import Data, Feeds
from edgerun.effort import Effort
from edgerun.errors import GateFailed, Unsupported
from edgerun.model import Model
from edgerun.passes import Faster, Quantization, Request
from edgerun.quantize.graphs import plausible
from edgerun.quantize.graphs.looks import Judgement
from edgerun.runtime import Engine, Options, Session, TensorSpec, machine
from edgerun.runtime.progress import told
from edgerun.verbs import proof
from edgerun.verbs.clock import Kept, Usual, usual_shapes
from edgerun.verbs.pace import Pace
from edgerun.verbs.placements import Made, Search

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger("edgerun")
Progress = Callable[[str, int, int], None]
Hold = Callable[[Model, Request], Model]  # the compressed model whose drop in accuracy is held
# A block planned for a whole run takes as much memory as the pieces that the first run was made of, beside them; and in
# its usual order ONNX Runtime comes to what looks at a value last, while all that is looked at waits in memory.
LEAN = {"enable_mem_pattern": "0", "execution_order": "priority"}
MAPPED = {"MEMORY": "small"}  # weights of a large model stay in their files
APART = 5  # batches between two that a first look at an engine is on
MANY = 12  # batches of a second look at an engine
BESIDE = 1 << 24  # bytes of calibration data that stay in memory between passes
LANES = 2  # batches at once; the cap is measured with two
EMULATED = {"session.disable_quant_qdq": "1"}
KEPT = "kept float by the clock"
MEASURER = "onnxruntime"  # runs float and Q/DQ graphs while the numbers are chosen, whatever the target is
QUICK = Effort(ranges=8, first=4, search=0, check=1, second=False)  # where only the placement matters


class Original:
    """The float model: what was read of a file is handed out once, and read again where it is needed later.

    So no weights stay in memory while nobody needs them.
    """

    def __init__(self, source: Model | str | Path) -> None:
        self.source = source
        self._read: Model | None = loaded(source)

    @property
    def model(self) -> Model:
        """The model, for who only looks at it."""
        self._read = self._read or loaded(self.source)
        return self._read

    def taken(self) -> Model:
        """The model, to whom it is left."""
        found, self._read = self.model, None
        return found


@dataclass(frozen=True)
class Making:
    """How a model becomes a compressed one: the pass `name` with the target's `rules`, on `data` (None: without).

    `inputs` have the sizes that the device runs, as far as they were told; `judgement` is what the data's
    preprocessing looks like; `told` goes into every history; `hold` stands for the pass where a bound on the drop is
    to be held; `timed` says that this machine's clock judges.
    """

    name: str
    original: Original
    target: str
    rules: Quantization
    data: Data | None
    inputs: tuple[TensorSpec, ...]
    judgement: Judgement
    ranges: str
    keep_float: frozenset[str]
    effort: Effort
    told: Mapping[str, Any]
    progress: Progress
    hold: Hold | None = None
    timed: bool = False

    def whole(self, kept: Kept) -> Made:
        """The compressed model with `kept` in float, proven, and its engine."""
        asked = self._request(kept, self.effort)
        asked.checkpoint = Checkpoint({"measured with": dict(registry.target(MEASURER).device())})
        try:
            if self.hold is not None:
                result = self.hold(self.original.taken(), asked)
            else:  # no name here keeps the model: its weights are free to go as the pass replaces them
                result = quantize.apply(self.name, self.original.taken(), asked)
        finally:
            if not kept:  # once, and also where the result is refused
                _tell_data(asked.found)
        if self.target == MEASURER:  # the graph was judged on what runs it
            asked.evidence = None
        made = self._proven(result, asked)
        asked.checkpoint.clear()
        return made

    def search(self) -> Search | None:
        """How the clock may try other placements; None where the pass promises no speed, or not on this machine."""
        step = registry.quantizer(self.name)
        if not self.rules.timed or not isinstance(step, Faster):
            return None
        return Search(
            step.scheme,
            lambda: step.integers(self.original.taken(), self.rules, self.keep_float),
            self._quick,
            self.whole,
        )

    def _quick(self) -> Callable[[frozenset[str]], Model]:
        variant = quantize.variants(self.name, self.original.taken(), self._request({}, QUICK))

        def quick(kept: frozenset[str]) -> Model:
            result = variant(kept)
            if result.history[-1].options.get("integer nodes") == 0:  # halves are refused by their pass
                raise Unsupported("nothing is left on integers")
            return result

        return quick

    def _request(self, kept: Kept, effort: Effort) -> Request:
        most = effort.ranges if effort is self.effort else None  # a look at placements is no calibration
        known = None if self.data is None else Known(self.data, self.judgement, most)
        names = self.keep_float | set(kept)
        asked = Request(self.rules, opened, known, self.ranges, names, effort)
        asked.lanes, asked.progress = min(LANES, machine.quota()), self.progress
        asked.found |= self.told
        if self.timed and self.rules.timed and effort is self.effort:
            asked.pace = Pace(self.target, self.inputs, self.data, self.progress)
        if known is not None:
            asked.found["calibration"], asked.fresh = known.found, known.fresh
        if kept:
            asked.found[KEPT] = dict(kept)
        return asked

    def _proven(self, result: Model, asked: Request) -> Made:
        usual, found = usual_shapes(self.inputs, self.data), list[quantize.Compiled | None]()

        def judge(session: Session) -> None:
            if asked.evidence is not None:
                self.progress("judging the engine", 0, 0)
                found.append(quantize.judged(session, usual, asked.evidence, self.target))

        with told(self.progress):
            engine = self._compared(result, asked.telling, usual, judge)
        return Made(result, engine, found[-1] if found else None)

    def _compared(
        self, result: Model, telling: Sequence[int], usual: Usual, judge: Callable[[Session], None]
    ) -> Engine:
        # Two batches apart from each other: neighbours may show nothing, both of them.
        first = next(iter(telling), 0)
        places = first, next((place for place in telling if place >= first + APART), first + APART)
        few = list(itertools.islice(self.data or (), places[0], places[1] + 1, places[1] - places[0]))
        try:
            return proof.proven(result, self.original.source, self.target, few, MEASURER, usual, judge)
        except GateFailed:
            # Two pictures without anything in them leave but noise to compare: many together do not.
            many = self._spread(MANY)
            if len(many) <= len(few):
                raise
            return proof.proven(result, self.original.source, self.target, many, MEASURER, usual, judge)

    def _spread(self, count: int) -> list[Feeds]:
        """As many batches as that, from all over the data."""
        if self.data is None:
            return []
        step = max(1, len(self.data) // count)
        return list(itertools.islice(self.data, 0, step * count, step))


def loaded(model: Model | str | Path) -> Model:
    """`model` itself, or that of the file."""
    return model if isinstance(model, Model) else Model.load(model)


def opened(graph: ir.Model, *, emulated: bool = False, lanes: int = 1) -> Session:
    """A session of `graph` for measuring, on this machine, that `lanes` batches go through at once."""
    from edgerun import external

    data, weights, folder = external.apart(graph)
    own = LEAN | (EMULATED if emulated else {}) | (MAPPED if external.weight_bytes(graph) > external.ABOVE else {})
    options = Options(max(1, machine.quota() // lanes), own)
    return registry.target(MEASURER).load(Engine(MEASURER, data, weights=weights, folder=folder), options)


def _tell_data(found: Mapping[str, Any]) -> None:
    """Say what is wrong with the calibration data, to whoever compresses."""
    for warning in found.get("calibration", {}).get("warnings", ()):
        log.warning("calibration data: %s", warning)
    if found.get("random data"):
        log.warning("the calibration data is random noise: expect the accuracy to be lost")


def judged(model: Model, data: Data | None) -> Judgement:
    """Whether the data's preprocessing looks like a mistake."""
    if data is None or data.random:
        return Judgement()
    return plausible.suspect(model.ir, model.inputs, opened, data)


class Known:
    """Calibration data whose number of batches is known: a callable's is counted in a pass of its own.

    The first pass looks at every sample, at `most` where no more are calibrated with; `found` then says how many there
    were, and what is wrong with them. Raises EdgerunError where they are not fit to calibrate with.
    """

    def __init__(self, data: Data, judgement: Judgement, most: int | None = None) -> None:
        self._data, self._most = data, most
        self._judged = judgement.warnings
        self.fresh: list[int] = []  # of each batch of the first pass, the samples that do not repeat others
        self._beside: list[Feeds] = []
        self._room, self._all_beside = BESIDE, False
        self.found: dict[str, Any] = {"preprocessing judged": judgement.judged, "warnings": judgement.warnings}
        if data.samples is None:
            _ = data.digest

    def __iter__(self) -> Any:
        return iter(self._data) if "samples" in self.found else self._checked()

    def _checked(self) -> Any:
        check = FeedCheck(batched=self._data.batch is not None)
        self.fresh.clear()
        for feeds in self._data:
            before = check.different
            check.add(feeds)
            self.fresh.append(check.different - before)
            if self._most is not None and check.samples >= self._most:
                self._tell(check)  # whoever takes this batch may not come back
            yield feeds
        self._tell(check)

    def _tell(self, check: FeedCheck) -> None:
        if "samples" not in self.found:
            told = check.report()
            self.found |= {**told, "warnings": [*told["warnings"], *self._judged]}

    def again(self) -> Any:
        """One more pass. The first batches, BESIDE bytes of them, are read once for all passes that end with them."""
        place = 0
        while place < len(self._beside):  # which another pass may lengthen
            yield self._beside[place]
            place += 1
        if self._all_beside:
            return
        index = -1
        for index, feeds in enumerate(self._data.again()):
            if index >= place:
                self._keep(index, feeds)
                yield feeds
        self._all_beside = len(self._beside) == index + 1

    def _keep(self, index: int, feeds: Feeds) -> None:
        """Beside those before it, where there is room and nobody may write into it; a str has no size here."""
        size = sum(array.nbytes for array in feeds.values())
        if index == len(self._beside) and size <= self._room and all(a.dtype.kind != "O" for a in feeds.values()):
            self._beside.append({name: array.copy() for name, array in feeds.items()})
            self._room -= size

    def __len__(self) -> int:
        return len(self._data)

    @property
    def batch(self) -> int | None:
        return self._data.batch

    @property
    def samples(self) -> int | None:
        return self._data.samples

    @property
    def digest(self) -> str:
        return self._data.digest

    @property
    def digest_so_far(self) -> str:
        return self._data.digest_so_far
