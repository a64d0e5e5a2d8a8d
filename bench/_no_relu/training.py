"""A short training of them: AdamW, one cycle, images cropped and mirrored at random.

What is trained is networks.py's; nothing that spikes lives here.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as TF

from cos_ext.data import ImageSet
from cos_ext.training import train

from .networks import NETS


def train_net(
    net: str,
    images: ImageSet,
    held_out: ImageSet,
    *,
    epochs: int,
    rate: float,
    batch_size: int,
    seed: int,
    progress: bool = True,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode, and its accuracy and loss. Held-out images choose nothing."""
    torch.manual_seed(seed)
    model = NETS[net]()
    generator = torch.Generator().manual_seed(seed)
    batches = images.batches(
        batch_size, shuffle=True, augment=True, drop_last=True, generator=generator
    )
    optimizer = torch.optim.AdamW(train.parameter_groups(model, 0.05), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=epochs * len(batches)
    )
    losses, start = [], time.perf_counter()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for x, labels in batches:
            loss = TF.cross_entropy(model(x), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / len(batches))
        if progress:
            seconds = time.perf_counter() - start
            print(
                f"epoch {epoch + 1}: loss {losses[-1]:.3f}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    minutes = (time.perf_counter() - start) / 60
    found = train.accuracy(model, held_out.batches(100))
    return model.eval(), {"test_accuracy": found, "losses": losses, "minutes": minutes}
