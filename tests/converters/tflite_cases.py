"""Functions of TensorFlow, by the TFLite operator that they become: what the tests of the converter convert.

Each is (shape of the input, function of tf and x). Weights are drawn once, from N(0, 0.3²).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PICTURE, ROW, SEQUENCE = (None, 8, 10, 4), (None, 6), (None, 12, 4)
Case = tuple[tuple[int | None, ...], Callable[[Any, Any], Any]]


def weight(*shape: int) -> np.ndarray:
    """Weights of that shape, the same at every call."""
    return np.random.default_rng(sum(shape)).normal(0, 0.3, shape).astype(np.float32)


def _conv(tf: Any, x: Any, channels: int = 4, size: int = 1, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.conv2d(x, weight(size, size, x.shape[-1], channels), stride, padding) + weight(channels)


def _deconv(tf: Any, x: Any, size: int, height: int, width: int, padding: str) -> Any:
    shape = [tf.shape(x)[0], height, width, 5]
    return tf.nn.conv2d_transpose(x, weight(size, size, 5, 4), shape, 2, padding) + weight(5)


def _padded(tf: Any, x: Any) -> Any:
    return tf.nn.relu(_conv(tf, tf.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]]), 6, 3, 2, "VALID"))


def _row(tf: Any, x: Any, stride: int) -> Any:
    return tf.nn.conv1d(x, weight(3, x.shape[-1], 5), stride, "SAME")


def _gate(tf: Any, x: Any) -> Any:
    return x * tf.sigmoid(_conv(tf, tf.reduce_mean(x, [1, 2], keepdims=True)))


# Windows, and what wants channels first.
WINDOWS: dict[str, Case] = {
    "CONV_2D": (PICTURE, lambda tf, x: tf.nn.relu6(_conv(tf, x, 6, 3, 2))),
    "CONV_2D-padded": (PICTURE, _padded),
    "CONV_2D-dilated": (PICTURE, lambda tf, x: tf.nn.conv2d(x, weight(3, 3, 4, 6), 1, "SAME", dilations=2)),
    "CONV_2D-grouped": (PICTURE, lambda tf, x: tf.nn.conv2d(x, weight(3, 3, 2, 6), 1, "SAME")),
    "CONV_2D-of-rows": (SEQUENCE, lambda tf, x: _row(tf, _row(tf, x, 1), 2)),
    "DEPTHWISE_CONV_2D": (
        PICTURE, lambda tf, x: tf.nn.relu(tf.nn.depthwise_conv2d(x, weight(3, 3, 4, 2), [1] * 4, "SAME")),
    ),
    "TRANSPOSE_CONV": (PICTURE, lambda tf, x: _deconv(tf, x, 3, 16, 20, "SAME")),
    "TRANSPOSE_CONV-valid": (PICTURE, lambda tf, x: _deconv(tf, x, 4, 18, 22, "VALID")),
    "MAX_POOL_2D": (PICTURE, lambda tf, x: tf.nn.max_pool2d(tf.nn.relu(x), 3, 2, "SAME")),
    "AVERAGE_POOL_2D": (PICTURE, lambda tf, x: tf.nn.avg_pool2d(x, 3, 2, "SAME")),
    "AVERAGE_POOL_2D-whole": (PICTURE, lambda tf, x: tf.nn.avg_pool2d(x, [8, 10], 1, "VALID")),
    "RESIZE_BILINEAR-half": (PICTURE, lambda tf, x: tf.image.resize(x, [13, 17])),
    "RESIZE_BILINEAR-corners": (
        PICTURE, lambda tf, x: tf.compat.v1.image.resize_bilinear(x, [16, 20], align_corners=True),
    ),
    "RESIZE_BILINEAR-smaller": (PICTURE, lambda tf, x: tf.compat.v1.image.resize_bilinear(x, [5, 7])),
    "RESIZE_NEAREST_NEIGHBOR-half": (PICTURE, lambda tf, x: tf.image.resize(x, [13, 17], "nearest")),
    "RESIZE_NEAREST_NEIGHBOR-corners": (
        PICTURE, lambda tf, x: tf.compat.v1.image.resize_nearest_neighbor(x, [16, 20], align_corners=True),
    ),
    "RESIZE_NEAREST_NEIGHBOR": (PICTURE, lambda tf, x: tf.compat.v1.image.resize_nearest_neighbor(x, [16, 20])),
    "DEPTH_TO_SPACE": (PICTURE, lambda tf, x: tf.nn.depth_to_space(x, 2)),
    "SPACE_TO_DEPTH": (PICTURE, lambda tf, x: tf.nn.space_to_depth(x, 2)),
    "LOCAL_RESPONSE_NORMALIZATION": (PICTURE, lambda tf, x: tf.nn.local_response_normalization(x, 2, 1.0, 0.1, 0.7)),
}  # fmt: skip

# Element by element.
ELEMENTS: dict[str, Case] = {
    "ADD": (PICTURE, lambda tf, x: x + _conv(tf, x)),
    "ADD-constant": (PICTURE, lambda tf, x: _conv(tf, x) * weight(4) + weight(8, 10, 4)),
    "ADD_N": (PICTURE, lambda tf, x: tf.add_n([x, x * 2.0, x * 3.0])),
    "SUB": (PICTURE, lambda tf, x: x - _conv(tf, x)),
    "MUL": (PICTURE, lambda tf, x: x * _conv(tf, x)),
    "MUL-gate": (PICTURE, _gate),
    "DIV": (PICTURE, lambda tf, x: x / (tf.abs(x) + 1.5)),
    "MAXIMUM": (PICTURE, lambda tf, x: tf.maximum(x, _conv(tf, x))),
    "MINIMUM": (PICTURE, lambda tf, x: tf.minimum(x, 0.3)),
    "POW": (PICTURE, lambda tf, x: tf.pow(tf.abs(x) + 0.1, 1.7)),
    "SQUARED_DIFFERENCE": (PICTURE, lambda tf, x: tf.math.squared_difference(x, weight(4))),
    "FLOOR_DIV": (PICTURE, lambda tf, x: tf.math.floordiv(x, 0.7)),
    "FLOOR_MOD": (PICTURE, lambda tf, x: tf.math.floormod(x, 0.7)),
    "SELECT_V2": (PICTURE, lambda tf, x: tf.where(x > 0.2, x, -x * 0.5)),
    "LOGICAL_AND": (PICTURE, lambda tf, x: tf.cast(tf.logical_and(x >= 0.2, tf.logical_not(x < 0.5)), tf.float32)),
    "NOT_EQUAL": (PICTURE, lambda tf, x: tf.cast(tf.not_equal(tf.floor(x), 0.0), tf.float32)),
    "LOGISTIC": (PICTURE, lambda tf, x: tf.sigmoid(x)),
    "TANH": (PICTURE, lambda tf, x: tf.tanh(x)),
    "RELU": (PICTURE, lambda tf, x: tf.nn.relu(x)),
    "RELU6": (PICTURE, lambda tf, x: tf.nn.relu6(x * 4.0)),
    "RELU_N1_TO_1": (PICTURE, lambda tf, x: tf.maximum(-1.0, tf.minimum(x, 1.0))),
    "HARD_SWISH": (PICTURE, lambda tf, x: x * tf.nn.relu6(x + 3.0) * (1 / 6)),
    "LEAKY_RELU": (PICTURE, lambda tf, x: tf.nn.leaky_relu(x, 0.1)),
    "ELU": (PICTURE, lambda tf, x: tf.nn.elu(x)),
    "GELU": (PICTURE, lambda tf, x: tf.nn.gelu(x)),
    "GELU-tanh": (PICTURE, lambda tf, x: tf.nn.gelu(x, approximate=True)),
    "PRELU": (PICTURE, lambda tf, x: tf.nn.relu(x) + weight(1, 1, 4) * -tf.nn.relu(-x)),
    "ABS": (PICTURE, lambda tf, x: tf.abs(x) * tf.zeros_like(x)),
    "EXP": (PICTURE, lambda tf, x: tf.exp(x)),
    "LOG": (PICTURE, lambda tf, x: tf.math.log(tf.abs(x) + 0.1)),
    "SQRT": (PICTURE, lambda tf, x: tf.sqrt(tf.abs(x))),
    "RSQRT": (PICTURE, lambda tf, x: tf.math.rsqrt(tf.abs(x) + 0.1)),
    "NEG": (PICTURE, lambda tf, x: -x),
    "SIN": (PICTURE, lambda tf, x: tf.sin(x) + tf.cos(x)),
    "ROUND": (PICTURE, lambda tf, x: tf.round(x) + tf.math.ceil(x)),
    "SIGN": (PICTURE, lambda tf, x: tf.sign(x) * tf.square(x)),
    "CAST": (PICTURE, lambda tf, x: tf.cast(tf.cast(x * 9.0, tf.int32), tf.float32)),
}  # fmt: skip

# What sums up, moves, takes apart and puts together.
SHAPES: dict[str, Case] = {
    "FULLY_CONNECTED": (ROW, lambda tf, x: tf.nn.relu(x @ weight(6, 5) + weight(5))),
    "FULLY_CONNECTED-picture": (PICTURE, lambda tf, x: tf.reshape(_conv(tf, x, 6, 3, 2), [-1, 120]) @ weight(120, 7)),
    "FULLY_CONNECTED-rows": (SEQUENCE, lambda tf, x: tf.matmul(x, weight(4, 3)) + weight(3)),
    "BATCH_MATMUL": (SEQUENCE, lambda tf, x: tf.matmul(x, x, transpose_b=True)),
    "MEAN": (PICTURE, lambda tf, x: tf.reduce_mean(_conv(tf, x), [1, 2])),
    "MEAN-kept": (PICTURE, lambda tf, x: tf.reduce_mean(_conv(tf, x), [1, 2], keepdims=True)),
    "MEAN-channels": (PICTURE, lambda tf, x: tf.reduce_mean(_conv(tf, x), 3)),
    "SUM": (PICTURE, lambda tf, x: tf.reduce_sum(_conv(tf, x), [1])),
    "REDUCE_MAX": (PICTURE, lambda tf, x: tf.reduce_max(x, [1, 2])),
    "REDUCE_MIN": (PICTURE, lambda tf, x: tf.reduce_min(_conv(tf, x), [3], keepdims=True)),
    "REDUCE_ANY": (PICTURE, lambda tf, x: tf.cast(tf.reduce_any(x > 1.5, 3), tf.float32)),
    "REDUCE_ALL": (PICTURE, lambda tf, x: tf.cast(tf.reduce_all(x <= 1.5, 3), tf.float32)),
    "REDUCE_PROD": (ROW, lambda tf, x: tf.reduce_prod(x, [1])),
    "SOFTMAX": (PICTURE, lambda tf, x: tf.nn.softmax(_conv(tf, x))),
    "LOG_SOFTMAX": (ROW, lambda tf, x: tf.nn.log_softmax(x)),
    "L2_NORMALIZATION": (PICTURE, lambda tf, x: tf.nn.l2_normalize(x, 3)),
    "ARG_MAX": (PICTURE, lambda tf, x: tf.argmax(_conv(tf, x), 3)),
    "ARG_MIN": (ROW, lambda tf, x: tf.argmin(x, 1, tf.int32)),
    "TOPK_V2": (ROW, lambda tf, x: tf.math.top_k(x, 3)),
    "CUMSUM": (PICTURE, lambda tf, x: tf.cumsum(x, 1)),
    "RESHAPE": (PICTURE, lambda tf, x: tf.reshape(_conv(tf, x), [-1, 80, 4])),
    "RESHAPE-mixed": (PICTURE, lambda tf, x: tf.reshape(_conv(tf, x, 6), [-1, 160, 3])),
    "TRANSPOSE": (PICTURE, lambda tf, x: tf.transpose(_conv(tf, x), [0, 3, 1, 2])),
    "SQUEEZE": (PICTURE, lambda tf, x: tf.squeeze(_conv(tf, x)[:, :1], [1])),
    "EXPAND_DIMS": (PICTURE, lambda tf, x: tf.expand_dims(x, 2)),
    "PACK": (PICTURE, lambda tf, x: tf.stack([x, x * 2.0], 2)),
    "UNPACK": (PICTURE, lambda tf, x: tf.unstack(x, axis=3)[1] + tf.unstack(x, axis=3)[0]),
    "CONCATENATION": (PICTURE, lambda tf, x: tf.concat([x, _conv(tf, x)], 3)),
    "CONCATENATION-rows": (PICTURE, lambda tf, x: tf.concat([x, x * 2.0], 1)),
    "SPLIT": (PICTURE, lambda tf, x: tf.split(_conv(tf, x), 2, 3)[1] + tf.split(_conv(tf, x), 2, 3)[0]),
    "SPLIT_V": (PICTURE, lambda tf, x: tf.split(x, [1, 3], 3)[1]),
    "SLICE": (PICTURE, lambda tf, x: tf.slice(_conv(tf, x), [0, 1, 2, 1], [-1, 3, 4, 2])),
    "STRIDED_SLICE": (PICTURE, lambda tf, x: _conv(tf, x)[:, 1:7:2, ::-1, 1]),
    "STRIDED_SLICE-new": (PICTURE, lambda tf, x: x[:, ..., None, 1:3]),
    "GATHER": (PICTURE, lambda tf, x: tf.gather(_conv(tf, x), [3, 1, 1], axis=3)),
    "GATHER-one": (PICTURE, lambda tf, x: tf.gather(x, 2, axis=1)),
    "GATHER_ND": (PICTURE, lambda tf, x: tf.gather_nd(x, [[[0, 1], [0, 2]]])),
    "PAD": (PICTURE, lambda tf, x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [2, 1]])),
    "PADV2": (PICTURE, lambda tf, x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=0.5)),
    "MIRROR_PAD": (PICTURE, lambda tf, x: tf.pad(x, [[0, 0], [1, 2], [2, 1], [0, 0]], "REFLECT")),
    "MIRROR_PAD-edge": (PICTURE, lambda tf, x: tf.pad(x, [[0, 0], [1, 1], [1, 0], [0, 0]], "SYMMETRIC")),
    "TILE": (PICTURE, lambda tf, x: tf.tile(x, [1, 2, 1, 3])),
    "BROADCAST_TO": (PICTURE, lambda tf, x: tf.broadcast_to(tf.reduce_mean(x, [1], keepdims=True), tf.shape(x))),
    "REVERSE_V2": (PICTURE, lambda tf, x: tf.reverse(_conv(tf, x), [1])),
    "FILL": (ROW, lambda tf, x: x + tf.fill(tf.shape(x), 2.0)),
    "RANGE": (ROW, lambda tf, x: x + tf.cast(tf.range(tf.shape(x)[1]), tf.float32)),
    "ONE_HOT": (ROW, lambda tf, x: tf.one_hot(tf.argmax(x, 1), 6) * 2.0),
    "BATCH_TO_SPACE_ND": (
        (2, 8, 10, 4),
        lambda tf, x: tf.batch_to_space(tf.space_to_batch(x, [2, 2], [[0, 0], [1, 1]]) * 2.0, [2, 2], [[0, 0], [1, 1]]),
    ),
}  # fmt: skip

CASES = WINDOWS | ELEMENTS | SHAPES
