"""The methods: those that run, with what they set, and those that do not, with the reason.

How settings become a network's is in method.py. The sources of every fact are in
docs/methods/published.md; what was read in code and what in a paper is said there.
"""

from __future__ import annotations

from ..general import Neuron
from .method import Method

CLIPPED = (
    "On a network whose activations are clipped at θ, such as QCFS, the rungs are cut so that a "
    "step sends at most θ."
)


def group_neurons(members: int = 4) -> Method:
    """Group neurons of so many members: θ in that many levels, all of which one step can send."""
    return Method(
        "group-neurons",
        "Lv, Fang, Yuan, Tian, ICASSP 2024, arXiv 2402.19061",
        needs="nothing",
        neuron=Neuron(levels=(0, members)),
        levels=members,
    )


def multi_threshold(rungs: int = 4, *, differential: bool = False) -> Method:
    """The multi-threshold neuron of DCGS, alone or with differential coding."""
    coded = (
        "A network of clipped activations loses its clip: what is predicted is not bounded. "
        if differential
        else ""
    )
    return Method(
        "dcgs" if differential else "multi-threshold",
        "Huang et al., ICML 2025",
        needs="nothing",
        differs=coded + "θ is the network's own; the published thresholds solve an iteration over "
        "the activations' mean and variance.",
        neuron=Neuron(ladder=rungs, gated=True, prediction=differential),
        start=0.0,
    )


def h_mt(rungs: int = 4) -> Method:
    """A cascade of rungs θ/2, θ/4, ..., each at most once a step: 2^rungs - 1 equal levels."""
    return Method(
        "h-mt",
        "H-MT, AAAI 2026",
        needs="nothing",
        differs=CLIPPED + " The published thresholds solve an iteration over mean and variance.",
        neuron=Neuron(levels=(0, 2**rungs - 1)),
        levels=2**rungs,
    )


_LISTED = (
    Method(
        "cos",
        "Hao, Ding, Bu, Huang, Yu, ICLR 2023, arXiv 2302.10685",
        needs="nothing",
        latency="rho + t",
        differs="A neuron that fires at every step has no spike to gain and is left alone.",
        settings={"calibration": "cos"},
    ),
    Method(
        "even",
        "this library: COS with the desired count spread evenly",
        needs="nothing",
        latency="rho + t",
        settings={"emission": "even"},
    ),
    Method(
        "block",
        "this library: planned again in every rho steps",
        needs="nothing",
        latency="rho + t",
        settings={"emission": "block"},
    ),
    Method(
        "qcfs",
        "Bu, Fang, Ding, Dai, Yu, Huang, ICLR 2022: v(0) = θ/2, no calibration",
        needs="nothing",
        settings={"calibration": "none"},
    ),
    Method(
        "srp",
        "Hao, Bu, Ding, Huang, Yu, AAAI 2023, arXiv 2302.02091",
        needs="nothing",
        latency="rho + t",
        differs="A layer is watched on the input that it then runs on, and the bound of the "
        "residual is 0 instead of 0.001 θ.",
        settings={"calibration": "srp"},
    ),
    Method(
        "parallel",
        "Hao et al., ICML 2025, arXiv 2412.13610",
        needs="nothing",
        latency="rho + t",
        differs="Without the shifts ψ and φ, which are fitted.",
        settings={"calibration": "parallel"},
    ),
    Method(
        "light",
        "Li, Deng, Dong, Gong, Gu, ICML 2021: a bias by channel",
        needs="data",
        settings={"calibration": "light"},
        fit="fit_light",
    ),
    Method(
        "snn-calibration",
        "Li, Deng, Dong, Gong, Gu, ICML 2021, arXiv 2106.06984",
        needs="data",
        differs="Its potentials alone; the weights are not calibrated.",
        spreads=True,
        fit="fit_potentials",
    ),
    Method(
        "ftbc",
        "Wu et al., ECCV 2024, arXiv 2403.18388",
        needs="data",
        differs="The published code takes its calibration batches, and its best iteration, from "
        "images that it is tested on in one script.",
        settings={"calibration": "none"},
        fit="fit_step_bias",
    ),
    Method(
        "parallel-shift",
        "Hao et al., ICML 2025, arXiv 2412.13610",
        needs="data",
        latency="rho + t",
        settings={"emission": "front"},
        differs="rho becomes T, as published, when it is fitted.",
        fit="fit_rate_shift",
    ),
    group_neurons(),
    Method(
        "adafire",
        "Wang et al., AAAI 2025, arXiv 2412.16219",
        needs="data",
        differs="θ is the network's own, cut into 4 levels. The published grid is "
        "calibrate_thresholds(method='adafire', neuron=...), for convert(neuron=...).",
        neuron=Neuron(levels=(0, 4)),
        levels=4,
        spreads=True,
        fit="fit_adafire",
    ),
    Method(
        "signed",
        "IF_with_neg of DCGS, Huang et al., ICML 2025: down at m <= 0, after a spike only",
        needs="nothing",
        neuron=Neuron(levels=(-1, 1), lower=0.0, strict=False, count=(0, None)),
    ),
    Method(
        "signed-memory",
        "signed IF with memory: down at m <= -θ, after a spike only",
        needs="nothing",
        neuron=Neuron(levels=(-1, 1), lower=1.0, strict=False, count=(0, None)),
    ),
    multi_threshold(),
    multi_threshold(differential=True),
    h_mt(),
)

METHODS: dict[str, Method] = {method.name: method for method in _LISTED}

UNAVAILABLE: dict[str, str] = {
    "lm-ht": "it mixes all T inputs by a trained matrix; its neuron is Neuron(levels=(0, L), "
    "leak=...), group neurons where nothing is trained",
    "ternary": "it is trained from the start; its neuron is Neuron(levels=(-1, 1), upper=0.5, "
    "lower=0.5, strict=False, leak=0.25, emitted=...) with v_reset=0",
    "st-bif": "image and biases enter once, and the output is a sum; here they enter at every "
    "step, and 'signed' is its neuron",
    "spikellm": "it quantises by token inside language models, for which there is no neuron here",
    "sta": "its operators for transformers are not built; spikes='inputs' converts those "
    "in another way",
    "datta": "spikes carry the weights of bits between layers; published code has no spiking "
    "forward",
    "crnn-snn": "no code, and its equations were not to be had",
    "mice": "no code, and its neuron was not to be had",
    "pascal": "its layers' own T comes from training; its neuron is 'parallel'",
    "noise-adaptor": "it is a training: cos_ext.training with --noise adaptor; then 'qcfs'",
    "residual-noise": "it is a training: cos_ext.training with --noise residual; then 'qcfs'",
}
