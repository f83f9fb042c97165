"""What a plug-in is: Converter, Pass and Writing, and of `edgerun.target`, which a device has alone, Target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edgerun.effort import Effort
from edgerun.pieces import Part
from edgerun.runtime import Options, Session, TensorSpec
from edgerun.taps import Taps
from edgerun.target import Feeds as Feeds
from edgerun.target import Finishing as Finishing
from edgerun.target import Issue as Issue
from edgerun.target import Limits as Limits
from edgerun.target import NodeTime as NodeTime
from edgerun.target import Quantization as Quantization
from edgerun.target import Target as Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.checkpoint import Checkpoint
    from edgerun.devices import Device
    from edgerun.metrics import Difference
    from edgerun.model import Model

Runner = Callable[[Feeds], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Conversion:
    """A converter's result: the model, and the source to compare with: `run` in its own precision, `run64` in float64.

    `feeds` are what to compare on where random ones would not do, and `data` says what they are. `taps` find the first
    node that differs; `told` says in JSON how it was converted. `parts` are pieces, judged where the source computes on
    codes. `foreign` is the graph that `run` runs. `bare` computes what stands before the outputs' last Sigmoid or Tanh.
    """

    model: Model
    run: Runner
    run64: Runner | None = None
    feeds: Sequence[Feeds] = ()
    data: str = ""
    taps: Sequence[Taps] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    parts: Iterable[Part] | None = None
    foreign: Any = None
    bare: tuple[Mapping[str, str], Runner] | None = None


class Converter(Protocol):
    """Brings one kind of source in. `recognises` looks at names and magic bytes and never runs the source's code."""

    summary: str
    requires: tuple[str, ...]  # importable module names
    extra: str  # the pip extra that brings them
    newest_opset: int  # that it writes unless asked for another

    def recognises(self, source: Any) -> bool: ...
    def convert(self, source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion: ...


@runtime_checkable
class Trusting(Converter, Protocol):
    """A Converter that also reads files which are programs: `convert_trusted` may run the code in them."""

    def convert_trusted(
        self, source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int
    ) -> Conversion: ...


@runtime_checkable
class Choosing(Converter, Protocol):
    """A Converter whose sources may hold several models: `convert_signature` reads the one that is called so."""

    def convert_signature(
        self, source: Any, *, signature: str, inputs: Sequence[TensorSpec], factory: str | None, opset: int
    ) -> Conversion: ...


class Calibration(Protocol):
    """Calibration data: iterable more than once, one batch of feeds at a time, with a digest of its content. `batch` is
    the samples per feed, None where a feed has no batch axis and is one sample; `samples` those of a pass, None while
    that is unknown. `digest_so_far` is that of what the newest pass has given; `again` is a cheaper one without."""

    def __iter__(self) -> Any: ...
    def again(self) -> Any: ...
    def __len__(self) -> int: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def samples(self) -> int | None: ...
    @property
    def digest(self) -> str: ...
    @property
    def digest_so_far(self) -> str: ...


class Opener(Protocol):
    """Starts a float or Q/DQ graph on this machine; `emulated` asks for no integer kernels: DequantizeLinear of a
    constant is computed once, and every op between Q/DQ pairs runs in float. `lanes` says how many runs will be under
    way at once: the cores are shared out among them."""

    def __call__(self, graph: ir.Model, *, emulated: bool = False, lanes: int = 1) -> Session: ...


class Timed(Protocol):
    """Tells of a graph how many times as long a run of another takes on the target, one thread, in turns, as exactly as
    it takes to know on which side of `bound` that lies; None where that cannot be timed."""

    def __call__(self, first: ir.Model, bound: float) -> Callable[[ir.Model], float | None]: ...


@dataclass(frozen=True)
class Evidence:
    """What a finished graph loses of the float model: `lost` of each sample, and, by what runs the same on something
    else, what that loses `of` each of the first so many of these."""

    lost: Sequence[Mapping[str, Difference]]
    of: Callable[[Runner], Sequence[Mapping[str, Difference]]]


@dataclass
class Request:
    """What a pass is asked for, and what it may use.

    `rules` are the target's; `open` starts a graph for measuring on this machine (see Opener); `ranges` names an
    estimator or "auto"; `keep_float` nodes to leave alone; `effort` says how much to look at, `lanes` how many batches
    memory holds at once; `checkpoint` keeps what a killed run goes on from; `fresh` tells, batch by batch as the first
    pass over the data goes on, how many samples do not repeat others (empty: not known). `pace` is the target's clock,
    where that may decide what stays float (None: it may not, or it is another machine's).
    `progress(stage, done, total)` is called between batches (total 0: unknown). A pass writes what it decided and
    measured into `found` (JSON values): that becomes part of the Step in the history. In `telling` it leaves the places
    of batches whose outputs are not next to nothing, for who compares models on them (empty: not known); in `later`
    what else is known of the float model's outputs, for the check; in `evidence` what the finished graph was judged by,
    for who judges an engine of it.
    """

    rules: Quantization
    open: Opener
    calibration: Calibration | None = None
    ranges: str = "auto"
    keep_float: frozenset[str] = frozenset()
    effort: Effort = Effort()
    lanes: int = 1
    checkpoint: Checkpoint | None = None
    pace: Timed | None = None
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    found: dict[str, Any] = field(default_factory=dict)
    fresh: Sequence[int] = ()
    telling: Sequence[int] = ()
    later: Sequence[Any] = ()
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Trial:
    """What came of a build of which nothing is kept.

    `built` says for what it was, and by which version, "" where nothing was built (`reason` says why). `issues` are
    what the builder refused (a node "" is the whole model), `kernels` what it chose where it refused none, untimed.
    """

    built: str = ""
    issues: tuple[Issue, ...] = ()
    kernels: tuple[NodeTime, ...] = ()
    reason: str = ""


@runtime_checkable
class Building(Target, Protocol):
    """A Target whose builder may refuse what its `check` takes: `tried` shows it, for `device` (None: as `compile`)."""

    def tried(self, model: Model, options: Options, device: Device | None) -> Trial: ...


class Pass(Protocol):
    """Changes a private clone of a model in place or anew; `quantize.apply` clones, checks and writes the Step."""

    summary: str
    needs_calibration: bool
    scheme: str  # the scheme it makes, or "" when it keeps the number formats

    def apply(self, model: ir.Model, request: Request) -> ir.Model: ...


class Prepared(Protocol):
    """What a Staged pass knows of a float model."""

    def copy(self) -> Any: ...


@runtime_checkable
class Staged(Pass, Protocol):
    """A pass in two stages, `apply(m, r) == finish(prepare(m, r), r)`: the first does not depend on what stays float,
    beyond what its own request says, and the second consumes what it gets."""

    def prepare(self, model: ir.Model, request: Request) -> Prepared: ...
    def finish(self, prepared: Any, request: Request) -> ir.Model: ...


@runtime_checkable
class Faster(Pass, Protocol):
    """A pass whose models are to be faster than the float ones, by the nodes that it puts on integers or in halves."""

    def integers(self, model: Model, rules: Quantization, keep_float: frozenset[str]) -> list[str]: ...


@runtime_checkable
class Writing(Target, Protocol):
    """A Target that writes other files too (`writes`): `written` gives the options with which `compile` makes a file of
    that kind, and runs it here: without those about the device alone."""

    writes: tuple[str, ...]

    def written(self, suffix: str, options: Options, device: Device | None) -> Options: ...
