"""Conversion of a trained ANN into a SpikingNetwork: the rules of what converts, the rewriting of
the graph, and its checks.

Tracing is in graph.py, folding in fold.py, checks on an example in verify.py, what runs afterwards
in network.py, pooling.py and neuron.py.

Two worlds. What comes before the first neurons of every path is static: the same at every step,
computed once on [B, ...], whatever it is. What depends on a neuron is spiking: time is folded into
the batch, [T*B, ...]. There only operations are kept that treat every sample and step alone and are
affine in what spikes, so that they commute with the mean over time.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx, nn
from torch.nn import functional as TF
from torch.utils._python_dispatch import TorchDispatchMode

from ..network import counts
from ..network.inputs import as_inputs
from ..network.modules import TimeBroadcast, Walked
from ..network.network import SpikingNetwork
from ..network.settings import check_settings
from ..network.storage import FORMAT
from ..network.pooling import MAX_POOL_FUNCTIONS, MAX_POOLS, MaxPoolBefore, average_of
from ..neuron import IFNode
from ..qcfs import QCFS
from .fold import BATCH_NORMS, fold_batchnorms
from .fuse import check_fuse, fuse_graph
from .report import ConversionError, ConversionReport, Entry
from .tracing import (
    Traced,
    argument,
    attribute,
    changed,
    clip_of,
    free_name,
    is_activation,
    owner_of,
    set_module,
    trace,
)
from .verify import check_model, check_network, shapes_on

MAX_POOL_POLICIES = ("error", "avg", "spike", "before")
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
AVERAGES = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
PADS = tuple(
    getattr(nn, f"{kind}Pad{d}d")
    for kind in ("Zero", "Constant", "Reflection", "Replication")
    for d in (1, 2, 3)
)
# Affine, sample by sample.
KEPT = (
    *CONVOLUTIONS,
    nn.Linear,
    nn.Identity,
    *AVERAGES,
    *DROPOUTS,
    *PADS,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
# Why common modules have no rule; any other has none either.
WHY_NOT: dict[type, str] = {
    **dict.fromkeys(
        (
            nn.LayerNorm,
            nn.GroupNorm,
            nn.InstanceNorm1d,
            nn.InstanceNorm2d,
            nn.InstanceNorm3d,
            nn.LocalResponseNorm,
        ),
        "normalises each step by its own statistics, which is not linear in the spikes",
    ),
    **dict.fromkeys(
        (
            nn.GELU,
            nn.SiLU,
            nn.Mish,
            nn.ELU,
            nn.CELU,
            nn.SELU,
            nn.LeakyReLU,
            nn.PReLU,
            nn.Hardswish,
            nn.Sigmoid,
            nn.Tanh,
            nn.Hardsigmoid,
            nn.Softplus,
        ),
        "integrate-and-fire neurons can only stand for a rectifier that starts at 0",
    ),
    **dict.fromkeys(
        (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention), "is not linear in its input"
    ),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), "keeps a state over a time of its own"),
    nn.Hardtanh: "does not start at 0",
    nn.LPPool2d: "is not linear in its input",
}
# Their output has the batch first, as their input.
SAMPLE_FIRST = (
    *KEPT,
    *MAX_POOLS,
    *BATCH_NORMS,
    *(
        kind
        for kind, why in WHY_NOT.items()
        if "state" not in why and kind is not nn.MultiheadAttention
    ),
)
# Functions and methods that have a rule, by the name of the rule. Anything else is refused.
FUNCTIONS = {
    operator.add: "sum",
    torch.add: "sum",
    operator.sub: "sum",
    torch.sub: "sum",
    operator.iadd: "add_",
    operator.neg: "unary",
    torch.neg: "unary",
    operator.matmul: "matmul",
    torch.matmul: "matmul",
    operator.mul: "product",
    torch.mul: "product",
    operator.truediv: "quotient",
    torch.div: "quotient",
    torch.true_divide: "quotient",
    operator.getitem: "getitem",
    getattr: "getattr",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    torch.stack: "stack",
    torch.flatten: "flatten",
    torch.mean: "mean",
    torch.sum: "mean",
    torch.reshape: "view",
    torch.transpose: "transpose",
    torch.permute: "permute",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    torch.chunk: "split",
    torch.split: "split",
    torch.clone: "fresh",
    TF.dropout: "dropout",
    TF.dropout2d: "dropout",
    TF.avg_pool1d: "pool",
    TF.avg_pool2d: "pool",
    TF.avg_pool3d: "pool",
    TF.adaptive_avg_pool1d: "pool",
    TF.adaptive_avg_pool2d: "pool",
    TF.adaptive_avg_pool3d: "pool",
    TF.interpolate: "pool",
    TF.pixel_shuffle: "pool",
    TF.pixel_unshuffle: "pool",
    TF.pad: "pad",
    TF.linear: "weighted",
    TF.conv1d: "weighted",
    TF.conv2d: "weighted",
    TF.conv3d: "weighted",
    TF.conv_transpose1d: "weighted",
    TF.conv_transpose2d: "weighted",
    TF.conv_transpose3d: "weighted",
    TF.batch_norm: "batch_norm",
}
METHODS = {
    "add": "sum",
    "sub": "sum",
    "add_": "add_",
    "mul": "product",
    "div": "quotient",
    "neg": "unary",
    "contiguous": "unary",
    "clone": "fresh",
    "detach": "unary",
    "flatten": "flatten",
    "mean": "mean",
    "sum": "mean",
    "view": "view",
    "reshape": "view",
    "size": "size",
    "dim": "plain",
    "transpose": "transpose",
    "permute": "permute",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
    "matmul": "matmul",
    "chunk": "split",
    "split": "split",
}
IN_PLACE = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.imatmul,
    operator.setitem,
)
# On static tensors: they keep the batch where it is.
ELEMENTWISE = (
    "float",
    "double",
    "half",
    "to",
    "type",
    "sigmoid",
    "tanh",
    "exp",
    "log",
    "sqrt",
    "abs",
    "pow",
    "clamp",
    "clamp_min",
    "clamp_max",
    "gelu",
    "silu",
    "leaky_relu",
    "elu",
    "softplus",
    "sin",
    "cos",
    "square",
    "normalize",
)
ARITHMETIC = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.truediv,
    operator.mod,
    operator.neg,
    int,
    float,
    math.ceil,
    math.floor,
    math.sqrt,
)
PLAIN = (
    "ndim",
    "dtype",
    "device",
)  # attributes of a tensor that are no tensors and do not know the batch
# Modules and rules whose output is a fresh tensor that nothing else holds; and those that may hand
# on their input's memory.
FRESH = (*CONVOLUTIONS, nn.Linear, *BATCH_NORMS, *AVERAGES, *PADS, nn.Upsample)
FRESH_RULES = (
    "fresh",
    "matmul",
    "sum",
    "product",
    "quotient",
    "cat",
    "stack",
    "mean",
    "pool",
    "pad",
    "weighted",
    "batch_norm",
)
ALIASING = (nn.Identity, nn.Flatten, *DROPOUTS)
ALIASING_RULES = (
    "add_",
    "flatten",
    "view",
    "unary",
    "dropout",
    "transpose",
    "permute",
    "squeeze",
    "unsqueeze",
)
RANKS = {
    getattr(nn, f"{name}{d}d"): d + 2
    for d in (1, 2, 3)
    for name in (
        "Conv",
        "ConvTranspose",
        "AvgPool",
        "AdaptiveAvgPool",
        "MaxPool",
        "AdaptiveMaxPool",
        "ZeroPad",
        "ReflectionPad",
        "ReplicationPad",
        "ConstantPad",
    )
} | {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5, nn.PixelShuffle: 4}


def convert(
    model: nn.Module,
    *,
    timesteps: int,
    rho: int = 0,
    iterations: int | None = 1,
    emission: str = "calibrated",
    calibration: str = "cos",
    thresholds: Mapping[str, float | Tensor] | None = None,
    max_pool: str = "error",
    fold_batchnorm: bool = True,
    fuse: bool | str = True,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    execution: str = "steps",
) -> SpikingNetwork:
    """Turn a trained ANN into a spiking network; the model itself is not modified.

    Every call site of nn.ReLU, nn.ReLU6, nn.Hardtanh(0, b), QCFS, F.relu, torch.relu, x.relu(),
    x.relu_(), F.relu6, F.hardtanh and clamp(0, b) becomes IF neurons of its own, also where one
    module is called at several places. What comes before the first neurons of a path runs once per
    image, whatever it is. After them, what is affine sample by sample stays: convolution, Linear,
    BatchNorm in eval mode, average pooling, interpolation, padding, sums, concatenation, split,
    mean, shapes.

    Args:
        model: any torch.fx-traceable module whose inputs are tensors [B, ...] and whose output is
            one tensor [B, ...]. One that cannot be traced, but whose activations are all modules,
            each called once, converts too where example_input is given; its layers before the first
            neurons then run at every step.
        timesteps: T >= 1.
        rho: steps to watch for calibration, 0 for none; may exceed timesteps.
        iterations: of the calibration; None is until exact.
        emission: the order of the spikes in time, as for :func:`cos_ext.functional.cos_forward`;
            the paper's by default.
        calibration: "cos", the paper's method, or a rival to compare it with on the same kernels:
            "srp" (AAAI 2023), "parallel" (ICML 2025), "light" (ICML 2021, needs
            :func:`cos_ext.fit_light` before it runs), "none"; see :class:`cos_ext.IFNode`.
        thresholds: by activation call site (:func:`cos_ext.calibrate_thresholds` finds them), a
            float or a tensor that broadcasts to its neurons. QCFS brings its own; ReLU6, Hardtanh
            and clamp take their clip unless told otherwise.
        max_pool: "error": a max pooling of spikes is an offender. "avg": replace it by average
            pooling (another network). "spike": the maximum over the spikes of each step
            (overestimates). "before": pool before the neurons, where the input is theirs alone;
            exact with calibration, see :class:`cos_ext.network.pooling.MaxPoolBefore`.
        fold_batchnorm: fold each BatchNorm into the convolution or Linear before it where nothing
            else reads that, and the fold gives the same on random inputs; the report says where and
            why not.
        fuse: let the kernel of the neurons do what stands around them: residual sums, a BatchNorm
            that was not folded, average pooling of the spikes over windows that do not overlap,
            and, on a CUDA device, where a convolution adds its bias in a pass of its own, biases;
            "bias": those on every device. Spikes stay EQUAL to those of fuse=False for residual
            sums and windows of 2 x 2; the others round in another order. The report says what was
            fused.
        example_input: a [B, ...] input, or a tuple of inputs, on the model's device. If given,
            three things are checked on it in float64 before a network is returned: that the traced
            graph is the model, that no sample depends on another, and that the network at T = rho =
            4, calibrated exactly, is the ANN with its activations quantised to 4 levels.
        execution: "steps", or "counts": the same outputs in one pass, where emission is "even" or
            "front" and rho > 0 (:attr:`cos_ext.SpikingNetwork.execution`).

    Raises:
        ConversionError: listing every call site that cannot be converted, and every activation
            without a threshold, at once, with the line of the source where it is known; or a check
            on example_input failed.
        TypeError, ValueError: another argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if max_pool not in MAX_POOL_POLICIES:
        raise ValueError(f"max_pool must be one of {MAX_POOL_POLICIES}, got {max_pool!r}")
    check_settings(timesteps, rho, iterations, emission, calibration)
    if check_fuse(fuse) is True and any(parameter.is_cuda for parameter in model.parameters()):
        fuse = "bias"
    if counts.check_execution(execution) == "counts":
        counts.check_settings({"every layer": (rho, emission, calibration)})
    if thresholds is not None and not isinstance(thresholds, Mapping):
        raise TypeError(
            "thresholds must be a mapping of call sites to thresholds, got "
            f"{type(thresholds).__name__}"
        )
    examples = None if example_input is None else as_inputs(example_input)
    name, given = type(model).__name__, dict(thresholds or {})
    traced = trace(model)
    if traced.graph is None and examples is None:
        raise ConversionError(
            f"{name} cannot be traced by torch.fx ({traced.why_not}); if each of its activations "
            "is a module of "
            "its own, pass example_input, on which the conversion module by module is checked"
        )
    if traced.asks and examples is None:
        raise ConversionError(
            f"forward of {', '.join(traced.asks)} asks for types (isinstance, is_tensor), which "
            "torch.fx answers as for no "
            "tensor; pass example_input, on which the traced graph is compared with the model"
        )
    expected = check_model(model, traced, examples) if examples is not None else None
    planner = (_Planner if traced.graph is not None else _Walker)(
        traced, given, max_pool, fold_batchnorm
    )
    planner.plan(examples)
    offenders = planner.report.unsupported()
    if offenders:
        listed = "\n".join(f"  {e.site} ({e.kind}): {e.reason}" for e in offenders)
        raise ConversionError(
            f"{name} cannot be converted; {len(offenders)} offending:\n{listed}", planner.report
        )
    unknown = sorted(set(given) - set(traced.sites))
    if unknown:
        raise ValueError(
            f"thresholds names {unknown}, which are no activation call sites; those are "
            f"{list(traced.sites)}"
        )
    module = planner.rewrite(fuse).eval().requires_grad_(False)
    options = {
        "max_pool": max_pool,
        "fold_batchnorm": fold_batchnorm,
        "fuse": fuse,
        "sites": tuple(traced.sites),
        "copies": planner.copies,
    }
    network = SpikingNetwork(
        module, planner.report, timesteps, rho, iterations, options, emission, calibration
    ).eval()
    if examples is not None:
        check_network(network, planner.reference, traced, examples, expected)
    network.execution = execution
    return network


