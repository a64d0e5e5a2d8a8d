"""What evaluate() counts of outputs at every step: right answers, or a metric of the user's.

Sums stay on the device and are never waited for; running a network is in evaluation.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], Any]


class Answers:
    """Right answers at t = 1, ..., T. One logit decides at 0; NaN is never right."""

    def __init__(self) -> None:
        self.classes: int | None = None
        self.correct: Tensor | int = 0  # [T]
        self.correct5: Tensor | int | None = 0  # None with five classes or fewer
        self.lowest: Tensor | None = None  # of all labels
        self.highest: Tensor | None = None

    def add(self, totals: Tensor, labels: Tensor) -> None:
        """Take in sums of outputs, [T, B, classes], or [T, B] of one logit, and labels [B].

        Raises:
            TypeError: labels are no integers.
            ValueError: outputs or labels have another shape.
        """
        totals = by_class(totals)
        check_labels(labels, totals)
        self.classes = totals.shape[-1]
        known = totals.isnan().any(-1).logical_not()
        self.correct = self.correct + ((chosen(totals) == labels) & known).sum(1)
        if self.classes > 5 and self.correct5 is not None:
            best = (totals.topk(5, -1).indices == labels[:, None]).any(-1)
            self.correct5 = self.correct5 + (best & known).sum(1)
        else:
            self.correct5 = None
        if len(labels):
            low, high = labels.min(), labels.max()
            self.lowest = low if self.lowest is None else torch.minimum(self.lowest, low)
            self.highest = high if self.highest is None else torch.maximum(self.highest, high)

    def check(self) -> None:
        """ValueError where a label was no class. Waits for the device."""
        if self.lowest is None or self.highest is None or self.classes is None:
            return
        low, high, last = int(self.lowest), int(self.highest), max(self.classes - 1, 1)
        if low < 0 or high > last:
            raise ValueError(
                f"labels must lie in 0..{last}, since the network has {self.classes} output(s) a "
                f"sample; got labels from {low} to {high}"
            )


class Scores:
    """Sums over samples of a metric at t = 1, ..., T."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.sums: Tensor | None = None  # float64 [T]

    def add(self, means: Tensor, targets: Tensor) -> None:
        """Take in mean outputs [T, B, ...]: the metric is given those of each step.

        Raises:
            TypeError, ValueError: the metric gives neither a number nor one for each sample.
        """
        found = []
        for mean in means:
            value = torch.as_tensor(self.metric(mean, targets), device=means.device)
            if value.dim() == 0:
                value = value.double() * means.shape[1]
            elif value.shape == means.shape[1:2]:
                value = value.sum(dtype=torch.float64)
            else:
                raise ValueError(
                    "metric must give a number, the mean of the batch, or one for each sample, "
                    f"[B] = {tuple(means.shape[1:2])}; it gave {tuple(value.shape)}"
                )
            found.append(value)
        sums = torch.stack(found)
        self.sums = sums if self.sums is None else self.sums + sums


def by_class(totals: Tensor) -> Tensor:
    """Sums of outputs as [T, B, classes]; one logit is one class.

    Raises:
        ValueError: they have another number of dimensions.
    """
    totals = totals.unsqueeze(-1) if totals.dim() == 2 else totals
    if totals.dim() != 3:
        raise ValueError(
            "the network's outputs must be [T, B, classes] to count right answers, got "
            f"{tuple(totals.shape)}; score them yourself with evaluate(..., metric=...)"
        )
    return totals


def chosen(totals: Tensor) -> Tensor:
    """The answers, int64 [T, B], that sums of outputs [T, B, classes] give. One logit decides at
    0.
    """
    return (totals[..., 0] > 0).long() if totals.shape[-1] == 1 else totals.argmax(-1)


def check_labels(labels: Tensor, outputs: Tensor) -> None:
    """TypeError or ValueError where labels are no integers [B]."""
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.shape == outputs.shape[1:2]:
        if whole:
            return
        raise TypeError(
            f"labels must be integers [B], got {labels.dtype}; give labels.long(), or, for targets "
            "that are no classes, evaluate(..., metric=...)"
        )
    advice = "for targets that are no classes, give evaluate(..., metric=...)"
    if labels.shape == (*outputs.shape[1:2], 1) and whole:
        advice = "give labels[:, 0]"
    elif labels.shape == outputs.shape[1:] and whole:
        advice = f"give labels.argmax(-1) if they are one-hot; {advice}"
    raise ValueError(
        f"labels must be [B] = {tuple(outputs.shape[1:2])}, got shape {tuple(labels.shape)}; "
        f"{advice}"
    )
