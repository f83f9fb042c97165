"""Predict: pictures through a model's contracts, from the file to the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import answers, contracts, sources
from edgerun.errors import EdgerunError
from edgerun.postprocess import Postprocessing, Prediction
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, Session
from edgerun.verbs.feeds import DeviceLike, Runnable, opened


def predict(
    model: Runnable,
    data: str | Path | np.ndarray | Sequence[np.ndarray],
    *,
    target: str | None = None,
    device: DeviceLike | None = None,
    options: Options | None = None,
    checked: bool = False,
    preprocessing: Preprocessing | str | Path | None = None,
    postprocessing: Postprocessing | str | Path | None = None,
) -> dict[str, Prediction]:
    """What the model says of every picture, by the picture's path.

    `data` is a picture's file, a folder of them, or pictures as uint8 `[height, width, 3]` in RGB, which are called by
    their numbers. The contracts are those given (or their files), else those that the model's file tells, on every
    target; a device needs Pillow for files, and for contracts that resize with it. `device` and `checked` are as in
    `edgerun.load`. As many pictures go in a run as the model's first axis says, one where it is open. Raises
    EdgerunError where there is no contract, or one does not fit.
    """
    with opened(model, target, options, device, checked) as session:
        before, after = _before(session, preprocessing), _after(session, postprocessing)
        name, batch = session.inputs[0].name, session.inputs[0].shape[0]
        found: dict[str, Prediction] = {}
        for names, pictures in _groups(data, batch if isinstance(batch, int) else 1):
            samples = [before.apply(picture) for picture in pictures]
            short = batch - len(samples) if isinstance(batch, int) else 0
            outputs = session.run({name: np.stack(samples + samples[-1:] * short)})
            sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
            predictions = after.apply(outputs, before, sizes + sizes[-1:] * short)
            found.update(zip(names, predictions, strict=False))  # those of the rows that only fill the batch go
    return found


def _before(session: Session, given: Preprocessing | str | Path | None) -> Preprocessing:
    if isinstance(given, (str, Path)):
        given = contracts.read(Path(given))
    if (found := given or contracts.told(session.metadata)) is None:
        raise EdgerunError("the model has no preprocessing contract", wanted="size, scale, mean, std, layout, …",
                           do="give --preprocessing FILE, here or to edgerun convert")  # fmt: skip
    return found.fitted(session.inputs)


def _after(session: Session, given: Postprocessing | str | Path | None) -> Postprocessing:
    values = answers.to_json(given)
    found = answers.told(session.metadata, session.outputs) if values is None else None
    if values is not None:
        found = answers.parsed(values, session.outputs)
    if found is None:
        raise EdgerunError("the model has no post-processing contract", wanted='{"kind": "classes" or "boxes", …}',
                           do="give --postprocessing FILE, here or to edgerun convert")  # fmt: skip
    return found


def _groups(data: Any, most: int) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Names and pictures, at most so many at a time."""
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.exists():
            raise EdgerunError("there is no such picture", got=path, wanted="a picture's file, or a folder of them")
        given: list[Any] = sources.pictures(path) if path.is_dir() else [path]
        if not given:
            raise EdgerunError("there are no pictures in the folder", got=path, wanted=", ".join(sources.PICTURES))
    else:
        given = [data] if isinstance(data, np.ndarray) and data.ndim == 3 else list(data)
    for start in range(0, len(given), most):
        part = given[start : start + most]
        names = [str(one) if isinstance(one, Path) else str(i) for i, one in enumerate(part, start)]
        yield names, [sources.open_picture(one) if isinstance(one, Path) else np.asarray(one) for one in part]
