"""The preprocessing contract: what happens to a picture before the model sees it, the same from training to device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError

_CHOICES = {
    "resize": ("stretch", "shortest", "letterbox"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "colour": ("RGB", "BGR", "L"),
    "layout": ("NCHW", "NHWC"),
    "dtype": ("float32", "float16", "float64", "uint8", "int8"),
}


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB picture to one sample: resize, crop, colour, (x·scale - mean) / std, layout, dtype; in this order.

    `size` (height, width) in pixels. `resize`: "stretch" gives exactly `size`; "shortest" keeps the aspect and covers
    `size`; "letterbox" keeps the aspect, fits inside `size` and fills the rest with `fill` (0..255).
    `crop` (height, width) is cut from the middle afterwards; "shortest" without it cuts to `size`.
    `mean` and `std` hold one number, or one per channel in the order of `colour`, in units of x·scale.
    Integer dtypes are rounded to nearest even and clipped. Orientation tags of the file are not followed.
    """

    size: tuple[int, int]
    resize: str = "stretch"
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    fill: int = 0
    colour: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(known)}")
        for name in ("size", "crop"):
            pair = getattr(self, name)
            if not (name == "crop" and pair is None) and not (
                len(pair) == 2 and all(type(v) is int and v > 0 for v in pair)
            ):
                raise _wrong(name, pair, "[height, width] in pixels")
        if self.crop is not None and (self.crop[0] > self.size[0] or self.crop[1] > self.size[1]):
            raise _wrong("crop", list(self.crop), f"at most the size {list(self.size)}")
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise _wrong("fill", self.fill, "an integer 0..255")
        for name in ("scale", "mean", "std"):
            self._check_numbers(name)

    def _check_numbers(self, name: str) -> None:
        value = getattr(self, name)
        numbers = (value,) if name == "scale" else value
        channels = 1 if self.colour == "L" else 3
        if not all(isinstance(n, (int, float)) and np.isfinite(n) for n in numbers) or len(numbers) not in (
            1,
            channels,
        ):
            raise _wrong(name, value, "one finite number" if name == "scale" else f"1 or {channels} finite numbers")
        if name != "mean" and 0 in numbers:
            raise _wrong(name, value, "numbers other than 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample, in `layout` and without the batch axis."""
        (height, width), channels = self.crop or self.size, 1 if self.colour == "L" else 3
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)

    def to_json(self) -> dict[str, Any]:
        """The contract as JSON values, as `Model.preprocessing` holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read JSON values. Raises EdgerunError for an unknown key, a missing size or a value out of range."""
        known = [field.name for field in fields(cls)]
        if surplus := sorted(set(values) - set(known)):
            raise EdgerunError(f"unknown key {surplus[0]!r} in the preprocessing contract", wanted=", ".join(known))
        if "size" not in values:
            raise EdgerunError(
                "the preprocessing contract has no size", got=sorted(values), wanted="size: [height, width]"
            )
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise EdgerunError("the preprocessing contract is not understood", got=dict(values)) from error

    def apply(self, image: np.ndarray) -> np.ndarray:
        """`image` uint8 [height, width, 3] in RGB -> one sample of `shape` and `dtype`, contiguous.

        Resizing is Pillow's (antialiased when it shrinks).
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise EdgerunError(
                "not an RGB picture", got=f"{image.dtype}{list(image.shape)}", wanted="uint8[height,width,3]"
            )
        pixels = self._colour(self._middle(self._resize(image))).astype(np.float64) * self.scale
        pixels = (pixels - np.asarray(self.mean)) / np.asarray(self.std)
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            pixels = np.rint(pixels).clip(limits.min, limits.max)
        return np.ascontiguousarray(pixels.astype(dtype))

    def _resize(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        (height, width), (want_height, want_width) = image.shape[:2], self.size
        if self.resize != "stretch":
            # Cross products compare height/want_height with width/want_width without rounding.
            height_limits = height * want_width < width * want_height
            if height_limits == (self.resize == "shortest"):
                want_width = max(1, width * want_height // height)
            else:
                want_height = max(1, height * want_width // width)
        if (height, width) != (want_height, want_width):
            method = Image.Resampling[self.interpolation.upper()]
            image = np.asarray(Image.fromarray(image).resize((want_width, want_height), method))
        if self.resize == "letterbox":
            framed = np.full((*self.size, 3), self.fill, np.uint8)
            top, left = (self.size[0] - want_height) // 2, (self.size[1] - want_width) // 2
            framed[top : top + want_height, left : left + want_width] = image
            return framed
        return image

    def _middle(self, image: np.ndarray) -> np.ndarray:
        height, width = self.crop or self.size
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        return image[top : top + height, left : left + width]

    def _colour(self, image: np.ndarray) -> np.ndarray:
        if self.colour == "BGR":
            return image[:, :, ::-1]
        if self.colour == "L":
            from PIL import Image

            return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]
        return image


def _wrong(name: str, got: object, wanted: str) -> EdgerunError:
    return EdgerunError(f"{name!r} of the preprocessing contract is wrong", got=got, wanted=wanted)
