"""What a network gives: inside it is a flat tuple of leaves, at its edge the structure in which the
model gives them. How the leaves are computed is elsewhere.

Structures are those of torch.utils._pytree, and dataclasses and classes of dicts, which are entered
there when they are met.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .._neuron.runs import frames_now

# What a leaf of the graph is: computed at every step; the same at every step; of no input at all.
STEPS, STATIC, CONSTANT = "steps", "static", "constant"
# Leaves that stay as they are.
_NUMBERS = (type(None), bool, int, float, complex, str, bytes)
PLAIN = (*_NUMBERS, torch.dtype, torch.device, Enum)
Flat = tuple[Any, ...]


@dataclass(frozen=True)
class Outputs:
    """The structure of a model's output.

    Attributes:
        spec: torch's, of all leaves.
        others: the leaves that are no tensors, by number.
        kinds: of each tensor, STEPS, STATIC or CONSTANT.
    """

    spec: Any
    others: Mapping[int, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = (STEPS,)

    def __reduce__(self) -> tuple[Any, ...]:
        # As an output, whose classes may have to be entered with torch again.
        return _restored, (self.full(_stand_ins(self)), self.kinds)

    def __deepcopy__(self, memo: Any) -> Outputs:
        return self

    @property
    def timed(self) -> list[int]:
        """The tensors that become [T, B, ...]."""
        return [number for number, kind in enumerate(self.kinds) if kind != CONSTANT]

    def full(self, flat: Iterable[Any]) -> Any:
        """The model's structure around leaves."""
        rest, others = iter(flat), self.others
        leaves = [others[n] if n in others else next(rest) for n in range(self.spec.num_leaves)]
        return pytree.tree_unflatten(leaves, self.spec)

    def flat(self, given: Any) -> Flat:
        """The leaves of an output of this structure; the numbers and the like in it left out.

        Raises:
            ValueError: it has another structure.
        """
        try:
            leaves = self.spec.flatten_up_to(given)
        except ValueError as error:
            raise ValueError(
                f"the model's output must always have one structure: {error}"
            ) from error
        return tuple(leaf for number, leaf in enumerate(leaves) if number not in self.others)

    def each(self, function: Callable[[Any], Any], flat: Flat) -> Flat:
        """A function of every leaf [T, B, ...]; the others as they are."""
        pairs = zip(flat, self.kinds)
        return tuple(leaf if kind == CONSTANT else function(leaf) for leaf, kind in pairs)

    def by_step(self, flat: Flat, batch: int, steps: int, wanted: int) -> Flat:
        """Of leaves [steps*B, ...], or [B, ...] of what is static, the first steps that are wanted,
        [T, B, ...]. Of frames nothing is static.
        """

        def parts(x: Tensor) -> Tensor:
            return x.unflatten(0, (steps, batch))[:wanted]

        made: dict[str, Callable[[Any], Any]] = {
            STEPS: parts,
            STATIC: parts if frames_now() else lambda x: x.expand(wanted, *x.shape),
            CONSTANT: lambda x: x,
        }
        return tuple(made[kind](leaf) for leaf, kind in zip(flat, self.kinds))

    def means(self, flat: Flat) -> Flat:
        """The means over time of leaves [T, B, ...]."""
        made = {STEPS: lambda x: x.mean(0), STATIC: lambda x: x[0], CONSTANT: lambda x: x}
        return tuple(made[kind](leaf) for leaf, kind in zip(flat, self.kinds))

    def joined(self, parts: Sequence[Flat]) -> Flat:
        """The leaves of parts of a batch as those of the batch."""
        pairs = zip(zip(*parts), self.kinds)
        return tuple(own[0] if kind == CONSTANT else torch.cat(own, 1) for own, kind in pairs)

    def described(self) -> str:
        """What an error says of it."""
        given, count = self.full(_stand_ins(self)), len(self.timed)
        names = f" with {list(given)}" if isinstance(given, Mapping) else ""
        return f"{count} tensors, in a {type(given).__name__}{names}"

    def chooser(self, output: Any) -> tuple[Callable[[Any], Tensor], int | None]:
        """A function that takes one tensor out of what the network gives; and which leaf it is,
        where that is known.

        Args:
            output: a function of what the network gives; a key, index or attribute, or a tuple of
                them, one after the other; None: there is but one tensor.

        Raises:
            TypeError: it is none of them.
            ValueError: there are several tensors and output is None, or output leads to none.
        """
        if output is None and len(self.timed) != 1:
            raise ValueError(
                f"one tensor of scores is needed, and the network gives {self.described()}; say "
                "which one with output=: a key, an index, an attribute, a tuple of them, or a "
                "function of what the network gives"
            )
        if callable(output):
            return functools.partial(_applied, output), None
        number = self.timed[0] if output is None else self._number(output)
        return lambda given: cast(Tensor, self.flat(given)[number]), number

    def _number(self, path: Any) -> int:
        steps = path if isinstance(path, tuple) else (path,)
        if not steps or not all(isinstance(step, (str, int)) for step in steps):
            raise TypeError(
                "output must be a function, or a key, index or attribute (str, int), or a tuple of "
                f"those, got {path!r}"
            )
        stand_ins = _stand_ins(self)
        found = self.full(stand_ins)
        for step in steps:
            try:
                by_name = isinstance(step, str) and not isinstance(found, Mapping)
                found = getattr(found, str(step)) if by_name else found[step]
            except (AttributeError, KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"output={path!r} is not in what the network gives, {self.described()}"
                ) from error
        which = [number for number in self.timed if stand_ins[number] is found]
        if not which:
            raise ValueError(
                f"output={path!r} must lead to a tensor [T, B, ...] of what the network gives, "
                f"{self.described()}; it leads to a {type(found).__name__}"
            )
        return which[0]


