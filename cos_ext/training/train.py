"""Training of QCFS networks: the loop, its schedule, and checkpoints that resume. No architectures
and no data readers.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..qcfs import QCFS

SCHEDULES = ("onecycle", "cosine")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`fit`. SGD with Nesterov momentum; thresholds and biases are not decayed.

    epochs, learning_rate (the peak), momentum, weight_decay, label_smoothing: as in torch;
    schedule: "onecycle" (cosine warm-up over the first quarter, while momentum swings 0.05 to
    either side) or "cosine"; precision: "float32", or autocast to "bfloat16"/"float16".
    """

    epochs: int = 300
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
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
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {tuple(PRECISIONS)}, got {self.precision!r}"
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights (decayed), and thresholds, biases and normalisation (not decayed)."""
    thresholds = {id(module.threshold) for module in model.modules() if isinstance(module, QCFS)}
    plain = [p for p in model.parameters() if p.ndim <= 1 or id(p) in thresholds]
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in thresholds]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    test_batches: Iterable[tuple[Tensor, Tensor]],
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    state_path: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place and return one record per epoch: loss, train_accuracy, test_accuracy,
    seconds.

    Args:
        model: any classifier; moved to `device`.
        batches, test_batches: re-iterables of (images, labels) with a length.
        config: see :class:`TrainConfig`.
        state_path: after every epoch the whole training state (weights, optimizer, schedule, random
            state) is written here, to a temporary file first, so that a kill leaves the previous
            one.
        resume: go on from state_path if it exists.
        progress: a progress bar on stderr.

    Raises:
        ValueError: there is no batch; or state_path holds a state of another model, other settings
            or another number of batches, or a broken file. The model is then unchanged.
        FloatingPointError: the loss is no longer finite.
    """
    if not len(batches):
        raise ValueError(
            "batches must hold at least one batch, got none; is batch_size larger than the set?"
        )
    torch.manual_seed(config.seed)
    model.to(device)
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
            pct_start=0.3
            if steps == 4
            else 0.25,  # torch divides by zero where the warm-up is exactly one step
            base_momentum=max(config.momentum - 0.05, 0),
            max_momentum=min(config.momentum + 0.05, 0.99),
        )
    else:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    autocast = PRECISIONS[config.precision]
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=autocast is torch.float16)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    generator = getattr(batches, "generator", None)
    history: list[dict[str, float]] = []
    if resume and state_path is not None and Path(state_path).exists():
        history = _restore(
            Path(state_path), model, optimizer, scheduler, scaler, generator, config, device
        )

    for epoch in range(len(history), config.epochs):
        model.train()
        start, seen, correct, total_loss = time.perf_counter(), 0, 0, 0.0
        bar = tqdm(
            batches, desc=f"epoch {epoch + 1}/{config.epochs}", disable=not progress, leave=False
        )
        for images, labels in bar:
            images, labels = (
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
            )
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                outputs = model(images)
            loss = criterion(outputs.float(), labels)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}; lower learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            seen += len(labels)
            correct += int((outputs.argmax(1) == labels).sum())
            total_loss += loss.item() * len(labels)
            bar.set_postfix(loss=f"{total_loss / seen:.3f}", accuracy=f"{correct / seen:.4f}")
        history.append(
            {
                "loss": total_loss / seen,
                "train_accuracy": correct / seen,
                "test_accuracy": accuracy(model, test_batches, device=device),
                "seconds": time.perf_counter() - start,
            }
        )
        if progress:
            last = history[-1]
            tqdm.write(
                f"epoch {epoch + 1}: loss {last['loss']:.4f}, train {last['train_accuracy']:.4f}, "
                f"test {last['test_accuracy']:.4f}, {last['seconds']:.0f} s",
                file=sys.stderr,
            )
        if state_path is not None:
            _save_state(
                Path(state_path),
                model,
                optimizer,
                scheduler,
                scaler,
                generator,
                config,
                history,
                device,
            )
    model.eval()
    return history


@torch.no_grad()
def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> float:
    """Top-1 accuracy of an ANN as a fraction; the model is put in eval mode and left on
    `device`.
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
    correct = torch.zeros(
        (), dtype=torch.int64, device=device
    )  # stays there until the end: no wait per batch
    seen = 0
    for images, labels in tqdm(batches, desc="ANN", disable=not progress, leave=False):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        correct += (model(images).argmax(1) == labels).sum()
        seen += len(labels)
    return int(correct), seen


def save_checkpoint(model: nn.Module, path: str | Path, record: dict[str, Any]) -> None:
    """Write the weights as safetensors to `path` and `record`, with versions, as JSON beside it;
    both or neither appear.
    """
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights, notes = path.with_suffix(path.suffix + ".part"), path.with_suffix(".json.part")
    record = {
        **record,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    text = json.dumps(record, indent=2) + "\n"  # may fail: before any file is written
    weights.write_bytes(
        save(state, metadata={"format": "pt"})
    )  # save_file would let only its owner read it
    notes.write_text(text)
    os.replace(weights, path)
    os.replace(notes, path.with_suffix(".json"))


def _save_state(
    path: Path, model, optimizer, scheduler, scaler, generator, config: TrainConfig, history, device
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict(),
            "config": asdict(config),
            "history": history,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device)
            if torch.device(device).type == "cuda"
            else None,
            "data_rng": None if generator is None else generator.get_state(),
        },
        part,
    )
    os.replace(part, path)


def _restore(
    path: Path, model, optimizer, scheduler, scaler, generator, config: TrainConfig, device
) -> list[dict[str, float]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, history = dict(state["config"]), list(state["history"])
    except Exception as error:  # torch.load raises several kinds for damaged files
        raise ValueError(f"{path} is not a training state, or is truncated: {error}") from error
    if saved != asdict(config):
        changed = sorted(key for key in asdict(config) if saved.get(key) != asdict(config)[key])
        raise ValueError(
            f"{path} was written with other settings: {changed} differ; start anew or use the same"
        )
    before = copy.deepcopy(model.state_dict())
    total = "total_steps" if config.schedule == "onecycle" else "T_max"
    try:
        steps, expected = state["scheduler"][total], scheduler.state_dict()[total]
        if steps != expected:
            raise ValueError(
                f"it is for {steps} steps in all, and these batches and epochs make {expected}"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        if state.get("cuda_rng") is not None and torch.device(device).type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], device)
        if generator is not None and state["data_rng"] is not None:
            generator.set_state(state["data_rng"])
    except Exception as error:  # load_state_dict may fail half-way, in several ways
        model.load_state_dict(before)
        raise ValueError(f"{path} does not fit this model and these batches: {error}") from error
    return history
