"""Every layer of Keras in the options that change what it computes: what docs/keras.md lists and the tests convert.

A line is the shapes of the inputs (without the batch, or behind `@` with it; `;` between several, `:int32` and the like
behind one that is not float32) and the layer, or what is made of `x`. The first name in it is the layer that it stands
for.
"""

from __future__ import annotations

import re
from typing import Any

from bench.keras_layers import CASES as CASES
from bench.keras_layers import STANDS_FOR


def layer_of(case: str) -> str:
    """The layer that a case stands for."""
    text = case.split(maxsplit=1)[1]
    return STANDS_FOR.get(text) or str(re.match(r"\w+", text)[0])  # type: ignore[index]


def build(case: str) -> Any:
    """The case as a model, its weights drawn."""
    import keras  # type: ignore[import-untyped]
    import numpy as np

    keras.utils.set_random_seed(11)
    shapes, text = case.split(maxsplit=1)
    inputs = []
    for text_of_one in shapes.split(";"):
        sizes, _, dtype = text_of_one.partition(":")
        shape = [None if size == "None" else int(size) for size in sizes.strip("@").split(",")]
        told: Any = {"batch_shape" if sizes.startswith("@") else "shape": shape, "dtype": dtype or "float32"}
        inputs.append(keras.Input(**told))
    x = inputs if len(inputs) > 1 else inputs[0]
    names = {name: getattr(keras.layers, name) for name in dir(keras.layers)}
    names |= {"keras": keras, "ops": keras.ops, "np": np, "x": x, "w": _weights}
    found = eval(text, names)  # the lines above, and nothing else
    if isinstance(found, keras.layers.InputLayer):
        return shaken(keras.Sequential([found, keras.layers.Dense(3)]))
    return shaken(keras.Model(inputs, found(x) if isinstance(found, keras.layers.Layer) else found))


def _weights(*shape: int) -> Any:
    """An array of that shape, of numbers from 0 to 1."""
    import numpy as np

    return np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def shaken(model: Any) -> Any:
    """The model with every weight, moving statistics and biases among them, drawn anew."""
    import numpy as np

    rng = np.random.default_rng(7)
    for variable in model.weights:
        if not str(variable.dtype).startswith("float") or "seed" in variable.path or "spectrogram" in variable.path:
            continue
        positive = "variance" in variable.path
        spread = 0.3 if np.prod(variable.shape) < 4096 else np.prod(variable.shape[:-1]) ** -0.5
        value = rng.uniform(0.5, 1.5, variable.shape) if positive else rng.normal(0, spread, variable.shape)
        variable.assign(value.astype("float32"))
    return model
