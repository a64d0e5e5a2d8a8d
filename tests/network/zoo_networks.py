"""Networks of the zoo, converted. No tests here."""

from __future__ import annotations

import torch
import zoo
from quantised import thresholds_of
from torch import nn

from cos_ext import convert


def converted(name, dtype=torch.float64, **options):
    """A network of the zoo, and inputs that it was not converted with."""
    make, shapes = zoo.CONVERTS[name]
    model = zoo.prepared(name, make).to(dtype)
    inputs = tuple(x.to(dtype) for x in zoo.inputs_of(shapes))
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    if any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        options = {"max_pool": "before", **options}
    network = convert(
        model,
        thresholds=thresholds,
        example_input=inputs,
        **{"timesteps": 4, "rho": 4, "emission": "even", **options},
    )
    return network, tuple(x.to(dtype) for x in zoo.inputs_of(shapes, batch=5))
