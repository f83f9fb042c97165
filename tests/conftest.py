"""Nets of tests are tiny, and their times noise: the clock judges only where a test asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["EDGERUN_PLACEMENT"] = "rules"


@pytest.fixture(autouse=True)
def _timings_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test knows what another one timed, nor what this machine did."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGERUN_CACHE", str(folder))
    return folder
