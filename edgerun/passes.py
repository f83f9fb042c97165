"""What a plug-in is: the protocols Converter, Pass and Target. A module in its folder implements one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edgerun.effort import Effort
from edgerun.limits import Issue as Issue
from edgerun.limits import Limits as Limits
from edgerun.pieces import Part
from edgerun.runtime import Engine, Options, Session, TensorSpec
from edgerun.taps import Taps

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.checkpoint import Checkpoint
    from edgerun.devices import Device
    from edgerun.model import Model

Feeds = Mapping[str, np.ndarray]
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


@dataclass(frozen=True)
class Quantization:
    """Which schemes run fast on a target, and where its kernels want Q/DQ: data, read by the placement.

    `activation` is the storage dtype of activations, and `symmetric` says that their zero point is 0; `float_bias` that
    biases stay float32 (else they are int32 in steps of s_x·s_w). `reduced_range` says that sums of two products are
    cut off at 16 bits (x86 without VNNI or AMX), so that some weights need fewer steps.
    `compute` are the ops whose inputs are quantized because an integer kernel pays there;
    `through` move quantized data without changing its values; `join` need quantized inputs and output to stay integer;
    `absorbed` are activations that a quantizer right after them replaces (their clipping is the quantizer's).
    `float_output` are compute ops that have an integer kernel which writes float (no quantizer behind needed).
    `float_stem`: a Conv over at most so many input channels is faster in float there (a picture's first layer), if an
    integer op follows at once, and a depthwise one that reads it is as fast. `depthwise_stem`: only such a pair is.
    `thin`: so is a Conv whose outputs are sums of at most so many products, where nothing reads them on integers.
    `requantizes`: what is left in float between two integer layers gets 8-bit weights with one scale from the runtime
    itself, where its input has one scale for all channels. `float_gates`: layers over one position whose result scales
    a whole tensor (squeeze-and-excitation) stay in float. `forked_bias`: a Conv on integers whose result is read more
    than once needs a bias that is not zero. `fused_sum`: an Add is fused into the layer that writes one of its inputs,
    which then needs no rounding of its own. `pair_matmul`: a product of two layers' results (attention's Q·Kᵀ) has an
    integer kernel, its zeros in the middle. `dynamic` are the ops with constant weights that run on integers with
    inputs quantized while they run. `float_loops`: beside integer layers, recurrent ones bear no 8-bit weights: the
    runtime leaves them packed. `tables`: a Gather may read rows of int8 that are scaled afterwards (embeddings).
    `flat_rows`: a rank-2 Gemm is faster than the same product over more axes with its bias behind. `timed`: what runs
    here is as fast as on the device, so that this machine's clock may judge. `channel_scales`: activations may be
    quantized and dequantized with one scale per channel at no cost. `sigmoid_apart`: a Sigmoid, SiLU's too, is faster
    behind an integer convolution with fewer output channels than in it. `mirrored`: what a layer reads has the zero of
    its grid in the middle where the shorter side is more than this share of the longer: a zero point is to be corrected
    for. `early`: no pass over a tensor is fused with the next, so that scales and rounding pay before what repeats or
    joins values. `blocked`: float convolutions have a layout that sums with constants do not. `half` is the type that
    `w16a16` computes in.
    """

    schemes: tuple[str, ...]
    activation: str = "uint8"
    symmetric: bool = False
    float_bias: bool = False
    reduced_range: bool = False
    compute: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()
    join: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset()
    float_output: frozenset[str] = frozenset()
    float_stem: int = 0
    depthwise_stem: bool = False
    thin: int = 0
    requantizes: bool = False
    float_gates: bool = False
    forked_bias: bool = False
    fused_sum: bool = False
    pair_matmul: bool = False
    dynamic: frozenset[str] = frozenset()
    float_loops: bool = False
    tables: bool = False
    flat_rows: bool = False
    timed: bool = True
    channel_scales: bool = False
    sigmoid_apart: float = 0
    mirrored: float = 1.0
    early: bool = False
    blocked: bool = False
    half: str = "float16"


class Opener(Protocol):
    """Starts a float or Q/DQ graph on this machine; `emulated` asks for no integer kernels: DequantizeLinear of a
    constant is computed once, and every op between Q/DQ pairs runs in float. `lanes` says how many runs will be under
    way at once: the cores are shared out among them."""

    def __call__(self, graph: ir.Model, *, emulated: bool = False, lanes: int = 1) -> Session: ...


@dataclass
class Request:
    """What a pass is asked for, and what it may use.

    `rules` are the target's; `open` starts a graph for measuring on this machine (see Opener); `ranges` names an
    estimator or "auto"; `keep_float` nodes to leave alone; `effort` says how much to look at, `lanes` how many batches
    memory holds at once; `checkpoint` keeps what a killed run goes on from; `fresh` tells, batch by batch as the first
    pass over the data goes on, how many samples do not repeat others (empty: not known).
    `progress(stage, done, total)` is called between batches (total 0: unknown). A pass writes what it decided and
    measured into `found` (JSON values): that becomes part of the Step in the history. In `telling` it leaves the places
    of batches whose outputs are not next to nothing, for who compares models on them (empty: not known).
    """

    rules: Quantization
    open: Opener
    calibration: Calibration | None = None
    ranges: str = "auto"
    keep_float: frozenset[str] = frozenset()
    effort: Effort = Effort()
    lanes: int = 1
    checkpoint: Checkpoint | None = None
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    found: dict[str, Any] = field(default_factory=dict)
    fresh: Sequence[int] = ()
    telling: Sequence[int] = ()


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


@dataclass(frozen=True)
class NodeTime:
    """One executed kernel: its typical time per run in seconds, and which part of the model it is.

    `precision` is what the runtime calls it; `integer` says that it computes on 8-bit values. `order` counts kernels as
    they ran: a runtime makes up names, which may differ from session to session, and the order does not.
    `work` is 'compute', 'quantize', 'dequantize', or 'reorder' (the same values in another memory layout).
    `covers` names the model's nodes that it computes (none where only the runtime knows what it is for), and `reads`
    is the `order` of each kernel whose result it takes. `dispatched` says that `seconds` hold what the runtime needs to
    come to the kernel; else they are the kernel's alone.
    """

    node: str
    op: str
    seconds: float
    precision: str = ""
    integer: bool = False
    order: int = 0
    work: str = "compute"
    covers: tuple[str, ...] = ()
    reads: tuple[int, ...] = ()
    dispatched: bool = False


class Target(Protocol):
    """One runtime on one kind of device. Everything that differs between targets is told here as data.

    `available` says why nothing can be done with it here, `runnable` why what it compiles cannot run here (no GPU):
    then `check`, `compile` and `save` work, `load` and `profile` raise Unsupported, and no engine is given out as
    compared with the reference. `quantization` is that of this machine, or of a `device` elsewhere.
    """

    summary: str
    requires: tuple[str, ...]
    extra: str
    suffixes: tuple[str, ...]  # of the files `compile` writes and `load` reads, the preferred one first
    takes: Mapping[str, str]  # keys of `Options.extra` as KEY=VALUE|VALUE, each with one line on what it does

    def available(self) -> str | None: ...
    def runnable(self) -> str | None: ...
    def device(self) -> Mapping[str, str]: ...
    def limits(self) -> Limits: ...
    def quantization(self, device: Device | None = None) -> Quantization: ...
    def check(self, model: Model) -> list[Issue]: ...
    def compile(self, model: Model, options: Options) -> Engine: ...
    def save(self, engine: Engine, path: Path) -> None: ...
    def load(self, engine: Engine, options: Options) -> Session: ...
    def profile(self, engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]: ...


@runtime_checkable
class Writing(Target, Protocol):
    """A Target that writes other files too (`writes`): `written` gives the options with which `compile` makes one."""

    writes: tuple[str, ...]

    def written(self, suffix: str, options: Options, device: Device | None) -> Options: ...


@runtime_checkable
class Finishing(Target, Protocol):
    """A Target that finishes recipes: it compiles an `.onnx` file's bytes alone, for open sizes within `ranges`."""

    def ranges(self, inputs: Sequence[TensorSpec], options: Options, device: Device | None) -> Mapping[str, Any]: ...
    def finish(self, engine: Engine, options: Options, told: Mapping[str, Any]) -> Engine: ...
