"""The command line: python -m cos_ext {demo, train, finetune, eval, bench, info}.

The parser, and what holds for every command: errors, exit codes, streams, several processes. The
commands themselves are in _commands/.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from ._commands import (
    benchmark,
    demo,
    evaluation,
    fine_tuning,
    information,
    options,
    training,
)
from .data import distributed
from .models import DEMO_CHECKPOINT

__all__ = ["DEMO_CHECKPOINT", "main"]


# What a user's words, files, disks and memory can cause: a line says it. Other errors are our own.
_EXPECTED = (
    ArithmeticError,
    ImportError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
INTERRUPTED, CLOSED_PIPE = 130, 141  # as shells number SIGINT and SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None is those of this process.

    Returns:
        The exit code, which is 2 after an error (it is printed), 130 where the command was
        interrupted, 141 where nobody reads its output any more, and 0 otherwise.
    """
    name = "cos_ext"
    with _streams():
        try:
            try:
                args = _parser().parse_args(argv)
                name = f"cos_ext {args.command}"
                return _run(args)
            finally:
                sys.stdout.flush()  # here a full disk still has a message
        except BrokenPipeError:
            _drop(sys.stdout)
            return CLOSED_PIPE
        except KeyboardInterrupt:
            _say(f"{name}: interrupted")
            return INTERRUPTED
        except _EXPECTED as error:
            _say(f"{name}: {_message(error)}")
            return 2


def _run(args: argparse.Namespace) -> int:
    if sys.stdout is _CLOSED:
        raise ValueError("standard output is closed; to see nothing, send it to /dev/null")
    with _processes(args):
        options.check_outputs(args)
        return args.run(args)


_CLOSED = io.StringIO()  # stands for a standard output that is not there


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard streams that can be written to: closed ones are replaced, and a character that the
    terminal does not know is escaped.
    """
    with contextlib.ExitStack() as stack:
        if sys.stderr is None:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nothing))
        if sys.stdout is None:
            stack.enter_context(contextlib.redirect_stdout(_CLOSED))
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
            stack.callback(sys.stdout.reconfigure, errors="strict")
        yield


def _message(error: BaseException) -> str:
    text = str(error).strip()
    # torch has several kinds of its own for memory that it does not get.
    if isinstance(error, MemoryError) or "allocate memory" in text or "aten::empty" in text:
        return "out of memory; use smaller batches, fewer time-steps or smaller sizes"
    if isinstance(error, OSError) and error.strerror is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    if isinstance(error, RuntimeError) and not isinstance(error, distributed.RemoteError):
        return text.partition("\n")[0]  # torch adds its own stack
    return text.partition("\nException raised from")[0]


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody can be told
        _drop(sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere: the interpreter writes it at its end."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
        stream.flush()


class _Parser(argparse.ArgumentParser):
    """One line for a usage error, as for every other."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would hide that a disk is full


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m cos_ext", description="ANN to SNN conversion by calibrating offset spikes"
    )
    parser.set_defaults(shares_images=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (demo, evaluation, training, fine_tuning, benchmark, information):
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
