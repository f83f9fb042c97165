"""A model that takes a picture's bytes: its preprocessing contract's arithmetic moves into the graph, with proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerun import __version__, contracts, parity
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model, Step
from edgerun.passes import Feeds
from edgerun.preprocess import Preprocessing
from edgerun.quantize.graphs import pictures
from edgerun.verbs.making import loaded, opened

PICTURES = "pictures of noise, of gradients, black and white ones"


def folded(model: Model | str | Path, preprocessing: Preprocessing | str | Path | None = None) -> Model:
    """`model` with uint8 pictures [batch, height, width, channels] as its input; its contract says what the host does.

    The contract is `preprocessing` (or a file of one), else the model's own. The result is compared with `model` fed
    by the contract. Raises EdgerunError where there is no contract, or nothing to move; GateFailed when they differ.
    """
    model = loaded(model)
    contract: Any = preprocessing
    if isinstance(preprocessing, (str, Path)):
        contract = contracts.read(Path(preprocessing))
    if contract is None and (contract := contracts.told(model.metadata)) is None:
        raise EdgerunError("there is no preprocessing contract to fold", do="give --preprocessing FILE")
    contract = contract.fitted(model.inputs)
    _check(contract)
    graph = model.clone()
    took = pictures.take_bytes(graph, contract)
    made = Model.of(graph)
    result = _compared(model, made, contract)
    worst = max(result.outputs, key=lambda output: output.relative_error / max(output.bound or 0.0, 1e-30))
    if not result.passed:
        got = f"{worst.name}: relative error {worst.relative_error:.2g}, allowed {worst.bound or 0.0:.2g}"
        raise GateFailed("the model with its preprocessing inside computes something else", got=got,
                         do="leave --fold-preprocessing out")  # fmt: skip
    options = {"in the graph": took, "from": contract.to_json(), "relative error": worst.relative_error,
               "compared on": PICTURES}  # fmt: skip
    step = Step("preprocessing/fold", __version__, options, model.digest(), made.digest())
    return made.retold(contract.host.to_json(), (*model.history, step))


def _check(contract: Preprocessing) -> None:
    if contract == contract.host:
        raise EdgerunError("there is nothing to fold: the model takes the picture's bytes already")
    gain, shift = contract.affine
    if np.dtype(contract.dtype).kind in "iu" and (contract.dtype != "uint8" or (gain != 1).any() or shift.any()):
        raise Unsupported("this contract cannot be folded: it rounds to integers", got=contract.dtype)


def _compared(model: Model, made: Model, contract: Preprocessing) -> parity.Parity:
    """`made` on bytes against `model` on what the contract makes of them."""
    name, given = model.inputs[0].name, made.inputs[0].shape
    height, width, channels = contract.host.shape
    sizes = (given[0] if isinstance(given[0], int) else 2, height, width, channels)
    with opened(model.ir) as before, opened(made.ir) as after:

        def source(feeds: Feeds) -> dict[str, np.ndarray]:
            return dict(before.run({name: contract.arithmetic(feeds[name])}))

        feeds = [{name: pixels} for pixels in _pictures(sizes)]
        return parity.check(made, lambda fed: dict(after.run(fed)), source, None, feeds=feeds, data=PICTURES)


def _pictures(sizes: tuple[int, int, int, int]) -> list[np.ndarray]:
    """Bytes [batch, height, width, channels]: noise twice, a gradient per channel, all 0, all 255."""
    draw = np.random.default_rng(0)
    down = np.linspace(0, 255, sizes[1])[:, None, None] * np.linspace(0, 1, sizes[2])[:, None]
    gradient = np.broadcast_to(down * np.linspace(1, 0.5, sizes[3]), sizes).astype(np.uint8)
    noise = [draw.integers(0, 256, sizes, dtype=np.uint8) for _ in range(2)]
    return [*noise, gradient, np.zeros(sizes, np.uint8), np.full(sizes, 255, np.uint8)]
