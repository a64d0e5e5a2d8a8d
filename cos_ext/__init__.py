"""cos_ext turns a trained ANN into a spiking network that answers in 1 to 8 time-steps, by calibrating offset spikes."""

from . import functional
from ._ops import build_info
from .qcfs import QCFS

__all__ = ["QCFS", "build_info", "functional"]
