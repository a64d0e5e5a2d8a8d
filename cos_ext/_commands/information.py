"""`info`: what is installed, and what it can serve."""

from __future__ import annotations

import argparse

from .._build import build_info


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command, which has no options."""
    info = commands.add_parser(
        "info", help="versions, CPU capability, CUDA architectures, and why CUDA is off"
    )
    info.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts, one a line."""
    facts = build_info()
    facts.update(facts.pop("cuda_devices"))
    for key, value in facts.items():
        print(f"{key:18} {'-' if value in (None, '') else value}")
    return 0
