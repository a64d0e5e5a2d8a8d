"""cos_ext turns a trained ANN into a spiking network that answers in 1 to 8 time-steps, by
calibrating offset spikes.
"""

from . import _fakes, data, functional, methods, models  # noqa: F401
from ._build import build_info, own_version
from .analysis.confidence import Confidence
from .analysis.confidence_fit import ConfidenceFit, fit_confidence
from .analysis.energy import EnergyReport
from .analysis.evaluation import Evaluation, evaluate
from .analysis.offsets import OffsetSpikeReport, offset_spike_report
from .analysis.readout import early_exit
from .analysis.settling import settling_step
from .analysis.statistics import NetworkStatistics
from .calibration.adafire import AdaFire, fit_adafire
from .calibration.by_method import fit
from .calibration.light import fit_light
from .calibration.mean_potentials import fit_potentials
from .calibration.potentials import fit_v_init
from .calibration.rate_shifts import fit_rate_shift
from .calibration.spreading import spread_v_init
from .calibration.step_biases import fit_step_bias
from .calibration.thresholds import calibrate_thresholds, load_thresholds, save_thresholds
from .conversion.loading import load_network
from .conversion.pipeline import convert
from .conversion.report import ConversionError, ConversionReport
from .export.nir_reading import from_nir
from .export.nir_writing import to_nir
from .export.onnx_file import to_onnx
from .general import Neuron
from .network.network import SpikingNetwork
from .neuron import IFNode
from .qcfs import QCFS
from .training.fine_tuning import FineTuning, fine_tune

__version__ = own_version()

__all__ = [
    "QCFS",
    "AdaFire",
    "Confidence",
    "ConfidenceFit",
    "ConversionError",
    "ConversionReport",
    "EnergyReport",
    "Evaluation",
    "FineTuning",
    "IFNode",
    "NetworkStatistics",
    "Neuron",
    "OffsetSpikeReport",
    "SpikingNetwork",
    "build_info",
    "calibrate_thresholds",
    "convert",
    "data",
    "early_exit",
    "evaluate",
    "fine_tune",
    "fit",
    "fit_adafire",
    "fit_confidence",
    "fit_light",
    "fit_potentials",
    "fit_rate_shift",
    "fit_step_bias",
    "fit_v_init",
    "from_nir",
    "functional",
    "load_network",
    "load_thresholds",
    "methods",
    "models",
    "offset_spike_report",
    "save_thresholds",
    "settling_step",
    "spread_v_init",
    "to_nir",
    "to_onnx",
]
