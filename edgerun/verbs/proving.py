"""Does a conversion compute what its source computes? On random inputs, and on the user's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun import divergence, parity
from edgerun.converters import _ort
from edgerun.data import Feeds
from edgerun.errors import EdgerunError, GateFailed, out_of_memory
from edgerun.parity import Parity
from edgerun.passes import Conversion
from edgerun.preprocess import Preprocessing
from edgerun.verbs import work
from edgerun.verbs.feeds import feeds_for

log = logging.getLogger("edgerun")
MOST, BATCH = 32, 4  # samples of the user's own that are compared, and how many of them at once


def proven(
    found: Conversion, path: Path, data: Any = None, contract: Mapping[str, Any] | None = None
) -> dict[str, Parity]:
    """The comparisons of the model in `path` with its source, for the history: "parity", and "parity on data".

    `data` is any kind that `edgerun.data.open_data` takes, of which MOST samples are looked at; pictures go through
    `contract`. Random inputs say nothing where the source refuses them, or loses its own precision on them: then the
    data decides alone, as "parity". Raises GateFailed, with the first node that differs, where a comparison fails, and
    EdgerunError for a model that computes more than the time allows (`work.refuse_endless`).
    """
    work.refuse_endless(found.model)
    own, count = (None, 0) if data is None else _samples(found, data, contract)
    made: dict[str, Parity] = {}
    log.info("comparing with the source on random inputs")
    try:
        drawn = _compared(found, path, found.feeds, found.data)
        if own is None or drawn.passed or not drawn.inconclusive:
            made["parity"] = _passed(found, drawn, found.feeds)
        else:
            log.info("random inputs prove nothing: %s", drawn.inconclusive)
    except EdgerunError as error:
        if own is None or isinstance(error, GateFailed):
            raise
        log.info("random inputs prove nothing: %s", error)
    if own is not None:
        log.info("comparing with the source on the data given")
        told = f"{count} samples of the data given"
        judged = _passed(found, _compared(found, path, own, told), own)
        made["parity on data" if made else "parity"] = judged
    return made


def _samples(found: Conversion, data: Any, contract: Mapping[str, Any] | None) -> tuple[list[Feeds], int]:
    """The feeds, and how many samples they hold: without a batch axis in common, each is one."""
    told = contract if contract is not None else found.model.preprocessing
    folder = isinstance(data, (str, Path)) and Path(data).is_dir()
    preprocessing = Preprocessing.from_json(told).fitted(found.model.inputs) if told is not None and folder else None
    opened = feeds_for(
        found.model.inputs, "", data, preprocessing=preprocessing, batch=BATCH, limit=MOST, outputs=found.model.outputs
    )
    feeds = list(opened)
    return feeds, len(feeds) if opened.batch is None else opened.samples or 0


def _compared(found: Conversion, path: Path, feeds: Any, told: str) -> Parity:
    parts = found.parts if feeds is found.feeds or found.parts is None else ()  # codes are judged by pieces alone
    try:
        return parity.check(found.model, _ort.runner(path), found.run, found.run64, feeds=feeds, data=told, parts=parts)
    except GateFailed as error:
        place = _divergence(found, feeds)
        raise GateFailed(error.what, got=f"{error.got}{place}", wanted=error.wanted, do=error.do) from error


def _passed(found: Conversion, judged: Parity, feeds: Any) -> Parity:
    if judged.passed:
        return judged
    if judged.inconclusive:
        which, do = ("random inputs", "real") if feeds is found.feeds else ("the data given", "other")
        raise GateFailed(f"{which} cannot prove this conversion", got=judged.inconclusive,
                         do=f"give --data FILE with {do} inputs")  # fmt: skip
    raise _gate(judged, _divergence(found, feeds))


def _divergence(found: Conversion, feeds: Any) -> str:
    """The first node that differs from the source, as a line of an error; "" where the converter has no taps."""
    if not found.taps:
        return ""
    log.info("looking for the first node that differs")
    drawn = list(feeds) or [feeds for feeds, _ in parity.accepted(found.model, found.run)]
    try:
        for one in drawn:
            if (place := divergence.find(found.model, found.taps, _ort.runner, one)) is not None:
                return f"\n    {place}"
    except Exception as error:  # the runtime's own, where the model fails on what the source takes
        if out_of_memory(error):
            raise
        return f"\n    no value inside can be compared: {_ort.first_line(error)}"
    return "\n    no value inside that the source also has differs"


def _gate(result: Parity, place: str) -> GateFailed:
    lines = [
        f"{o.name}: relative error {o.relative_error:.2g}, allowed {o.bound:.2g}, SQNR "
        f"{'exact' if o.sqnr_db is None else f'{o.sqnr_db:.1f} dB'}"
        for o in result.outputs
        if not o.passed
    ]
    lines += [
        f"{c.kind}: {c.steps:g} steps, allowed {c.bound} (floats {c.relative_error:.2g}); {c.place}"
        for c in result.codes
        if not c.passed
    ]
    return GateFailed(
        f"the converted model does not compute what its source computes (against {result.reference})",
        got="; ".join(lines) + place,
        do="nothing was written; try fixed sizes in --input, or another --opset",
    )
