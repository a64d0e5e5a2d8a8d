"""Each pass of a conversion alone: what it leaves for those after it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

from cos_ext import QCFS, ConversionError, IFNode
from cos_ext.conversion import passes
from cos_ext.conversion.passes import BEFORE, BY_GRAPH
from cos_ext.conversion.rules import Refusal
from cos_ext.conversion.state import Conversion, Settings
from cos_ext.network.over_time import TimeBroadcast
from cos_ext.network.pooling import MaxPoolBefore


class Small(nn.Module):
    """Convolution, BatchNorm, activation, functional max pooling, a static branch, a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), QCFS(4)
        self.skip, self.head = nn.Conv2d(1, 4, 1, stride=2), nn.Linear(4 * 9, 3)

    def forward(self, x):
        pooled = TF.max_pool2d(self.act(self.norm(self.conv(x))), 2)
        return self.head((pooled + self.skip(x)).flatten(1))


X = torch.rand(2, 1, 6, 6, dtype=torch.float64)


def until(last, model=None, examples=(X,), **settings):
    """A conversion after all passes up to and with the named one."""
    model = (model or Small()).double().eval()
    settings = {"timesteps": 4, "rho": 4, "iterations": None, "max_pool": "before", **settings}
    conversion = Conversion(model, Settings(**settings), examples)
    for each in (*BEFORE, *BY_GRAPH):
        each.apply(conversion)
        if type(each).__name__ == last:
            return conversion
    raise AssertionError(f"there is no pass {last}")


def statuses(conversion):
    return {entry.site: entry.status for entry in conversion.report.entries}


def test_the_passes_in_order():
    names = [type(each).__name__ for each in (*BEFORE, *BY_GRAPH)]
    assert names == [
        "Trace",
        "CheckComputed",
        "VerifyTrace",
        "NormaliseCalls",
        "RefuseWrites",
        "Observe",
        "FoldBatchNorm",
        "CutReadout",
        "Classify",
        "ChooseMaxPooling",
        "RefuseOffenders",
        "Rewrite",
        "PlaceDifferences",
        "CountWork",
        "Fuse",
        "AnyLayout",
        "ShowUnfit",
        "FindLayersOfSpikes",
        "Build",
        "VerifyNetwork",
        "MakeTrainable",
    ]


def test_trace_makes_a_module_of_every_activation():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    conversion = until("Trace", model)
    assert list(conversion.traced.sites) == ["1"]
    assert conversion.model is not model and conversion.traced.graph is not None


def test_trace_without_a_graph_needs_an_example():
    class Loops(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConversionError, match="cannot be traced.*pass example_input"):
        until("Trace", Loops(), examples=None)
    assert until("Trace", Loops()).traced.why_not


def test_verify_trace_leaves_the_output():
    model = Small().double().eval()
    conversion = until("VerifyTrace", model)
    with torch.no_grad():
        (expected,) = conversion.expected
        assert torch.equal(expected, model(X[:1]))


def test_normalise_calls_makes_modules_of_max_pooling():
    graph = until("NormaliseCalls").graph
    assert not [n for n in graph.nodes if n.target is TF.max_pool2d]
    pools = [n.target for n in graph.nodes if str(n.target).startswith("max_pool2d")]
    assert len(pools) == 1


def test_refuse_writes_enters_the_line():
    class Writes(Small):
        def forward(self, x):
            y = self.conv(x)
            z = self.act(y)
            y += 1
            return self.head(TF.avg_pool2d(z + y, 2).flatten(1))

    (entry,) = until("RefuseWrites", Writes()).report.unsupported()
    assert "in place" in entry.reason and "use the form that makes a new one" in entry.reason


def test_observe_takes_ranks_from_the_example():
    conversion = until("Observe")
    by_name = {node.name: rank for node, rank in conversion.facts.ranks.items()}
    assert (by_name["conv"], by_name["flatten"], by_name["head"]) == (4, 2, 2)
    assert until("Observe", examples=None).facts.seen is None


