"""Why an exporter failed, in one line that a person can act on."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgerun.converters._ort import first_line

_NO_OPERATOR = re.compile(r"(?:No ONNX function found for <OpOverload\(op=|Exporting the operator )'(?P<op>[\w.:]+)'")
_CONVERTING = re.compile(r"target=torch\.ops\.(aten\.\w+)")
_RAISED_AT = re.compile(r'The following call raised this error:\s+File "([^"]+)", line (\d+)[^\n]*\n\s*([^\n]*)')


def reason(error: BaseException) -> str:
    """The innermost cause, with the line of the source that it comes from, without terminal colours."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(chain[-1]))
    where = _place(chain[-1], text)
    if found := _NO_OPERATOR.search(text):
        return f"ONNX has no operator for {found['op'].replace('::', '.')}{where}"
    if "data-dependent" in text:
        return f"the source asks the data for its way{where or f': {first_line(chain[-1])}'}"
    if "static shape" in text or "Constraints violated" in text:
        lines = re.findall(r"(?:inferred a static shape of \d+ for dimension \S+|specialized[^\n]*)", text)
        return f"the source fixes a size: {'; '.join(lines)[:300] or first_line(chain[-1])}"
    if found := _CONVERTING.search(" ".join(map(str, chain))):
        return f"{found[1]} has no ONNX form as it is called here: {first_line(chain[-1])}"
    return f"{first_line(chain[-1])}{where}"


def advice(tried: Sequence[Any]) -> str:
    """What to do about the reasons of these attempts."""
    text = " ".join(attempt.reason for attempt in tried)
    found = []
    if "no operator" in text:
        found.append("compute what has no ONNX operator before or after the model")
    if "asks the data" in text or "one side of" in text:
        found.append("write the branch with torch.where or torch.cond, or give TorchScript (torch.jit.script)")
    if not found:
        found.append("--reproduction FILE.py writes the smallest part that fails, to change or to report")
    return "; ".join(found)


def _place(error: BaseException, text: str) -> str:
    """` at nets.py:12 (the line)`, of the innermost frame that is neither torch's nor ours."""
    found = [(f[1], f[2], f[3]) for f in _RAISED_AT.finditer(text)]
    frames = [*found[::-1], *((f.filename, f.lineno, f.line) for f in traceback.extract_tb(error.__traceback__))]
    own = [f for f in frames if users(f[0])]
    return f" at {Path(own[-1][0]).name}:{own[-1][1]} ({(own[-1][2] or '').strip()})" if own else ""


def users(file: str) -> bool:
    """Is it a file of the user's, neither torch's nor ours?"""
    import torch

    homes = [Path(inspect.__file__), Path(torch.__file__), Path(__file__), Path(__file__).resolve()]
    foreign = tuple(f"{home.parent}{os.sep}" for home in homes)
    if "site-packages" in file and not file.startswith(foreign[1]):
        return True  # a package that defines the network
    return not file.startswith((*foreign, "<"))
