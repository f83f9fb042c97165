"""Which of OpenVINO's devices runs a model, in which precision, and with what else is asked of it."""

# OpenVINO decides by the machine what nobody says: on a CPU with bfloat16 a float model runs in bfloat16, on a GPU in
# float16. Here every such choice is said, and what came of it is read back. A graph with types of its own is computed
# in these: it is the model that says so (`_openvino_half`).

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, machine
from edgerun.targets import _openvino_ir as ir

# Our key in Options.extra; the others are OpenVINO's own names.
DEVICE = "DEVICE"
PRECISION, HINT, STREAMS = "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "NUM_STREAMS"
THREADS, PINNING, CACHE = "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "CACHE_DIR"
HARDWARE = ("CPU", "GPU", "NPU")
VIRTUAL = ("AUTO", "HETERO", "MULTI", "BATCH")  # which choose among devices: only when named
CUMULATIVE = "CUMULATIVE_THROUGHPUT"
HINTS = ("LATENCY", "THROUGHPUT", CUMULATIVE)
PRECISIONS = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}  # and what a device calls its capability
OF_CORE = (CACHE, "CACHE_MODE")  # no device's own
TAKES = {
    f"{DEVICE}=CPU|GPU|NPU": "what runs the model; AUTO:, HETERO:, MULTI: or BATCH: before names chooses among them",
    f"{PRECISION}={'|'.join(PRECISIONS)}": "the type of float arithmetic; else that of the model's products",
    f"{HINT}={'|'.join(HINTS)}": "what OpenVINO shall aim at; LATENCY with one stream, THROUGHPUT with more",
    f"{STREAMS}=N": "runs under way at once",
    f"{CACHE}=FOLDER": "compiled models are kept there, and read in place of compiling",
    "NAME=VALUE": "any other property that the device lists as its own, by OpenVINO's name",
}


@dataclass(frozen=True)
class Choice:
    """`device` as OpenVINO takes it, the `hardware` in it by name, the `precision` of float arithmetic, and the
    properties that were asked for beside it. `streams` is None where OpenVINO shall choose how many runs pay; `typed`
    says that the precision is that of types in the graph, beside which nothing is to be narrowed."""

    device: str = "CPU"
    hardware: tuple[str, ...] = ("CPU",)
    precision: str = "f32"
    hint: str = "LATENCY"
    streams: int | None = 1
    threads: int = 1
    rest: Mapping[str, str] = field(default_factory=dict)
    typed: bool = False

    @property
    def hinted(self) -> str:
        """What OpenVINO is told of the precision: what float32 may become."""
        return "f32" if self.typed else self.precision

    @property
    def virtual(self) -> str:
        """AUTO, HETERO, MULTI or BATCH; "" for hardware."""
        kind = self.device.partition(":")[0]
        return kind if kind in VIRTUAL else ""

    def told(self) -> dict[str, str]:
        """What a fingerprint says of it."""
        return {"precision": self.precision} | ({} if self.device == "CPU" else {"device": self.device})

    def settings(self, groups: str, key: str) -> dict[str, Any]:
        """The properties for `compile_model`; `groups` is the value of `key`, the group size of dynamic products.

        Raises EdgerunError for a property that none of the devices has.
        """
        rest = dict(self.rest)
        whole: dict[str, Any] = {name: rest.pop(name) for name in OF_CORE if name in rest}
        own, taken = {}, set[str]()
        for name in self.hardware:
            writable = {k for k, how in ir.core().get_property(name, "SUPPORTED_PROPERTIES").items() if how == "RW"}
            said = {PRECISION: self.hinted, THREADS: str(self.threads), HINT: self.hint, key: groups}
            said |= {} if self.streams is None else {STREAMS: str(self.streams)}
            said |= {PINNING: "NO"} if self.threads < machine.visible() else {}
            taken |= set(rest) & writable
            own[name] = {k: v for k, v in {**said, **rest}.items() if k in writable}
        if foreign := set(rest) - taken:
            name = min(foreign)
            raise EdgerunError(f"OpenVINO has no option {name}={rest[name]} for {self.device}", wanted=", ".join(TAKES))
        if not self.virtual or self.virtual == "BATCH":
            return whole | own[self.hardware[0]]
        return whole | ({HINT: self.hint} if self.virtual == "AUTO" else {}) | {"DEVICE_PROPERTIES": own}

    def check(self, compiled: Any) -> None:
        """Read back where it runs and in which precision. Raises Unsupported where that is another one."""
        ran = list(compiled.get_property("EXECUTION_DEVICES"))
        if not {name.strip("()") for name in ran} <= set(self.hardware) and not _same(ran, self.hardware):
            raise Unsupported("OpenVINO chose another device", got=ran, wanted=", ".join(self.hardware))
        if not self.virtual or self.virtual == "BATCH":
            found = {self.hardware[0]: compiled.get_property(PRECISION)}
        else:
            told = compiled.get_property("DEVICE_PROPERTIES")
            found = {name: properties.get(PRECISION) for name, properties in told.items()}
        for name, kind in found.items():
            got = kind.get_type_name() if kind is not None else "nothing that it tells"
            if got != self.hinted:
                raise Unsupported(
                    f"OpenVINO chose another precision on {name}", got=got, wanted=self.hinted,
                    do=f"say {PRECISION}={got}" if got in PRECISIONS else None,
                )  # fmt: skip


