"""What the verbs share: `PATH@TARGET` names, sessions, and data for a model's door."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgerun import contracts, onnx_file
from edgerun.batches import batching
from edgerun.data import Data, Feeds, open_data
from edgerun.errors import EdgerunError
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Engine, Options, Session, TensorSpec
from edgerun.verbs.load import DeviceLike as DeviceLike
from edgerun.verbs.load import load

Runnable = str | Path | bytes | Engine | Session


def located(model: str | Path, target: str | None) -> tuple[Path, str | None]:
    """Path and target of `model`, or `model@target`; the name's own target goes before `target`."""
    path, mark, own = str(model).rpartition("@")
    if not mark or "/" in own or "." in own or Path(model).exists():
        return Path(model), target
    return Path(path), own


@contextlib.contextmanager
def opened(
    model: Runnable,
    target: str | None,
    options: Options | None,
    device: DeviceLike | None = None,
    checked: bool = False,
) -> Iterator[Session]:
    """A session for a file (or `PATH@TARGET`), ONNX bytes or an Engine, closed at the end; a Session stays open, and
    has no choice of `device` left, nor is it `checked` any more (`edgerun.verbs.load`)."""
    if isinstance(model, Session):
        if device is not None:
            raise EdgerunError("an open session runs where it was opened", got=f"device={device!r}", do="leave it out")
        if checked:
            raise EdgerunError("an open session is no file to compare", got="checked=True", do="load it checked")
        yield model
        return
    if isinstance(model, (str, Path)):
        model, target = located(model, target)
    with load(model, target, options, device=device, checked=checked) as session:
        yield session


def feeds_for(
    inputs: Sequence[TensorSpec],
    model: Runnable,
    source: Any,
    *,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    limit: int | None = None,
    outputs: Sequence[TensorSpec] = (),
) -> Data:
    """Data for a model's inputs (`outputs`: `open_data`); Data that is already open is taken as it is.

    A folder takes its preprocessing contract from `preprocessing` (the contract, or a file that `edgerun.contracts`
    reads), else from the model's own file.
    """
    if isinstance(source, Data):
        return source
    contract: Any = preprocessing
    if isinstance(preprocessing, (str, Path)):
        contract = contracts.read(Path(preprocessing))
    elif contract is None and isinstance(source, (str, Path)) and Path(source).is_dir():
        contract = _contract_of(model)
    return open_data(source, inputs, preprocessing=contract, batch=batch, limit=limit, outputs=outputs)


def noise_for(inputs: Sequence[TensorSpec], model: Runnable, samples: int, batch: int, **given: Any) -> Data:
    """Seeded noise for a model's inputs. Raises EdgerunError where they leave sizes open, and says how to give them."""
    try:
        return feeds_for(inputs, model, f"random:{samples}", batch=batch, **given)
    except EdgerunError as error:
        cut = int(batching(inputs, given.get("outputs", ()))[0])
        left = {s.name: (1,) * cut + s.shape[cut:] for s in inputs if any(isinstance(d, str) for d in s.shape[cut:])}
        if not left:
            raise
        options = " ".join(f"--input-shape {name}:[{','.join(map(str, shape))}]" for name, shape in left.items())
        words = dict.fromkeys(dim for shape in left.values() for dim in shape if isinstance(dim, str))
        do = f"give {options}, with numbers for {', '.join(words)}; or real data"
        raise EdgerunError(error.what, got=error.got, do=do) from None


def tracked(data: Data, progress: Callable[[float], None] | None) -> Iterator[Feeds]:
    """The feeds of `data`; tells `progress` the share done, 0..1, after each, where the number of feeds is known."""
    total = operator.length_hint(data, 0)
    for done, feed in enumerate(data, 1):
        yield feed
        if progress is not None and total:
            progress(done / total)


def _contract_of(model: Runnable) -> Any:
    """The contract in an ONNX file's metadata. Other files have none: open_data says so."""
    if not isinstance(model, (str, Path)) or (path := located(model, None)[0]).suffix != ".onnx":
        return None
    return contracts.told(onnx_file.metadata(path))