def load_network(
    path: str | Path, model: nn.Module, example_input: Tensor | tuple[Tensor, ...] | None = None
) -> SpikingNetwork:
    """A network that :meth:`SpikingNetwork.save` wrote, beside the ANN it was made from.

    Args:
        path: the file.
        model: the ANN's architecture; its weights do not matter, and it is not modified.
        example_input: needed where the model cannot be traced.

    Raises:
        ValueError: the file is no such file, or does not fit the model.
        ConversionError: the model does not convert with the options in the file.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("cos_ext", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a saved spiking network: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {header.get('format')!r}, this cos_ext reads {FORMAT!r}"
        )
    thresholds = {
        site: torch.ones(value) if isinstance(value, list) else value
        for site, value in header["thresholds"].items()
    }
    network = convert(
        model,
        timesteps=header["timesteps"],
        rho=header["rho"],
        iterations=header["iterations"],
        emission=header["emission"],
        calibration=header.get("calibration", "cos"),  # files from before the rivals have none
        thresholds=thresholds,
        max_pool=header["max_pool"],
        fold_batchnorm=header["fold_batchnorm"],
        fuse=header.get("fuse", False),  # older files have none
        example_input=example_input,
    )
    for site, layer in header["layers"].items():
        network.set_layer(site, **layer)
    nodes = network.nodes()
    for site, shape in header.get("biases", {}).items():
        if site not in nodes:
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: it has a bias for {site!r}, where it "
                "has no neurons"
            )
        nodes[site].bias = nodes[site].v_threshold.new_zeros(shape)
    network.options["static"] = header.get("static")  # older files have none
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {type(model).__name__} (a network converted with an "
            "example_input may need one here "
            f"too): {error}"
        ) from error
    network.execution = header.get("execution", "steps")  # last: it needs the layers' settings
    return network


class _Base:
    """What the conversions with and without a graph share: the report, and making neurons."""

    def __init__(
        self, traced: Traced, thresholds: dict[str, float | Tensor], max_pool: str, fold: bool
    ) -> None:
        self.traced, self.model = traced, traced.module
        self.thresholds, self.max_pool, self.fold = thresholds, max_pool, fold
        self.report = ConversionReport()
        self.copies: dict[str, str] = {}  # further neurons of a call site, pooled before

    def add(self, site: str, kind: str, status: str, reason: str = "", threshold: str = "") -> None:
        self.report.entries.append(Entry(site, kind, status, threshold, reason))

    def refuse(self, site: str, kind: str, reason: str) -> None:
        entry = Entry(site, kind, "unsupported", "", reason)
        if entry not in self.report.entries:
            self.report.entries.append(entry)

    def neuron(self, site: str, module: nn.Module, *, static: bool, inplace: bool) -> IFNode | str:
        """The neurons of a call site, and their entry; or why there can be none."""
        clip = clip_of(module)
        own = module.threshold.detach() if isinstance(module, QCFS) else clip
        given = self.thresholds.get(site, own)
        if given is None:
            return "has no threshold of its own; give one in thresholds={...} (cos_ext.calibrate_thresholds finds them)"
        reference = next(
            (p for p in (*module.parameters(), *self.model.parameters()) if p.is_floating_point()),
            None,
        )
        if isinstance(given, float) and reference is not None:
            given = torch.tensor(
                given, dtype=reference.dtype
            )  # a float64 model's θ is not rounded to torch's default
        try:
            # timesteps is set by the network; static_input needs one from the start.
            neuron = IFNode(given, timesteps=1, static_input=static, inplace=inplace)
            if reference is not None:
                neuron.to(device=reference.device, dtype=reference.dtype)
        except (TypeError, ValueError) as error:
            return str(error)
        theta = neuron.v_threshold
        shown = (
            f"{theta.item():.6g}"
            if theta.dim() == 0
            else f"{theta.min().item():.4g}..{theta.max().item():.4g}"
        )
        origin = (
            "from thresholds"
            if site in self.thresholds
            else "learned"
            if clip is None
            else "its clip"
        )
        self.add(
            site,
            self.traced.origin[site],
            "converted",
            origin + ("; static input, read once" if static else ""),
            shown,
        )
        return neuron

    def unused(self) -> None:
        for name, module in self.traced.uncalled.items():
            if isinstance(module, (nn.ReLU, nn.ReLU6, nn.Hardtanh, QCFS, *MAX_POOLS)):
                self.add(name, type(module).__name__, "unused", "forward does not call it")


class _Planner(_Base):
    """Classifies every node of a traced graph, then rewrites it. Nothing is changed unless
    everything converts.
    """

    def __init__(
        self, traced: Traced, thresholds: dict[str, float | Tensor], max_pool: str, fold: bool
    ) -> None:
        super().__init__(traced, thresholds, max_pool, fold)
        self.graph = traced.graph
        self.neurons: dict[fx.Node, IFNode] = {}
        self.before: dict[
            fx.Node, nn.Module
        ] = {}  # max poolings to move before the neurons they read
        self.averages: dict[fx.Node, nn.Module] = {}  # max poolings to replace
        self.own_batch: list[
            tuple[fx.Node, fx.Node]
        ] = []  # (view, tensor): its first size becomes the tensor's own
        self.spiking: set[fx.Node] = (
            set()
        )  # depend on an activation: time is folded into their batch
        self.batched: set[fx.Node] = (
            set()
        )  # depend on the model's input, unlike parameters, which have no batch
        # Numbers, and what they know: "shape" and "batch" of a tensor, "plain" (not the batch),
        # "mixed" (may be anything).
        self.number: dict[fx.Node, str] = {}
        self.lists: set[fx.Node] = set()  # tuples of tensors, from chunk and split
        # Their first dimension is surely the batch: not so after view(-1, ...), which may cut
        # samples in pieces.
        self.leading: set[fx.Node] = set()
        self.rank: dict[fx.Node, int] = {}  # number of dimensions, where it is known

    def plan(self, examples: tuple[Tensor, ...] | None) -> None:
        self._max_pool_modules()
        self._refuse_changes()
        if not self.report.unsupported():  # else what was written in place would count as dead
            self.graph.eliminate_dead_code()
            self.model.recompile()
        self.seen: set[fx.Node] | None = None  # whose first dimension is the batch on the example
        if examples is not None:
            shapes = shapes_on(self.model, examples)
            self.rank = {node: len(shape) for node, shape in shapes.items()}
            self.seen = {
                node for node, shape in shapes.items() if shape[:1] == examples[0].shape[:1]
            }
        folds = fold_batchnorms(self.model, self._known_ranks()) if self.fold else []
        self.folded = {fold.layer: fold for fold in folds if not fold.why_not}
        self.unfolded = {fold.norm: f"not folded: {fold.why_not}" for fold in folds if fold.why_not}
        self.reference = self._copy()
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            plain = [source for source in sources if self.number.get(source) == "plain"]
            tensors = [source for source in sources if source not in self.number]
            if any(source in self.spiking for source in tensors):
                self.spiking.add(node)
            # A number that knows the batch makes a tensor of it; a plain one does not.
            if node.op == "placeholder" or any(
                source in self.batched for source in sources if source not in plain
            ):
                self.batched.add(node)
            tensors = [source for source in tensors if source in self.batched]
            seen = (
                node in self.seen
                if self.seen is not None
                else all(source in self.leading for source in tensors)
            )
            if (
                seen
                and node.op != "get_attr"
                and (tensors or node.op == "placeholder" or self.seen is not None)
            ):
                self.leading.add(node)
            if node.op == "call_module":
                self._module(node, self.model.get_submodule(node.target))
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output" and (
                not isinstance(node.args[0], fx.Node) or node.args[0] in self.lists
            ):
                self.refuse("forward", "output", "one tensor output is supported")
        self.unused()
        if not self.report.unsupported():
            if not self.neurons:
                self.refuse(
                    "forward", type(self.model).__name__, "there is no activation to convert"
                )
            elif not any(node.op == "output" and node in self.spiking for node in self.graph.nodes):
                self.refuse("forward", "output", "the output does not depend on any activation")

    def _copy(self) -> fx.GraphModule:
        """The ANN as it is now, for the last check: the fold has a check of its own, to the
        rounding of the model's dtype.
        """
        return fx.GraphModule(copy.deepcopy(self.model), copy.deepcopy(self.graph))

    def _known_ranks(self) -> dict[fx.Node, int]:
        """Ranks before planning: of the example, or, without one, what modules alone tell."""
        ranks = dict(self.rank)
        for node in self.graph.nodes:
            if node not in ranks and node.op == "call_module":
                self._module_rank(node, self.model.get_submodule(node.target), ranks)
        return ranks

    def _refuse_changes(self) -> None:
        """Refuse operations that write into a tensor that others may read: rewriting moves readers
        before and after the write.
        """
        for node in self.graph.nodes:
            name = (
                node.target
                if isinstance(node.target, str)
                else getattr(node.target, "__name__", "")
            )
            if node.op == "call_module":
                module = self.model.get_submodule(node.target)
                writes = bool(getattr(module, "inplace", False)) and not isinstance(
                    module, DROPOUTS
                )
            elif node.op in ("call_function", "call_method"):
                writes = node.target in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
                writes = writes or node.kwargs.get("inplace") is True or "out" in node.kwargs
            else:
                continue
            first = node.args[0] if node.args else node.kwargs.get("input")
            if writes and isinstance(first, fx.Node) and not self._owned(first):
                what = (
                    "adds in place to"
                    if node.target in (operator.iadd, "add_")
                    else "works in place on"
                )
                site, kind = (
                    (node.target, type(module).__name__)
                    if node.op == "call_module"
                    else (self._site(node), name)
                )
                self._refuse_at(
                    node,
                    site,
                    kind,
                    f"{what} a tensor that others may read; use the form that makes a new one",
                )

    def _max_pool_modules(self) -> None:
        """Functional max pooling as modules."""
        for node in list(self.graph.nodes):
            made = MAX_POOL_FUNCTIONS.get(node.target) if node.op == "call_function" else None
            if made is None or argument(node, 6, "return_indices", False) is not False:
                continue
            if made.__name__.startswith("Adaptive"):
                arguments = [argument(node, 1, "output_size")]
            else:
                arguments = [
                    argument(node, 1, "kernel_size"),
                    argument(node, 2, "stride"),
                    argument(node, 3, "padding", 0),
                    argument(node, 4, "dilation", 1),
                    False,
                    argument(node, 5, "ceil_mode", False),
                ]
            if any(isinstance(value, fx.Node) for value in arguments):
                continue
            owner = owner_of(node)
            site = free_name(self.model, f"{owner}.{node.name}" if owner else node.name)
            set_module(self.model, site, made(*arguments))
            node.op, node.target, node.args, node.kwargs = (
                "call_module",
                site,
                (node.all_input_nodes[0],),
                {},
            )

    def _site(self, node: fx.Node) -> str:
        owner = owner_of(node)
        return f"{owner + ': ' if owner else ''}{node.name}"

    def _refuse_at(self, node: fx.Node, site: str, kind: str, reason: str) -> None:
        line = self.traced.lines.get(node.name, "")
        self.refuse(site, kind, reason + (f" [{line}]" if line else ""))

    # Modules

    @staticmethod
    def _module_rank(node: fx.Node, module: nn.Module, ranks: dict[fx.Node, int]) -> None:
        sources = node.all_input_nodes
        if type(module) in RANKS:
            ranks[node] = RANKS[type(module)]
        elif type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
            ranks[node] = 2
        elif type(module) is not nn.Flatten and sources and sources[0] in ranks:
            ranks[node] = ranks[sources[0]]

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        site, kind, sources = node.target, type(module).__name__, node.all_input_nodes
        if node not in self.rank:
            self._module_rank(node, module, self.rank)
        spiking = node in self.spiking
        reason, activation = "", site in self.traced.sites
        if changed(module):
            reason = "has forward hooks or a patched forward, which would see time-steps or be lost"
        elif activation:
            reason = self._activation(node, module)
            self.spiking.add(node)
            if not reason:
                return
        elif isinstance(module, IFNode):
            reason = "the model is spiking already"
        elif not spiking:
            if node in self.batched:
                self._keep_module(site, kind, "static, runs once")
            if self.seen is None and not (
                type(module) in SAMPLE_FIRST or type(module) in (nn.Flatten, nn.Unflatten)
            ):
                self.leading.discard(node)
            elif self.seen is None and type(module) in (nn.Flatten, nn.Unflatten):
                first = module.start_dim if type(module) is nn.Flatten else module.dim
                if not (isinstance(first, int) and first >= 1):
                    self.leading.discard(node)
            return
        elif len(sources) != 1:
            reason = "is called with several tensors"
        elif isinstance(module, MAX_POOLS):
            reason = self._max_pooling(node, module)
            if not reason:
                return
        elif type(module) in BATCH_NORMS:
            known = module.running_mean is not None and module.running_var is not None
            reason = (
                ""
                if known
                else "has no running statistics, so its output would depend on the other time-steps"
            )
        elif type(module) is nn.Flatten:
            merges = module.start_dim < 1
            reason = (
                f"start_dim={module.start_dim} may merge the batch, into which time is folded"
                if merges
                else ""
            )
        elif type(module) is nn.Unflatten:
            reason = (
                ""
                if isinstance(module.dim, int) and module.dim >= 1
                else "may split the batch, into which time is folded"
            )
            self.rank.pop(node, None)
        elif type(module) not in KEPT:
            reason = WHY_NOT.get(type(module), "no rule converts this module")
        if reason:
            self._refuse_at(node, site, kind, reason)
        else:
            self._keep_module(site, kind)

    def _keep_module(self, site: str, kind: str, reason: str = "") -> None:
        if any(entry.site == site for entry in self.report.entries):
            return  # called at several places
        self.add(site, kind, "kept", self.unfolded.get(site, reason))
        if site in self.folded:
            norm = self.folded[site]
            self.add(norm.norm, norm.kind, "folded", f"into {site}")

    def _activation(self, node: fx.Node, module: nn.Module) -> str:
        """Make the neuron and its entry, or say why not."""
        sources = node.all_input_nodes
        if len(sources) != 1 or sources[0] not in self.batched:
            return "is not called with one tensor that depends on the model's input"
        (source,) = sources
        static = source not in self.spiking
        made = self.neuron(
            node.target, module, static=static, inplace=not static and self._owned(source)
        )
        if isinstance(made, str):
            return made
        self.neurons[node] = made
        return ""

    def _max_pooling(self, node: fx.Node, pool: nn.Module) -> str:
        site, kind = node.target, type(pool).__name__
        if self.max_pool == "error":
            return (
                "max pooling does not commute with the mean over time; retrain with average "
                'pooling, or choose max_pool="before" '
                '(exact with calibration), "avg" or "spike"'
            )
        if getattr(pool, "return_indices", False):
            return "returns indices"
        if self.max_pool == "spike":
            self.add(site, kind, "kept", "maximum over the spikes of each step")
            return ""
        if self.max_pool == "avg":
            average = average_of(pool)
            if isinstance(average, str):
                return average
            self.averages[node] = average
            self.add(site, kind, "replaced", f"by {type(average).__name__}")
            return ""
        neuron = self.neurons.get(node.all_input_nodes[0])
        if neuron is None:
            return 'max_pool="before" needs an activation whose output it reads'
        space = int(kind[-2])
        if any(size != 1 for size in neuron.v_threshold.shape[-space:]):
            return 'max_pool="before" needs one threshold for all positions of a channel'
        self.before[node] = pool
        self.add(site, kind, "moved", f"before the neurons of {node.all_input_nodes[0].target}")
        return ""

    def _owned(self, node: fx.Node) -> bool:
        """Whether one reader alone sees this tensor's memory, so that it may be overwritten."""
        if len(node.users) != 1:
            return False
        if node.op == "call_module":
            module = self.model.get_submodule(node.target)
            if is_activation(module) or isinstance(module, IFNode) or type(module) in FRESH:
                return True
            return type(module) in ALIASING and self._owned(node.all_input_nodes[0])
        rule = self._rule(node)
        return rule in FRESH_RULES or (
            rule in ALIASING_RULES and self._owned(node.all_input_nodes[0])
        )

    # Functions and methods

    @staticmethod
    def _rule(node: fx.Node) -> str | None:
        if node.op == "call_method":
            return METHODS.get(node.target)
        return FUNCTIONS.get(node.target) if node.op == "call_function" else None

    def _function(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if self._is_number(node):
            return
        kind = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", str(node.target))
        )
        source = next((source for source in sources if source not in self.number), None)
        known, rule = self.rank.get(node), self._rule(node)
        if rule is not None and known is None and source in self.rank:
            self.rank[node] = self.rank[source]  # the rules that change it say so
        if rule is None:
            reason = "no rule converts this function"
            if kind in ("softmax", "log_softmax"):
                reason = "is not linear in its input; at the end of a network it can be left out, the order of the outputs is the same"
        else:
            first = self._view_shape(node)[:1] if rule == "view" else ()
            sizes = [
                s for s in sources if self.number.get(s, "plain") != "plain" and s not in first
            ]
            uses_batch = sizes and rule != "getattr"
            reason = (
                "uses the size of the batch, into which time is folded"
                if uses_batch
                else getattr(self, f"_{rule}")(node, source)
            )
        if known is not None:
            self.rank[node] = known
        if node in self.spiking:
            reason = reason or self._broadcast_is_unsure(node)
            if reason:
                self._refuse_at(node, self._site(node), kind, reason)
            else:
                self.add(self._site(node), kind, "kept")
        elif node in self.batched:
            # Static: whatever it is, it runs as in the ANN, but for sizes of tensors that have a
            # time.
            first = self._view_shape(node)[:1] if rule == "view" else ()
            sizes = [
                s
                for s in sources
                if self.number.get(s) in ("batch", "mixed", "shape") and s in self.spiking
            ]
            if any(s not in first for s in sizes) or (sizes and reason):
                why = "uses the size of the batch of a spiking tensor, into which time is folded"
                self._refuse_at(node, self._site(node), kind, why)
            if rule is None and kind.strip("_") in ELEMENTWISE and len(sources) == 1:
                reason = ""
                self.rank[node] = known if known is not None else self.rank.get(source)
                if self.rank[node] is None:
                    del self.rank[node]
            if reason and self.seen is None:
                self.leading.discard(node)
            self.add(self._site(node), kind, "kept", "static, runs once")

    def _broadcast_is_unsure(self, node: fx.Node) -> str:
        """Several tensors in one operation: those that know the batch must have it first, and
        equally far from the end.
        """
        tensors = [s for s in node.all_input_nodes if s not in self.number]
        batched = [s for s in tensors if s in self.batched]
        if self._rule(node) in ("sum", "add_", "product", "quotient"):
            ranks = {self.rank[s] for s in batched if s in self.rank}
            if len(ranks) > 1:
                return f"combines tensors of {sorted(ranks)} dimensions: the batch of one meets another dimension of the other"
            for constant in (s for s in tensors if s.op == "get_attr"):
                shape = tuple(attribute(self.model, constant.target).shape)
                meets = len(shape) >= min(ranks) if ranks else len(shape) > 1
                if meets and (shape[0] != 1 or (ranks and len(shape) > min(ranks))):
                    return f"combines with {constant.target} of shape {shape}, whose first dimension may meet the batch"
        unsure = [s.name for s in batched if s not in self.leading] if len(batched) > 1 else []
        if not unsure:
            return ""
        if self.seen is not None:
            return f"the first dimension of {', '.join(unsure)} is not the batch"
        return f"whether {', '.join(unsure)} has the batch as its first dimension is not known; pass example_input"

    def _is_number(self, node: fx.Node) -> bool:
        """Recognise sizes and what is computed from them."""
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        rank = self.rank.get(source)
        constant = source is not None and source not in self.batched and source not in self.number

        def of(dim) -> str:
            if constant:
                return "plain"
            if not isinstance(dim, int):
                return "mixed"
            if dim == 0 or (rank is not None and dim == -rank):
                return "batch"
            return "plain" if dim > 0 or rank is not None else "mixed"

        if node.op == "call_method" and node.target == "size" and source not in self.number:
            dim = argument(node, 1, "dim")
            self.number[node] = "shape" if dim is None and not constant else of(dim)
            if self.number[node] == "batch" and source not in self.leading:
                self.number[node] = "mixed"
        elif (
            node.op == "call_method"
            and node.target in ("dim", "ndimension", "numel")
            and source not in self.number
        ):
            self.number[node] = "mixed" if node.target == "numel" and not constant else "plain"
        elif (
            node.op == "call_function"
            and node.target is getattr
            and source not in self.number
            and node.args[1] in ("shape", *PLAIN)
        ):
            self.number[node] = "shape" if node.args[1] == "shape" and not constant else "plain"
        elif (
            node.op == "call_function" and node.target is operator.getitem and source in self.number
        ):
            if self.number[source] != "shape":
                self.number[node] = self.number[source]
            else:
                rank = self.rank.get(source.args[0])
                index = node.args[1]
                if isinstance(index, slice):
                    fine = isinstance(index.start, int) and (
                        index.start > 0 or (rank is not None and index.start > -rank)
                    )
                    self.number[node] = (
                        "plain" if index.start and fine and index.step in (None, 1) else "mixed"
                    )
                else:
                    self.number[node] = of(index)
                if self.number[node] == "batch" and source.args[0] not in self.leading:
                    self.number[node] = "mixed"
        elif (
            node.op == "call_function"
            and node.target in ARITHMETIC
            and all(s in self.number for s in node.all_input_nodes)
        ):
            kinds = {self.number[s] for s in node.all_input_nodes}
            self.number[node] = "plain" if kinds <= {"plain"} else "mixed"
        else:
            return False
        return True

    # One method a rule: the reason why the call cannot be kept, or "".

    def _getattr(self, node: fx.Node, source: fx.Node | None) -> str:
        return f"no rule converts the attribute {node.args[1]}"

    def _size(self, node: fx.Node, source: fx.Node | None) -> str:
        return "no rule converts this function"

    _plain = _size

    def _getitem(self, node: fx.Node, source: fx.Node | None) -> str:
        index = node.args[1]
        if source in self.lists:
            return "" if isinstance(index, int) else "a slice of a list of tensors has no rule"
        parts = index if isinstance(index, tuple) else (index,)
        whole = slice(None)
        rank = self.rank.get(source)
        if parts[0] is Ellipsis and rank is not None and len(parts) <= rank:
            parts = (whole, *parts)
        if not (isinstance(parts[0], slice) and parts[0] == whole):
            return (
                "indexing could pick from the batch, into which time is folded; begin with [:, ...]"
            )
        numbers = (int, slice, type(None), type(Ellipsis))
        if not all(isinstance(part, numbers) for part in parts) or True in [
            isinstance(part, bool) for part in parts
        ]:
            return "indexing by tensors or by computed numbers has no rule"
        if node in self.rank and source in self.rank:
            self.rank[node] = (
                self.rank[source]
                - sum(isinstance(p, int) for p in parts)
                + sum(p is None for p in parts)
            )
        return ""

    def _pool(self, node: fx.Node, source: fx.Node | None) -> str:
        return self._only_first(node)

    def _unary(self, node: fx.Node, source: fx.Node | None) -> str:
        return ""

    _fresh = _unary

    def _matmul(self, node: fx.Node, source: fx.Node | None) -> str:
        weight = argument(node, 1, "other")
        if (
            isinstance(weight, fx.Node)
            and weight.op == "get_attr"
            and attribute(self.model, weight.target).dim() == 2
        ):
            return ""
        return "multiplies by what is no parameter of two dimensions"

    def _only_first(self, node: fx.Node) -> str:
        first = node.args[0] if node.args else node.kwargs.get("input")
        others = [s for s in node.all_input_nodes if s is not first and s not in self.number]
        return "" if not others else "takes a further tensor"

    def _sum(self, node: fx.Node, source: fx.Node | None) -> str:
        ranks = [self.rank[source] for source in node.all_input_nodes if source in self.rank]
        if ranks:
            self.rank[node] = max(ranks)
        return ""

    _add_ = _sum

    def _product(self, node: fx.Node, source: fx.Node | None) -> str:
        self._sum(node, source)
        factors = [argument(node, 0, "input"), argument(node, 1, "other")]
        both = all(
            isinstance(f, fx.Node) and f in self.spiking and f not in self.number for f in factors
        )
        return "multiplies two spiking tensors, which is not linear in the spikes" if both else ""

    def _quotient(self, node: fx.Node, source: fx.Node | None) -> str:
        self._sum(node, source)
        if argument(node, 2, "rounding_mode") is not None:
            return "rounds, which is not linear in the spikes"
        divisor = argument(node, 1, "other")
        spiking = (
            isinstance(divisor, fx.Node) and divisor in self.spiking and divisor not in self.number
        )
        return "divides by a spiking tensor" if spiking else ""

    def _weighted(self, node: fx.Node, source: fx.Node | None) -> str:
        """F.linear and F.conv: the input may spike, weight and bias may not depend on the input at
        all.
        """
        weights = [
            value
            for value in (argument(node, 1, "weight"), argument(node, 2, "bias"))
            if isinstance(value, fx.Node)
        ]
        return (
            "has weights that depend on the model's input"
            if any(value in self.batched for value in weights)
            else ""
        )

    def _batch_norm(self, node: fx.Node, source: fx.Node | None) -> str:
        if argument(node, 5, "training", False) is not False:
            return "normalises by the statistics of the batch; pass training=self.training"
        return (
            ""
            if all(s is node.args[0] or s not in self.batched for s in node.all_input_nodes)
            else "takes a further tensor"
        )

    def _dropout(self, node: fx.Node, source: fx.Node | None) -> str:
        training = argument(node, 2, "training", True)
        return (
            "" if training is False else "is active in evaluation too; pass training=self.training"
        )

    def _pad(self, node: fx.Node, source: fx.Node | None) -> str:
        pad, rank = argument(node, 1, "pad"), self.rank.get(source)
        if not isinstance(pad, (tuple, list)) or not all(
            isinstance(p, int) or self.number.get(p) == "plain" for p in pad
        ):
            return "pads by computed numbers"
        fits = len(pad) // 2 < rank if rank is not None else len(pad) <= 4
        return "" if fits else "may pad the batch, into which time is folded"

    def _cat(self, node: fx.Node, source: fx.Node | None) -> str:
        return self._joined(node)[1]

    def _stack(self, node: fx.Node, source: fx.Node | None) -> str:
        first, reason = self._joined(node)
        if node in self.rank and first is not None:
            self.rank[node] = self.rank[first] + 1
        dim = argument(node, 1, "dim", 0)
        return (
            reason
            if isinstance(dim, int) and dim >= 1
            else f"dim {dim} may be the batch; count from the front"
        )

    def _joined(self, node: fx.Node) -> tuple[fx.Node | None, str]:
        parts = argument(node, 0, "tensors", ())
        if isinstance(parts, fx.Node):
            return None, "" if parts in self.lists and argument(
                node, 1, "dim", 0
            ) >= 1 else "joins a computed list"
        first = next((part for part in parts if part in self.rank), None)
        if first is not None:
            self.rank[node] = self.rank[first]
        return first, self._per_sample(argument(node, 1, "dim", 0), first)

    def _split(self, node: fx.Node, source: fx.Node | None) -> str:
        self.lists.add(node)
        if any(self.number.get(s) not in (None, "plain") for s in node.all_input_nodes):
            return "splits by computed numbers"
        return self._per_sample(argument(node, 2, "dim", 0), source)

    def _flatten(self, node: fx.Node, source: fx.Node | None) -> str:
        start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
        reason = self._per_sample(start, source)
        self.rank.pop(node, None)
        if start == 1 and end == -1:
            self.rank[node] = 2
        return reason

    def _mean(self, node: fx.Node, source: fx.Node | None) -> str:
        dims = argument(node, 1, "dim", ())
        reason = self._per_sample(dims, source)
        keeps = argument(node, 2, "keepdim", False)
        if reason:
            self.rank.pop(node, None)
        elif keeps is not True and node in self.rank:
            self.rank[node] -= len(dims) if isinstance(dims, (tuple, list)) else 1
        return reason

    def _transpose(self, node: fx.Node, source: fx.Node | None) -> str:
        return self._per_sample([argument(node, 1, "dim0"), argument(node, 2, "dim1")], source)

    def _permute(self, node: fx.Node, source: fx.Node | None) -> str:
        dims = node.args[1:] or (node.kwargs.get("dims", ()),)
        dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        return "" if dims and dims[0] == 0 else "moves the batch, into which time is folded"

    def _squeeze(self, node: fx.Node, source: fx.Node | None) -> str:
        dims = argument(node, 1, "dim", ())
        self.rank.pop(node, None)
        return (
            self._per_sample(dims, source)
            if dims != ()
            else "without a dimension may squeeze the batch"
        )

    def _unsqueeze(self, node: fx.Node, source: fx.Node | None) -> str:
        dim = argument(node, 1, "dim")
        if node in self.rank:
            self.rank[node] += 1
        return (
            ""
            if isinstance(dim, int) and dim >= 1
            else "may come before the batch; count from the front"
        )

    def _per_sample(self, dims, source: fx.Node | None) -> str:
        """Refuse dimensions that are, or may be, the batch; a negative one needs a known rank."""
        dims = list(dims) if isinstance(dims, (tuple, list)) else [dims]
        rank = self.rank.get(source)
        fine = dims and all(
            isinstance(dim, int)
            and (dim >= 1 or (dim < 0 and rank is not None and dim + rank >= 1))
            for dim in dims
        )
        return (
            ""
            if fine
            else f"dim {dims} may be the batch, into which time is folded; count from the front"
        )

    @staticmethod
    def _view_shape(node: fx.Node) -> tuple:
        shape = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size", ())),)
        return (
            tuple(shape[0])
            if len(shape) == 1 and isinstance(shape[0], (tuple, list))
            else tuple(shape)
        )

    def _view(self, node: fx.Node, source: fx.Node | None) -> str:
        shape = self._view_shape(node)
        self.rank.pop(node, None)
        plain = all(isinstance(size, int) or self.number.get(size) == "plain" for size in shape[1:])
        if len(shape) < 2 or not plain:
            return f"to shape {shape}: the batch must be a dimension of its own, and the others plain numbers"
        self.rank[node] = len(shape)
        if (
            isinstance(shape[0], fx.Node)
            and self.number.get(shape[0]) == "batch"
            and source in self.leading
        ):
            # The size may be that of a static tensor, which has no time: the tensor's own is right
            # for both.
            self.own_batch.append((node, source))
            return ""
        if shape[0] == -1 and -1 not in shape[1:]:
            if self.seen is None:
                self.leading.discard(node)
            return ""
        return f"its first size {shape[0]} fixes the batch, into which time is folded"

    # Rewriting

    def rewrite(self, fuse: bool | str) -> nn.Module:
        for node, source in self.own_batch:
            with self.graph.inserting_before(node):
                size = self.graph.call_method("size", (source, 0))
            old = self._view_shape(node)[0]
            node.args = fx.node.map_arg(
                node.args, lambda value, old=old, size=size: size if value is old else value
            )
            node.kwargs = fx.node.map_arg(
                node.kwargs, lambda value, old=old, size=size: size if value is old else value
            )
            self.number[size] = "batch"
        for node in self.graph.nodes:
            node.type = (
                None  # annotations that are strings would keep the network from being pickled
            )
        for node, neuron in self.neurons.items():
            set_module(self.model, node.target, neuron)
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
        for node, average in self.averages.items():
            set_module(self.model, node.target, average)
        for node, pool in self.before.items():
            self._move_before(node, pool)
        broadcasts: dict[fx.Node, fx.Node] = {}
        for node in list(self.graph.nodes):
            if (
                node.op not in ("call_function", "call_method")
                or node not in self.spiking
                or node in self.number
            ):
                continue
            for source in node.all_input_nodes:
                if source in self.spiking or source not in self.batched or source in self.number:
                    continue
                if source not in broadcasts:
                    name = free_name(self.model, f"time_broadcast_{len(broadcasts)}")
                    self.model.add_module(name, TimeBroadcast())
                    with self.graph.inserting_after(source):
                        broadcasts[source] = self.graph.call_module(name, (source,))
                    self.spiking.add(broadcasts[source])
                node.replace_input_with(source, broadcasts[source])
        self.graph.eliminate_dead_code()
        if fuse:
            tensors = self.spiking - set(self.number)
            fuse_graph(
                self.model, self.graph, tensors, self._owned, self._fused, biases=fuse == "bias"
            )
        self.graph.lint()
        return fx.GraphModule(self.model, self.graph, type(self.model).__name__)

    def _fused(self, node: fx.Node, where: str) -> None:
        site = node.target if node.op == "call_module" else self._site(node)
        index = next(i for i, entry in enumerate(self.report.entries) if entry.site == site)
        old = self.report.entries[index]
        # A replaced pooling stays one (verify.py looks for it), and a convolution that gave its
        # bias away is kept.
        status = (
            "fused" if old.status == "kept" and not where.startswith("its bias") else old.status
        )
        fused = dataclasses.replace(
            old, status=status, reason="; ".join(filter(None, (old.reason, where)))
        )
        self.report.entries[index] = fused

    def _move_before(self, node: fx.Node, pool: nn.Module) -> None:
        """pool(neurons(x)) becomes neurons(pool(x)); where others read the neurons too, the pooled
        ones are further neurons.
        """
        activation = node.all_input_nodes[0]
        (currents,) = activation.all_input_nodes
        neuron = self.neurons[activation]
        static = currents not in self.spiking
        alone = len(activation.users) == 1
        site = activation.target
        if not alone:
            site = free_name(self.model, f"{site}_{node.name}")
            self.copies[site] = activation.target
            set_module(self.model, site, copy.deepcopy(neuron))
            neuron.inplace = False  # the currents are read twice now
            index = next(
                i for i, entry in enumerate(self.report.entries) if entry.site == activation.target
            )
            old = self.report.entries[index]
            self.report.entries.insert(
                index + 1,
                Entry(
                    site,
                    old.kind,
                    "converted",
                    old.threshold,
                    f"those of {old.site} again, pooled before",
                ),
            )
        set_module(self.model, node.target, pool if static else MaxPoolBefore(pool, site))
        with self.graph.inserting_after(node):
            pooled = self.graph.call_module(site, (node,))
        node.replace_all_uses_with(pooled, delete_user_cb=lambda user: user is not pooled)
        node.args = (currents,)
        self.spiking.add(pooled)
        self.batched.add(pooled)
        if static:
            self.spiking.discard(node)


