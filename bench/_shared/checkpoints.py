"""The ANNs that the scripts start from: a checkpoint with its JSON, and its cheapest form to run.

Training is not here, and nothing that spikes. Names that cos_ext keeps to itself are imported
here, so that a change of them is a change of one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import fx, nn

from cos_ext import models
from cos_ext._commands.options import build_model, read_record
from cos_ext.conversion.fold import fold_batchnorms
from cos_ext.conversion.graphs import set_module
from cos_ext.conversion.tracing import trace
from cos_ext.models import DEMO_CHECKPOINT

__all__ = ["DEMO_CHECKPOINT", "folded", "load", "set_module"]


def load(checkpoint: Path = DEMO_CHECKPOINT, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode, and its record with the `changes` that are not None.

    Without arguments it is the shipped ResNet-20.
    """
    record = read_record(checkpoint) | {k: v for k, v in changes.items() if v is not None}
    model = build_model(record)
    models.load_weights(model, checkpoint)
    return model.eval(), record


def folded(ann: nn.Module, *, relu: bool = False) -> fx.GraphModule:
    """A copy with BatchNorm folded: what one who only runs the ANN would run.

    relu: with ReLU in place for every activation, the cheapest there is.
    """
    traced = trace(ann)
    fold_batchnorms(traced.module, dict.fromkeys(traced.graph.nodes, 4))
    module = fx.GraphModule(traced.module, traced.graph)
    for site in traced.sites if relu else ():
        set_module(module, site, nn.ReLU(inplace=True))
    return module
