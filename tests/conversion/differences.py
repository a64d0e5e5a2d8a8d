"""Networks whose functions between neurons become differences, and a plain twin of what those
compute. No tests here.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from cos_ext import QCFS, convert


class Net(nn.Module):
    """Neurons, the given function of (self, their spikes [B, 4, 6, 6], x) that keeps the shape,
    neurons, a head.
    """

    def __init__(self, between, **layers):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), QCFS(4, 1.0)
        self.skip, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.two, self.head = QCFS(4, 0.7), nn.Linear(144, 3)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.between = between
        self.double().eval()

    def forward(self, x):
        spikes = self.act(self.conv(x))
        return self.head(self.two(self.second(self.between(self, spikes, x)) + 0.3).flatten(1))


X = torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=torch.manual_seed(0))


def tokens(h):
    return h.flatten(2).transpose(1, 2)


def image(t):
    return t.transpose(1, 2).reshape(-1, 4, 6, 6)


def squeeze_and_excite(m, h, x):
    gate = torch.sigmoid(m.up(m.third(m.down(h.mean((2, 3))))))
    return h * gate.unsqueeze(2).unsqueeze(3)


def attention(m, h, x):
    t = tokens(h)
    scores = m.q(t) @ m.k(t).transpose(1, 2) * m.q.in_features**-0.5
    return image(scores.softmax(-1) @ m.v(t))


def attention_of_heads(m, h, x):
    t = tokens(h)
    q, k, v = (each(t).view(-1, 36, 2, 2).transpose(1, 2) for each in (m.q, m.k, m.v))
    out = TF.scaled_dot_product_attention(q, k, v)
    return image(out.transpose(1, 2).reshape(-1, 36, 4))


def written_over(m, h, x):
    return m.second(h).mul_(m.third(m.skip(x)))


def multiplied_in_place(m, h, x):
    y = m.second(h)
    y *= m.third(m.skip(x))
    return y


def into_a_gate(m, h, x):
    """What is added in place to is the gate's own."""
    y = torch.sigmoid(h)
    y += h
    return y


def halves(m, h, x):
    """The pieces of a list, read by steps and as means."""
    a, b = m.second(h).chunk(2, 1)
    return torch.cat([a * b, torch.tanh(b) + a], 1)


def pieces(m, h, x):
    """Samples cut into four."""
    return torch.softmax(m.cut(h.view(-1, 36)), 1).view(-1, 4, 6, 6)


def two_forms(m, h, x):
    """A sum of what comes step by step and what is computed on means, and a difference of it."""
    y = h + torch.sigmoid(m.second(h))
    return y * m.skip(x) - y.abs() + m.skip(x)