def flattened(output: Any) -> tuple[Flat, Outputs]:
    """The tensors of a model's output, or what stands for them in a trace, and its structure.

    Raises:
        TypeError: a leaf is neither a tensor nor a number or the like.
    """
    _meet(output)
    leaves, spec = pytree.tree_flatten(output)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, (Tensor, fx.Proxy)))
    others = {n: x for n, x in enumerate(leaves) if not isinstance(x, (Tensor, fx.Proxy))}
    for leaf in others.values():
        if not isinstance(leaf, PLAIN):
            raise TypeError(
                "a model's output must be tensors, numbers and None, in tuples, lists, dicts and "
                f"dataclasses, got a {type(leaf).__name__} in it"
            )
    return tensors, Outputs(spec, others, (STEPS,) * len(tensors))


ONE = Outputs(pytree.tree_structure(0))


def _restored(output: Any, kinds: tuple[str, ...]) -> Outputs:
    return dataclasses.replace(flattened(output)[1], kinds=kinds)


def _meet(output: Any) -> None:
    """Enter the classes that torch does not know as structures."""
    if isinstance(output, dict) or dataclasses.is_dataclass(type(output)):
        _enter(type(output))
    if not pytree.tree_is_leaf(output):
        for child in pytree.tree_leaves(output, is_leaf=lambda x: x is not output):
            _meet(child)


def _enter(kind: type) -> None:
    if kind in pytree.SUPPORTED_NODES:
        return
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not issubclass(kind, dict):
        pytree.register_dataclass(kind, serialized_type_name=name)
        return
    # Dataclasses that are dicts, too, have what is not None among their items.
    by_name = dataclasses.is_dataclass(kind)

    def made(values: Iterable[Any], keys: list[Any]) -> Any:
        items = dict(zip(keys, values))
        return kind(**items) if by_name else kind(items)

    pytree.register_pytree_node(
        kind, lambda x: (list(x.values()), list(x)), made, serialized_type_name=name
    )


def _stand_ins(outputs: Outputs) -> Flat:
    """A tensor for every leaf, that only is one."""
    return tuple(torch.empty(0, device="meta") for _ in outputs.kinds)


def _applied(function: Callable[[Any], Any], given: Any) -> Tensor:
    made = function(given)
    if not isinstance(made, Tensor):
        raise TypeError(f"output must give a tensor of scores, it gave {type(made).__name__}")
    return made
