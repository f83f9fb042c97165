"""What a target is: the protocol Target, and what is said with it. A module in `targets/` implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edgerun.limits import Issue as Issue
from edgerun.limits import Limits as Limits
from edgerun.runtime import Engine, Options, Session

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.model import Model

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantization:
    """Which schemes run fast on a target, and where its kernels want Q/DQ: data, read by the placement."""

    schemes: tuple[str, ...]
    activation: str = "uint8"  # storage dtype of activations
    symmetric: bool = False  # whose zero point is 0
    float_bias: bool = False  # biases stay float32 (else they are int32 in steps of s_x·s_w)
    # Sums of two products are cut off at 16 bits (x86 without VNNI or AMX), so that some weights need fewer steps; the
    # classes of CPU where the target's kernels do so.
    reduced_range: bool = False
    paired: tuple[str, ...] = ("AVX2", "AVX-512")
    compute: frozenset[str] = frozenset()  # ops whose inputs are quantized because an integer kernel pays there
    through: frozenset[str] = frozenset()  # move quantized data without changing its values
    join: frozenset[str] = frozenset()  # need quantized inputs and output to stay integer
    absorbed: frozenset[str] = frozenset()  # activations whose clipping a quantizer right after them does
    float_output: frozenset[str] = frozenset()  # compute ops whose integer kernel can write float: no quantizer behind
    # A Conv over at most so many input channels is faster in float (a picture's first layer), if an integer op follows
    # at once, and a depthwise one that reads it is as fast; or only such a pair is.
    float_stem: int = 0
    depthwise_stem: bool = False
    thin: int = 0  # so is a Conv of sums of at most so many products, where nothing reads them on integers
    # What is left in float between two integer layers gets 8-bit weights with one scale from the runtime itself, where
    # its input has one scale for all channels.
    requantizes: bool = False
    # Layers over one position whose result scales a whole tensor (squeeze-and-excitation) stay in float.
    float_gates: bool = False
    forked_bias: bool = False  # a Conv on integers that is read more than once needs a bias that is not zero
    # An Add is fused into the layer that writes one of its inputs, which then needs no rounding of its own.
    fused_sum: bool = False
    # A product of two layers' results (attention's Q·Kᵀ) has an integer kernel, its zeros in the middle.
    pair_matmul: bool = False
    dynamic: frozenset[str] = frozenset()  # ops with constant weights that quantize their inputs while they run
    # Beside integer layers, recurrent ones bear no 8-bit weights: the runtime leaves them packed.
    float_loops: bool = False
    tables: bool = False  # a Gather may read rows of int8 that are scaled afterwards (embeddings)
    flat_rows: bool = False  # a rank-2 Gemm is faster than the same product over more axes with its bias behind
    timed: bool = True  # what runs here is as fast as on the device, so that this machine's clock may judge
    channel_scales: bool = False  # activations may have one scale per channel at no cost
    # A Sigmoid, SiLU's too, is faster behind an integer convolution with fewer output channels than in it.
    sigmoid_apart: float = 0
    # What a layer reads has the zero of its grid in the middle where the shorter side is more than this share of the
    # longer: a zero point is to be corrected for.
    mirrored: float = 1.0
    # No pass over a tensor is fused with the next: scales and rounding pay before what repeats or joins values.
    early: bool = False
    blocked: bool = False  # float convolutions have a layout that sums with constants do not
    half: str = "float16"  # the type that `w16a16` computes in
    half_rest: bool = False  # products that stay in float beside integer layers compute in it, too
    qdq_constants: bool = False  # only a DequantizeLinear may read a constant in 8 bits
    joins_rounding: bool = False  # a quantizer is fused with the elementwise ops before it
    # Weights that a Cast widens are widened once, when a model is opened: float16 costs nothing.
    widens: bool = False
    # A Softmax takes a multiple of the time where it reads a mask: it computes with numbers below the normal ones.
    denormals: bool = False
    fast_gelu: bool = False  # GELU's tanh form has an operator of ONNX Runtime's own, in a third of its pieces' time
    # Schemes that the target has elsewhere, each with the reason why not on this device.
    lacks: Mapping[str, str] = field(default_factory=dict)


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
class Finishing(Target, Protocol):
    """A Target that finishes recipes: it compiles an `.onnx` file's bytes alone, for open sizes within `ranges`."""

    def ranges(self, model: Model, options: Options, device: Device | None) -> Mapping[str, Any]: ...
    def finish(self, engine: Engine, options: Options, told: Mapping[str, Any]) -> Engine: ...