THIRD = {"third": QCFS(4, 0.9)}
NETS = {
    "squeeze and excitation": (
        squeeze_and_excite,
        {"down": nn.Linear(4, 6), "up": nn.Linear(6, 4), **THIRD},
    ),
    "GELU": (lambda m, h, x: m.f(m.second(h)), {"f": nn.GELU()}),
    "F.gelu": (lambda m, h, x: TF.gelu(m.second(h), approximate="tanh"), {}),
    "SiLU": (lambda m, h, x: m.f(m.second(h)), {"f": nn.SiLU()}),
    "hardswish": (lambda m, h, x: TF.hardswish(m.second(h)), {}),
    "Hardswish in place": (lambda m, h, x: m.f(m.second(h)), {"f": nn.Hardswish(inplace=True)}),
    "silu in place": (lambda m, h, x: TF.silu(m.second(h), True), {}),
    "LeakyReLU": (lambda m, h, x: m.f(m.second(h)), {"f": nn.LeakyReLU(0.2)}),
    "PReLU": (lambda m, h, x: m.f(m.second(h)), {"f": nn.PReLU(4)}),
    "F.prelu": (lambda m, h, x: TF.prelu(m.second(h), m.f.weight), {"f": nn.PReLU(4)}),
    "clamp": (lambda m, h, x: m.second(h).clamp(-0.3, 0.2), {}),
    "LayerNorm": (lambda m, h, x: image(m.f(tokens(h))), {"f": nn.LayerNorm(4)}),
    "LayerNorm of images": (lambda m, h, x: m.f(h), {"f": nn.LayerNorm((4, 6, 6))}),
    "GroupNorm": (lambda m, h, x: m.f(m.second(h)), {"f": nn.GroupNorm(2, 4)}),
    "softmax attention": (attention, {}),
    "attention of heads": (attention_of_heads, {}),
    "product": (lambda m, h, x: h * m.third(m.skip(x)), THIRD),
    "matmul": (lambda m, h, x: h @ m.third(m.skip(x)), THIRD),
    "bmm": (lambda m, h, x: image(tokens(h).bmm(h.flatten(2)).bmm(tokens(h))), {}),
    "einsum": (lambda m, h, x: torch.einsum("bcij,bckj->bcik", h, m.second(h)), {}),
    "quotient": (lambda m, h, x: m.second(h) / (h + 0.5), {}),
    "one by": (lambda m, h, x: 1 / (h + 0.5), {}),
    "amin": (lambda m, h, x: h + m.second(h).amin((2, 3), keepdim=True), {}),
    "norm": (lambda m, h, x: h + m.second(h).norm(dim=1, keepdim=True), {}),
    "var": (lambda m, h, x: h + m.second(h).var((2, 3), keepdim=True), {}),
    "a spectrum": (lambda m, h, x: torch.fft.fft2(h).abs() - h, {}),
    "waves that meet": (
        lambda m, h, x: torch.fft.ifft2(torch.fft.fft2(h) * torch.fft.fft2(m.second(h))).real,
        {},
    ),
    "powers": (lambda m, h, x: m.second(h) ** 2 - 2**h, {}),
    "normalize": (lambda m, h, x: TF.normalize(m.second(h) + 0.1), {}),
    "maximum": (lambda m, h, x: torch.maximum(m.second(h), m.skip(x)), {}),
    "mul_": (written_over, THIRD),
    "imul": (multiplied_in_place, THIRD),
    "max pooling after a sum": (
        lambda m, h, x: m.pool(h + m.skip(x)),
        {"pool": nn.MaxPool2d(3, 1, padding=1)},
    ),
    "MaxOver": (lambda m, h, x: m.second(h) + h.amax((2, 3), keepdim=True), {}),
    "into a gate": (into_a_gate, {}),
    "halves": (halves, {}),
    "pieces": (pieces, {"cut": nn.Linear(36, 36)}),
    "static": (lambda m, h, x: torch.sigmoid(h) * m.skip(x) + m.skip(x), {}),
    "two forms": (two_forms, {}),
    "sum": (lambda m, h, x: TF.gelu(m.second(h)) + m.skip(x) + h, {}),
}


def net(name):
    function, layers = NETS[name]
    return Net(function, **layers)


class PlainNeuron(nn.Module):
    """One step of integrate-and-fire neurons a call, from running means to running means."""

    def __init__(self, theta, spike):
        super().__init__()
        self.theta, self.spike, self.t = theta, spike, 0

    def forward(self, mean: Tensor) -> Tensor:
        self.t += 1
        before = self.before if self.t > 1 else 0 * mean
        v = (self.v if self.t > 1 else self.theta / 2) + self.t * mean - (self.t - 1) * before
        spikes = self.spike((v - self.theta) / self.theta) * self.theta
        self.v, self.before = v - spikes, mean.clone()
        self.total = spikes + (self.total if self.t > 1 else 0)
        return self.total / self.t


def made(model, **options):
    """Neurons for the rectifiers alone: what else there is is a difference."""
    return convert(model, spikes="rectifiers", **options)


def reaches(u):
    return (u >= 0).to(u.dtype)


def plain(model, x, steps, spike=reaches):
    """[T, B, ...] as a plain loop has it: at every step the whole of `model` is computed on the
    running means of its spikes, whatever it is, and what is new is taken. x is [B, ...], or
    [T, B, ...] with the running means of frames.
    """
    twin = copy.copy(model)  # with the very parameters
    twin._modules = dict(model._modules)
    for name, module in model._modules.items():
        if isinstance(module, QCFS):
            twin._modules[name] = PlainNeuron(module.threshold.detach(), spike)
    outputs, before = [], 0.0
    for t in range(1, steps + 1):
        now = t * twin(x[t - 1] if x.dim() == 5 else x)
        outputs.append(now - before)
        before = now
    return torch.stack(outputs)
