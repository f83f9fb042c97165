"""Asking a target about a model as options of its own say: on another provider, on other hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgerun import registry
from edgerun.devices import Device
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Building, Finishing, Issue, Target, Trial
from edgerun.runtime import Options, Session

SAME = '<ir_version: 7, opset_import: ["": 13]> same (float[1] x) => (float[1] y) { y = Identity(x) }'


@dataclass(frozen=True)
class Asked:
    """The target of that `name`, as `options` ask it to run on `device`; without keys of its own it is asked as ever.

    Raises Unsupported for keys where nothing is opened, or built, by which they could be tried.
    """

    name: str
    options: Options
    device: Device | None = None
    _last: list[tuple[Model, Trial]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.options.extra:
            return
        if isinstance(self.target, Building):
            reason: str | None = self.tried(_same()).reason
            self._last.clear()
        else:
            reason = self.target.runnable() or ("its engines are built by them" * isinstance(self.target, Finishing))
        if reason:
            what = f"what {self.name} takes is asked without options: to try them, it would have to be opened"
            raise Unsupported(what, got=reason, do="leave --option out")

    @property
    def target(self) -> Target:
        """The target itself."""
        return registry.target(self.name)

    @property
    def hardware(self) -> str:
        """What shall run it in place of the CPU, as KEY=VALUE, or "": rules and kernels are known of the CPU alone."""
        key = getattr(self.target, "device_option", "")
        value = self.options.extra.get(key, "CPU")
        return "" if value == "CPU" else f"{key}={value}"

    def issues(self, model: Model) -> list[Issue]:
        """The nodes that do not run so. Raises what the target does for options under which no model runs here."""
        if isinstance(self.target, Building):
            return self.target.check(model) or list(self.tried(model).issues)
        if not self.options.extra:
            return self.target.check(model)
        try:
            self._opened(model).close()
        except EdgerunError as error:
            self._opened(_same()).close()
            return self.target.check(model) or [Issue("", "", str(error.got or error.what))]
        return []

    def tried(self, model: Model) -> Trial:
        """What came of building a model that the target's `check` takes; of a target that builds none, nothing."""
        if not isinstance(self.target, Building):
            return Trial()
        if not any(model is known for known, _ in self._last):  # a build takes seconds, and is asked for twice
            dims = {dim for spec in model.inputs for dim in spec.shape}
            sizes = {name: size for name, size in self.options.sizes.items() if name in dims}  # a part has not all
            self._last[:] = [(model, self.target.tried(model, replace(self.options, sizes=sizes), self.device))]
        return self._last[0][1]

    @property
    def built(self) -> str:
        """For what the last build was, "" where there was none."""
        return self._last[0][1].built if self._last else ""

    def left(self, model: Model) -> tuple[Issue, ...] | None:
        """The nodes of a model that runs which the hardware asked for leaves to another; None where nobody tells."""
        if not self.hardware:
            return ()
        with self._opened(model) as session:
            found: tuple[Issue, ...] | None = getattr(session, "left", ())
            return found

    def _opened(self, model: Model) -> Session:
        return self.target.load(self.target.compile(model, self.options), self.options)


def _same() -> Model:
    import onnx

    return Model.from_proto(onnx.parser.parse_model(SAME))


def named(found: Sequence[Issue]) -> str:
    """The first ten of them, each with its reason, in one line."""
    texts = [f"{f.node} ({f.op}): {f.reason}" if f.node else f.reason for f in found]
    more = f", and {len(texts) - 10} more" if len(texts) > 10 else ""
    return "; ".join(texts[:10]) + more
