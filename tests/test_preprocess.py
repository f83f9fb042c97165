"""The preprocessing contract against closed forms."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.errors import EdgerunError
from edgerun.preprocess import Preprocessing

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_arithmetic_and_order_of_channels() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    contract = Preprocessing(size=(4, 6), scale=1 / 255, mean=mean, std=std)
    got = contract.apply(IMAGE)
    assert got.shape == contract.shape == (3, 4, 6) and got.dtype == np.float32
    for channel in range(3):
        want = (IMAGE[:, :, channel] / 255 - mean[channel]) / std[channel]
        assert got[channel] == pytest.approx(want, abs=1e-6)


def test_bgr_nhwc_keeps_raw_bytes_reversed() -> None:
    contract = Preprocessing(size=(4, 6), colour="BGR", layout="NHWC", dtype="uint8")
    assert np.array_equal(contract.apply(IMAGE), IMAGE[:, :, ::-1])


def test_grey_is_the_itu_601_luma() -> None:
    contract = Preprocessing(size=(4, 6), colour="L", layout="NHWC")
    assert contract.shape == (4, 6, 1)
    assert contract.apply(IMAGE)[:, :, 0] == pytest.approx(IMAGE @ np.array([0.299, 0.587, 0.114]), abs=1)


def test_integers_are_rounded_and_clipped() -> None:
    contract = Preprocessing(size=(1, 3), scale=0.5, mean=(10.0,), layout="NHWC", dtype="int8")
    image = np.array([[[0, 1, 2], [25, 27, 255], [255, 255, 20]]], np.uint8)
    assert contract.apply(image).tolist() == [[[-10, -10, -9], [2, 4, 118], [118, 118, 0]]]


def test_crop_takes_the_middle() -> None:
    contract = Preprocessing(size=(4, 6), crop=(2, 2), layout="NHWC", dtype="uint8")
    assert np.array_equal(contract.apply(IMAGE), IMAGE[1:3, 2:4])


def test_letterbox_keeps_the_aspect_and_fills() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    got = Preprocessing(size=(8, 8), resize="letterbox", fill=114, layout="NHWC", dtype="uint8").apply(white)
    assert (got[2:6] == 255).all() and (got[:2] == 114).all() and (got[6:] == 114).all()


def test_shortest_covers_and_cuts_the_sides() -> None:
    image = np.zeros((12, 48, 3), np.uint8)
    image[:, 18:30] = 255  # the middle square of the picture
    got = Preprocessing(size=(6, 6), resize="shortest", interpolation="nearest", layout="NHWC", dtype="uint8").apply(
        image
    )
    assert got.shape == (6, 6, 3) and (got == 255).all()


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["stretch", "shortest", "letterbox"]),
)
def test_every_picture_gets_the_promised_shape(height: int, width: int, size: tuple[int, int], resize: str) -> None:
    contract = Preprocessing(size=size, resize=resize)
    sample = contract.apply(np.full((height, width, 3), 7, np.uint8))
    assert sample.shape == contract.shape == (3, *size)
    if resize != "letterbox":
        assert (sample == 7).all()


def test_json_and_back() -> None:
    contract = Preprocessing(size=(256, 256), resize="shortest", crop=(224, 224), mean=(0.5, 0.4, 0.3), std=(2.0,))
    assert Preprocessing.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no size"),
        ({"size": [8, 8], "sise": 1}, r"unknown key 'sise'[\s\S]*size, resize"),
        ({"size": 8}, "not understood"),
        ({"size": [8, 0]}, "'size'"),
        ({"size": [8, 8.5]}, "'size'"),
        ({"size": [8, 8], "crop": [9, 8]}, r"'crop'[\s\S]*at most"),
        ({"size": [8, 8], "resize": "squash"}, r"'resize'[\s\S]*stretch"),
        ({"size": [8, 8], "colour": "CMYK"}, "'colour'"),
        ({"size": [8, 8], "std": [0]}, r"'std'[\s\S]*other than 0"),
        ({"size": [8, 8], "mean": [1, 2]}, r"'mean'[\s\S]*1 or 3"),
        ({"size": [8, 8], "scale": "big"}, "'scale'"),
        ({"size": [8, 8], "fill": 300}, "'fill'"),
    ],
)
def test_wrong_contracts_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        Preprocessing.from_json(values)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_only_rgb_bytes_are_pictures(image: np.ndarray) -> None:
    with pytest.raises(EdgerunError, match="not an RGB picture"):
        Preprocessing(size=(2, 2)).apply(image)