class _Walker(_Base):
    """Conversion module by module, for a model that cannot be traced; only checks on an example can
    vouch for it.
    """

    def plan(self, examples: tuple[Tensor, ...] | None) -> None:
        self.reference = copy.deepcopy(self.model)
        self.neurons: dict[str, IFNode] = {}
        self.averages: dict[str, nn.Module] = {}
        calls = self._calls(examples)
        for name, module in self.model.named_modules(remove_duplicate=False):
            kind = type(module).__name__
            if changed(module):
                self.refuse(
                    name or "forward",
                    kind,
                    "has forward hooks or a patched forward, which would see time-steps or be lost",
                )
            elif name in self.traced.sites and not calls.get(module):
                self.add(name, kind, "unused", "forward does not call it")
            elif name in self.traced.sites or any(
                module is other for other in self.traced.sites.values()
            ):
                if len(calls[module]) != 1:
                    times = len(calls[module])
                    self.refuse(
                        name,
                        kind,
                        f"is called {times} times; a model that cannot be traced must call each "
                        "once",
                    )
                    continue
                made = self.neuron(name, module, static=False, inplace=False)
                if isinstance(made, str):
                    self.refuse(name, kind, made)
                else:
                    self.neurons[name] = made
            elif any(True for _ in module.children()):
                continue
            elif isinstance(module, MAX_POOLS):
                self._max_pooling(name, module)
            elif type(module) in BATCH_NORMS and module.running_mean is not None:
                self.add(
                    name,
                    kind,
                    "kept",
                    "in place, with its running statistics: the model cannot be traced",
                )
            elif type(module) in (*KEPT, nn.Flatten, nn.Unflatten):
                self.add(name, kind, "kept")
            else:
                self.refuse(name, kind, WHY_NOT.get(type(module), "no rule converts this module"))
        if not self.neurons and not self.report.unsupported():
            self.refuse(
                "forward", type(self.model).__name__, "there is no activation module to convert"
            )

    def _max_pooling(self, name: str, pool: nn.Module) -> None:
        kind = type(pool).__name__
        if self.max_pool == "spike":
            self.add(name, kind, "kept", "maximum over the spikes of each step")
        elif self.max_pool == "avg" and not isinstance(average := average_of(pool), str):
            self.averages[name] = average
            self.add(name, kind, "replaced", f"by {type(average).__name__}")
        else:
            self.refuse(
                name,
                kind,
                "max pooling does not commute with the mean over time; in a model that cannot be "
                "traced choose "
                'max_pool="avg" or "spike"',
            )

    @torch.no_grad()
    def _calls(self, examples: tuple[Tensor, ...]) -> dict[nn.Module, list[Fraction]]:
        """The calls of each module on the example: their first sizes, as multiples of the batch.
        Control flow on data is refused.
        """
        calls: dict[nn.Module, list[Fraction]] = {}

        def note(module: nn.Module, args: tuple) -> None:
            size = args[0].shape[0] if args and isinstance(args[0], Tensor) and args[0].dim() else 0
            calls.setdefault(module, []).append(Fraction(size, examples[0].shape[0]))

        hooks = [module.register_forward_pre_hook(note) for module in self.model.modules()]
        try:
            with _Looked() as looked:
                self.model(*(x.clone() for x in examples))
        finally:
            for hook in hooks:
                hook.remove()
        if looked.values:
            kind = type(self.model).__name__
            self.refuse(
                "forward", kind, "its control flow or its numbers depend on the values of tensors"
            )
        self.sizes = {
            name: calls[module][0]
            for name, module in self.traced.sites.items()
            if calls.get(module)
        }
        return calls

    def rewrite(self, fuse: bool | str) -> nn.Module:
        for name, module in (*self.neurons.items(), *self.averages.items()):
            set_module(self.model, name, module)
        return Walked(
            self.model,
            {self.neurons[name]: size for name, size in self.sizes.items() if name in self.neurons},
        )


class _Looked(TorchDispatchMode):
    """Notices when Python looks at the values of tensors: item(), bool(), and the like."""

    values = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.values = True
        return func(*args, **(kwargs or {}))
