"""Keras in: layers against Keras itself, whole networks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("torch")

from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402
from tests.converters.conftest import ops  # noqa: E402

L = keras.layers
RELATIVE = 1e-5  # against Keras in float64


def _shake(model: Any) -> Any:
    """Give every weight, moving statistics and biases among them, a random value that differs from its neighbours."""
    rng = np.random.default_rng(7)
    for variable in model.weights:
        positive = "variance" in variable.path
        value = rng.uniform(0.5, 1.5, variable.shape) if positive else rng.normal(0, 0.3, variable.shape)
        variable.assign(value.astype("float32"))
    return model


def _converted(model: Any, reference: str = "float64", **options: Any) -> Model:
    """Convert; the parity check inside raises where Keras disagrees, and its figures are checked once more here."""
    found = convert(_shake(model), **options)
    parity = Parity.of(found)
    assert parity.reference == reference
    assert len(parity.shapes) == 3
    assert all(output.relative_error <= RELATIVE for output in parity.outputs)
    assert "Constant" not in ops(found) and "Identity" not in ops(found)
    names = [node.name for node in found.ir.graph]
    assert len(set(names)) == len(names) and all(names)
    return found


def _stack(shape: tuple[int | None, ...], *layers: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


PICTURE = (9, 8, 3)
SINGLE: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: _stack(PICTURE, L.Conv2D(5, 3, activation="relu")),
    "conv2d same stride 2": lambda: _stack(PICTURE, L.Conv2D(5, 3, strides=2, padding="same")),
    "conv2d same stride 3 even kernel": lambda: _stack(PICTURE, L.Conv2D(4, (4, 2), strides=3, padding="same")),
    "conv2d dilated": lambda: _stack(PICTURE, L.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False)),
    "conv2d groups": lambda: _stack((8, 8, 4), L.Conv2D(6, 3, groups=2)),
    "conv2d channels_first": lambda: _stack(
        (3, 9, 8), L.Conv2D(5, 3, data_format="channels_first"), L.Flatten(), L.Dense(3)
    ),
    "conv1d causal": lambda: _stack((12, 3), L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv1d": lambda: _stack((12, 3), L.Conv1D(4, 3, strides=2, padding="same")),
    "conv3d": lambda: _stack((5, 6, 7, 2), L.Conv3D(3, 2)),
    "depthwise": lambda: _stack(PICTURE, L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)),
    "separable": lambda: _stack(PICTURE, L.SeparableConv2D(6, 3, padding="same", activation="elu")),
    "separable 1d": lambda: _stack((12, 3), L.SeparableConv1D(6, 3)),
    "transposed valid": lambda: _stack(PICTURE, L.Conv2DTranspose(4, 3, strides=2)),
    "transposed same": lambda: _stack(PICTURE, L.Conv2DTranspose(4, 4, strides=2, padding="same")),
    "max pool": lambda: _stack(PICTURE, L.MaxPooling2D(2)),
    "max pool same": lambda: _stack(PICTURE, L.MaxPooling2D(3, strides=2, padding="same")),
    "average pool same": lambda: _stack((9, 9, 3), L.AveragePooling2D(3, strides=2, padding="same")),
    "pool 1d": lambda: _stack((11, 3), L.MaxPooling1D(2), L.AveragePooling1D(2)),
    "global pools": lambda: _stack(
        PICTURE, L.Conv2D(4, 1), L.GlobalMaxPooling2D(keepdims=True), L.GlobalAveragePooling2D()
    ),
    "global pool 1d": lambda: _stack((11, 3), L.GlobalAveragePooling1D()),
    "pad and crop": lambda: _stack(PICTURE, L.ZeroPadding2D(((1, 2), (0, 3))), L.Cropping2D(((2, 0), (1, 1)))),
    "upsample nearest": lambda: _stack(PICTURE, L.UpSampling2D((2, 3))),
    "upsample bilinear": lambda: _stack(PICTURE, L.UpSampling2D(2, interpolation="bilinear")),
    "upsample 1d": lambda: _stack((6, 3), L.UpSampling1D(2)),
    "dense": lambda: _stack((6,), L.Dense(4, activation="softmax")),
    "dense on rows": lambda: _stack((5, 6), L.Dense(4)),
    "dense on pictures": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Dense(5, activation="tanh")),
    "batch norm": lambda: _stack((6,), L.BatchNormalization(scale=False)),
    "batch norm on pictures": lambda: _stack(PICTURE, L.BatchNormalization(center=False, epsilon=1e-2)),
    "batch norm axis 1": lambda: _stack((3, 5, 5), L.BatchNormalization(axis=1)),
    "layer norm": lambda: _stack((4, 6), L.LayerNormalization()),
    "layer norm over two axes": lambda: _stack((4, 6), L.LayerNormalization(axis=(1, 2))),
    "flatten after conv": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Flatten(), L.Dropout(0.5), L.Dense(5)),
    "flatten, norm, prelu, dense": lambda: _stack(
        PICTURE, L.Conv2D(4, 3), L.Flatten(), L.BatchNormalization(), L.PReLU(), L.Dense(5)
    ),
    "flatten is the output": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Flatten()),
    "flatten then reshape": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Flatten(), L.Reshape((7, -1))),
    "reshape and permute": lambda: _stack((4, 6), L.Reshape((3, 8)), L.Permute((2, 1))),
    "repeat": lambda: _stack((4,), L.RepeatVector(3)),
    "prelu": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.PReLU(shared_axes=[1, 2])),
    "prelu per pixel": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.PReLU()),
    "relu variants": lambda: _stack(
        PICTURE, L.ReLU(max_value=6), L.ReLU(negative_slope=0.1, max_value=1), L.LeakyReLU()
    ),
    "softmax layer": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Softmax()),
    "softmax other axis": lambda: _stack(PICTURE, L.Conv2D(4, 3), L.Softmax(axis=1)),
    "rescaling": lambda: _stack(PICTURE, L.Rescaling(1 / 127.5, offset=-1), L.Conv2D(3, 2)),
    "rescaling per channel": lambda: _stack(
        PICTURE, L.Conv2D(3, 2), L.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 1.0, 2.0])
    ),
    "normalization": lambda: _stack(
        PICTURE, L.Conv2D(3, 2), L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])
    ),
    "identity layers": lambda: _stack((6,), L.Dense(3), L.GaussianNoise(0.1), L.Dropout(0.1), L.Identity()),
    "lstm": lambda: _stack((7, 3), L.LSTM(5)),
    "lstm sequence": lambda: _stack((None, 3), L.LSTM(5, return_sequences=True), L.Dense(2)),
    "lstm backwards": lambda: _stack((7, 3), L.LSTM(5, go_backwards=True)),
    "gru": lambda: _stack((7, 3), L.GRU(5)),
    "gru reset before": lambda: _stack((7, 3), L.GRU(5, reset_after=False, return_sequences=True)),
    "rnn": lambda: _stack((7, 3), L.SimpleRNN(5)),
    "bidirectional": lambda: _stack(
        (7, 3), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Bidirectional(L.GRU(3))
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_layer(name: str) -> None:
    _converted(SINGLE[name]())


@pytest.mark.parametrize(
    "activation",
    "relu relu6 leaky_relu elu selu gelu sigmoid tanh softplus softsign exponential silu mish hard_sigmoid hard_silu "
    "softmax log_softmax linear".split(),
)
def test_activation(activation: str) -> None:
    _converted(_stack((6,), L.Dense(5), L.Activation(activation)))


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_opset_is_what_was_asked(opset: int) -> None:
    found = _converted(_stack(PICTURE, L.Conv2D(4, 3, activation="gelu"), L.Flatten(), L.Dense(4)), opset=opset)
    assert found.ir.opset_imports[""] == opset


def test_opset_that_lacks_an_operator() -> None:
    with pytest.raises(Unsupported, match="LayerNormalization is not in opset 13"):
        convert(_stack((5, 6), L.LayerNormalization()), opset=13)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"])
def test_merge_of_pictures(kind: str) -> None:
    x = keras.Input(PICTURE)
    y = getattr(L, kind)()([L.Conv2D(4, 3, padding="same")(x), L.DepthwiseConv2D(1)(L.Conv2D(4, 1)(x))])
    # Keras's own Maximum and Minimum leave float64.
    found = _converted(keras.Model(x, y), "source" if kind in ("Maximum", "Minimum") else "float64")
    assert ops(found)["Transpose"] == 2  # the two doors


def test_merge_of_flattened_and_plain() -> None:
    x = keras.Input(PICTURE)
    a, b = L.Flatten()(L.Conv2D(2, 3)(x)), L.Flatten()(x)
    both = L.Concatenate()([a, b, L.Dense(4)(a)])
    _converted(keras.Model(x, [both, L.Add()([a, a])]))


def test_arithmetic_between_layers() -> None:
    x = keras.Input(PICTURE)
    y = L.Conv2D(3, 3, padding="same")(x)
    y = (1.0 - y) * L.ReLU(6.0)(y + 3.0) / 6.0 - x
    found = _converted(keras.Model(x, L.GlobalAveragePooling2D()(y)))
    assert ops(found)["Transpose"] == 1


def test_zero_padding_before_a_maximum_of_positives() -> None:
    padded = (L.ZeroPadding2D(1), L.MaxPooling2D(3, strides=2))
    assert "Pad" not in ops(_converted(_stack(PICTURE, L.Conv2D(3, 3, activation="relu"), *padded)))
    padded = (L.ZeroPadding2D(1), L.MaxPooling2D(3, strides=2))
    assert "Pad" in ops(_converted(_stack(PICTURE, L.Conv2D(3, 3), *padded)))


def test_dot() -> None:
    a, b = keras.Input((5,)), keras.Input((5,))
    parity = Parity.of(convert(keras.Model([a, b], L.Dot(axes=1)([a, b]))))
    assert parity.reference == "source" and parity.outputs[0].relative_error <= 1e-6


def test_flatten_costs_no_transpose() -> None:
    found = _converted(SINGLE["flatten after conv"]())
    assert ops(found) == Counter(Transpose=1, Conv=1, Flatten=1, Gemm=1)


def test_batch_normalization_goes_into_the_layer_before_it() -> None:
    layers = (
        L.Conv2D(4, 3), L.BatchNormalization(), L.DepthwiseConv2D(2, use_bias=False), L.BatchNormalization(),
        L.Conv2DTranspose(3, 2), L.BatchNormalization(), L.Flatten(), L.Dense(5), L.BatchNormalization(),
    )  # fmt: skip
    found = _converted(_stack(PICTURE, *layers))
    assert ops(found) == Counter(Transpose=1, Conv=2, ConvTranspose=1, Flatten=1, Gemm=1)


def test_batch_normalization_stays_where_something_else_reads_its_input() -> None:
    x = keras.Input(PICTURE)
    y = L.Conv2D(4, 3)(x)
    found = _converted(keras.Model(x, [L.GlobalAveragePooling2D()(L.BatchNormalization()(y)), L.Flatten()(y)]))
    assert ops(found)["BatchNormalization"] == 1


def test_batch_normalization_goes_into_all_layers_that_are_joined_before_it() -> None:
    x = keras.Input(PICTURE)
    joined = L.Concatenate()([L.Conv2D(4, 3, use_bias=False)(x), L.SeparableConv2D(2, 3)(x), L.Conv2D(3, 3)(x)])
    found = _converted(keras.Model(x, L.BatchNormalization()(L.BatchNormalization()(joined))))
    assert ops(found) == Counter(Transpose=2, Conv=4, Concat=1)
    read = L.Conv2D(4, 3)(x)  # by the other output too
    joined = L.BatchNormalization()(L.Concatenate()([read, L.Conv2D(3, 3)(x)]))
    assert ops(_converted(keras.Model(x, [joined, read])))["BatchNormalization"] == 1


def test_what_is_the_same_is_computed_once() -> None:
    """As the cells of NASNet ask for it; the outputs keep their names where two of them are one."""
    x = keras.Input(PICTURE)
    pools = [L.AveragePooling2D(2, padding="same")(L.ReLU()(x)) for _ in range(2)]
    parts = L.Concatenate()([L.Concatenate()([L.ReLU()(x), L.Conv2D(2, 1)(x)]), L.Conv2D(3, 1)(x)])
    found = _converted(keras.Model(x, [L.Flatten()(L.Add()(pools)), L.Conv2D(4, 1)(parts)]))
    count = ops(found)
    assert (count["Relu"], count["AveragePool"], count["Concat"], count["Conv"]) == (1, 1, 1, 3)
    model = keras.Model(x, {"one": L.ReLU(name="one")(x), "two": L.ReLU(name="two")(x)})
    assert [spec.name for spec in convert(model).outputs] == ["one", "two"]


def test_zero_padding_becomes_the_convolutions_own() -> None:
    found = _converted(_stack(PICTURE, L.ZeroPadding2D(((0, 1), (2, 1))), L.Conv2D(4, 3, strides=2)))
    assert ops(found) == Counter(Transpose=2, Conv=1)


def test_squeeze_and_excite_needs_no_transpose_inside() -> None:
    x = keras.Input(PICTURE)
    y = L.Conv2D(4, 3)(x)
    gate = L.Reshape((1, 1, 4))(L.GlobalAveragePooling2D()(y))
    y = L.Multiply()([y, L.Conv2D(4, 1, activation="sigmoid")(gate)])
    found = _converted(keras.Model(x, L.GlobalAveragePooling2D()(y)))
    assert ops(found)["Transpose"] == 1


def test_embedding_draws_every_row() -> None:
    x = keras.Input((6,), dtype="int32")
    _converted(keras.Model(x, L.GlobalAveragePooling1D()(L.Embedding(40, 5)(x))))


def test_embedding_of_floats() -> None:
    _converted(_stack((6,), L.Embedding(40, 5), L.Flatten(), L.Dense(2)))


def test_several_inputs_outputs_and_shared_layers() -> None:
    a, b = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    shared = L.Dense(4, activation="relu")
    y = L.Add()([shared(a), shared(b)])
    found = _converted(keras.Model([a, b], {"sum": y, "raw": shared(a)}))
    assert [spec.name for spec in found.inputs] == ["left", "right"]
    assert len(found.outputs) == 2


def test_nested_models_and_free_sizes() -> None:
    inner = keras.Sequential(
        [keras.Input((None, None, 3)), L.Conv2D(4, 3, strides=2, padding="same"), L.ReLU()], name="inner"
    )
    x = keras.Input((None, None, 3), name="image")
    found = _converted(keras.Model(x, L.GlobalAveragePooling2D()(inner(x))))
    assert found.inputs[0].shape == ("batch", "image_1", "image_2", 3)


def test_the_user_names_and_fixes_free_dimensions() -> None:
    x = keras.Input((None, None, 3), name="image")
    model = keras.Model(x, L.Conv2D(2, 3, strides=2, padding="same")(x))
    found = _converted(model, inputs=["image:float32[n,20,width,3]"])
    assert found.inputs[0].shape == ("n", 20, "width", 3)
    with pytest.raises(EdgerunError, match="other inputs"):
        convert(model, inputs=["image:float32[n,20,20,4]"])


def test_unbuilt_sequential_takes_the_users_shape() -> None:
    model = keras.Sequential([L.Dense(3)])
    with pytest.raises(EdgerunError, match="does not tell its input"):
        convert(model)
    assert convert(model, inputs=["x:float32[batch,4]"]).outputs[0].shape == ("batch", 3)
