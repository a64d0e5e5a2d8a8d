"""Training of QCFS networks, and the accuracy of an ANN.

The loop is in loop.py, settings are in config.py, what is written to files in state.py. No
architectures and no data readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from ..qcfs import QCFS
from .config import PRECISIONS, SCHEDULES, TrainConfig
from .identity import Identity, images_of
from .loop import SizedBatches, count_correct, run
from .noise import check_noise, fit_noise
from .state import History, save_checkpoint

__all__ = [
    "PRECISIONS",
    "SCHEDULES",
    "TrainConfig",
    "accuracy",
    "correct_answers",
    "fit",
    "parameter_groups",
    "save_checkpoint",
]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights (decayed), and thresholds, biases and normalisation (not decayed), for an
    optimizer.
    """
    thresholds = {id(module.threshold) for module in model.modules() if isinstance(module, QCFS)}
    plain = [p for p in model.parameters() if p.ndim <= 1 or id(p) in thresholds]
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in thresholds]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


class Classification:
    """Cross-entropy of a model's outputs [B, classes]; its residual noise is measured on images
    that are held out.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, noise_batches: Iterable[Any] | None = None
    ) -> None:
        self.model, self.config = model, config
        self.noise_batches = noise_batches if check_noise(model, noise_batches) else None

    def groups(self) -> list[dict[str, Any]]:
        rate = self.config.learning_rate
        return [{**g, "lr": rate} for g in parameter_groups(self.model, self.config.weight_decay)]

    def answers(self, images: Tensor) -> Tensor:
        return self.model(images)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        outputs, smoothing = self.model(images), self.config.label_smoothing
        return TF.cross_entropy(outputs.float(), labels, label_smoothing=smoothing), outputs

    def stepped(self) -> None:
        """Nothing has bounds."""

    def ended(self, progress: bool) -> dict[str, float]:
        if self.noise_batches is None:
            return {}
        deviations = fit_noise(self.model, self.noise_batches, progress=progress)
        return {"noise_std": sum(deviations.values()) / len(deviations)}

    def identity(self) -> Identity:
        own = self.noise_batches
        return {"noise images": "none" if own is None else images_of(own)}


def fit(
    model: nn.Module,
    batches: SizedBatches,
    test_batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    state_path: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    noise_batches: Iterable[Any] | None = None,
) -> History:
    """Train a classifier in place.

    Args:
        model: any classifier; moved to ``device``.
        batches: a re-iterable of (images [B, ...], labels int64 [B]) with a length.
        test_batches: likewise; read after every epoch.
        config: see :class:`cos_ext.training.train.TrainConfig`.
        device: where to train.
        state_path: after every epoch the whole training state (weights, optimizer, schedule, random
            state, what identifies the run) is written here, to a temporary file first, so that a
            kill leaves the previous one.
        resume: go on from state_path if it exists. Architecture, levels, initial thresholds, data,
            batches and settings must then be those that it was written with; data that only a pass
            over ``batches`` could tell are taken for the same.
        progress: a progress bar on stderr.
        noise_batches: where QCFS activations have residual noise, the images that its σ is measured
            on after every epoch, re-iterable; see :func:`cos_ext.training.noise.fit_noise`. Hold
            them out of the training images; test images would then be trained with.

    Returns:
        One record per epoch: loss, train_accuracy, test_accuracy, seconds; with residual noise also
        noise_std, the mean σ of the layers for the next epoch.

    Raises:
        ValueError: there is no batch, or none for residual noise; or state_path holds the state of
            another run (what differs is named), one of an older version, or a broken file. The
            model is then unchanged.
        OSError: state_path cannot be written; before the first epoch.
        FloatingPointError: the loss is no longer finite.
        ConversionError: with residual noise, the model does not convert; before the first epoch.
    """
    return run(
        Classification(model, config, noise_batches),
        batches,
        test_batches,
        device=device,
        state_path=state_path,
        resume=resume,
        progress=progress,
    )


def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> float:
    """Top-1 accuracy of an ANN as a fraction. The model is put in eval mode and left on
    ``device``.

    Args:
        model: its outputs are [B, classes].
        batches: an iterable of (images [B, ...], labels int64 [B]).
        device: where to compute.
        progress: a progress bar on stderr.
    """
    correct, seen = correct_answers(model, batches, device=device, progress=progress)
    return correct / max(seen, 1)


def correct_answers(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> tuple[int, int]:
    """(correct answers, samples) of an ANN, as for :func:`accuracy`: to be added up over several
    processes.
    """
    model.to(device).eval()
    return count_correct(model, batches, device, progress)
