"""Training of QCFS networks: the loop, its schedule, and the accuracy of an ANN.

Settings are in config.py, what is written to files in state.py. No architectures and no data
readers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._files import check_target
from ..qcfs import QCFS
from .config import PRECISIONS, SCHEDULES, TrainConfig
from .identity import Identity, identity
from .noise import check_noise, fit_noise, set_noise
from .state import History, TrainingState, save_checkpoint

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


class SizedBatches(Protocol):
    """A re-iterable of (images, labels) with a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


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
        noise_batches: with residual noise, the images that its σ is measured on after every epoch,
            re-iterable; see :func:`cos_ext.training.noise.fit_noise`. Hold them out of the training
            images; test images would then be trained with.

    Returns:
        One record per epoch: loss, train_accuracy, test_accuracy, seconds; with residual noise also
        noise_std, the mean σ of the layers for the next epoch.

    Raises:
        ValueError: there is no batch, or none for residual noise; or state_path holds the state of
            another run (what differs is named), one of an older version, or a broken file. The
            weights are then unchanged.
        OSError: state_path cannot be written; before the first epoch.
        FloatingPointError: the loss is no longer finite.
        ConversionError: with residual noise, the model does not convert; before the first epoch.
    """
    if not len(batches):
        raise ValueError(
            "batches must hold at least one batch, got none; is batch_size larger than the set?"
        )
    if config.noise is not None:
        set_noise(model, config.noise)
    residual = check_noise(model, noise_batches)
    torch.manual_seed(config.seed)
    model.to(device)
    run: Identity = {}
    if state_path is not None:
        run = identity(model, batches, test_batches, config, noise_batches if residual else None)
    state = _fresh_state(model, batches, config, torch.device(device), run)
    history: History = []
    if state_path is not None:
        Path(state_path).parent.mkdir(parents=True, exist_ok=True)
        check_target(state_path)
    if resume and state_path is not None and Path(state_path).exists():
        history = state.restore(Path(state_path))

    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        record = _epoch(state, batches, config, f"epoch {epoch + 1}", progress)
        record["test_accuracy"] = accuracy(model, test_batches, device=device)
        if residual:
            deviations = fit_noise(model, noise_batches or (), progress=progress)
            record["noise_std"] = sum(deviations.values()) / len(deviations)
        record["seconds"] = time.perf_counter() - start
        history.append(record)
        if progress:
            tqdm.write(
                f"epoch {epoch + 1}: loss {record['loss']:.4f}, train "
                f"{record['train_accuracy']:.4f}, test {record['test_accuracy']:.4f}, "
                f"{record['seconds']:.0f} s",
                file=sys.stderr,
            )
        if state_path is not None:
            state.save(Path(state_path), history)
    model.eval()
    return history


def _fresh_state(
    model: nn.Module,
    batches: SizedBatches,
    config: TrainConfig,
    device: torch.device,
    run: Identity,
) -> TrainingState:
    """The state before the first step."""
    optimizer = torch.optim.SGD(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )
    steps = config.epochs * len(batches)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if config.schedule == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=steps,
            cycle_momentum=config.momentum > 0,
            # torch divides by zero where the warm-up is exactly one step.
            pct_start=0.3 if steps == 4 else 0.25,
            base_momentum=max(config.momentum - 0.05, 0),
            max_momentum=min(config.momentum + 0.05, 0.99),
        )
    else:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    half = PRECISIONS[config.precision] is torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    generator = getattr(batches, "generator", None)
    return TrainingState(model, optimizer, scheduler, scaler, generator, run, device)


def _epoch(
    state: TrainingState, batches: SizedBatches, config: TrainConfig, title: str, progress: bool
) -> dict[str, float]:
    """One pass over the data: the mean loss, and the accuracy on the way."""
    model, device = state.model, state.device
    model.train()
    autocast = PRECISIONS[config.precision]
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    seen, correct, total_loss = 0, 0, 0.0
    bar = tqdm(batches, desc=f"{title}/{config.epochs}", disable=not progress, leave=False)
    for images, labels in bar:
        images, labels = _on(device, images, labels)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            outputs = model(images)
        loss = criterion(outputs.float(), labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in {title}; lower learning_rate"
            )
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.scheduler.step()
        seen += len(labels)
        correct += int((outputs.argmax(1) == labels).sum())
        total_loss += loss.item() * len(labels)
        bar.set_postfix(loss=f"{total_loss / seen:.3f}", accuracy=f"{correct / seen:.4f}")
    return {"loss": total_loss / seen, "train_accuracy": correct / seen}


@torch.no_grad()
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


@torch.no_grad()
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
    # Stays on the device until the end: no wait per batch.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    for images, labels in tqdm(batches, desc="ANN", disable=not progress, leave=False):
        images, labels = _on(device, images, labels)
        correct += (model(images).argmax(1) == labels).sum()
        seen += len(labels)
    return int(correct), seen


def _on(device: str | torch.device, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
