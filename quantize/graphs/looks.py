"""What calibration pictures tell by themselves: whether their layout is the input's, and what numbers they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.quantize.numerics import plausibility
from edgerun.quantize.numerics.plausibility import FORMS

if TYPE_CHECKING:
    from edgerun.runtime import TensorSpec

SMOOTH, REORDERED = 0.9, 1.3  # roughness of pictures; how much rougher another layout makes them
# A layout is surely wrong where the median sample is so much rougher. As NHWC (True), of 342 right pictures from six
# calibration sets none reached 0.7, and the medians of wrong ones are 1.2 to 2.7; as NCHW, of 214 none reached 1.8, and
# wrong photos have 10 to 42.
ANOTHER = {True: 1.5, False: 3.0}
FARTHEST = 1024  # beyond four times 255: no form that pictures are fed in comes near


@dataclass(frozen=True)
class Picture:
    """The input of a model that takes pictures: 3 channels at `axis` of 4."""

    name: str
    axis: int

    @property
    def last(self) -> bool:
        """Whether the layout is NHWC."""
        return self.axis == 3


@dataclass
class Judgement:
    """`warnings`: what seems wrong with the preprocessing. `judged`: what could be told in this model, and by what."""

    warnings: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)


def picture_input(inputs: Sequence[TensorSpec]) -> Picture | None:
    """The only float input that holds pictures, or None. By shape: `[n, 3, h, w]` or `[n, h, w, 3]`, sides over 4."""
    found = []
    for spec in inputs:
        if len(spec.shape) == 4 and spec.dtype.startswith("float"):
            axes = [axis for axis in (1, 3) if spec.shape[axis] == 3]
            sides = [d for axis, d in enumerate(spec.shape) if axis and axis not in axes]
            if len(axes) == 1 and all(isinstance(d, str) or d > 4 for d in sides):
                found.append(Picture(spec.name, axes[0]))
    return found[0] if len(found) == 1 else None


def layout(pixels: np.ndarray, picture: Picture, judgement: Judgement) -> bool:
    """Neighbours in a picture are alike; in a buffer of the other layout they are colours, or rows apart."""
    ratios = []
    for sample in pixels:
        other = plausibility.roughness(plausibility.interleaved(sample[None], picture.last), picture.last)
        ratios.append(plausibility.roughness(sample[None], picture.last) / max(other, 1e-12))
    judgement.judged.append("layout by smoothness")
    if np.median(ratios) <= REORDERED:
        return True
    have, want = ("NCHW", "NHWC") if picture.last else ("NHWC", "NCHW")
    lie = f"input {picture.name!r}: the pictures lie in {have} order in an array of {want} shape"
    smooth = f"read so, they are {np.median(ratios):.1f} times as smooth"
    if np.median(ratios) > ANOTHER[picture.last]:
        shape, order = ("n, c, h, w", "0, 2, 3, 1") if picture.last else ("n, h, w, c", "0, 3, 1, 2")
        raise EdgerunError(
            lie, got=f"{smooth} (the median of {len(ratios)} calibration samples)",
            wanted=f"pixels in {want} order",
            do=f"transpose, do not reshape: array.reshape({shape}).transpose({order})",
        )  # fmt: skip
    judgement.warnings.append(f"{lie} ({smooth}): transpose, do not reshape")
    return False


def values(pixels: np.ndarray, picture: Picture, judgement: Judgement) -> None:
    """Numbers that no usual form has, and channels without a picture in them."""
    judgement.judged.append("extremes of the values")
    over = tuple(axis for axis in range(4) if axis != picture.axis)
    low, high = pixels.min(axis=over), pixels.max(axis=over)
    if (most := max(abs(float(low.min())), abs(float(high.max())))) > FARTHEST:
        forms = ", ".join(form.name for form in FORMS[:3])
        judgement.warnings.append(
            f"input {picture.name!r}: numbers reach {most:,.0f}, far out of every form that pictures are fed in "
            f"({forms}, less mean over std): only a model that was trained on such numbers takes them"
        )
    for channel in np.flatnonzero(low == high) if (low != high).any() else ():
        judgement.warnings.append(
            f"input {picture.name!r}: channel {channel} is {float(low[channel]):g} everywhere in the {len(pixels)} "
            "samples looked at: nothing is calibrated on it"
        )
