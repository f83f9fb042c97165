"""The process in which an isolated session lives: it opens one, tells its door, and runs what comes."""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from edgerun import errors
from edgerun.errors import EdgerunError
from edgerun.runtime import Session, memory
from edgerun.runtime.arena import Looks
from edgerun.runtime.mailbox import Closed, Mailbox

BOOT = "import sys; sys.path[:] = {path!r}; from edgerun.runtime.worker import work; work({memory!r}, {pipes!r})"


def work(shared: Sequence[int], pipes: Sequence[int]) -> None:
    """The worker's whole life. What it opens comes from its parent through stdin, which stays open as long as that
    lives; `shared` and `pipes` are descriptors: of feeds, of outputs, and of memory that feeds may lie in already."""
    memory.own = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    inbox, outbox = Mailbox(shared[0], pipes[0], Looks(shared[2])), Mailbox(shared[1], pipes[1])
    module, name = function.split(":")
    with suppress(Closed):
        try:
            session = getattr(importlib.import_module(module), name)(**arguments)
        except EdgerunError as error:
            outbox.note({"error": errors.to_json(error)})
            return
        with session:
            doors = {"inputs": session.inputs, "outputs": session.outputs, "defaults": session.defaults}
            told = {door: [asdict(spec) for spec in specs] for door, specs in doors.items()}
            outbox.note({**told, "metadata": dict(session.metadata)})
            _serve(session, inbox, outbox)


def _serve(session: Session, inbox: Mailbox, outbox: Mailbox) -> None:
    # Run feeds as they come. Of those that lie where the last ones did, the outputs will be alike: they are computed
    # right into the shared memory, unless their shapes turn out to depend on the data. (Of others the runtime would
    # have to be told where they are, and where the outputs go, which takes longer than a copy.)
    last, steady = None, True
    while True:
        _, feeds = inbox.take()
        if steady and feeds is last and outbox.places is not None:
            try:
                session.run(feeds, outbox.places)
                outbox.again()
                continue
            except EdgerunError:
                steady = False
        try:
            outbox.post(session.run(feeds))
            last = feeds
        except EdgerunError as error:
            outbox.note({"error": errors.to_json(error)})


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing more comes: it ends
    os._exit(0)
