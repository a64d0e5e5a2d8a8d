"""Fine-tuning of spiking networks: what is minimised, and what bounds its parameters.

The loop is in loop.py. How neurons get gradients is in the room of the neurons, what of a network
trains is in the room conversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as TF
from torch.utils import _pytree as pytree

from .._batches import device_of
from .._tables import table
from ..network.inputs import in_dtype_of
from ..network.network import SpikingNetwork
from ..surrogate import Surrogate, check_surrogate
from .config import TrainConfig
from .identity import Identity, digest
from .loop import SizedBatches, accuracy_of, run
from .state import History
from .train import parameter_groups

SMALLEST = 0.01  # of what a θ was at first: an optimizer may take it to 0 and below


@dataclass(frozen=True)
class FineTuneConfig(TrainConfig):
    """Settings of :func:`cos_ext.fine_tune`. Those of
    :class:`cos_ext.training.train.TrainConfig` have other defaults here, and there are more.

    Attributes:
        threshold_lr: the peak learning rate of θ, in units of each layer's own: it is the rate of
            log θ. 0: θ stays.
        v_init_lr: likewise, of v(0)/θ.
        distillation: in [0, 1], the weight of the teacher's answers in the loss: 1 - distillation
            of the cross-entropy with the labels, and the Kullback-Leibler divergence from the
            teacher, at `temperature` and times its square (Hinton et al., "Distilling the knowledge
            in a neural network", 2015). Without a teacher it plays no part.
        temperature: > 0.

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int = 10
    learning_rate: float = 0.03
    schedule: str = "onecycle"
    clip_norm: float = 2.0
    threshold_lr: float = 0.01
    v_init_lr: float = 0.01
    distillation: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold_lr", "v_init_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must lie in [0, 1], got {self.distillation}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")


@dataclass(frozen=True)
class FineTuning:
    """What :func:`cos_ext.fine_tune` did. Prints as a table.

    Attributes:
        timesteps: T, of the network while it learned: also its latency.
        before: accuracy on the test batches before the first step, a fraction; None without them.
        history: a record per epoch: loss, train_accuracy, test_accuracy (with test batches) and
            seconds.
    """

    timesteps: int
    before: float | None
    history: History = field(repr=False)

    @property
    def accuracy(self) -> float | None:
        """On the test batches, after the last epoch."""
        return self.history[-1].get("test_accuracy")

    @property
    def seconds(self) -> float:
        """Of all epochs, tests included."""
        return sum(record["seconds"] for record in self.history)

    def __str__(self) -> str:
        def percent(value: float | None) -> str:
            return "" if value is None else f"{value:.2%}"

        rows = [["epoch", "loss", "train", "test", "seconds"]]
        if self.before is not None:
            rows.append(["0", "", "", percent(self.before), ""])
        for epoch, record in enumerate(self.history, 1):
            train, test = percent(record["train_accuracy"]), percent(record.get("test_accuracy"))
            loss, seconds = f"{record['loss']:.4f}", f"{record['seconds']:.0f}"
            rows.append([str(epoch), loss, train, test, seconds])
        return table(rows, left=())


class RateTask:
    """Cross-entropy of the mean output over time, and what a teacher says."""

    def __init__(
        self, network: SpikingNetwork, config: FineTuneConfig, teacher: nn.Module | None
    ) -> None:
        self.model, self.config, self.teacher = network, config, teacher
        self._scores = network.outputs.flat  # of one tensor
        self._teacher_checked = False
        self.smallest: list[tuple[Tensor, Tensor]] = []
        self.handles = []
        for node in network.nodes().values():
            theta = node.v_threshold.detach().clone()
            self.smallest.append((node.v_threshold, SMALLEST * theta))
            # The group's rate is that of the mean θ²; what is left of each element's own.
            share = theta.square() / theta.square().mean()
            for parameter in (node.v_threshold, node.v_init):
                if theta.dim() and parameter.requires_grad and parameter.shape == theta.shape:
                    self.handles.append(parameter.register_hook(share.mul))

    def close(self) -> None:
        """Leave the parameters' gradients to others."""
        for handle in self.handles:
            handle.remove()

    def groups(self) -> list[dict[str, Any]]:
        """Weights and biases as in training; θ and v(0) layer by layer."""
        config, own, groups = self.config, set(), []
        for node in self.model.nodes().values():
            # A step of log θ is θ² times one of θ; of v(0)/θ likewise.
            square = node.v_threshold.detach().double().square().mean().item()
            rates = ((node.v_threshold, config.threshold_lr), (node.v_init, config.v_init_lr))
            for parameter, rate in rates:
                own.add(id(parameter))
                if parameter.requires_grad and rate:
                    groups.append({"params": [parameter], "lr": rate * square, "weight_decay": 0.0})
        for group in parameter_groups(self.model, config.weight_decay):
            group["params"] = [p for p in group["params"] if id(p) not in own and p.requires_grad]
            if group["params"]:
                groups.append({**group, "lr": config.learning_rate})
        if not groups:
            raise ValueError("network must have parameters that require a gradient, it has none")
        return groups

    def answers(self, images: Tensor) -> Tensor:
        (rate,) = self._scores(self.model.rate(images))
        return rate

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        (outputs,) = self._scores(self.model(images))
        config, rate = self.config, outputs.mean(0).float()
        loss = TF.cross_entropy(rate, labels, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return loss, rate
        divergence = TF.kl_div(
            (rate / config.temperature).log_softmax(1),
            (self._taught(images, rate) / config.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        weight = config.distillation
        return (1 - weight) * loss + weight * config.temperature**2 * divergence, rate

    @torch.no_grad()
    def _taught(self, images: Tensor, rate: Tensor) -> Tensor:
        """The teacher's logits."""
        assert self.teacher is not None
        wanted = self.teacher(in_dtype_of(self.teacher, images))
        tensors = [each for each in pytree.tree_leaves(wanted) if isinstance(each, Tensor)]
        wanted = tensors[0] if len(tensors) == 1 else wanted
        if not isinstance(wanted, Tensor) or wanted.shape != rate.shape:
            got = tuple(wanted.shape) if isinstance(wanted, Tensor) else type(wanted).__name__
            raise ValueError(
                f"the teacher must return {tuple(rate.shape)}, as the network, got {got}"
            )
        wanted = wanted.float()
        if not self._teacher_checked:
            sums = (wanted.sum(1) - 1).abs().max()
            if wanted.numel() and bool((wanted >= 0).all() & (sums < 1e-3)):
                raise ValueError(
                    "the teacher must return logits, it returns probabilities; leave out the "
                    "Softmax at its end"
                )
            self._teacher_checked = True
        return wanted

    @torch.no_grad()
    def stepped(self) -> None:
        for theta, smallest in self.smallest:
            torch.maximum(theta, smallest.to(theta.device), out=theta)

    def ended(self, progress: bool) -> dict[str, float]:
        return {}

    def identity(self) -> Identity:
        nodes, teacher = self.model.nodes().values(), self.teacher
        return {
            "surrogates": str([(_name(node.surrogate), node.detach_reset) for node in nodes]),
            "fold_batchnorm": str(self.model.options["fold_batchnorm"]),
            "teacher": "none"
            if teacher is None
            else digest(repr(teacher), *teacher.state_dict().values()),
        }


def _name(surrogate: Callable[[Tensor], Tensor]) -> str:
    """What a surrogate is called in every process: a function's address differs."""
    if isinstance(surrogate, (Surrogate, nn.Module)):
        return repr(surrogate)
    return getattr(surrogate, "__qualname__", type(surrogate).__qualname__)


def fine_tune(
    network: SpikingNetwork,
    batches: SizedBatches,
    *,
    epochs: int = FineTuneConfig.epochs,
    lr: float = FineTuneConfig.learning_rate,
    teacher: nn.Module | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    detach_reset: bool | None = None,
    test_batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    device: str | torch.device | None = None,
    state_path: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> FineTuning:
    """Train a converted classifier in place, through time, without calibration.

    The network answers after its T steps: its latency is T, where calibrated ones have rho + T. It
    is left in eval mode.

    Args:
        network: made by ``convert(..., trainable=True)``, one input. Weights, θ and v(0) that
            require a gradient are trained; θ stays above 1% of what it was.
        batches: a re-iterable of (images [B, ...], labels int64 [B]) with a length.
        epochs: passes over the batches.
        lr: the peak learning rate of weights and biases. Take a smaller one where BatchNorm is
            folded.
        teacher: the ANN, whose answers, logits [B, classes], are part of the loss; moved to
            `device` and put into eval mode.
        surrogate, detach_reset: set for all neurons, as for
            :func:`cos_ext.functional.if_forward`; None: as each of them has it, Triangle() and
            False after convert().
        test_batches: a re-iterable like batches; read before the first epoch and after each.
        device: where to train; None: where the network is.
        state_path, resume, progress: as for :func:`cos_ext.training.train.fit`. To resume, give a
            network as it was at the start: converted anew, or loaded.
        settings: further ones of :class:`cos_ext.training.fine_tuning.FineTuneConfig`.

    Raises:
        TypeError: a setting has another name; the network is no SpikingNetwork, or the teacher no
            ANN.
        ValueError: resume comes without state_path; the network is not trainable, calibrates
            (rho > 0), or gives several tensors; a setting is out of range; the teacher does not
            return logits; test_batches yield nothing, as an iterator that was read; and as for
            ``fit``.
        OSError, FloatingPointError: as for ``fit``.
    """
    known = {field.name for field in fields(FineTuneConfig)} - {"epochs", "learning_rate"}
    if unknown := sorted(settings.keys() - known):
        raise TypeError(
            f"fine_tune has no setting {unknown}; beside epochs and lr (the learning rate) they "
            f"are {sorted(known)}"
        )
    config = FineTuneConfig(epochs=epochs, learning_rate=lr, **settings)
    _check(network, teacher)
    if resume and state_path is None:
        raise ValueError("resume needs state_path, the file to go on from")
    surrogate = None if surrogate is None else check_surrogate(surrogate)
    nodes = list(network.nodes().values())
    before = [(node.surrogate, node.detach_reset) for node in nodes]
    for node in nodes:
        if surrogate is not None:
            node.surrogate = surrogate
        if detach_reset is not None:
            node.detach_reset = bool(detach_reset)
    place = device_of(network) if device is None else torch.device(device)
    network.to(place)
    if teacher is not None:
        teacher.to(place).eval()
    task = RateTask(network, config, teacher)
    try:
        accuracy = None if test_batches is None else accuracy_of(task, test_batches, place)
        history = run(
            task,
            batches,
            test_batches,
            device=place,
            state_path=state_path,
            resume=resume,
            progress=progress,
        )
    except BaseException:
        for node, (own, detached) in zip(nodes, before):
            node.surrogate, node.detach_reset = own, detached
        raise
    finally:
        task.close()
        network.eval()
    return FineTuning(network.timesteps, accuracy, history)


def _check(network: SpikingNetwork, teacher: nn.Module | None) -> None:
    if teacher is not None and (
        not isinstance(teacher, nn.Module) or isinstance(teacher, SpikingNetwork)
    ):
        raise TypeError(f"teacher must be the ANN, an nn.Module, got {type(teacher).__name__}")
    if not isinstance(network, SpikingNetwork):
        raise TypeError(
            f"network must be one that cos_ext.convert made, got {type(network).__name__}"
        )
    if len(network.outputs.kinds) != 1:
        raise ValueError(
            f"network must give one tensor of logits, it gives {network.outputs.described()}; wrap "
            "the model in one that returns them alone"
        )
    if not network.trainable:
        raise ValueError("network must be trainable: make it by convert(..., trainable=True)")
    if network.watch_steps:
        raise ValueError(
            f"network.rho must be 0, got {network.watch_steps}: calibration has no gradient; "
            "calibrate after fine-tuning"
        )
