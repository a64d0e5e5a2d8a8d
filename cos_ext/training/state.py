"""What training writes to files: the whole state, from which it goes on, and checkpoints for use.

Nothing is trained here.
"""

from __future__ import annotations

import copy
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import TrainConfig

History = list[dict[str, float]]  # a record per epoch


@dataclass
class TrainingState:
    """All that a training which goes on must have as it was.

    Attributes:
        model: its weights and buffers.
        optimizer: with its momenta.
        scheduler: of the learning rate, by step.
        scaler: of the gradients; it does nothing but in float16.
        generator: of the data's order and augmentation; None: torch's own.
        config: the settings, which must agree.
        device: where it trains.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generator: torch.Generator | None
    config: TrainConfig
    device: torch.device

    def save(self, path: Path, history: History) -> None:
        """Write the state and the records so far: first to another file, so that a kill leaves the
        previous one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(path.suffix + ".part")
        on_gpu = self.device.type == "cuda"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "config": asdict(self.config),
                "history": history,
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if on_gpu else None,
                "data_rng": None if self.generator is None else self.generator.get_state(),
            },
            part,
        )
        os.replace(part, path)

    def restore(self, path: Path) -> History:
        """Take up the state in a file; the records of the epochs that are done.

        Raises:
            ValueError: the file is broken, or of another model, other settings or another number of
                batches. The model is then unchanged.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            saved, history = dict(state["config"]), list(state["history"])
        except Exception as error:  # torch.load raises several kinds for damaged files
            raise ValueError(f"{path} is not a training state, or is truncated: {error}") from error
        ours = asdict(self.config)
        if saved != ours:
            changed = sorted(key for key in ours if saved.get(key) != ours[key])
            raise ValueError(
                f"{path} was written with other settings: {changed} differ; start anew or use the "
                "same"
            )
        before = copy.deepcopy(self.model.state_dict())
        try:
            self._load(state)
        except Exception as error:  # load_state_dict may fail half-way, in several ways
            self.model.load_state_dict(before)
            raise ValueError(
                f"{path} does not fit this model and these batches: {error}"
            ) from error
        return history

    def _load(self, state: dict[str, Any]) -> None:
        total = "total_steps" if self.config.schedule == "onecycle" else "T_max"
        steps, expected = state["scheduler"][total], self.scheduler.state_dict()[total]
        if steps != expected:
            raise ValueError(
                f"it is for {steps} steps in all, and these batches and epochs make {expected}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        if state.get("cuda_rng") is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        if self.generator is not None and state["data_rng"] is not None:
            self.generator.set_state(state["data_rng"])


def save_checkpoint(model: nn.Module, path: str | Path, record: dict[str, Any]) -> None:
    """Write the weights as safetensors, and a record with versions as JSON beside it. Both or
    neither appear.

    Args:
        model: whose state_dict is written.
        path: of the weights; the record gets the suffix .json.
        record: what JSON can hold.
    """
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights, notes = path.with_suffix(path.suffix + ".part"), path.with_suffix(".json.part")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    text = json.dumps({**record, "versions": versions}, indent=2) + "\n"  # may fail: before writing
    # save_file would let only its owner read it.
    weights.write_bytes(save(state, metadata={"format": "pt"}))
    notes.write_text(text)
    os.replace(weights, path)
    os.replace(notes, path.with_suffix(".json"))
