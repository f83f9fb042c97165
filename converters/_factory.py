"""`--factory module:callable`: the model that the user's own function builds."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError


def built(factory: str, kind: type, called: str) -> Any:
    """What `factory` returns, which must be a `kind`, `called` so; it may live in the working folder.

    Raises EdgerunError for a name that is none, for whatever the user's code raises, and for another object.
    """
    name, _, attribute = factory.partition(":")
    if not name or not attribute:
        raise EdgerunError("the factory is not understood", got=factory, wanted="module:callable, as nets:small")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(name), attribute)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise EdgerunError(
            f"the factory {factory} failed", got=f"{type(error).__name__}: {first_line(error)}",
            wanted=f"a callable without arguments, importable from here, whose result is a {called}",
        ) from error  # fmt: skip
    finally:
        sys.path.remove("")
    if not isinstance(made, kind):
        raise EdgerunError(f"the factory {factory} returned no {called}", got=type(made).__name__)
    return made
