"""What a rule is, what it is asked about, and the registry. The rules themselves are in the files
beside this one, a family of operations each; docs/contributing has a page on adding one.

Two worlds. What comes before the first neurons of every path is static: the same at every step,
computed once on [B, ...], whatever it is. What depends on a neuron is spiking: time is folded into
the batch, [T*B, ...]. There operations are kept as they are that treat every sample and step alone
and are affine in what spikes, so that they commute with the mean over time. Others that treat every
sample alone become differences on running means (../differences.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import fx, nn

from ..facts import Facts
from ..graphs import argument, called
from ..sizes import Size


class Refusal(NamedTuple):
    """Why an operation cannot be converted, and what the user can do about it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


NO_RULE = "no rule converts this"
WRITE_ONE = "write it with operations that have one, or add a rule (docs/contributing/rule.md)"


class Memory(enum.Enum):
    """Whose memory the output of an operation is."""

    OWN = "nothing else holds it"
    INPUT = "it may be the first input's"
    UNLESS_WRITTEN = "nothing else holds it, unless the call works in place"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Call:
    """One call in the graph, as a rule sees it.

    root: the traced model, for the parameters and modules that the call names.
    """

    node: fx.Node
    root: nn.Module
    facts: Facts

    @property
    def module(self) -> nn.Module | None:
        """The module that is called; None for functions and methods."""
        return called(self.root, self.node) if self.node.op == "call_module" else None

    @property
    def sources(self) -> list[fx.Node]:
        """Everything that the call reads, tensors and numbers."""
        return list(self.node.all_input_nodes)

    @property
    def source(self) -> fx.Node | None:
        """The first tensor that the call reads."""
        return next(iter(self.facts.tensors(self.node)), None)

    @property
    def rank(self) -> int | None:
        """The number of dimensions of `source`, where it is known."""
        return self.rank_of(self.source)

    def rank_of(self, value: Any) -> int | None:
        return self.facts.ranks.get(value) if isinstance(value, fx.Node) else None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of a function or method; the tensor of a method is at position 0."""
        return argument(self.node, position, name, default)


class Rule:
    """One operation that may stand between neurons, under the condition in its docstring.

    A subclass names what it is for in `modules`, `functions` and `methods`, and is found by these
    once it is decorated with :func:`register`. What it overrides answers one question each.
    """

    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    methods: ClassVar[tuple[str, ...]] = ()
    memory: ClassVar[Memory] = Memory.UNKNOWN
    makes_list: ClassVar[bool] = False  # of tensors, as chunk and split

    def check_module(self, module: nn.Module) -> Refusal | None:
        """Why a module can never stand between neurons, however it is called; None: it can."""
        return None

    def check(self, call: Call) -> Refusal | None:
        """Why this call cannot stand between neurons; None: it can, and is kept as it is."""
        return self.check_module(call.module) if call.module is not None else None

    def check_sample_module(self, module: nn.Module) -> Refusal | None:
        """Why a difference on running means can never stand for a module that `check_module`
        refuses; None: it can.
        """
        return self.check_module(module)

    def check_sample(self, call: Call) -> Refusal | None:
        """Why a difference on running means cannot stand for a call that `check` refuses; None: it
        can, since every sample is treated alone.
        """
        return self.check(call)

    def number(self, call: Call) -> Size | None:
        """What the result knows of the batch, where it is a number; None: it is a tensor."""
        return None

    def free_sizes(self, call: Call) -> tuple[Any, ...]:
        """Arguments that may be the size of the batch; any other that may be is refused."""
        return ()

    def rank(self, call: Call) -> int | None:
        """The number of dimensions of the result, where it is known."""
        return call.rank

    def leads(self, call: Call) -> bool:
        """Whether the batch is still the first dimension of the result, if it is of the inputs."""
        return self.check(call) is None

    def per_sample(self, call: Call) -> bool:
        """Whether it makes a constant for every sample, and so has a batch that no input has."""
        return False

    def rewrite(self, call: Call) -> None:
        """Change the graph so that the call is right with time folded into the batch."""


RuleClass = TypeVar("RuleClass", bound=type[Rule])
_RULES: dict[Any, Rule] = {}


def register(rule: RuleClass) -> RuleClass:
    """A class decorator: puts a rule in the registry under all that it is for.

    Raises:
        ValueError: something has a rule already.
    """
    made = rule()
    targets = (*made.modules, *made.functions, *made.methods)
    taken = [target for target in targets if target in _RULES]
    if taken:
        raise ValueError(f"{taken} have a rule already: {type(_RULES[taken[0]]).__name__}")
    _RULES.update(dict.fromkeys(targets, made))
    return rule


def rule_for(target: Any) -> Rule | None:
    """The rule for a module's type, a function or the name of a method; None: there is none."""
    return _RULES.get(target)


def rule_of(node: fx.Node, root: nn.Module) -> Rule | None:
    """The rule for a call in a graph; None: there is none."""
    if node.op == "call_module":
        return rule_for(type(called(root, node)))
    return rule_for(node.target) if node.op in ("call_function", "call_method") else None


def space_of(module: nn.Module) -> int:
    """The spatial dimensions of a layer whose name ends in 1d, 2d or 3d."""
    return int(type(module).__name__[-2])


def for_dimensions(*names: str) -> tuple[type[nn.Module], ...]:
    """torch.nn's classes of these names for one, two and three dimensions."""
    return tuple(getattr(nn, f"{name}{d}d") for name in names for d in (1, 2, 3))
