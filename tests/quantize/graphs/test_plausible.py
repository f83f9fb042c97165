"""Planted preprocessing mistakes in networks whose training data is known, and no word where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.quantize.graphs.looks import Judgement
from edgerun.quantize.graphs.plausible import suspect
from edgerun.quantize.numerics.plausibility import FORMS, interleaved, reform

CONV_BN = """(float[n,{shape}] image) => (float[n,1] y) {{
    {entry} a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, g, o, m, v) r = Relu(n)
    p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, w2) }}"""
RELU6 = """(float[n,3,24,24] image) => (float[n,1] y) {
    a = Conv<pads=[1,1,1,1]>(image, w1) r = Clip(a, zero, six) p = GlobalAveragePool(r) f = Flatten(p)
    y = MatMul(f, w2) }"""


def pictures(seed: int, n: int = 24, side: int = 24) -> np.ndarray:
    """Smooth coloured pictures 0..255, float32 [n, 3, side, side]; red is the brightest channel, blue the darkest."""
    generator = np.random.default_rng(seed)
    field = generator.standard_normal((n, 4, side, side))
    field = gaussian_filter(field, (0, 0, 3, 3), mode="wrap") * 10
    shared, own = field[:, :1], field[:, 1:]
    pixels = np.array([170.0, 120, 70])[:, None, None] + 55 * shared + 30 * own
    pixels[:, :, 0, 0], pixels[:, :, 0, 1] = 0, 255  # as in any photo: both ends are used
    rounded: np.ndarray = pixels.clip(0, 255).round().astype(np.float32)
    return rounded


@pytest.fixture
def trained(net: Callable[..., Model], weights: Callable[..., np.ndarray]) -> Callable[..., Model]:
    """A network with the running statistics that training on `form` would have left."""

    def build(form: int, last: bool = False) -> Model:
        x = reform(pictures(1), FORMS[0], FORMS[form], 1).astype(np.float64)
        w1 = weights(2, 12, 3, 3, 3).astype(np.float64)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        a = np.einsum("nchwij,ocij->nohw", windows, w1, optimize=True)
        statistics = {"m": a.mean(axis=(0, 2, 3)), "v": a.var(axis=(0, 2, 3)), "g": np.ones(12), "o": np.zeros(12)}
        arrays = {k: v.astype(np.float32) for k, v in ({"w1": w1, "w2": weights(3, 12, 1)} | statistics).items()}
        shape, entry = (
            ("24,24,3", "x = Transpose<perm=[0,3,1,2]>(image)") if last else ("3,24,24", "x = Identity(image)")
        )
        return net(CONV_BN.format(shape=shape, entry=entry), **arrays)

    return build


def judged(model: Model, x: np.ndarray, request_for: Callable[..., Any], batch: int = 8) -> Judgement:
    feeds: Iterator[dict[str, np.ndarray]] = ({"image": x[i : i + batch]} for i in range(0, len(x), batch))
    return suspect(model.ir, model.inputs, request_for().open, feeds)


PAIRS = [pair for pair in itertools.product(range(len(FORMS)), repeat=2) if pair[0] != pair[1]]


@pytest.mark.parametrize(("given", "wanted"), PAIRS)
def test_a_wrong_scale_is_named(trained: Any, request_for: Any, given: int, wanted: int) -> None:
    """Every form fed to a network trained on every other one: both are named."""
    x = reform(pictures(5), FORMS[0], FORMS[given], 1)
    (warning,) = judged(trained(wanted), x, request_for).warnings
    assert f"look like {FORMS[given].name};" in warning and f"trained on {FORMS[wanted].name} (" in warning


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("contrast", [1.0, 0.6])
def test_the_right_form_gives_no_word(trained: Any, request_for: Any, form: int, contrast: float) -> None:
    """Other pictures of the same kind, and ones with little contrast."""
    x = reform(127 + contrast * (pictures(6) - 127), FORMS[0], FORMS[form], 1)
    found = judged(trained(form), x.astype(np.float32), request_for)
    assert found.warnings == [] and "scale by BatchNorm statistics" in found.judged


@pytest.mark.parametrize("last", [False, True])
def test_reshaped_where_a_transpose_belongs(trained: Any, request_for: Any, last: bool) -> None:
    right = pictures(7).transpose(0, 2, 3, 1) if last else pictures(7)
    planted = np.ascontiguousarray(right.transpose(0, 3, 1, 2) if last else right.transpose(0, 2, 3, 1))
    model = trained(0, last)
    words = "NCHW order in an array of NHWC" if last else "NHWC order in an array of NCHW"
    with pytest.raises(EdgerunError, match=rf"{words}[\s\S]*times as smooth[\s\S]*do: transpose") as refused:
        judged(model, planted.reshape(right.shape), request_for)
    # What it says to do gives the pictures back: the planted bytes in their own shape, then in the told order.
    order = [int(axis) for axis in str(refused.value.do).rpartition("transpose(")[2].rstrip(")").split(",")]
    repaired = planted.reshape(right.shape).reshape(planted.shape).transpose(order)
    np.testing.assert_array_equal(repaired, right)
    assert judged(model, np.ascontiguousarray(right), request_for).warnings == []
    np.testing.assert_array_equal(interleaved(planted.reshape(right.shape), last), right)


def test_a_layout_that_is_only_likely_is_a_warning(trained: Any, request_for: Any) -> None:
    """Pictures with as much noise as that: 1.3 to 3 times as smooth the other way."""
    right = pictures(7).transpose(0, 2, 3, 1)
    right = right + np.random.default_rng(1).normal(0, 22, right.shape)
    planted = np.ascontiguousarray(right.astype(np.float32)).reshape(24, 3, 24, 24)
    warnings = judged(trained(0), planted, request_for).warnings
    assert any("NHWC order in an array of NCHW" in w and "transpose, do not reshape" in w for w in warnings)


@pytest.mark.parametrize("last", [False, True])
def test_a_channel_without_a_picture_in_it(trained: Any, request_for: Any, last: bool) -> None:
    x = pictures(5)
    x[:, 1] = 7
    found = judged(trained(0, last), np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x, request_for)
    assert any("channel 1 is 7 everywhere in the 8 samples" in warning for warning in found.warnings)
    assert not any("channel 0" in warning or "channel 2" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("factor", "told"), [(1, None), (4, None), (1000, "numbers reach 255,000"), (-1000, "255,000")]
)
def test_numbers_that_no_picture_has(net: Any, request_for: Any, weights: Any, factor: int, told: str | None) -> None:
    """Without anything in the model that could tell: by the forms that pictures are fed in."""
    text = "(float[n,3,24,24] image) => (float[n,2] y) { p = GlobalAveragePool(image) f = Flatten(p) y = MatMul(f, w) }"
    warnings = judged(net(text, w=weights(1, 3, 2)), pictures(5) * np.float32(factor), request_for).warnings
    assert [told is not None and told in warning for warning in warnings] == ([True] if told else [])


def test_noise_and_other_inputs_are_not_judged(trained: Any, net: Any, request_for: Any) -> None:
    """Noise is no picture; a model without a picture input has nothing that could be judged."""
    noise = np.random.default_rng(0).standard_normal((32, 3, 24, 24)).astype(np.float32)
    assert judged(trained(3), noise, request_for).warnings == []
    plain = net("(float[n,8] image) => (float[n,4] y) { y = MatMul(image, w) }", w=np.ones((8, 4), np.float32))
    assert judged(plain, noise[:, 0, 0, :8], request_for) == Judgement()


def test_a_saturated_first_relu6(net: Any, request_for: Any, weights: Any) -> None:
    """Without BatchNormalization: bytes are told, by what they do; the right scale gives no word."""
    arrays = {"w1": weights(2, 12, 3, 3, 3), "w2": weights(3, 12, 1), "zero": np.array(0, np.float32)}
    model = net(RELU6, six=np.array(6, np.float32), **arrays)
    (warning,) = judged(model, pictures(8), request_for).warnings
    assert "ReLU6 is at its stop in" in warning and "look like 0..255" in warning
    found = judged(model, pictures(8) / 255, request_for)
    assert found.warnings == [] and any("too large only" in line for line in found.judged)


@pytest.mark.parametrize(
    "swish",
    [
        "t = Add(a, three) c = Clip(t, zero, six) r = Mul(a, c)",
        "t = Add(three, a) c = Clip(t, zero, six) m = Mul(c, a) r = Div(m, six)",
        "h = HardSigmoid<alpha=0.16666667>(a) m = Mul(a, h) r = Clip(m, zero, six)",
        "m = HardSwish(a) r = Clip(m, zero, six)",
    ],
)
def test_hard_swish_is_no_relu6(net: Any, request_for: Any, weights: Any, swish: str) -> None:
    """Its Clip ends most outputs of many layers, whatever the data; a bias in front of a ReLU6 makes it no other."""
    numbers = {name: np.array(n, np.float32) for name, n in (("zero", 0), ("three", 3), ("six", 6))}
    arrays = {"w1": weights(2, 12, 3, 3, 3), "w2": weights(3, 12, 1), **numbers}
    found = judged(net(RELU6.replace("r = Clip(a, zero, six)", swish), **arrays), pictures(8), request_for)
    assert found.warnings == [] and not any("ReLU6" in line for line in found.judged)
    biased = RELU6.replace("r = Clip(a,", "t = Add(a, bias) r = Clip(t,")
    assert judged(net(biased, bias=weights(4, 12, 1, 1), **arrays), pictures(8), request_for).warnings


def test_the_order_of_colours(net: Any, request_for: Any) -> None:
    """Four classes by how red a picture is; blue is always between two of them, so that it leaves them unsure."""
    text = (
        "(float[n,3,24,24] image) => (float[n,4] y) { p = GlobalAveragePool(image) f = Flatten(p) y = Gemm(f, w, b) }"
    )
    x = pictures(9, 64) / 255
    levels = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
    x[:, 0] += levels[np.arange(64) % 4, None, None] - x[:, 0].mean(axis=(1, 2), keepdims=True)
    x[:, 2] += 0.5 - x[:, 2].mean(axis=(1, 2), keepdims=True)
    w = np.zeros((3, 4), np.float32)
    w[0] = 400 * levels  # logits are -200·(red - level)², but for what all have in common
    model = net(text, w=w, b=-200 * levels**2)
    found = judged(model, x, request_for)
    assert found.warnings == [] and "colour order by the entropy of the classes" in found.judged
    (warning,) = judged(model, np.ascontiguousarray(x[:, ::-1]), request_for).warnings
    assert "red and blue seem swapped" in warning


QUARTERS = """(float[n,3,24,24] image) => (float[n,{out}] y) {{
    a = Conv<pads=[1,1,1,1]>(image, w1, b1) r = Relu(a) p = AveragePool<kernel_shape=[12,12],strides=[12,12]>(r)
    {end} }}"""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labels", ["brightness", "drawn"])
def test_classes_without_a_colour_say_nothing_of_it(
    net: Any, request_for: Any, weights: Any, labels: str, seed: int
) -> None:
    """A classifier of which quarter is the brightest, or of labels drawn by lot: red and blue swapped are further from
    what it was fitted on, and it is surer of them, though they mean nothing to it. No word of a mistake."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    w1, b1 = weights(seed, 16, 3, 3, 3), weights(seed + 7, 16) * np.float32(0.3)
    x = pictures(seed + 500, 120) / 255
    quarters = x.mean(axis=1).reshape(-1, 2, 12, 2, 12).mean(axis=(2, 4)).reshape(-1, 4)
    wanted = quarters.argmax(axis=1) if labels == "brightness" else np.random.default_rng(seed).integers(0, 4, 120)
    features = net(QUARTERS.format(out=64, end="y = Flatten(p)"), w1=w1, b1=b1)
    with request_for().open(features.ir) as session:
        seen = session.run({"image": x})["y"]
    mean, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    fitted = LogisticRegression(max_iter=300).fit((seen - mean) / spread, wanted)
    w2 = (fitted.coef_ / spread).T.astype(np.float32)
    b2 = (fitted.intercept_ - mean @ w2).astype(np.float32)
    model = net(QUARTERS.format(out=4, end="f = Flatten(p) y = Gemm(f, w2, b2)"), w1=w1, b1=b1, w2=w2, b2=b2)
    fresh = (pictures(seed + 100, 64) / 255).astype(np.float32)
    found = judged(model, fresh, request_for)
    assert not [warning for warning in found.warnings if "swapped" in warning]
    assert "colour order by the entropy of the classes" in found.judged


