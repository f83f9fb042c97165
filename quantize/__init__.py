"""The compressor: passes that change a model's numbers, and the wrapper that runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edgerun import __version__, registry
from edgerun.errors import EdgerunError
from edgerun.model import Model, Step
from edgerun.passes import Pass, Request, Staged
from edgerun.quantize._engine import Compiled as Compiled
from edgerun.quantize._engine import judged as judged
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(name: str, model: Model, request: Request) -> Model:
    """Run the pass `name` on a clone of `model`; the result has the same door and one more Step in its history.

    Raises EdgerunError when the pass needs calibration data and has none; AssertionError when a pass breaks the
    model's inputs or outputs (a bug of the pass).
    """
    step = _step(name, request)
    told = _Told.of(model)
    told.tell(name, request)
    graph = model.clone()
    del model  # where the caller keeps none either, the weights that the pass replaces are free to go
    return told.result(name, step.apply(graph, request), request)


def variants(name: str, model: Model, request: Request) -> Callable[[frozenset[str]], Model]:
    """`apply` with other nodes kept in float every time, at a fraction of its price where the pass is Staged.

    The function that is returned takes names to keep beside those of the request.
    """
    step = _step(name, request)
    if not isinstance(step, Staged):
        return lambda kept: apply(name, model, _keeping(request, kept))
    told = _Told.of(model)
    told.tell(name, request)
    prepared = step.prepare(model.clone(), request)

    def variant(kept: frozenset[str]) -> Model:
        own = _keeping(request, kept)
        return told.result(name, step.finish(prepared.copy(), own), own)

    return variant


def _keeping(request: Request, kept: frozenset[str]) -> Request:
    return replace(request, keep_float=request.keep_float | kept, found=dict(request.found))


def _step(name: str, request: Request) -> Pass:
    step = registry.quantizer(name)
    if step.needs_calibration and request.calibration is None:
        raise EdgerunError(
            f"{name} needs calibration data", do="give --calibration (an .npz, a folder, or module:callable)"
        )
    return step


@dataclass(frozen=True)
class _Told:
    """What a pass must not change of a model, and what its Step says of it."""

    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: tuple[ir.Shape | None, ...]
    preprocessing: Any
    history: tuple[Step, ...]

    @classmethod
    def of(cls, model: Model) -> _Told:
        shapes = tuple(value.shape for value in model.ir.graph.outputs)
        return cls(model.digest(), model.inputs, model.outputs, shapes, model.preprocessing, model.history)

    def tell(self, name: str, request: Request) -> None:
        """What checkpoints are about: all that decides what is measured, but for the data."""
        if request.checkpoint is not None:
            effort, rules = asdict(request.effort), asdict(request.rules)
            rules = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in rules.items()}
            request.checkpoint.add(step=name, version=__version__, model=self.digest, effort=effort, rules=rules)
            batch = None if request.calibration is None else request.calibration.batch
            request.checkpoint.add(batch=batch, ranges=request.ranges, kept=sorted(request.keep_float))
            request.checkpoint.add(paced=request.pace is not None)

    def result(self, name: str, graph: ir.Model, request: Request) -> Model:
        """The Model of a pass's `graph`, with one more Step."""
        for shape, value in zip(self.shapes, graph.graph.outputs, strict=True):
            # Folding and inference may know more of a shape than the model declares; the door stays as it was.
            value.shape = None if shape is None else shape.copy()
        result, step = Model.of(graph), registry.quantizer(name)
        assert (result.inputs, result.outputs) == (self.inputs, self.outputs), f"{name} changed the model's door"
        uses = step.needs_calibration or bool(step.scheme)  # a scheme measures what it lost, where there is data
        digest = request.calibration.digest if uses and request.calibration is not None else ""
        made = Step(f"quantize/{name}", __version__, dict(request.found), self.digest, result.digest(), digest)
        return result.retold(self.preprocessing, (*self.history, made))


def pass_for(scheme: str) -> str:
    """The name of the pass that makes `scheme`. Raises EdgerunError naming the schemes there are."""
    made = schemes()
    if scheme not in made:
        from edgerun.errors import unknown

        raise unknown("scheme", scheme, made)
    return made[scheme]


def schemes() -> dict[str, str]:
    """Scheme -> name of the pass that makes it."""
    passes = {name: registry.quantizer(name).scheme for name in registry.names("pass")}
    return {scheme: name for name, scheme in passes.items() if scheme}
