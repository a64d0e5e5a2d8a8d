"""The loop that training and fine-tuning share: epochs, optimizer, schedule, state, progress.

What is minimised, and of which parameters, is a Task; the tasks are in train.py and
fine_tuning.py. Settings are in config.py, what is written to files in state.py.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._files import check_target
from .config import PRECISIONS, TrainConfig
from .identity import Identity, identity
from .state import History, TrainingState


class SizedBatches(Protocol):
    """A re-iterable of (images, labels) with a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Task(Protocol):
    """What a training minimises."""

    @property
    def model(self) -> nn.Module:
        """Is trained in place."""

    @property
    def config(self) -> TrainConfig:
        """The settings of the loop."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameters, for an optimizer; each group has its peak learning rate, "lr"."""

    def answers(self, images: Tensor) -> Tensor:
        """[B, classes], the largest of which is the answer."""

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the answers."""

    def stepped(self) -> None:
        """Called after every step of the optimizer."""

    def ended(self, progress: bool) -> dict[str, float]:
        """Called after every epoch; what it returns is added to the record."""

    def identity(self) -> Identity:
        """What the task depends on, beside its model, data and settings."""


def run(
    task: Task,
    batches: SizedBatches,
    test_batches: Iterable[tuple[Tensor, Tensor]] | None,
    *,
    device: str | torch.device,
    state_path: str | Path | None,
    resume: bool,
    progress: bool,
) -> History:
    """Train a task's model; the arguments, records and errors are those of
    :func:`cos_ext.training.train.fit`. Without test_batches no record has a test accuracy.
    """
    if not len(batches):
        raise ValueError(
            "batches must hold at least one batch, got none; is batch_size larger than the set?"
        )
    config, model = task.config, task.model
    torch.manual_seed(config.seed)
    model.to(device)
    own: Identity = {}
    if state_path is not None:
        own = {**identity(model, batches, test_batches or (), config), **task.identity()}
    state = _fresh_state(task, batches, torch.device(device), own)
    history: History = []
    if state_path is not None:
        Path(state_path).parent.mkdir(parents=True, exist_ok=True)
        check_target(state_path)
    if resume and state_path is not None and Path(state_path).exists():
        history = state.restore(Path(state_path))

    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        record = _epoch(task, state, batches, f"epoch {epoch + 1}", progress)
        if test_batches is not None:
            record["test_accuracy"] = accuracy_of(task, test_batches, device)
        record |= task.ended(progress)
        record["seconds"] = time.perf_counter() - start
        history.append(record)
        if progress:
            tqdm.write(f"epoch {epoch + 1}: {_line(record)}", file=sys.stderr)
        if state_path is not None:
            state.save(Path(state_path), history)
    model.eval()
    return history


def accuracy_of(task: Task, batches: Iterable[Any], device: str | torch.device) -> float:
    """Top-1 accuracy of a task's answers, in eval mode.

    Raises:
        ValueError: there is no sample, as in batches that are read for the second time.
    """
    task.model.eval()
    correct, seen = count_correct(task.answers, batches, device)
    if not seen:
        raise ValueError(
            "test_batches must yield samples whenever they are read, they yielded none"
        )
    return correct / seen


@torch.no_grad()
def count_correct(
    answers: Any, batches: Iterable[Any], device: str | torch.device, progress: bool = False
) -> tuple[int, int]:
    """(correct answers, samples), where ``answers(images)`` is [B, classes]."""
    # Stays on the device until the end: no wait per batch.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    for images, labels in tqdm(batches, desc="accuracy", disable=not progress, leave=False):
        images, labels = _on(device, images, labels)
        correct += (answers(images).argmax(1) == labels).sum()
        seen += len(labels)
    return int(correct), seen


def _line(record: dict[str, float]) -> str:
    test = f", test {record['test_accuracy']:.4f}" if "test_accuracy" in record else ""
    return (
        f"loss {record['loss']:.4f}, train {record['train_accuracy']:.4f}{test}, "
        f"{record['seconds']:.0f} s"
    )


def _fresh_state(
    task: Task, batches: SizedBatches, device: torch.device, own: Identity
) -> TrainingState:
    """The state before the first step."""
    config, groups = task.config, task.groups()
    optimizer = torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )
    steps = config.epochs * len(batches)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if steps == 1:  # which a schedule would begin, or end, with next to nothing
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    elif config.schedule == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
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
    return TrainingState(task.model, optimizer, scheduler, scaler, generator, own, device)


def _epoch(
    task: Task, state: TrainingState, batches: SizedBatches, title: str, progress: bool
) -> dict[str, float]:
    """One pass over the data: the mean loss, and the accuracy on the way."""
    config, device = task.config, state.device
    task.model.train()
    autocast = PRECISIONS[config.precision]
    seen, correct, total_loss = 0, 0, 0.0
    bar = tqdm(batches, desc=f"{title}/{config.epochs}", disable=not progress, leave=False)
    for images, labels in bar:
        images, labels = _on(device, images, labels)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss, outputs = task.loss(images, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in {title}; lower learning_rate, or look for NaN "
                "in the images and for batches without labels"
            )
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        if config.clip_norm < math.inf:
            state.scaler.unscale_(state.optimizer)
            groups = state.optimizer.param_groups
            nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.clip_norm)
        state.scaler.step(state.optimizer)
        task.stepped()
        state.scaler.update()
        state.scheduler.step()
        seen += len(labels)
        correct += int((outputs.argmax(1) == labels).sum())
        total_loss += loss.item() * len(labels)
        bar.set_postfix(loss=f"{total_loss / seen:.3f}", accuracy=f"{correct / seen:.4f}")
    return {"loss": total_loss / seen, "train_accuracy": correct / seen}


def _on(device: str | torch.device, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if labels.dim() != 1:
        raise ValueError(f"labels must be int64 [B], got shape {tuple(labels.shape)}")
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
