"""What training writes to files: the whole state, from which it goes on, and checkpoints for use.

Nothing is trained here.
"""

from __future__ import annotations

import copy
import json
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import check_target, replacing
from .identity import Identity, differences, unknown
from .noise import noisy

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
        run: what identifies the run, and must agree.
        device: where it trains.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generator: torch.Generator | None
    run: Identity
    device: torch.device

    def save(self, path: Path, history: History) -> None:
        """Write the state and the records so far; a kill leaves the previous file."""
        on_gpu = self.device.type == "cuda"
        content = {
            "model": self.model.state_dict(),
            # No part of state_dict, so that checkpoints need not know how they were trained.
            "noise_std": {name: act.noise_std for name, act in noisy(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "run": self.run,
            "history": history,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            "data_rng": None if self.generator is None else self.generator.get_state(),
        }
        with replacing(path) as part:
            torch.save(content, part)

    def restore(self, path: Path) -> History:
        """Take up the state in a file; the records of the epochs that are done.

        Raises:
            ValueError: the file is broken, of an older version, or of another run: what differs is
                named. The model is then unchanged.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            history = list(state["history"])
            run = None if "config" in state and "run" not in state else dict(state["run"])
        except Exception as error:  # torch.load raises several kinds for damaged files
            raise ValueError(f"{path} is not a training state, or is truncated: {error}") from error
        if run is None:
            raise ValueError(
                f"{path} was written by cos_ext 0.1, and does not say of which model and data it "
                "is; start anew without resume"
            )
        if found := differences(run, self.run):
            raise ValueError(
                f"{path} is of another run. These differ: {found}. Use what it was written with, "
                "or start anew: without resume, or with another name"
            )
        if missing := unknown(self.run):
            warnings.warn(
                f"{path} goes on, but its {missing} could not be compared with those of now, which "
                "are of a kind of their own; see that they are the same",
                stacklevel=3,
            )
        before = copy.deepcopy(self.model.state_dict())
        try:
            self._load(state)
        except Exception as error:  # load_state_dict may fail half-way, in several ways
            self.model.load_state_dict(before)
            raise ValueError(f"{path} does not fit this model: {error}") from error
        return history

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, act in noisy(self.model).items():
            act.noise_std.copy_(state["noise_std"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        if state.get("cuda_rng") is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        if self.generator is not None and state["data_rng"] is not None:
            self.generator.set_state(state["data_rng"])


def beside(output: str | Path, suffix: str) -> Path:
    """The file of this suffix that belongs to a checkpoint: NAME.json to NAME and
    NAME.safetensors. Other endings are a part of the name, as in run_lr0.1.
    """
    path = Path(output)
    return path.with_name(path.name.removesuffix(".safetensors") + suffix)


def check_output(output: str | Path) -> None:
    """Find out before a training whether its checkpoint, record and state can be written; makes
    the folder.

    Raises:
        ValueError: the name is that of a record or a state.
        OSError: a file cannot be written.
    """
    path = Path(output)
    if not path.name:
        raise ValueError(f"the checkpoint must have a name, got {str(output)!r}")
    if path.suffix in (".json", ".state"):
        raise ValueError(
            f"the checkpoint {path} has the name of a record or a state; name it "
            f"{path.with_name(path.name.removesuffix(path.suffix) + '.safetensors')}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    check_target(output, beside(path, ".json"), beside(path, ".state"))


def save_checkpoint(model: nn.Module, path: str | Path, record: dict[str, Any]) -> None:
    """Write the weights as safetensors, and a record with versions as JSON beside it. Both or
    neither appear.

    Args:
        model: whose state_dict is written.
        path: of the weights. The record of NAME or NAME.safetensors is NAME.json.
        record: what JSON can hold.
    """
    from safetensors.torch import save

    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_beside(path, record, lambda part: part.write_bytes(save(state, metadata={"format": "pt"})))


def save_beside(path: str | Path, record: dict[str, Any], write: Callable[[Path], Any]) -> None:
    """Have a checkpoint written, and its record as JSON beside it. Both or neither appear.

    Args:
        path, record: as for :func:`save_checkpoint`.
        write: given the path of a new file, writes the checkpoint there.
    """
    check_output(path)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    text = json.dumps({**record, "versions": versions}, indent=2) + "\n"  # may fail: before writing
    with replacing(path, beside(path, ".json")) as (weights, notes):
        write(weights)
        notes.write_text(text, encoding="utf-8")
