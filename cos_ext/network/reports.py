"""Reports on a network that a higher room makes. It puts its functions here by name, so that a
network has them as methods and this room knows nothing of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_REPORTS: dict[str, Callable[..., Any]] = {}


def report(name: str) -> Callable[[Function], Function]:
    """A decorator: the function makes the report of that name, of its first argument."""

    def put(function: Function) -> Function:
        _REPORTS[name] = function
        return function

    return put


def make_report(name: str, network: Any, *args: Any, **options: Any) -> Any:
    """The report of that name."""
    return _REPORTS[name](network, *args, **options)
