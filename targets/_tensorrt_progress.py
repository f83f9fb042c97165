"""How far TensorRT's builder is: its phases, each in so many steps, as one share of the whole."""

from __future__ import annotations

from typing import Any

from edgerun.runtime.progress import Progress

STAGE, WHOLE = "building the engine", 100


class Shares:
    """Phases that lie within each other: a phase in the middle of a step counts as that part of the step."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, inside `parent`."""
        self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> None:
        """Step number `step` (from 0) of a phase is done."""
        if name in self._phases:
            parent, steps, done = self._phases[name]
            self._phases[name] = (parent, steps, min(steps, max(done, step + 1)))

    def finish(self, name: str) -> None:
        """A phase is over; its step in the parent is reported by itself."""
        self._phases.pop(name, None)

    def done(self) -> float:
        """The share of the whole that is done, 0 to 1."""
        return max((self._share(name) for name, (parent, _, _) in self._phases.items() if parent is None), default=0.0)

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inner = [self._share(child) for child, (parent, _, _) in self._phases.items() if parent == name]
        return min(1.0, (done + min(1.0, sum(inner))) / steps)


def monitor(trt: Any, tell: Progress) -> Any:
    """An IProgressMonitor that tells the share of the whole that is done, in hundredths, whenever it grows.

    What `tell` raises ends the build, and stands in `failed`: the library can do nothing with an exception.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failed: BaseException | None = None
            self._shares, self._told = Shares(), -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._shares.start(phase_name, parent_phase, num_steps)
            self._tell()

        def phase_finish(self, phase_name: str) -> None:
            self._shares.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._shares.step(phase_name, step)
            self._tell()
            return self.failed is None

        def _tell(self) -> None:
            done = int(WHOLE * self._shares.done())
            if done > self._told and self.failed is None:
                self._told = done
                try:
                    tell(STAGE, done, WHOLE)
                except BaseException as error:  # an interrupt too
                    self.failed = error

    return Monitor()
