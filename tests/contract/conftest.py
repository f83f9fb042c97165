"""Every registered target, one after the other."""

from __future__ import annotations

import pytest

from edgerun import registry
from edgerun.passes import Target


@pytest.fixture(params=registry.names("target"))
def name(request: pytest.FixtureRequest) -> str:
    """A target's name, unless a file says what else it goes through."""
    found: str = request.param
    return found


@pytest.fixture
def target(name: str) -> Target:
    """A target that compiles here, whether or not it runs here."""
    found = registry.target(name, usable=False)
    if reason := found.available():
        pytest.skip(f"{name}: {reason}")
    return found
