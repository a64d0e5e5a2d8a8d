"""Conversion module by module, for a model that cannot be traced. Only checks on an example can
vouch for it, and what depends on how modules are connected is not to be had.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..network.modules import Walked
from ..network.over_time import Difference, RunningMean
from ..network.pooling import MAX_POOLS, average_of
from .batch_number import BATCH
from .classify import CHANGED
from .copying import beside
from .graphs import changed, set_module
from .max_pooling import OF_SPIKES
from .neurons import make_neuron
from .rules import Refusal, rule_for
from .rules.base import NO_RULE, WRITE_ONE
from .rules.normalisation import BATCH_NORMS
from .state import OF_MEANS, Conversion

NO_ORDER = Refusal(
    "max pooling does not commute with the mean over time",
    'in a model that cannot be traced choose max_pool="difference", "avg" or "spike"',
)
SEVERAL = Refusal(
    "gives several tensors in a model that cannot be traced",
    "make the model one that can: see why it cannot be traced",
)
OFTEN = Refusal(
    "is not linear in the spikes, and is not called once",
    "give every call a module of its own; running means are kept by module",
)


class ClassifyModules:
    """Decides what becomes of every module, by its rule and by how often it is called."""

    def apply(self, conversion: Conversion) -> None:
        conversion.reference = beside(conversion.model)
        calls = self._calls(conversion)
        for name, module in conversion.model.named_modules(remove_duplicate=False):
            if changed(module):
                conversion.refuse(name or "forward", type(module).__name__, CHANGED)
            elif any(module is site for site in conversion.traced.sites.values()):
                self._activation(conversion, name, module, len(calls.get(module, ())))
            elif not any(True for _ in module.children()):
                self._layer(conversion, name, module, len(calls.get(module, ())))
        if not conversion.neurons and not conversion.report.unsupported():
            why = Refusal("there is no activation module to convert", "use modules: nn.ReLU, QCFS")
            conversion.refuse("forward", conversion.name, why)

    def _activation(self, conversion: Conversion, name: str, module: nn.Module, times: int) -> None:
        kind = type(module).__name__
        if name in conversion.traced.sites and not times:
            conversion.add(name, kind, "unused", "forward does not call it")
        elif times != 1:
            why = Refusal(
                f"is called {times} times; a model that cannot be traced must call each once",
                "give every call a module of its own",
            )
            conversion.refuse(name, kind, why)
        else:
            refusal = make_neuron(conversion, name, module, static=False, inplace=False)
            if refusal is not None:
                conversion.refuse(name, kind, refusal)

    def _layer(self, conversion: Conversion, name: str, module: nn.Module, times: int) -> None:
        kind, rule = type(module).__name__, rule_for(type(module))
        if isinstance(module, MAX_POOLS):
            self._max_pooling(conversion, name, module, times)
            return
        refusal: Refusal | None = Refusal(f"{NO_RULE} module", WRITE_ONE)
        if rule is not None:
            why = rule.check_module(module)
            if why is None:
                norm = type(module) in BATCH_NORMS
                reason = "in place, with its running statistics: the model cannot be traced"
                conversion.add(name, kind, "kept", reason if norm else "")
                return
            refusal = why
            if conversion.settings.nonlinear == "difference":
                refusal = SEVERAL if rule.makes_list else rule.check_sample_module(module)
                refusal = refusal or self._on_means(conversion, name, module, times)
        if refusal is not None:
            conversion.refuse(name, kind, refusal)

    @staticmethod
    def _on_means(
        conversion: Conversion, name: str, module: nn.Module, times: int
    ) -> Refusal | None:
        """A difference for a module of one tensor; or why there can be none."""
        if not times:
            conversion.add(name, type(module).__name__, "unused", "forward does not call it")
            return None
        if times != 1:
            return OFTEN
        conversion.by_means[name] = nn.Sequential(RunningMean(), module, Difference())
        conversion.add(name, type(module).__name__, "difference", OF_MEANS)
        return None

    def _max_pooling(self, conversion: Conversion, name: str, pool: nn.Module, times: int) -> None:
        kind, choice = type(pool).__name__, conversion.settings.max_pool
        average = average_of(pool) if choice == "avg" else ""
        refusal: Refusal | None = NO_ORDER
        if choice == "difference" and conversion.settings.nonlinear == "difference":
            refusal = self._on_means(conversion, name, pool, times)
        if refusal is None:
            return
        if choice == "spike":
            conversion.add(name, kind, "kept", OF_SPIKES)
        elif isinstance(average, nn.Module):
            conversion.averages[name] = average
            conversion.add(name, kind, "replaced", f"by {type(average).__name__}")
        else:
            conversion.refuse(name, kind, refusal)

    @torch.no_grad()
    def _calls(self, conversion: Conversion) -> dict[nn.Module, list[Fraction]]:
        """The calls of each module on the example: their first sizes, as multiples of the batch.
        Control flow on data is refused.
        """
        assert conversion.examples is not None
        batch = conversion.examples[0].shape[0]
        calls: dict[nn.Module, list[Fraction]] = {}

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            size = args[0].shape[0] if args and isinstance(args[0], Tensor) and args[0].dim() else 0
            calls.setdefault(module, []).append(Fraction(size, batch))

        hooks = [m.register_forward_pre_hook(note) for m in conversion.model.modules()]
        try:
            with _Looked() as looked:
                conversion.inputs.call(conversion.model, [x.clone() for x in conversion.examples])
        finally:
            for hook in hooks:
                hook.remove()
        if BATCH in conversion.traced.why_not:  # what runs here are small ones
            why = Refusal(BATCH, "treat every sample alike, whatever the batch is")
            conversion.refuse("forward", conversion.name, why)
        if looked.values:
            why = Refusal(
                "its control flow or its numbers depend on the values of tensors",
                "move what depends on data out of the model",
            )
            conversion.refuse("forward", conversion.name, why)
        sites = conversion.traced.sites.items()
        conversion.first_sizes = {name: calls[m][0] for name, m in sites if calls.get(m)}
        return calls


class ReplaceModules:
    """Puts neurons and average poolings where activations and max poolings were."""

    def apply(self, conversion: Conversion) -> None:
        made = (conversion.neurons, conversion.averages, conversion.by_means)
        for name, module in (pair for each in made for pair in each.items()):
            set_module(conversion.model, name, module)
        neurons = conversion.neurons
        first = conversion.first_sizes.items()
        sizes = {neurons[name]: size for name, size in first if name in neurons}
        conversion.walked = Walked(conversion.model, sizes, conversion.inputs, conversion.outputs)


class _Looked(TorchDispatchMode):
    """Notices when Python looks at the values of tensors: item(), bool(), and the like."""

    values = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        looks = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        if func in looks:
            self.values = True
        return func(*args, **(kwargs or {}))
