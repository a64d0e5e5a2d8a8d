"""What a record says of the machine, the software and the command that made it.

No figure is measured here.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cos_ext
from cos_ext.bench import _processor as processor

ROOT = Path(__file__).resolve().parents[2]


def said(*command: str) -> str | None:
    """What a program prints; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version(package: str) -> str | None:
    """Of a package on the path, installed or unpacked; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(checkout: Path) -> str | None:
    return said("git", "-C", str(checkout), "rev-parse", "HEAD")


def command_line(script: str, arguments: Iterable[str]) -> str:
    return shlex.join(["python", f"bench/{script}.py", *arguments])


def facts(packages: Iterable[str], checkout: Path = ROOT) -> dict[str, Any]:
    """Processor, platform, versions, build, commit of `checkout` (None where it is none), date."""
    return {
        "processor": processor(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "build": cos_ext.build_info(),
        "commit": commit(checkout),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
