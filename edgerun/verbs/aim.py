"""Aim: what a compression makes, for which target and device, and whether this machine's clock judges it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun import files, quantize, registry
from edgerun.data import Data
from edgerun.devices import Device
from edgerun.effort import PRESETS
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model
from edgerun.passes import Faster, Quantization, Target
from edgerun.quantize.fold import node_name
from edgerun.verbs import devices, finite, fitting, proof, scoring

log = logging.getLogger("edgerun")
OLDEST_OPSET = 13
PLACEMENTS = ("clock", "rules")  # the first is the default
PLACEMENT = "EDGERUN_PLACEMENT"  # the environment's default


@dataclass(frozen=True)
class Aim:
    """The pass `step` makes `scheme` in the form that the `rules` of `target` want, on `device` (None: not named).

    `idle` is why what is compiled does not run here (None: it does); `timed` says that the clock judges.
    """

    scheme: str
    step: str
    target: str
    rules: Quantization
    device: Device | None
    idle: str | None
    timed: bool

    @property
    def writer(self) -> Target:
        """The target itself, which compiles and writes."""
        return registry.target(self.target)

    @property
    def calibrated(self) -> bool:
        """Whether the pass needs calibration data."""
        return registry.quantizer(self.step).needs_calibration

    def told(self, data: Data | None) -> dict[str, Any]:
        """What every history says of it, and of the calibration data."""
        told = {"target": self.target, "scheme": self.scheme, "random data": data is not None and data.random}
        if self.device is not None:
            told["device"] = self.device.name
        if self.idle:
            told["engine"] = f"compiled, not run: {self.idle}"
        return told

    def check_ways(self, ranges: str, preset: str) -> None:
        """Raise EdgerunError for an estimator or a preset that is not there, or that the scheme has no use for."""
        _check_ranges(ranges)
        if ranges != "auto" and not self.calibrated:
            raise EdgerunError(
                f"{self.scheme} has no static ranges to estimate", got=f"ranges {ranges!r}", do="leave it out"
            )
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)

    def check_used(self, calibrated: bool, **given: object) -> None:
        """Raise EdgerunError for an option that was `given` (not None) and would do nothing: without data there is
        nothing to look at, and a `preset` says how long to time only where the scheme is timed."""
        if calibrated or self.calibrated:
            return
        for name, value in given.items():
            if value is not None and not (name == "preset" and self._faster):
                do = "leave it out, or give --calibration DATA"
                what = f"--{name.replace('_', '-')} does nothing for {self.scheme} without calibration data"
                raise EdgerunError(what, do=do)

    def check_clock(self, allow_slower: bool, placement: str | None) -> None:
        """Raise EdgerunError for `allow_slower` where nothing could be refused for being slower, and for a `placement`
        that was asked for (not None) where there is none to time."""
        reason = f"with --placement {placement} nothing is timed" if placement == PLACEMENTS[1] else self.idle
        if not self._faster:
            reason = f"{self.scheme} promises no speed, and is not timed"
        asked = {"--allow-slower": allow_slower, "--placement": placement is not None and not self._faster}
        for option, given in asked.items():
            if given and reason:
                raise EdgerunError(f"{option} does nothing here", got=reason, do="leave it out")

    @property
    def _faster(self) -> bool:
        return isinstance(registry.quantizer(self.step), Faster)

    def check_model(self, model: Model, keep_float: Iterable[str]) -> None:
        """Raise EdgerunError for a graph that cannot be quantized, or weights that are not finite, or where no node
        has a name in `keep_float`."""
        _check_graph(model)
        fitting.check_limits(model, self.device, self.target)
        known = {node_name(node) for node in model.ir.graph}
        for name in keep_float:
            if name not in known:
                raise unknown("node", name, known)
        if found := finite.broken(model):
            raise EdgerunError("weights of the model are not finite", got=finite.told(found),
                               do="repair the float model: no data makes up for them")  # fmt: skip


def aimed(
    scheme: str, target: str | None, device: Device | str | Path | None, output: str | Path | None,
    placement: str | None, max_drop: float | None,
) -> Aim:  # fmt: skip
    """What was asked for, as it holds here. Raises EdgerunError or Unsupported when its parts do not go together."""
    where, name = devices.chosen(device, target)
    step, chosen = quantize.pass_for(scheme), registry.target(name)
    rules = fitting.rules(where, name)
    if scheme not in rules.schemes:
        there = f" on {where.name}" if where is not None and scheme in rules.lacks else ""
        wanted = ", ".join(fitting.fast(where, name, rules))
        raise Unsupported(f"{name} has no kernels for {scheme}{there}", got=rules.lacks.get(scheme), wanted=wanted)
    kinds = dict.fromkeys((chosen.suffixes[0], ".onnx"))
    if output is not None and Path(output).suffix not in kinds:
        raise EdgerunError(f"{name} does not write this kind of file", got=output, wanted=" or ".join(kinds))
    fitting.check_output(where, name, scheme, output)
    idle = proof.idle(chosen, name, output, max_drop)
    timed = _placement(placement, where, name) == "clock" and not idle
    return Aim(scheme, step, name, rules, where, idle, timed)


def refuse_overwrite(output: str | Path | None, force: bool, *sources: object) -> None:
    """Raise EdgerunError when `output`, or the file beside it, is there already, or is one of `sources`."""
    if output is not None:
        files.refuse_same(Path(output), *sources)
        files.refuse_overwrite(Path(output), force)
        if Path(output).suffix == ".xml":
            files.refuse_overwrite(Path(output).with_suffix(".bin"), force)


def check_bound(max_drop: float | None, labelled: Any, logits: str | None, metric: scoring.Given | None) -> None:
    """Raise EdgerunError for a bound without labelled data, the other way round, or one that is no share."""
    for option, given in (("--logits", logits), ("--metric", metric)):
        if given is not None and max_drop is None:
            raise EdgerunError(f"{option} says how --max-drop is measured, and does nothing without", got=given,
                               do="give --max-drop POINTS and --labelled DATA, or leave it out")  # fmt: skip
    if (max_drop is None) != (labelled is None):
        given = "labelled data" if max_drop is None else f"--max-drop {max_drop:g}"
        raise EdgerunError("a bound on the drop and labelled data belong together", got=f"{given} alone",
                           do="give --max-drop POINTS and --labelled DATA")  # fmt: skip
    if max_drop is not None and not 0 < max_drop < 100:
        raise EdgerunError("the bound on the drop is out of range", got=max_drop, wanted="points between 0 and 100")


def _placement(asked: str | None, device: Device | None, target: str) -> str:
    """What was asked for, or the default; only rules where this machine's clock is not that of `device`."""
    found = asked or os.environ.get(PLACEMENT) or PLACEMENTS[0]
    if found not in PLACEMENTS:
        raise unknown("placement", found, PLACEMENTS)
    if found == PLACEMENTS[0] and (reason := devices.elsewhere(device, target)):
        if asked:
            devices.here(device, target)
        log.info("nothing is timed, as with --placement rules: this machine is not the device (%s)", reason)
        return PLACEMENTS[1]
    return found


def _check_ranges(name: str) -> None:
    from edgerun.quantize.numerics.ranges import ESTIMATORS

    if name not in ("auto", *ESTIMATORS):
        raise unknown("range estimator", name, ("auto", *ESTIMATORS))


def _check_graph(model: Model) -> None:
    opset = model.ir.opset_imports.get("", 0)
    do = "edgerun convert it first: that brings it up to date"
    if opset < OLDEST_OPSET:
        wanted = f"{OLDEST_OPSET} or newer (per-channel Q/DQ)"
        raise EdgerunError("the model's opset is too old to quantize", got=opset, wanted=wanted, do=do)
    doubled = [str(v.name) for v in model.ir.graph.inputs if v.name in model.ir.graph.initializers]
    if doubled:
        raise EdgerunError("weights are declared as inputs too", got=", ".join(doubled[:5]), do=do)
