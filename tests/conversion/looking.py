"""Models whose forward looks at shapes, types and settings, so that torch.fx fails and a run does
not. No tests here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as TF

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@dataclass
class Config:
    depth: int = 2
    pool: str = "mean"
    scale: float | None = 0.5


class Net(nn.Module):
    """Tokens [B, 6, 8] through layers by name, as a function says."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.relu, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), head()
        self.places = nn.Embedding(10, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("ids", torch.arange(10)[None])
        self.config, self.function = Config(), function

    def forward(self, x, **options):
        if x.shape[-1] != 8:  # torch.fx fails here
            raise ValueError(f"8 features, got {x.shape[-1]}")
        return self.function(self, x, **options)


def head():
    return nn.Linear(8, 5)


def is_tensor(m, x):
    assert torch.is_tensor(x)
    assert isinstance(x, torch.Tensor) and hasattr(x, "shape") and not hasattr(x, "tensors")
    return m.fc(m.relu(m.a(x)).mean(1))


def ranks(m, x):
    h = m.relu(m.a(x))
    return m.fc(h.mean(1) if len(h.shape) == 3 and h.ndim == 3 else h)


def keywords(m, x, **options):
    def layer(h, *, scale=1.0, **rest):
        return m.relu(m.a(h)) * options.get("scale", scale)

    return m.fc(layer(x, scale=2.0, other=None).sum(1))


def loop_over_tokens(m, x):
    h = m.relu(m.a(x))
    return m.fc(sum(h[:, i] * (i + 1) for i in range(h.shape[1])))


def rearranged(m, x):
    batch, tokens, features = x.shape  # as einops does it
    heads = m.a(x).reshape(batch, tokens, 2, features // 2).transpose(1, 2)
    h = TF.relu(heads.reshape(batch, 2 * tokens * features // 2))
    return m.fc(h.view(batch, tokens, features).mean(1))


def samples_and_tokens(m, x):
    batch, tokens, features = x.shape
    h = m.relu(m.a(x.reshape(batch * tokens, features)))
    return m.fc(m.relu(m.b(h)).view(batch, -1, features).mean(1))


def config(m, x):
    for _ in range(m.config.depth):
        x = m.relu(m.a(x))
    if m.config.scale is not None:
        x = x * m.config.scale
    return m.fc({"mean": torch.mean, "sum": torch.sum}[m.config.pool](x, 1))


def positions(m, x):
    places = m.places(torch.arange(x.shape[1], device=x.device))
    return m.fc(m.relu(m.a(x + places)).mean(1))


def positions_of_the_batch(m, x):
    ids = m.ids[:, : x.size(1)].expand(x.size(0), -1)
    return m.fc(m.relu(m.a(x + m.places(ids))).mean(1))


def class_token(m, x):
    h = m.relu(m.a(x))
    h = torch.cat([m.cls.expand(x.shape[0], -1, -1), h], 1)
    return m.fc(m.relu(m.b(h))[:, 0] + h[:, 1:].mean(1))


def mask(m, x):
    keep = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    causal = torch.zeros(6, 6, dtype=x.dtype)
    x = x + causal.sum(1, keepdim=True)  # a constant may be written into after it was read
    causal[0, 1:] = 0.5
    causal = causal + torch.eye(6, dtype=x.dtype)
    return m.fc((causal @ m.relu(m.a(x * keep[:, :, None]))).mean(1))


def mask_like_the_input(m, x):
    causal = x.new_zeros((6, 6))  # takes of x its dtype and device, so that it is a constant
    causal[0, 1:] = 0.5
    causal = causal.masked_fill(causal == 0, 0.25)
    x = x + x.new_full((x.shape[0], 1, 8), 0.25) + x.new_ones(x.shape[0], 1, 8)
    return m.fc((causal @ TF.normalize(m.relu(m.a(x)), dim=-1)).mean(1))


def own_calls(m, x):
    h = m.relu(m.a(x))  # one module, called twice, and a function between
    return m.fc(m.relu(m.b(TF.relu(h - 0.1))).mean(1))


def in_place(m, x):
    h = m.a(x)
    h += 0.25
    return m.fc(TF.relu(h, inplace=True).mean(1))


def normalised(m, x):
    return m.fc(m.relu(m.norm(m.a(x).mT).mT).mean(1))


def chunks(m, x):
    first, second = m.relu(m.a(x)).chunk(2, dim=-1)
    top, _ = TF.relu(m.b(x)).split([5, 1], dim=1)
    return m.fc(torch.cat([first, second], -1).mean(1) - 2 * (1 - top.mean(1)))


def reflected(m, x):
    h = m.relu(m.a(2 / (1 + x.abs())))
    return m.fc((1 - h / 2 + 3 * -h).mean(1) - 0.5)


CONVERTS = {f.__name__: f for f in (
    is_tensor, ranks, keywords, loop_over_tokens, rearranged, samples_and_tokens, config,
    positions, positions_of_the_batch, class_token, mask, mask_like_the_input, own_calls, in_place,
    normalised, chunks, reflected,
)}  # fmt: skip


def build(function):
    torch.manual_seed(4)
    model = Net(function).double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
    return model
