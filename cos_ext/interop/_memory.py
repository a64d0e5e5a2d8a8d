"""What a module of SpikingJelly keeps between calls, for where SpikingJelly is not installed.

The contract is that of its ``activation_based.base.MemoryModule``. What is kept is the modules'
business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class MemoryModule(nn.Module):
    """A module with memories: attributes that no state dict has and :meth:`reset` sets back."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {}
        self._memories_rv: dict[str, Any] = {}
        self._step_mode = "s"

    def supported_step_mode(self) -> tuple[str, ...]:
        return "s", "m"

    @property
    def step_mode(self) -> str:
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        if value not in self.supported_step_mode():
            raise ValueError(
                f"step_mode must be one of {self.supported_step_mode()}, got {value!r}"
            )
        self._step_mode = value

    def register_memory(self, name: str, value: Any) -> None:
        """A memory, and the value that :meth:`reset` gives it."""
        assert not hasattr(self, name), f"{name} is an attribute already"
        self._memories[name] = value
        self.set_reset_value(name, value)

    def set_reset_value(self, name: str, value: Any) -> None:
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self) -> None:
        """Give every memory its first value."""
        for name, value in self._memories_rv.items():
            self._memories[name] = copy.deepcopy(value)

    def detach(self) -> None:
        """Cut the memories from what computed them."""
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = value.detach()

    def memories(self) -> Iterator[Any]:
        yield from self._memories.values()

    def named_memories(self) -> Iterator[tuple[str, Any]]:
        yield from self._memories.items()

    def __getattr__(self, name: str) -> Any:
        memories = self.__dict__.get("_memories", {})
        return memories[name] if name in memories else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_memories", {}):
            self._memories[name] = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__.get("_memories", {}):
            del self._memories[name], self._memories_rv[name]
        else:
            super().__delattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryModule:
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = fn(value)
        return super()._apply(fn, recurse)
