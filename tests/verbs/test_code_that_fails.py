"""Code of the user's that is named as `module:callable`: what it raises, or does to the process, is one clear error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

MODULES = {
    "raising": "\nraise ValueError('no disk')",
    "unwritten": "def feeds(:",
    "needing": "import a_package_that_is_not_there",
    "leaving": "import sys\nsys.exit(3)",
    "fine": "import sys\ndef raises(*x):\n    raise KeyError('k')\ndef leaves(*x):\n    sys.exit(3)",
}
FAULTS = [
    ("raising:feeds", "cannot import raising:feeds", r"ValueError: no disk, at {0}:2"),
    ("unwritten:feeds", "cannot import unwritten:feeds", r"SyntaxError: invalid syntax (unwritten.py, line 1)"),
    ("needing:feeds", "cannot import needing:feeds", r"ModuleNotFoundError: No module named"),
    ("leaving:feeds", "cannot import leaving:feeds", r"SystemExit: 3, at {0}:2"),
    ("fine:raises", "fine:raises failed", "KeyError: 'k', at {0}:3"),
    ("fine:leaves", "fine:leaves failed", "SystemExit: 3, at {0}:5"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The modules lie in the working folder, and nothing of them is left in memory."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("code", "what", "got"), FAULTS)
def test_one_error_tells_what_failed_and_where(
    code: str, what: str, got: str, place: Any, cli: Any, here: Path
) -> None:
    commands = [
        ("compress", place.a, "--calibration", code, "-o", place.folder / "small.onnx"),
        ("compare", place.a, place.b, "--data", code),
        ("eval", place.a, "--data", place.data, "--metric", code),
    ]
    for command in commands:
        done = cli(*command)
        wanted = got.format(here / f"{code.partition(':')[0]}.py")
        assert done.code == 2 and f"error: {what}" in done.err and wanted in done.err, done.err
        assert "Traceback" not in done.err and done.err.count("error:") == 1
    assert not (place.folder / "small.onnx").exists()
