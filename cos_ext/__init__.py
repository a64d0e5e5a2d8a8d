"""cos_ext turns a trained ANN into a spiking network that answers in 1 to 8 time-steps, by calibrating offset spikes."""

from . import data, functional, models
from ._ops import build_info
from .calibrate import calibrate_thresholds, load_thresholds, save_thresholds
from .convert import convert, load_network
from .energy import EnergyReport
from .evaluate import Evaluation, evaluate
from .light import fit_light
from .network import SpikingNetwork
from .neuron import IFNode
from .offsets import OffsetSpikeReport, offset_spike_report
from .qcfs import QCFS
from .report import ConversionError, ConversionReport
from .static import fit_v_init

__all__ = ["QCFS", "ConversionError", "ConversionReport", "EnergyReport", "Evaluation", "IFNode", "OffsetSpikeReport",
           "SpikingNetwork", "build_info",
           "calibrate_thresholds", "convert", "data", "evaluate", "fit_light", "fit_v_init", "functional", "load_network",
           "load_thresholds", "models",
           "offset_spike_report", "save_thresholds"]  # fmt: skip
