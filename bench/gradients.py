"""How long does a layer of neurons take to learn, forwards and backwards, beside its peers?

    python bench/gradients.py [--mib N] [--timesteps N] [--threads N] [--repeats N] [--peers DIR]
        [--json FILE]
    python bench/gradients.py --plot  draws the surrogates as the picture of the docs

A layer of --mib MiB float32 currents, T steps, ATan, soft reset that is detached; and a training
step of a network of three convolutions. Rows: cos_ext; its neuron with SpikingJelly's contract; the
same in plain torch, step by step; and the peers that are installed, or whose wheels are in DIR:
SpikingJelly's multi-step IFNode, snntorch's Leaky with beta 1, which resets a step later, and
Norse's IAF, which has a hard reset and a surrogate of its own. "copies" is what must be moved at
least, 3 reads and 2 writes of the layer into fresh memory, as autograd's results are. Rows are
interleaved; a ratio is the median over the repeats. Measures time only; the gradients are compared
once. Last the kernels alone, on a layer that stays in the caches and on this one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _shared import machine, records
from _shared.learning import bytes_kept, measure
from _shared.peers import quietly, unpack
from torch import Tensor, nn

import cos_ext
from cos_ext import surrogate
from cos_ext.interop import spikingjelly as interop

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "_static" / "surrogates.svg"
OWN, PLAIN, FLOOR = "cos_ext", "plain", "copies"


class Plain(nn.Module):
    """The neurons a step at a time, as one would write them."""

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.full_like(x[0], 0.5), []
        for current in x:
            v = v + current
            s = surrogate.ATan()(v - 1.0)
            v = v - s.detach()
            spikes.append(s)
        return torch.stack(spikes)


def spikingjelly() -> nn.Module:
    with quietly():
        from spikingjelly.activation_based import neuron, surrogate
    arguments = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    return neuron.IFNode(v_reset=None, step_mode="m", **arguments)


class Snntorch(nn.Module):
    """snntorch's neurons, which take a step a call."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        self.node = snntorch.Leaky(1.0, spike_grad=surrogate.atan(), reset_mechanism="subtract")

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            spike, v = self.node(current, v)
            spikes.append(spike)
        return torch.stack(spikes)


class Norse(nn.Module):
    """Norse's neurons, which return their state as well."""

    def __init__(self) -> None:
        super().__init__()
        from norse.torch.module.iaf import IAF

        self.node = IAF()

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x)[0]


def own() -> nn.Module:
    return cos_ext.IFNode(detach_reset=True)


def adapter() -> nn.Module:
    return interop.IFNode(1.0, None, surrogate.ATan(), True, "m")


PEERS = {"SpikingJelly": spikingjelly, "snntorch": Snntorch, "Norse": Norse}


def contestants() -> dict[str, Callable[[], nn.Module]]:
    """What makes the neurons of each row; the peers that are there. Those start from 0."""
    rows: dict[str, Callable[[], nn.Module]] = {OWN: own, "its adapter": adapter, PLAIN: Plain}
    for name, make in PEERS.items():
        try:
            make()
        except ImportError:
            print(f"{name} is not there")
        else:
            rows[name] = make
    return rows


