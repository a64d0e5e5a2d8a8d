"""Where in the model's own source something stands: a node of a graph, an error, a running call.
Nothing is traced here.
"""

from __future__ import annotations

import functools
import linecache
import re
import sys
import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import fx

_OWN = Path(__file__).parent.parent
_TORCH = Path(torch.__file__).parent


@functools.cache
def _is_model(path: str) -> bool:
    """Whether a file is the model's, not ours and not torch's."""
    return not any(map(Path(path).is_relative_to, (_TORCH, _OWN)))


def line_of(node: fx.Node) -> str:
    """The line of the model's source that made a node, as `file.py:12: code`; "" where it is not
    known.
    """
    frames = re.findall(r'File "(.+)", line (\d+), in .*(?:\n    (.*))?', node.stack_trace or "")
    for path, number, code in reversed(frames):
        if _is_model(path):
            place = f"{Path(path).name}:{number}"  # of code from a prompt there is no text
            return f"{place}: {code.strip()}" if code else place
    return ""


def here() -> str:
    """The innermost line of the model that runs now, as a traceback prints it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if _is_model(code.co_filename):
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            return (
                f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {text}'
            )
        frame = frame.f_back
    return ""


def reason(error: Exception) -> str:
    """What was raised, and the line of the model where."""
    words = str(error).strip().split("\n")[0] or type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_model(f.filename)]
    if not frames:
        return words
    last = frames[-1]
    return f"{words} [{Path(last.filename).name}:{last.lineno}: {(last.line or '').strip()}]"
