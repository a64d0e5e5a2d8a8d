"""Writing safetensors files with a JSON header: complete or not there. What is in them is the
callers' business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors, and `header` as JSON in the metadata's entry "cos_ext", to a temporary file
    that then takes its place.
    """
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    unfinished = Path(f"{os.fspath(path)}.part")
    try:
        save_file(owned, unfinished, metadata={"cos_ext": json.dumps(header)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
