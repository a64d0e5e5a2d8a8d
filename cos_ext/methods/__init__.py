"""The published conversion methods that this library runs, each a name for settings of one neuron.

``cos_ext.convert(model, method="group-neurons", ...)`` takes a name, or a :class:`Method`. What is
listed, and how each differs from its published code, is in published.py; how settings become a
network's, in method.py. Fitting to data is the room calibration's.
"""

from .method import Method, apply, chosen, table
from .published import METHODS, UNAVAILABLE, group_neurons, h_mt, multi_threshold

__all__ = [
    "METHODS",
    "UNAVAILABLE",
    "Method",
    "apply",
    "chosen",
    "group_neurons",
    "h_mt",
    "multi_threshold",
    "table",
]
