"""When an answer is sure enough: scores of outputs, and the step at which a sample stops. Running
a network until then is in readout.py, finding thresholds in confidence_fit.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._numbers import real

SCORES = ("max_softmax", "entropy")


@dataclass(frozen=True)
class Confidence:
    """A sample stops at the first step whose score is above the threshold, and at the last step.

    The score is that of the mean of the outputs so far, as logits divided by ``temperature``:

    * "max_softmax": the largest probability, in 1/K..1 (Dynamic Confidence, Li et al., ICCV 2023).
    * "entropy": 1 - H / log K, in 0..1, H the entropy of the K probabilities (AdaFire's
      input-aware time-steps).

    One output per sample is the logit of two classes. A score that is NaN stops nobody.

    Args:
        threshold: one for all steps, or one per step, t = 1, 2, ...; at least T - 1 of these. No
            score exceeds 1: that is never.
        score: "max_softmax" or "entropy".
        temperature: > 0. Dynamic Confidence sums outputs and divides them by a number; here they
            are averaged, so that the score does not grow with t by itself.

    Raises:
        TypeError: threshold is neither a number nor numbers, or temperature no number.
        ValueError: one of them is NaN or out of range, or there is no such score.
    """

    threshold: float | tuple[float, ...]
    score: str = "max_softmax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        given = self.threshold
        if isinstance(given, (tuple, list)):
            thresholds = tuple(real("threshold", each) for each in given)
            if not thresholds:
                raise ValueError("threshold must be a number, or one per step, got none")
            object.__setattr__(self, "threshold", thresholds)
        else:
            value = real("threshold", given, or_=", or a tuple of them")
            object.__setattr__(self, "threshold", value)
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {SCORES}, got {self.score!r}")
        temperature = real("temperature", self.temperature)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        object.__setattr__(self, "temperature", temperature)

    def scores(self, means: Tensor) -> Tensor:
        """The scores of mean outputs.

        Args:
            means: [T, B, K], or [T, B] of one logit.

        Returns:
            [T, B], float32, or float64 for float64.

        Raises:
            ValueError: means have another number of dimensions.
        """
        if means.dim() not in (2, 3):
            raise ValueError(
                "outputs must be [T, B, classes] or [T, B] to have a confidence, got "
                f"{tuple(means.shape)}"
            )
        logits = means.unsqueeze(-1) if means.dim() == 2 else means
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.shape[-1] == 1:
            logits = torch.cat((torch.zeros_like(logits), logits), -1)
        chances = (logits / self.temperature).softmax(-1)
        if self.score == "max_softmax":
            return chances.amax(-1)
        return 1 + torch.xlogy(chances, chances).sum(-1) / math.log(logits.shape[-1])

    def sure(self, means: Tensor, before: int = 0) -> Tensor:
        """Which samples are sure at which of these steps.

        Args:
            means: [k, B, K] or [k, B], of the steps after the first ``before`` ones.

        Returns:
            bool [k, B].

        Raises:
            ValueError: there are thresholds per step, and none for one of these; and as for
                :meth:`scores`.
        """
        scores, limit = self.scores(means), self.threshold
        if isinstance(limit, float):
            return scores > limit
        last = before + len(means)
        if len(limit) < last:
            raise ValueError(
                f"threshold must have one number for each of {last} steps, got {len(limit)}"
            )
        return scores > scores.new_tensor(limit[before:last])[:, None]

    def stops(self, means: Tensor) -> Tensor:
        """The step at which each sample stops, of recorded mean outputs.

        Args:
            means: [T, B, K] or [T, B]: at t the mean of the outputs up to t, T >= 1.

        Returns:
            int64 [B], in 1..T.

        Raises:
            ValueError: as for :meth:`sure`; the last step needs no threshold.
        """
        at_last = torch.ones((1, means.shape[1]), dtype=torch.bool, device=means.device)
        return torch.cat((self.sure(means[:-1]), at_last)).to(torch.int8).argmax(0) + 1
