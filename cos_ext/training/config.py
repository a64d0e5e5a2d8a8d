"""Settings of training, and what they may be. Nothing is trained here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from .._numbers import real, whole

SCHEDULES = ("onecycle", "cosine")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`cos_ext.training.train.fit`: SGD with Nesterov momentum.

    Attributes:
        epochs: passes over the data, >= 1.
        learning_rate: the peak of the schedule.
        momentum: in [0, 1).
        weight_decay: of weights; thresholds and biases are not decayed.
        label_smoothing: in [0, 1], as in torch.
        schedule: "onecycle" (cosine warm-up over the first quarter, while momentum swings 0.05 to
            either side) or "cosine".
        precision: "float32", or autocast to "bfloat16" or "float16".
        seed: of torch's random state.
        clip_norm: > 0, the largest norm of all gradients together; by default none is too large.

    Raises:
        TypeError: a setting is no number where it must be one.
        ValueError: a setting is out of range.
    """

    epochs: int = 300
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    precision: str = "float32"
    seed: int = 0
    clip_norm: float = math.inf

    def __post_init__(self) -> None:
        for field in fields(self):  # of NumPy, too; what a state file holds are Python's
            value = getattr(self, field.name)
            if isinstance(field.default, str):
                continue
            whole_number = isinstance(field.default, int)
            number = whole(field.name, value) if whole_number else real(field.name, value, nan=True)
            object.__setattr__(self, field.name, number)
        if self.epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {tuple(PRECISIONS)}, got {self.precision!r}"
            )