def learn(node: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """Spikes and the gradient of x."""
    if hasattr(node, "reset"):
        node.reset()
    x = x.detach().requires_grad_()
    spikes = node(x)
    spikes.backward(grad)
    assert x.grad is not None
    return x.grad


def layer(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    neurons = options.mib * 2**18 // options.timesteps
    x = torch.rand(options.timesteps, neurons) - 0.2
    grad = torch.randn_like(x)
    rows = {name: make() for name, make in contestants().items()}
    a, b = (learn(rows[name], x, grad) for name in (OWN, PLAIN))
    assert torch.allclose(a, b, atol=1e-5), "the gradients differ"

    def copies() -> None:
        kept = x.clone(), torch.add(x, grad)
        del kept

    calls = {name: partial(learn, node, x, grad) for name, node in rows.items()}
    return {FLOOR: copies, **calls}


class Folded(nn.Module):
    """Neurons that want [T, ...] where time is folded into the batch."""

    def __init__(self, node: nn.Module, steps: int) -> None:
        super().__init__()
        self.node, self.steps = node, steps

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.node, "reset"):
            self.node.reset()
        return self.node(x.unflatten(0, (self.steps, -1))).flatten(0, 1)


def network(node: Callable[[], nn.Module], steps: int) -> nn.Module:
    def neurons() -> nn.Module:
        return Folded(node(), steps)

    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), neurons(), nn.Conv2d(32, 32, 3, padding=1), neurons()),
        *(nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, padding=1), neurons(), nn.AvgPool2d(14)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def steps_of_training(batch: int = 32, steps: int = 4) -> dict[str, Callable[[], object]]:
    """A training step each; "without" has Identity for neurons, "ReLU" what any other costs."""
    x, y = torch.rand(steps * batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    kinds: dict[str, Callable[[], nn.Module]] = {
        "without": nn.Identity,
        "ReLU": nn.ReLU,
        **contestants(),
    }

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss = nn.functional.cross_entropy(model(x).unflatten(0, (steps, -1)).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    calls: dict[str, Callable[[], object]] = {}
    for name, kind in kinds.items():
        model = network(kind, steps)
        calls[name] = partial(step, model, torch.optim.SGD(model.parameters(), 0.01))
    return calls


def kernels(mib: float, steps: int) -> dict[str, Callable[[], object]]:
    """The kernels of both directions, without autograd."""
    x = torch.rand(steps, int(mib * 2**18) // steps) - 0.2
    grad, theta, v = torch.randn_like(x), torch.tensor(1.0), torch.tensor(0.5)
    ops, given = torch.ops.cos_ext, (x, theta, 0.0, v, None, None)
    return {
        FLOOR: lambda: (x.clone(), torch.add(x, grad)),
        "forwards": lambda: ops.if_forward(*given, False, False),
        "backwards": lambda: ops.if_backward(grad, *given, 0, 2.0, True, False, False),
    }


def kept(options: argparse.Namespace) -> dict[str, int]:
    """Bytes that are kept for the backward pass, for every byte of x."""
    x, found = torch.rand(options.timesteps, 1000, requires_grad=True), {}
    for name, make in contestants().items():
        found[name] = bytes_kept(partial(make(), x)) / (x.numel() * x.element_size())
        print(f"{name} keeps {found[name]:.2f} times x")
    return found


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cos_ext"
    from matplotlib import pyplot

    u = torch.linspace(-2, 2, 401)
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    names = ("ATan", "Sigmoid", "Triangle", "Rectangle", "FastSigmoid")
    for own in (getattr(surrogate, name)() for name in names):
        axes.plot(u, own.derivative(u), label=f"{own!r}")
    axes.set(xlabel="u = (m - θ)/θ", ylabel="in place of the derivative", xlim=(-2, 2))
    axes.grid(color="0.92")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("mib", 16), ("timesteps", 8), ("threads", 2), ("repeats", 21)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="a folder of wheels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write this run")
    parser.add_argument("--plot", action="store_true", help="draw the surrogates")
    options = parser.parse_args()
    if options.plot:
        draw(PICTURE)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.peers is not None:
            sys.path += [str(path) for *_, path in unpack(options.peers, Path(folder))]
        print(facts := machine.facts(["torch", "spikingjelly", "snntorch", "norse"]))
        torch.manual_seed(0)
        rows = [
            measure(
                f"a layer of {options.mib} MiB, T = {options.timesteps}",
                layer(options),
                FLOOR,
                options.repeats,
                OWN,
            ),
            measure(
                "a training step, B = 32, T = 4",
                steps_of_training(),
                "without",
                options.repeats,
                OWN,
            ),
        ]
        rows += [
            measure(
                f"kernels, {mib} MiB", kernels(mib, options.timesteps), FLOOR, options.repeats, OWN
            )
            for mib in (2, options.mib)
        ]
        record = {"facts": facts, "rows": rows, "kept": kept(options)}
    if options.json is not None:
        records.write(options.json, record)


if __name__ == "__main__":
    main()
