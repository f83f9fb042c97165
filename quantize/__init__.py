"""The compressor: passes that change a model's numbers, and the wrapper that runs them."""

from __future__ import annotations

from dataclasses import replace

from edgerun import __version__, registry
from edgerun.errors import EdgerunError
from edgerun.model import Model, Step
from edgerun.passes import Request


def apply(name: str, model: Model, request: Request) -> Model:
    """Run the pass `name` on a clone of `model`; the result has the same door and one more Step in its history.

    Raises EdgerunError when the pass needs calibration data and has none; AssertionError when a pass breaks the
    model's inputs or outputs (a bug of the pass).
    """
    step = registry.quantizer(name)
    if step.needs_calibration and request.calibration is None:
        raise EdgerunError(
            f"{name} needs calibration data", do="give --calibration (an .npz, a folder, or module:callable)"
        )
    digest, door, shapes = model.digest(), (model.inputs, model.outputs), [v.shape for v in model.ir.graph.outputs]
    preprocessing, history = model.preprocessing, model.history
    graph = model.clone()
    del model  # where the caller keeps none either, the weights that the pass replaces are free to go
    graph = step.apply(graph, request)
    for shape, value in zip(shapes, graph.graph.outputs, strict=True):
        # Folding and inference may know more of a shape than the model declares; the door stays as it was.
        value.shape = None if shape is None else shape.copy()
    result = Model.of(graph)
    assert (result.inputs, result.outputs) == door, f"{name} changed the model's door"
    made = Step(
        f"quantize/{name}",
        __version__,
        dict(request.found),
        digest,
        result.digest(),
        request.calibration.digest if step.needs_calibration and request.calibration is not None else "",
    )
    return replace(result, preprocessing=preprocessing, history=(*history, made))


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
