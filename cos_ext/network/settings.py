"""The settings of a spiking network, for all layers and for one: what they may be, and changing
them. Running a network is in network.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from torch import nn

from .._neuron.general import bare
from .._neuron.settings import is_general
from .._numbers import whole
from ..functional import MAX_STEPS
from ..general import Neuron
from ..neuron import IFNode
from .modules import Walked
from .outputs import Flat, Outputs
from .over_time import Timed
from .pooling import MaxPoolBefore

Batch = TypeVar("Batch")
OWN = ("rho", "iterations", "emission", "calibration", "neuron")  # what a layer may have


class Entry(Protocol):
    """A line of a conversion's report, as far as a network reads it."""

    @property
    def site(self) -> str: ...
    @property
    def status(self) -> str: ...


class Report(Protocol):
    """A conversion's report, as far as a network reads it: which call sites have neurons."""

    @property
    def entries(self) -> Sequence[Entry]: ...


class Configured(nn.Module):
    """A converted model and the settings of its neurons. Where one is refused, nothing changes."""

    module: nn.Module
    readout: nn.ModuleList | None
    report: Any
    # What SpikingNetwork adds, for the files that it calls.
    execution: str
    convolution: str
    _own_convolutions: dict[str, str]
    memory_limit: int | str | None
    _whole: Callable[..., Flat]
    _outputs: Callable[..., Any]
    _counts_first: Callable[[], bool]

    def __init__(self, module: nn.Module, report: Report, options: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.readout = None  # of the means of the outputs, a module for each
        self.report = report
        # What save() needs: convert()'s arguments, the ANN's call sites, static_calibration.
        self.options = options
        self._layers: dict[str, dict[str, Any]] = {}  # by call site: what set_layer() changed
        self._given: dict[str, Neuron | None] = {}  # by call site: the neuron that was set
        # What memory.py has found out, until a setting changes.
        self._needs: dict[Any, Any] = {}

    def _accept(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse settings, by call site, that do not go with how the network runs: a subclass
        knows.
        """

    def read_out(self, means: Flat) -> Flat:
        """What the model applies to its outputs last, of the means of all leaves."""
        readout = self.readout
        return means if readout is None else tuple(f(x) for f, x in zip(readout, means))

    def nodes(self) -> dict[str, IFNode]:
        """The neurons by call site, in execution order."""
        root = self.module.model if isinstance(self.module, Walked) else self.module
        sites = [entry.site for entry in self.report.entries if entry.status == "converted"]
        return {site: cast(IFNode, root.get_submodule(site)) for site in sites}

    def _configure(
        self,
        timesteps: int,
        rho: int,
        iterations: int | None,
        emission: str,
        layers: dict[str, dict[str, Any]],
        calibration: str = "cos",
        neuron: Neuron | None = None,
    ) -> None:
        own: dict[str, Any] = {
            "rho": rho,
            "iterations": iterations,
            "emission": emission,
            "calibration": calibration,
            "neuron": neuron,
        }
        # First, so that a bad value leaves every node as it was.
        checked = [
            check_settings(timesteps, **{**own, **layer}) for layer in ({}, *layers.values())
        ]
        steps, (timesteps, own) = max(each.steps for each in checked), checked[0][1:]
        layers = {
            site: {name: each.own[name] for name in layer}
            for (site, layer), each in zip(layers.items(), checked[1:])
        }
        signed = {"neuron": (neuron or Neuron()).signed}
        nodes = self.nodes()
        always = {s: signed for s in self.options.get("signed", ()) if s in nodes}
        settings = {s: {**own, **always.get(s, {}), **layers.get(s, {})} for s in nodes}
        for site in always:
            _check_signed(site, timesteps, settings[site])
        if self.static_calibration is not None and any(
            layer.get("rho", own["rho"]) for layer in ({}, *layers.values())
        ):
            raise ValueError(
                "rho must stay 0 with the potentials of fit_v_init: calibration would aim at other "
                "counts; convert anew"
            )
        self._accept(settings)
        for site, node in nodes.items():
            changes, given = settings[site], self._given.get(site)
            if changes["neuron"] is given and node._settings["neuron"] == bare(given):
                del changes["neuron"]  # its tensors may have been loaded, or have learned
            else:
                self._given[site] = changes["neuron"]
            node.configure(timesteps=steps, **changes)
        for module in self.modules():
            if isinstance(module, Timed):
                module.timesteps = steps
            elif isinstance(module, MaxPoolBefore):
                module.timesteps, module.rho = steps, nodes[module.site].watch_steps
        self._timesteps, self._rho, self._iterations = timesteps, own["rho"], own["iterations"]
        self._emission, self._calibration = own["emission"], own["calibration"]
        self._neuron = own["neuron"]
        self._layers, self._steps = layers, steps
        self._needs = {}

    @property
    def outputs(self) -> Outputs:
        """The structure of the model's output."""
        return cast(Outputs, self.options["outputs"])

    @property
    def timesteps(self) -> int:
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self._change(timesteps=value)

    @property
    def rho(self) -> int:
        return self._rho

    @rho.setter
    def rho(self, value: int) -> None:
        self._change(rho=value)

    @property
    def iterations(self) -> int | None:
        return self._iterations

    @iterations.setter
    def iterations(self, value: int | None) -> None:
        self._change(iterations=value)

    @property
    def emission(self) -> str:
        return self._emission

    @emission.setter
    def emission(self, value: str) -> None:
        self._change(emission=value)

    @property
    def calibration(self) -> str:
        return self._calibration

    @calibration.setter
    def calibration(self, value: str) -> None:
        self._change(calibration=value)

    @property
    def neuron(self) -> Neuron | None:
        """What the neurons do in a step; None: one level, 0 or θ. Where convert() put signed
        neurons, :attr:`cos_ext.Neuron.signed` of it.
        """
        return self._neuron

    @neuron.setter
    def neuron(self, value: Neuron | None) -> None:
        self._change(neuron=value)

    def take_neurons(self) -> None:
        """Take over what the layers' neurons are now, where their tensors were loaded."""
        nodes = self.nodes()
        for site, layer in self._layers.items():
            if "neuron" in layer:
                layer["neuron"] = self._given[site] = nodes[site].neuron
        others = [s for s in nodes if "neuron" not in self._layers.get(s, {})]
        signed = self.options.get("signed", ())
        self._given.update({s: nodes[s].neuron for s in others})
        for site in others:
            if site not in signed:
                self._neuron = nodes[site].neuron

    @property
    def watch_steps(self) -> int:
        """The steps that pass before the first output: the largest rho of a layer whose calibration
        watches, else 0.
        """
        return max(node.watch_steps for node in self.nodes().values())

    @property
    def static_calibration(self) -> dict[str, Any] | None:
        """How :func:`cos_ext.fit_v_init` fitted the potentials (settings, samples), which makes rho
        0 for good; None: it did not.
        """
        return self.options.get("static")

    def _change(self, **changes: Any) -> None:
        now = {
            "timesteps": self._timesteps,
            "rho": self._rho,
            "iterations": self._iterations,
            "emission": self._emission,
            "layers": self._layers,
            "calibration": self._calibration,
            "neuron": self._neuron,
        }
        self._configure(**{**now, **changes})

    def _fixed(self) -> tuple[Any, ...]:
        """What must stay as it is while a network is measured."""
        own = (self._timesteps, *(getattr(self, f"_{name}") for name in OWN))
        return (*own, self._layers, [node._settings for node in self.nodes().values()])

    def set_layer(self, site: str, **changes: Any) -> None:
        """Give the neurons of one call site settings of their own, or none."""
        if site not in self.nodes():
            raise ValueError(
                f"site must be a call site of the network, got {site!r}; those are "
                f"{list(self.nodes())}"
            )
        unknown = sorted(set(changes) - set(OWN))
        if unknown:
            raise ValueError(f"a layer has {', '.join(OWN)} of its own, got {unknown}")
        layers = {name: layer for name, layer in self._layers.items() if name != site}
        if changes:
            layers[site] = {**self._layers.get(site, {}), **changes}
        self._change(layers=layers)


def check_one_level(network: Configured, what: str) -> None:
    """ValueError where a network has general neurons, for which something is not defined."""
    nodes = network.nodes().items()
    general = [site for site, node in nodes if is_general(node._settings)]
    if general:
        raise ValueError(
            f"{what} is for neurons of one level, and emission 'block' is none of theirs; the "
            f"network has others at {general}. Convert anew, without method and neuron"
        )


def steady(network: Configured, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, and an error where the network's settings are changed between them.

    Raises:
        RuntimeError: they were: what is added up would belong together no more.
    """
    before = network._fixed()
    for batch in batches:
        check_steady(network._fixed(), before)
        yield batch
        check_steady(network._fixed(), before)


def check_steady(now: tuple[Any, ...], before: tuple[Any, ...]) -> None:
    """RuntimeError where settings are no more what they were."""
    if now != before:
        raise RuntimeError(
            "the network's settings were changed while it was measured; measure each setting by "
            "itself"
        )


def _check_signed(site: str, timesteps: int, settings: Mapping[str, Any]) -> None:
    """ValueError where the signed neurons of a call site do not go with its other settings."""
    try:
        check_settings(timesteps, **settings)
    except ValueError as error:
        raise ValueError(f"the signed neurons at {site!r} do not go with that: {error}") from error


class Checked(NamedTuple):
    """Settings that fit together: the steps that hidden layers run, those of the network, and what
    a layer may have of its own.
    """

    steps: int
    timesteps: int
    own: dict[str, Any]


def check_settings(
    timesteps: int,
    rho: int,
    iterations: int | None,
    emission: str = "calibrated",
    calibration: str = "cos",
    neuron: Neuron | None = None,
) -> Checked:
    """The settings, numbers as ints; TypeError or ValueError where they do not fit."""
    timesteps = whole("timesteps", timesteps, 1, MAX_STEPS)
    rho = whole("rho", rho, 0, MAX_STEPS)
    # Knows what they may be.
    node = IFNode(
        timesteps=max(timesteps, rho),
        rho=rho,
        iterations=iterations,
        emission=emission,
        calibration=calibration,
        neuron=neuron,
    )
    own = {**{name: getattr(node, name) for name in OWN}, "neuron": neuron}
    return Checked(max(timesteps, node.watch_steps), timesteps, own)
