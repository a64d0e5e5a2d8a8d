"""How long does QCFS take, forwards and backwards, beside plain torch?

    python bench/qcfs.py [--mib N] [--levels L] [--threads N] [--repeats N] [--compile]
        [--json FILE]

A layer of --mib MiB float32, and a training step of ResNet-20 (B = 32, 28 x 28). Rows: cos_ext;
"former", five torch operations with one straight-through gradient, as cos_ext 0.1 had it; "plain",
as its authors compose it of torch operations; with --compile also that one under torch.compile; the
two kinds of noise. "copies" is what must be moved at least: forwards one read and one write,
backwards two reads and one write, into fresh memory, as autograd's results are. Rows are
interleaved; a ratio is the median over the repeats. Measures time only; values and gradients are
compared once. Last the kernels alone, on a layer that stays in the caches and on this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared import machine, records
from _shared.learning import bytes_kept, measure
from _shared.quantisers import Plain
from torch import Tensor, nn

from cos_ext import QCFS, models

Calls = dict[str, Callable[[], object]]
OURS, FORMER, PLAIN, FLOOR = "cos_ext", "former", "plain", "copies"
THETA = 2.0


class _Former(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.levels = levels
        return ((z * levels / theta + 0.5).floor() / levels).clamp(0, 1) * theta

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        inside = (z >= 0) & (z <= theta)
        a = ((z * ctx.levels / theta + 0.5).floor() / ctx.levels).clamp(0, 1) * theta
        return grad * inside, (grad * (a / theta - inside * (z / theta))).sum(), None


class Former(nn.Module):
    """QCFS as it was: five operations forwards, a dozen backwards, one tensor kept."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.threshold = levels, nn.Parameter(torch.tensor(THETA))

    def forward(self, z: Tensor) -> Tensor:
        return _Former.apply(z, self.threshold, self.levels)


def kinds(levels: int, compiled: bool) -> dict[str, Callable[[], nn.Module]]:
    """What makes an activation, by row."""
    rows: dict[str, Callable[[], nn.Module]] = {
        OURS: partial(QCFS, levels, THETA),
        FORMER: partial(Former, levels),
        PLAIN: partial(Plain, levels, THETA),
    }
    if compiled:
        rows[f"{PLAIN}, compiled"] = lambda: torch.compile(Plain(levels, THETA))
    for noise in ("adaptor", "residual"):
        rows[f"{OURS}, {noise}"] = partial(QCFS, levels, THETA, noise)
    return rows


def learn(act: nn.Module, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and the gradient of z; that of θ is in the module."""
    z = z.detach().requires_grad_()
    act.zero_grad()
    a = act(z)
    a.backward(grad)
    assert z.grad is not None
    return a, z.grad


def layer(options: argparse.Namespace) -> Calls:
    z = torch.randn(options.mib * 2**18) * 2
    grad = torch.randn_like(z)
    rows = {name: make() for name, make in kinds(options.levels, options.compile).items()}
    found = {name: learn(rows[name], z, grad) for name in (OURS, FORMER, PLAIN)}
    for name in (FORMER, PLAIN):
        same = torch.isclose(found[OURS][0], found[name][0], atol=1e-5)
        # An edge of a level may be rounded otherwise where the operations are others.
        assert same.all() if name == FORMER else same.float().mean() > 0.9999, f"{name} differs"
        assert torch.equal(found[OURS][1], found[name][1]), f"the gradients of {name} differ"

    def copies() -> None:
        kept = z.clone(), torch.add(z, grad)
        del kept

    calls = {name: partial(learn, act, z, grad) for name, act in rows.items()}
    return {FLOOR: copies, **calls}


def steps_of_training(options: argparse.Namespace, batch: int = 32) -> Calls:
    """A training step each; "ReLU" has nn.ReLU for activations."""
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    calls: Calls = {}
    rows = {"ReLU": nn.ReLU, **kinds(options.levels, options.compile)}
    for name, make in rows.items():
        model = models.resnet20(10, 1, activation=make)
        calls[name] = partial(step, model, torch.optim.SGD(model.parameters(), 0.01))
    return calls


def kernels(mib: int, levels: int) -> Calls:
    """The kernels of both directions, without autograd."""
    z, theta = torch.randn(mib * 2**18) * 2, torch.tensor(THETA)
    grad, ops = torch.randn_like(z), torch.ops.cos_ext
    return {
        "copy": lambda: z.clone(),
        "forwards": lambda: ops.qcfs(z, theta, levels),
        "sum of two": lambda: torch.add(z, grad),
        "backwards": lambda: ops.qcfs_backward(grad, z, theta, levels),
    }


def kept(options: argparse.Namespace) -> dict[str, float]:
    """Bytes that are kept for the backward pass, for every byte of z."""
    z, found = torch.rand(1000, requires_grad=True), {}
    for name, make in kinds(options.levels, False).items():
        found[name] = bytes_kept(partial(make(), z)) / (z.numel() * z.element_size())
        print(f"{name} keeps {found[name]:.2f} times z")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("mib", 16), ("levels", 8), ("threads", 2), ("repeats", 21)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="also plain under torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write this run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(facts := machine.facts(["torch"]))
    torch.manual_seed(0)
    repeats = options.repeats
    rows = [
        measure(f"a layer of {options.mib} MiB", layer(options), FLOOR, repeats, OURS),
        measure("a training step, B = 32", steps_of_training(options), "ReLU", repeats, OURS),
    ]
    for mib in (2, options.mib):
        own = kernels(mib, options.levels)
        forwards = {name: own[name] for name in ("copy", "forwards")}
        backwards = {name: own[name] for name in ("sum of two", "backwards")}
        rows.append(measure(f"forwards, {mib} MiB", forwards, "copy", repeats, OURS))
        rows.append(measure(f"backwards, {mib} MiB", backwards, "sum of two", repeats, OURS))
    record = {"facts": facts, "rows": rows, "kept": kept(options)}
    if options.json is not None:
        records.write(options.json, record)


if __name__ == "__main__":
    main()