def test_an_embedding_is_not_asked_for_its_classes(net: Any, request_for: Any) -> None:
    """Three numbers per picture that are no scores: near to each other, as softmax would have it."""
    text = "(float[n,3,24,24] image) => (float[n,3] y) { p = GlobalAveragePool(image) y = Flatten(p) }"
    x = pictures(9, 64) / 255
    for order in (x, np.ascontiguousarray(x[:, ::-1])):
        assert judged(net(text), order, request_for) == Judgement(
            [], ["layout by smoothness", "extremes of the values"]
        )


PLAIN = """(float[n,3,24,24] image) => (float[n,6] y) {
    a = Conv<pads=[1,1,1,1]>(image, w1, b1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w2, b2) }"""


def coloured(seed: int, labels: np.ndarray) -> np.ndarray:
    """Pictures 0..255 whose channels are as bright as their class says, of six."""
    tints = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) * 60.0 - 30
    x = pictures(seed, len(labels)) + tints[labels][:, :, None, None]
    rounded: np.ndarray = x.clip(0, 255).round().astype(np.float32)
    return rounded


@pytest.mark.parametrize("trained_on", range(len(FORMS)))
def test_classes_tell_the_form_without_batchnorm(net: Any, request_for: Any, weights: Any, trained_on: int) -> None:
    """A classifier without normalization, as surely right as scikit-learn makes it: no word of the form that it was
    trained on, though larger numbers make it surer; for all others, the right form."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    labels = np.arange(240) % 6
    x = coloured(1, labels)
    given = [reform(x, FORMS[0], form, 1) for form in FORMS]
    spread = given[trained_on].std()
    w1, b1 = weights(2, 24, 3, 3, 3) / spread, weights(4, 24) * 0.3
    features = net(PLAIN.replace("float[n,6] y", "float[n,24] f").partition(" y = Gemm")[0] + " }", w1=w1, b1=b1)
    with request_for().open(features.ir) as session:
        seen = session.run({"image": given[trained_on]})["f"]
    scaler = StandardScaler().fit(seen)
    fitted = LogisticRegression(C=1.0, max_iter=500).fit(scaler.transform(seen), labels)
    w2 = (fitted.coef_ / scaler.scale_).T.astype(np.float32)
    b2 = (fitted.intercept_ - (fitted.coef_ * scaler.mean_ / scaler.scale_).sum(axis=1)).astype(np.float32)
    model = net(PLAIN, w1=w1, b1=b1, w2=w2, b2=b2)
    named = []
    fresh = coloured(5, labels[:64])
    for form in range(len(FORMS)):
        found = judged(model, reform(fresh, FORMS[0], FORMS[form], 1), request_for)
        scales = [w for w in found.warnings if "look like" in w]  # these classes mean nothing to the order of colours
        assert form != trained_on or scales == []
        named += scales
        assert all(f"trained on {FORMS[trained_on].name} (" in w for w in scales)
    assert len(named) == len(FORMS) - 1


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["cifar_cnn", "mobilenet_v2", "resnet50"])
def test_real_models(name: str, request_for: Any) -> None:
    """Right data: no word. Swapped colours, the other layout and bytes (0..1 where bytes are right): named."""
    from bench import zoo
    from edgerun.verbs.making import opened

    chosen = zoo.model(name)
    if not chosen.ready:
        pytest.skip(f"{name} is not in the cache: python -m bench.zoo {name}")
    model = Model.load(Path(chosen.onnx))
    with np.load(chosen.calibration) as data:
        x = data["image"][:64]
    axis, form = {"cifar_cnn": (3, 0), "mobilenet_v2": (1, 3), "resnet50": (3, 4)}[name]
    other = x.transpose(0, 3, 1, 2) if axis == 3 else x.transpose(0, 2, 3, 1)
    plants = {
        "": x,
        "red and blue": np.ascontiguousarray(np.flip(x, axis)),
        "transpose": np.ascontiguousarray(other).reshape(x.shape),
        f"look like {FORMS[1 if form == 0 else 0].name}": reform(x, FORMS[form], FORMS[1 if form == 0 else 0], axis),
    }
    for words, planted in plants.items():
        feeds = ({"image": planted[i : i + 8]} for i in range(0, len(planted), 8))
        try:
            found = suspect(model.ir, model.inputs, opened, feeds).warnings
        except EdgerunError as refused:
            found = [str(refused)]
        assert (not found) if not words else any(words in warning for warning in found), (words, found)