def test_fold_leaves_the_reference_without_the_norm():
    conversion = until("FoldBatchNorm")
    assert conversion.folded["conv"].site == "norm" and not conversion.unfolded
    with torch.no_grad():
        (folded,) = conversion.reference(X)
        assert (folded - conversion.source(X)).abs().max() < 1e-12
    assert not until("FoldBatchNorm", fold_batchnorm=False).folded


def test_classify_makes_neurons_and_a_line_for_everything():
    conversion = until("Classify")
    assert isinstance(conversion.neurons["act"], IFNode)
    found = statuses(conversion)
    assert found["norm"] == "folded" and found["act"] == "converted" and found["skip"] == "kept"
    spiking = {node.name for node in conversion.facts.spiking}
    assert {"act", "add", "flatten", "head"} <= spiking and "skip" not in spiking


@pytest.mark.parametrize(
    ("max_pool", "status"),
    [("error", "unsupported"), ("avg", "replaced"), ("spike", "kept"), ("before", "moved")],
)
def test_choose_max_pooling(max_pool, status):
    conversion = until("ChooseMaxPooling", max_pool=max_pool)
    (site,) = (site for site in statuses(conversion) if site.startswith("max_pool2d"))
    assert statuses(conversion)[site] == status
    assert bool(conversion.before) == (max_pool == "before")
    assert bool(conversion.averages) == (max_pool == "avg")


def test_offenders_end_the_conversion_together():
    conversion = until("Classify")
    conversion.refuse("a", "A", Refusal("no", "do"))
    conversion.refuse("b", "B", Refusal("never", "undo"))
    conversion.refuse("b", "B", Refusal("never", "undo"))  # once
    with pytest.raises(
        ConversionError, match="2 offending:\n  a .A.: no; do\n  b .B.: never; undo"
    ):
        passes.RefuseOffenders().apply(conversion)


def test_unknown_thresholds_are_named():
    with pytest.raises(ValueError, match=r"thresholds names \['nowhere'\]"):
        until("RefuseOffenders", thresholds={"nowhere": 1.0})


def test_rewrite_puts_neurons_poolings_and_broadcasts_in():
    conversion = until("Rewrite")
    kinds = [type(module) for module in conversion.model.modules()]
    assert kinds.count(TimeBroadcast) == 1  # the skip, which is static, meets spikes
    assert IFNode in kinds and QCFS not in kinds
    # What is pooled before these neurons is static, so that a plain pooling does.
    assert nn.MaxPool2d in kinds and MaxPoolBefore not in kinds


def test_fuse_can_be_left_out():
    class Pools(Small):
        def forward(self, x):
            return self.head(TF.avg_pool2d(self.act(self.norm(self.conv(x))), 2).flatten(1))

    def pooled(conversion):
        return [m.pool for m in conversion.model.modules() if isinstance(m, IFNode)]

    assert pooled(until("Fuse", Pools())) == [(2, 2)]
    assert pooled(until("Fuse", Pools(), fuse=False)) == [None]


def test_build_and_verify():
    conversion = until("VerifyNetwork")
    assert conversion.network(X).shape == (4, 2, 3)
    assert not any(p.requires_grad for p in conversion.network.parameters())
    with torch.no_grad():
        conversion.network.get_submodule("module.head").weight[0] += 1.0
    with pytest.raises(ConversionError, match="differs from the model on example_input"):
        passes.VerifyNetwork().apply(conversion)


def test_an_offender_whose_source_is_not_to_be_had_has_its_line():
    names = {"nn": nn}
    source = "\nclass Model(nn.Module):\n    def forward(self, x):\n        return x.relu().erf()\n"
    exec(compile(source, "nowhere.py", "exec"), names)
    options = {"thresholds": {"relu": 1.0}, "examples": None, "nonlinear": "error"}
    conversion = until("Classify", names["Model"](), **options)
    (entry,) = conversion.report.unsupported()
    assert entry.reason.endswith("[nowhere.py:4]")