def choice(options: Options, own: str = "f32") -> Choice:
    """Read `Options`, for a model whose products are in the precision `own`, in which it runs unless another is asked
    for. Raises EdgerunError for a value that there is none of, and Unsupported, listing what there is, for a device
    that is not here or does not compute in that precision."""
    rest = dict(options.extra)
    typed = own != "f32" and PRECISION not in rest
    device, precision = rest.pop(DEVICE, "CPU"), rest.pop(PRECISION, own)
    hint, given = rest.pop(HINT, ""), rest.pop(STREAMS, "")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if hint and hint not in HINTS:
        raise unknown("performance hint", hint, HINTS)
    if given and not (given.isdigit() and int(given) and options.streams in (1, int(given))):
        told = f"{given}, with {options.streams} streams" if options.streams > 1 else given
        raise EdgerunError(f"{STREAMS} is a number of runs at once", got=told, wanted="1 or more, said once")
    for count in filter(str.isdigit, (given, rest.get(THREADS, ""))):
        machine.bounded(int(count), "threads")
    hardware = _hardware(device)
    if hint == CUMULATIVE and device.partition(":")[0] not in ("AUTO", "MULTI"):
        raise EdgerunError(f"{HINT}={CUMULATIVE} shares runs out among devices", got=device, wanted="AUTO: or MULTI:")
    for name in hardware if (device, precision) != ("CPU", "f32") else ():
        able = list(ir.core().get_property(name, "OPTIMIZATION_CAPABILITIES"))
        if PRECISIONS[precision] not in able:
            kinds = [ours for ours, theirs in PRECISIONS.items() if theirs in able]
            said = f"leave out {PRECISION}={precision}" if precision != own else None
            do = said or (f"say {PRECISION}={kinds[0]}" if kinds else None)
            raise Unsupported(f"{name} does not compute in {precision} here", got=", ".join(kinds), do=do)
    left = hint not in ("", "LATENCY") and not given and options.streams == 1
    streams = None if left else int(given or options.streams)
    hint = hint or ("LATENCY" if streams == 1 else "THROUGHPUT")
    return Choice(device, hardware, precision, hint, streams, machine.threads(options.threads), rest, typed)


def _hardware(device: str) -> tuple[str, ...]:
    """The hardware that a device string names (AUTO alone: all that is here), each looked for."""
    kind, _, listed = device.partition(":")
    names = (listed if kind in VIRTUAL else device).split(",")
    if kind in VIRTUAL and not listed:
        if kind != "AUTO":
            raise EdgerunError(f"{kind} needs the devices", got=device, wanted=f"{kind}:NAME,NAME")
        return tuple(ir.core().available_devices)
    if kind not in VIRTUAL and len(names) > 1:
        raise EdgerunError("several devices are chosen among by name", got=device, wanted=f"AUTO:{device}, or HETERO:")
    found = tuple(name.partition("(")[0] for name in names)
    for name in found:
        base = name.partition(".")[0]
        if base not in HARDWARE:
            raise unknown("device of OpenVINO", name, (*HARDWARE, *VIRTUAL))
        if name != "CPU" and not _same([name], here := ir.core().available_devices):
            do = f"install Intel's driver of the {base}; or leave {DEVICE} out, and the CPU runs it"
            raise Unsupported(f"OpenVINO has no {name} here", got=f"there are: {', '.join(here)}", do=do)
    return found


def _same(names: list[str], here: tuple[str, ...] | list[str]) -> bool:
    """Whether every name is there: GPU where there is a GPU.0, GPU.0 where there is a single GPU."""
    known = {*here, *(name.partition(".")[0] for name in here)}
    return all(name in known or (name.endswith(".0") and name[:-2] in here) for name in names)
