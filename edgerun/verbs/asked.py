"""Asking a target about a model as options of its own say: on another provider, on other hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Finishing, Issue, Target
from edgerun.runtime import Options, Session

SAME = '<ir_version: 7, opset_import: ["": 13]> same (float[1] x) => (float[1] y) { y = Identity(x) }'


@dataclass(frozen=True)
class Asked:
    """The target of that `name`, as `options` ask it to run; without keys of its own it is asked as ever.

    Raises Unsupported for keys where nothing is opened by which they could be tried.
    """

    name: str
    options: Options

    def __post_init__(self) -> None:
        reason = self.target.runnable() or ("its engines are built by them" * isinstance(self.target, Finishing))
        if self.options.extra and reason:
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
        if not self.options.extra:
            return self.target.check(model)
        try:
            self._opened(model).close()
        except EdgerunError as error:
            import onnx

            self._opened(Model.from_proto(onnx.parser.parse_model(SAME))).close()
            return self.target.check(model) or [Issue("", "", str(error.got or error.what))]
        return []

    def left(self, model: Model) -> tuple[Issue, ...] | None:
        """The nodes of a model that runs which the hardware asked for leaves to another; None where nobody tells."""
        if not self.hardware:
            return ()
        with self._opened(model) as session:
            # Without this ONNX Runtime is silent, which is not to say that it leaves none.
            native = getattr(session, "native", None)
            told = not hasattr(session, "left") or hasattr(native, "get_provider_graph_assignment_info")
            return tuple(getattr(session, "left", ())) if told else None

    def _opened(self, model: Model) -> Session:
        return self.target.load(self.target.compile(model, self.options), self.options)


def named(found: Sequence[Issue]) -> str:
    """The first ten of them, each with its reason, in one line."""
    texts = [f"{f.node} ({f.op}): {f.reason}" if f.node else f.reason for f in found]
    more = f", and {len(texts) - 10} more" if len(texts) > 10 else ""
    return "; ".join(texts[:10]) + more
