"""The command line: python -m cos_ext {demo, train, eval, bench, info}.

The parser, and what holds for every command: errors, exit codes, several processes. The commands
themselves are in _commands/.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from ._commands import benchmark, demo, evaluation, information, training
from .data import distributed
from .models import DEMO_CHECKPOINT

__all__ = ["DEMO_CHECKPOINT", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None is those of this process.

    Returns:
        The exit code, which is 2 after an error (it is printed), 130 where the command was
        interrupted, and 0 otherwise.
    """
    args = _parser().parse_args(argv)
    try:
        with _processes(args):
            return args.run(args)
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        ImportError,
        FloatingPointError,
        distributed.RemoteError,
    ) as error:
        print(f"cos_ext {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cos_ext {args.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cos_ext", description="ANN to SNN conversion by calibrating offset spikes"
    )
    parser.set_defaults(shares_images=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (demo, evaluation, training, benchmark, information):
        command.add(commands)
    return parser


@contextlib.contextmanager
def _processes(args: argparse.Namespace) -> Iterator[None]:
    """Start the processes of torchrun for a command whose images are shared out among them.

    The first process alone prints and writes.
    """
    if not args.shares_images or not distributed.launched():
        yield
        return
    if getattr(args, "report", False):
        raise ValueError("--report works in one process, got several")
    with distributed.started() as (rank, _), contextlib.ExitStack() as stack:
        if rank > 0:
            args.quiet, args.json = True, None
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
            )
        yield
