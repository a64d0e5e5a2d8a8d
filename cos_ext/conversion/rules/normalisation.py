"""Normalisation by known statistics, and Dropout, which evaluation leaves out."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as TF

from .base import Call, Memory, Refusal, Rule, for_dimensions, register


class BatchNormAny(nn.modules.batchnorm._BatchNorm):
    """What SyncBatchNorm is in eval mode: BatchNorm of tensors [B, C, ...] with any dimensions."""

    def _check_input_dim(self, input: Any) -> None:
        pass


BATCH_NORMS = (*for_dimensions("BatchNorm"), BatchNormAny)
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@register
class BatchNorm(Rule):
    """In eval mode γ (x - μ) / sqrt(σ² + ε) + β with constant μ and σ: affine, by channel."""

    modules = BATCH_NORMS
    memory = Memory.OWN

    def check_module(self, module: nn.Module) -> Refusal | None:
        statistics: list[Any] = [module.running_mean, module.running_var]
        if all(each is not None for each in statistics):
            return None
        return Refusal(
            "has no running statistics, so its output would depend on the other time-steps",
            "train it with track_running_stats=True",
        )

    def rank(self, call: Call) -> int | None:
        known: dict[type, int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
        return known.get(type(call.module), call.rank)

    def leads(self, call: Call) -> bool:
        return True


@register
class BatchNormCall(Rule):
    """F.batch_norm with given statistics."""

    functions = (TF.batch_norm,)
    memory = Memory.OWN

    def check(self, call: Call) -> Refusal | None:
        if call.argument(5, "training", False) is not False:
            return Refusal(
                "normalises by the statistics of the batch", "pass training=self.training"
            )
        others = [source for source in call.sources if source is not call.node.args[0]]
        if any(source in call.facts.batched for source in others):
            return Refusal("takes a further tensor", "compute its statistics from parameters alone")
        return None


@register
class Dropout(Rule):
    """The identity in eval mode."""

    modules = DROPOUTS
    memory = Memory.INPUT


@register
class DropoutCall(Rule):
    """F.dropout with training=False, as tracing in eval mode makes of training=self.training."""

    functions = (TF.dropout, TF.dropout2d)
    memory = Memory.INPUT

    def check(self, call: Call) -> Refusal | None:
        if call.argument(2, "training", True) is False:
            return None
        return Refusal("is active in evaluation too", "pass training=self.training")
