"""Making parameters of what a converted network learns. How neurons learn is not in this room."""

from __future__ import annotations

from torch import nn

from .._neuron.parameters import LEARNED, learn
from ..surrogate import Triangle
from .state import Conversion


def check_fold(fold_batchnorm: bool | str) -> bool | str:
    """ValueError unless fold_batchnorm is True, False or "frozen"."""
    if isinstance(fold_batchnorm, str) and fold_batchnorm != "frozen":
        raise ValueError(f'fold_batchnorm must be True, False or "frozen", got {fold_batchnorm!r}')
    return fold_batchnorm if isinstance(fold_batchnorm, str) else bool(fold_batchnorm)


class MakeTrainable:
    """Gives the network's weights, θ and v(0) gradients, where convert() was asked to."""

    def apply(self, conversion: Conversion) -> None:
        settings, network = conversion.settings, conversion.network
        network.options["trainable"] = settings.trainable
        if not settings.trainable:
            return
        for node in network.nodes().values():
            learn(node, LEARNED)
            node.surrogate = Triangle()  # beside ATan the better one where networks are fine-tuned
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        if settings.fold_batchnorm == "frozen":
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)
