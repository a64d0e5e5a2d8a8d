"""Data that measurements and fits read: what batches must be, and the inputs in one.

Also where a module computes, which says where they go. Nothing is run here.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LABELS = ("label", "labels", "target", "targets")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is; the CPU where it has none."""
    return next(
        (tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu")
    )


def check_batches(batches: Any) -> None:
    """Validate that batches is an iterable that may yield batches.

    Raises:
        TypeError: it is a tensor, a string, a mapping, or not iterable.
    """
    if isinstance(batches, (Tensor, str, bytes, Mapping)) or not hasattr(batches, "__iter__"):
        raise TypeError(
            "batches must be an iterable of batches (a list, a DataLoader), got "
            f"{type(batches).__name__}"
        )


@dataclass(frozen=True)
class Inputs:
    """Which of the arguments of forward are a model's inputs.

    Attributes:
        names: of the inputs, in the order of forward.
        fixed: the other arguments and their defaults.
        open: forward takes any number of positional inputs; then one is expected.
        leading: the inputs are the first arguments, so that they can be given by position.
    """

    names: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False
    leading: bool = True

    @classmethod
    def of(cls, model: nn.Module, given: Iterable[str] | None = None) -> Inputs:
        """The arguments that are given; None: those without a default, or else the first.

        Raises:
            TypeError: forward has no argument of a given name, or one without a default is not
                given.
        """
        every = list(inspect.signature(type(model).forward).parameters.values())[1:]
        named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        open_ = any(p.kind is p.VAR_POSITIONAL for p in every)
        needed = [p.name for p in named if p.default is p.empty]
        if given is None:
            chosen = needed or ([] if open_ else [p.name for p in named[:1]])
        else:
            chosen = list(given)
            unknown = [name for name in chosen if name not in {p.name for p in named}]
            missing = [name for name in needed if name not in chosen]
            if unknown or missing:
                raise TypeError(
                    f"the inputs of {type(model).__name__} are {[p.name for p in named]}, of which "
                    f"{needed} have no default; got {list(given)}"
                )
        fixed = {p.name: p.default for p in named if p.name not in chosen}
        names = tuple(p.name for p in named if p.name in chosen)
        first = [p.name for p in named if p.kind is not p.KEYWORD_ONLY][: len(names)]
        return cls(names, fixed, open_, list(names) == first)

    @classmethod
    def of_positions(cls, model: nn.Module, given: Iterable[Any]) -> Inputs:
        """The arguments that positional ones are for, where those are not None."""
        own = cls.of(model)
        every = list(inspect.signature(type(model).forward).parameters)[1:]
        if own.open:
            return own
        values = list(given)
        if len(values) > len(every):
            raise TypeError(
                f"{type(model).__name__} takes {len(every)} input(s) {every}, got {len(values)}"
            )
        names = [name for name, value in zip(every, values) if value is not None]
        return cls.of(model, names)

    def of_batch(self, model: nn.Module, batch: Any) -> Inputs:
        """Those that a mapping has; these, for another batch."""
        if not isinstance(batch, Mapping):
            return self
        return Inputs.of(model, [name for name in batch if name in (*self.names, *self.fixed)])

    def call(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Call a model with its inputs, in the order of the names."""
        if isinstance(module, torch.fx.GraphModule):  # whose call reports every error on stderr
            return module.forward(*tensors)
        return module(*tensors) if self.leading else module(**dict(zip(self.names, tensors)))

    def bound(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """The inputs of a call, in the order of the names.

        Raises:
            TypeError: there are too few or too many, or one that was fixed.
        """
        named = self.without_fixed(named)
        if self.open and not named:
            return given
        if len(given) > len(self.names) and self.fixed:
            raise self._is_fixed(self.fixed)
        values = {**dict(zip(self.names, given)), **named}
        twice = [name for name in self.names[: len(given)] if name in named]
        if len(given) > len(self.names) or twice or set(values) != set(self.names):
            raise TypeError(
                f"the inputs are {list(self.names)}; got {len(given)} by position and "
                f"{list(named)} by name"
            )
        return tuple(values[name] for name in self.names)

    def without_fixed(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """What is given by name, without the fixed arguments at their defaults.

        Raises:
            TypeError: a fixed one has another value.
        """
        rest = {k: v for k, v in named.items() if k not in self.fixed or v is not self.fixed[k]}
        if fixed := [name for name in rest if name in self.fixed]:
            raise self._is_fixed(fixed)
        return rest

    @staticmethod
    def _is_fixed(names: Iterable[str]) -> TypeError:
        return TypeError(
            f"{', '.join(names)} had the default when the model was converted, and is fixed; "
            "give it in example_input of convert() to have it as an input"
        )

    @property
    def count(self) -> int:
        """How many a batch must have at least."""
        return max(len(self.names), 1)


class ahead:
    """Batches of which some have been read: those, and then the rest; as long as all."""

    def __init__(self, read: Sequence[Any], rest: Iterable[Any], batches: Any) -> None:
        self.read, self.rest, self.batches = read, rest, batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(self.read, self.rest)

    def __len__(self) -> int:
        return len(self.batches)

    def __length_hint__(self) -> int:
        return operator.length_hint(self.batches)


def model_inputs(batch: Any, wanted: Inputs) -> list[Tensor]:
    """The inputs in an element of batches, without what else is in it, such as labels.

    Args:
        batch: a tensor; a tuple or list that begins with tensors; or a mapping, by name.
        wanted: the model's.

    Raises:
        TypeError: the element, or one of its first members, is no tensor; or a mapping has an
            argument that was fixed (labels apart, which a model may take for its loss).
        ValueError: there are fewer members than wanted, or no batch dimension.
    """
    if isinstance(batch, Mapping):
        wanted.without_fixed({k: v for k, v in batch.items() if k not in LABELS})
        missing = [name for name in wanted.names if name not in batch]
        if missing or not wanted.names:
            raise ValueError(
                f"batches must yield the model's inputs {list(wanted.names)}, a mapping lacks "
                f"{missing}; it has {list(batch)}"
            )
        elements: Any = [batch[name] for name in wanted.names]
    else:
        elements = [batch] if isinstance(batch, Tensor) else batch
    count = wanted.count
    if not isinstance(elements, (tuple, list)) or not all(
        isinstance(element, Tensor) for element in elements[:count]
    ):
        kinds = (
            f" of {[type(element).__name__ for element in elements]}"
            if isinstance(elements, (tuple, list))
            else ""
        )
        raise TypeError(
            f"batches must yield tensors, tuples that begin with {count} of them, or mappings, "
            f"got {type(batch).__name__}{kinds}"
        )
    if len(elements) < count or not elements:
        raise ValueError(
            f"batches must yield the model's {count} input(s), got {len(elements)} element(s)"
        )
    if elements[0].dim() == 0:
        raise ValueError(
            "batches must yield tensors with a batch dimension, got one without dimensions"
        )
    return list(elements[:count])
