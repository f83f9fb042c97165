"""The preprocessing contract: what happens to a picture before the model sees it, the same from training to device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime.spec import TensorSpec

LONGEST = 1 << 15  # pixels of a side
_CHOICES = {
    "resize": ("stretch", "shortest", "letterbox"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    "centre": ("round", "floor"),
    "colour": ("RGB", "BGR", "L"),
    "layout": ("NCHW", "NHWC"),
    "dtype": ("float32", "float16", "float64", "uint8", "int8"),
}


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB picture to one sample: resize, crop, colour, (x·scale - mean) / std, layout, dtype; in this order.

    `size` (height, width) in pixels. `resize`: "stretch" gives exactly `size`; "shortest" keeps the aspect, covers
    `size` and rounds its free side down; "letterbox" keeps the aspect, fits inside `size`, rounds to nearest and fills
    the rest with `fill` (0..255). `antialias` off is for "bilinear" alone: the two nearest pixels on each axis whatever
    the scale (OpenCV's INTER_LINEAR, torch's interpolate). `crop` (height, width) is cut from the middle afterwards;
    "shortest" without it cuts to `size`. Where a margin is odd, `centre` says who gets the half pixel: "round" goes to
    the nearest even (torchvision), "floor" to the upper left (Transformers).
    `mean` and `std` hold one number, or one per channel in the order of `colour`, in units of x·scale.
    Integer dtypes are rounded to nearest even and clipped. Orientation tags of the file are not followed.
    """

    size: tuple[int, int]
    resize: str = "stretch"
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    centre: str = "round"
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
                len(pair) == 2 and all(type(v) is int and 0 < v <= LONGEST for v in pair)
            ):
                raise _wrong(name, pair, f"[height, width] in pixels, at most {LONGEST}")
        if self.crop is not None and (self.crop[0] > self.size[0] or self.crop[1] > self.size[1]):
            raise _wrong("crop", list(self.crop), f"at most the size {list(self.size)}")
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise _wrong("fill", self.fill, "an integer 0..255")
        if type(self.antialias) is not bool or not (self.antialias or self.interpolation == "bilinear"):
            raise _wrong("antialias", self.antialias, "true, or false with bilinear")
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

    def placement(self, height: int, width: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """(scale, offset), each (y, x): where a point of a picture comes to lie in the sample, scale·p + offset, in
        pixels from the upper left corners."""
        scaled, want = self._resized_size(height, width), self.crop or self.size
        framed = self.size if self.resize == "letterbox" else scaled
        top, left = ((f - s) // 2 - self._margin(f, w) for f, s, w in zip(framed, scaled, want, strict=True))
        return (scaled[0] / height, scaled[1] / width), (top, left)

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(g, t), float64 `[C]` in the order of `colour`: (x·scale - mean) / std = g·x + t."""
        channels, std = 1 if self.colour == "L" else 3, np.asarray(self.std, np.float64)
        gain, shift = self.scale / std, -np.asarray(self.mean, np.float64) / std
        return np.broadcast_to(gain, (channels,)), np.broadcast_to(shift, (channels,))

    @property
    def host(self) -> Preprocessing:
        """What is left for the host when a model takes bytes and does the arithmetic itself: the picture, sized."""
        colour = "L" if self.colour == "L" else "RGB"
        return replace(self, colour=colour, scale=1.0, mean=(0.0,), std=(1.0,), layout="NHWC", dtype="uint8")

    def fitted(self, inputs: Sequence[TensorSpec]) -> Preprocessing:
        """The same contract in the float type of the model's one input. Raises EdgerunError where it does not fit."""
        if len(inputs) != 1:
            got = ", ".join(map(str, inputs)) or "none"
            raise EdgerunError("a preprocessing contract is for one input of pictures", got=got)
        given, (spec,) = self, inputs
        if np.dtype(self.dtype).kind == "f" and spec.dtype in _CHOICES["dtype"] and np.dtype(spec.dtype).kind == "f":
            given = replace(self, dtype=spec.dtype)
        sizes = spec.shape[1:]
        fits = len(sizes) == 3 and all(isinstance(a, str) or a == b for a, b in zip(sizes, self.shape, strict=True))
        if given.dtype != spec.dtype or not fits:
            got = f"{given.dtype}{list(self.shape)} a sample, in {self.layout}"
            do = "check size, crop, colour, layout and dtype of the contract"
            raise EdgerunError("the preprocessing contract does not fit the model's input", got=got,
                               wanted=str(spec), do=do)  # fmt: skip
        return given

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
        return self.arithmetic(self._grey(self._middle(self._resize(image))))

    def arithmetic(self, pixels: np.ndarray) -> np.ndarray:
        """What follows the geometry: bytes [..., height, width, channels] in RGB, or one grey channel -> numbers in
        `colour`'s order, `layout` and `dtype`, contiguous."""
        if self.colour == "BGR":
            pixels = pixels[..., ::-1]
        numbers = (pixels.astype(np.float64) * self.scale - np.asarray(self.mean)) / np.asarray(self.std)
        if self.layout == "NCHW":
            numbers = np.moveaxis(numbers, -1, -3)
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            numbers = np.rint(numbers).clip(limits.min, limits.max)
        return np.ascontiguousarray(numbers.astype(dtype))

    def _resize(self, image: np.ndarray) -> np.ndarray:
        height, width = self._resized_size(*image.shape[:2])
        if image.shape[:2] != (height, width):
            image = self._resampled(image, height, width)
        if self.resize != "letterbox":
            return image
        framed = np.full((*self.size, 3), self.fill, np.uint8)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        framed[top : top + height, left : left + width] = image
        return framed

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        (want_height, want_width), resize = self.size, self.resize
        if resize == "letterbox":
            ratio = min(want_height / height, want_width / width)
            return max(1, round(height * ratio)), max(1, round(width * ratio))
        # Cross products compare height/want_height with width/want_width without rounding.
        if resize == "shortest" and height * want_width < width * want_height:
            return want_height, width * want_height // height
        if resize == "shortest":
            return height * want_width // width, want_width
        return self.size

    def _resampled(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if not self.antialias:
            return _linear(_linear(image.astype(np.float64), height, 0), width, 1).round().astype(np.uint8)
        Image = _pillow()
        method = Image.Resampling[self.interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize((width, height), method))

    def _middle(self, image: np.ndarray) -> np.ndarray:
        height, width = self.crop or self.size
        top, left = self._margin(image.shape[0], height), self._margin(image.shape[1], width)
        return image[top : top + height, left : left + width]

    def _margin(self, size: int, cut: int) -> int:
        """Pixels that go before a cut from the middle."""
        return (round if self.centre == "round" else math.floor)((size - cut) / 2)

    def _grey(self, image: np.ndarray) -> np.ndarray:
        if self.colour != "L":
            return image
        Image = _pillow()
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]


def _pillow() -> Any:
    """PIL.Image; letterboxes without antialias, in colour, do without it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Unsupported("pictures are resized by Pillow", got=str(error), do="pip install pillow") from error
    return Image


def _linear(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    # Values [..., n, ...] at the centres of `size` pixels, between the centres of n: x = (i + ½)·n/size - ½, kept
    # inside the picture; v(x) = v_k + (x - k)·(v_{k+1} - v_k).
    last = image.shape[axis] - 1
    place = np.clip((np.arange(size) + 0.5) * (last + 1) / size - 0.5, 0, last)
    low = np.floor(place).astype(int)
    share = (place - low).reshape(-1, *[1] * (image.ndim - axis - 1))
    first, second = image.take(low, axis), image.take(np.minimum(low + 1, last), axis)
    mixed: np.ndarray = first + share * (second - first)
    return mixed


def _wrong(name: str, got: object, wanted: str) -> EdgerunError:
    return EdgerunError(f"{name!r} of the preprocessing contract is wrong", got=got, wanted=wanted)


def not_understood(key: str, got: object, wanted: str) -> EdgerunError:
    """The error for a value in a preprocessing file, of any tool's."""
    return EdgerunError(
        f"{key!r} of the preprocessing file is not understood", got=got, wanted=wanted,
        do="write the contract by hand: size, resize, crop, interpolation, colour, scale, mean, std, layout, dtype",
    )  # fmt: skip
