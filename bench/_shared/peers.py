"""SpikingJelly, the peer of every benchmark: how its wheels come onto the path, and how it is kept
from printing.

What is measured of it is the scripts' business; its IFNode as a call is cos_ext.bench's.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path


def unpack(
    wheels: Path, into: Path, *, any_machine: bool = False
) -> Iterator[tuple[str, str, Path]]:
    """Unpack a folder's wheels without installing them, in the order of their file names.

    Yields (name, version, folder to put on the path). any_machine: only those of Python alone.
    """
    for wheel in sorted(wheels.glob("*.whl")):
        name, version, *_, tag = wheel.stem.split("-")
        if any_machine and tag != "any":
            continue
        target = into / f"{name}-{version}"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        yield name, version, target


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """SpikingJelly logs and shows progress on stderr."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
