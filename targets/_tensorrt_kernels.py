"""What TensorRT says of an engine's kernels: one line each, from the builder's log or the engine inspector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgerun.passes import NodeTime

_TENSORS = r"\[\]|\[ \{.*?\}\]"
_LINE = re.compile(
    rf"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>{_TENSORS})"
    rf"(?:, Constants: (?:{_TENSORS}))?, Outputs: (?P<outputs>{_TENSORS})(?P<rest>.*)"
)
_DTYPE, _TENSOR, _NODE = (
    re.compile(r"Datatype: (\w+)"),
    re.compile(r"Name: ([^,]+),"),
    re.compile(r"ONNX Layer: ([^\]]+)\]"),
)
MULTIPLIES = frozenset({"correlation", "convolution", "deconv", "gemm", "fully_connected", "CaskConvolution",
                        "CaskGemmConvolution", "CaskDeconvolutionV2", "MatrixMultiply"})  # fmt: skip
EIGHT_BITS = frozenset({"Int8", "UInt8", "FP8"})


@dataclass(frozen=True)
class Kernel:
    """One kernel: its kind in TensorRT's words, dtypes and names of what it reads and writes, the nodes it covers."""

    name: str
    kind: str
    reads: tuple[str, ...]
    read_dtypes: tuple[str, ...]
    writes: tuple[str, ...]
    write_dtypes: tuple[str, ...]
    covers: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a matrix product."""
        return self.kind in MULTIPLIES

    @property
    def integer(self) -> bool:
        """Whether all that it reads from other kernels has 8 bits."""
        return bool(self.read_dtypes) and set(self.read_dtypes) <= EIGHT_BITS


def read(text: str) -> list[Kernel]:
    """The kernels that `text` lists, in their order. Lines that are no kernel's are passed over."""
    found = []
    for line in text.splitlines():
        if match := _LINE.match(line.strip()):
            reads, writes = match["inputs"], match["outputs"]
            found.append(
                Kernel(
                    match["name"], match["kind"],
                    tuple(_TENSOR.findall(reads)), tuple(_DTYPE.findall(reads)),
                    tuple(_TENSOR.findall(writes)), tuple(_DTYPE.findall(writes)),
                    tuple(dict.fromkeys(_NODE.findall(match["rest"]))),
                )
            )  # fmt: skip
    return found


def timed(kernels: Sequence[Kernel], seconds: Mapping[str, float]) -> list[NodeTime]:
    """Kernels with their typical times, slowest first; one that nobody timed took none."""
    wrote = {name: order for order, kernel in enumerate(kernels) for name in kernel.writes}
    found = [
        NodeTime(
            kernel.name, kernel.kind, seconds.get(kernel.name, 0.0), ", ".join(dict.fromkeys(kernel.read_dtypes)),
            integer=kernel.integer, order=order, covers=kernel.covers,
            reads=tuple(sorted({wrote[name] for name in kernel.reads if name in wrote})),
        )
        for order, kernel in enumerate(kernels)
    ]  # fmt: skip
    return sorted(found, key=lambda kernel: -kernel.seconds)
