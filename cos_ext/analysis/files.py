"""How reports are written to files: JSON and CSV. What is in them is the reports' business."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write numbers, strings, lists and dicts as indented JSON in UTF-8."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def write_csv(
    path: str | os.PathLike[str], head: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write the names of the columns and then the rows as CSV in UTF-8."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
