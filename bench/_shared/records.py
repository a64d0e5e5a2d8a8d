"""How a result is written as JSON. What is in a record is its script's business."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from cos_ext._files import write_text


def write(path: Path, record: dict[str, Any], compact: Container[str] = ()) -> None:
    """Write all of it or nothing: a run that is killed leaves the file that was there before.

    compact: the keys whose value takes one line, or if it is a list one line an entry.
    """
    parts = [f"{json.dumps(key)}: {_text(v, key in compact)}" for key, v in record.items()]
    write_text(path, "{\n " + ",\n ".join(parts) + "\n}\n")


def _text(value: Any, compact: bool) -> str:
    if not compact:
        return json.dumps(value, indent=1).replace("\n", "\n ")
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n ]"
    return json.dumps(value)
