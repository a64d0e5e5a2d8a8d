"""convert() on networks as people write them (zoo.py): without loss where it converts, with reasons
where it does not. The reference is quantised.py.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import zoo
from quantised import LEVELS, Quantised, thresholds_of
from torch import nn

import cos_ext
from cos_ext import ConversionError, convert
from cos_ext.conversion.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")


@contextlib.contextmanager
def unchanged(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    yield
    after = model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    assert modules == [
        (name, id(module), module.training) for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", list(zoo.CONVERTS))
def test_the_network_is_the_quantised_ann(name, fold):
    make, shapes = zoo.CONVERTS[name]
    model = zoo.prepared(name, make).double()
    inputs = tuple(x.double() for x in zoo.inputs_of(shapes))
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    max_pool = "before" if any(isinstance(m, nn.MaxPool2d) for m in model.modules()) else "error"
    with unchanged(model):
        network = convert(
            model,
            timesteps=LEVELS,
            rho=LEVELS,
            iterations=None,
            thresholds=thresholds,
            max_pool=max_pool,
            fold_batchnorm=fold,
            example_input=inputs,
        )
    fresh = tuple(x.double() for x in zoo.inputs_of(shapes, batch=7))
    with torch.no_grad(), Quantised(thresholds.values()) as mode:
        expected = copy.deepcopy(model)(*fresh)
    assert next(mode.thresholds, None) is None, (
        "the model has fewer activations than sites were found"
    )
    torch.testing.assert_close(network.rate(*fresh), expected, rtol=1e-7, atol=1e-7)
    assert len(network.nodes()) >= len(thresholds) and (expected != 0).any()
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    folded = [entry for entry in network.report.entries if entry.status == "folded"]
    assert fold or not folded
    assert (
        not norms
        or not fold
        or folded
        or name in ("densenet", "reused blocks", "tokens", "untraceable")
    )
    # With other settings it runs too, and prefixes are prefixes.
    network.timesteps, network.rho, network.iterations = 3, 2, 1
    three = network(*fresh)
    network.timesteps = 2
    assert torch.allclose(network(*fresh), three[:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(zoo.CONVERTS))
def test_every_module_and_call_is_reported(name):
    make, shapes = zoo.CONVERTS[name]
    model = zoo.prepared(name, make)
    inputs = zoo.inputs_of(shapes)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    network = convert(
        model, timesteps=4, thresholds=thresholds, max_pool="spike", example_input=inputs
    )
    sites = [entry.site for entry in network.report.entries]
    leaves = [
        path
        for path, module in model.named_modules()
        if not any(True for _ in module.children()) and path
    ]
    assert set(leaves) <= set(sites)
    assert [e.site for e in network.report.entries if e.status == "converted"] == list(thresholds)
    assert not network.report.unsupported()
    text = str(network.report)
    assert all(site in text for site in thresholds) and "from thresholds" in text


@pytest.mark.parametrize("name", list(zoo.REFUSED))
def test_refusals(name):
    make, message = zoo.REFUSED[name]
    model = zoo.prepared(name, make)
    inputs = torch.randn(2, 3, 8, 8)
    with unchanged(model), pytest.raises(ConversionError, match=message):
        convert(
            model,
            timesteps=4,
            thresholds={"relu": 1.0},
            example_input=None
            if name != "hidden function" and name != "data-dependent control flow"
            else inputs,
            nonlinear="error" if name in zoo.DIFFERENCES else "difference",
        )


def test_static_layers_may_be_anything():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.gelu, self.pool = nn.LayerNorm([3, 8, 8]), nn.GELU(), nn.MaxPool2d(2)
            self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 5)

        def forward(self, x):
            x = self.pool(self.gelu(self.norm(x)) * x.sigmoid())
            return self.head(
                self.relu(self.conv(x)).mean((2, 3)) + x.view(x.size(0), -1).amax(1, keepdim=True)
            )

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(3, 3, 8, 8).double()
    network = convert(
        model,
        timesteps=LEVELS,
        rho=LEVELS,
        iterations=None,
        thresholds={"relu": 0.8},
        example_input=x,
    )
    with torch.no_grad(), Quantised([0.8]):
        expected = model(x)
    torch.testing.assert_close(network.rate(x), expected, rtol=1e-7, atol=1e-7)
    assert {e.site: e.reason for e in network.report.entries}["gelu"] == "static, runs once"


@pytest.mark.parametrize("policy", ["difference", "avg", "spike", "before"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d(3, 2, 1),
        lambda: nn.MaxPool2d(2, ceil_mode=True),
        lambda: nn.AdaptiveMaxPool2d(3),
    ],
    ids=["2", "3, stride 2, padded", "ceil", "adaptive"],
)
def test_max_pool_policies(make, policy):
    torch.manual_seed(1)
    model = (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            make(),
            nn.Conv2d(8, 4, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(5),
        )
        .double()
        .eval()
    )
    x = torch.randn(4, 3, 7, 7).double()
    model(x)
    thresholds = {"1": 0.9, "3": 0.6, "6": 0.5}
    with pytest.raises(
        ConversionError,
        match=r'4 \(.*MaxPool2d\).*choose max_pool="difference".*"before".*"avg" or "spike"',
    ):
        convert(model, timesteps=4, thresholds=thresholds, max_pool="error")
    network = convert(
        model,
        timesteps=LEVELS,
        rho=LEVELS,
        iterations=None,
        thresholds=thresholds,
        max_pool=policy,
        example_input=x,
    )
    reference = copy.deepcopy(model)
    if policy == "avg":
        old = reference[4]
        reference[4] = (
            nn.AdaptiveAvgPool2d(3)
            if isinstance(old, nn.AdaptiveMaxPool2d)
            else nn.AvgPool2d(
                old.kernel_size, old.stride, old.padding, old.ceil_mode, count_include_pad=False
            )
        )
    with torch.no_grad(), Quantised(thresholds.values()):
        expected = reference(x)
    status = {entry.site: entry.status for entry in network.report.entries}["4"]
    statuses = {"avg": "replaced", "spike": "kept", "before": "moved", "difference": "difference"}
    assert status == statuses[policy]
    if policy == "spike":
        # Step by step: the pooled spikes are the maximum of the spikes.
        seen = {}
        network.module.get_submodule("4").register_forward_hook(
            lambda m, i, o: seen.update(i=i[0].clone(), o=o)
        )
        assert network(x).isfinite().all() and torch.equal(seen["o"], make()(seen["i"]))
        assert set(seen["o"].unique().tolist()) <= {0.0, 0.6}
    else:
        torch.testing.assert_close(network.rate(x), expected, rtol=1e-7, atol=1e-7)


def test_pooling_before_neurons_without_calibration_takes_the_maximum_of_each_step():
    pool = cos_ext.network.pooling.MaxPoolBefore(nn.MaxPool1d(2))
    pool.timesteps = 3
    x = torch.randn(6, 2, 8)
    assert torch.equal(pool(x), nn.MaxPool1d(2)(x))
    pool.rho = 2
    steps = x.unflatten(0, (3, 2))
    left, right = steps[..., ::2], steps[..., 1::2]
    expected = torch.where(left[:2].sum(0) >= right[:2].sum(0), left, right).flatten(0, 1)
    assert torch.equal(pool(x), expected)


def test_clips_are_thresholds_unless_told_otherwise():
    model = nn.Sequential(
        nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 6), nn.Hardtanh(0, 2.5), nn.Linear(6, 3)
    ).eval()
    network = convert(model, timesteps=4, example_input=torch.randn(2, 6))
    assert [node.v_threshold.item() for node in network.nodes().values()] == [6.0, 2.5]
    told = convert(model, timesteps=4, thresholds={"1": 3.0})
    assert [node.v_threshold.item() for node in told.nodes().values()] == [3.0, 2.5]
    with pytest.raises(ConversionError, match=r"1 \(Hardtanh\): does not start at 0"):
        model = nn.Sequential(nn.ReLU(), nn.Hardtanh())
        convert(model, timesteps=4, thresholds={"0": 1.0}, nonlinear="error")


def test_an_untraceable_model_needs_an_example():
    model = zoo.prepared("untraceable", zoo.Untraceable)
    with pytest.raises(ConversionError, match="cannot be traced.*pass example_input"):
        convert(model, timesteps=4, thresholds={"relu1": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet, basic blocks", "vgg", "u-net", "two inputs", "untraceable", "tokens"]
)
def test_round_trip(name, tmp_path):
    make, shapes = zoo.CONVERTS[name]
    model, inputs = zoo.prepared(name, make), zoo.inputs_of(shapes)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    network = convert(
        model,
        timesteps=4,
        rho=3,
        iterations=None,
        thresholds=thresholds,
        max_pool="before" if name != "untraceable" else "error",
        example_input=inputs,
    )
    expected = network(*inputs)
    network.save(tmp_path / "network.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]
    other = zoo.prepared("other weights", make)
    loaded = cos_ext.load_network(tmp_path / "network.safetensors", other, example_input=inputs)
    assert (loaded.timesteps, loaded.rho, loaded.iterations) == (4, 3, None)
    assert torch.equal(loaded(*inputs), expected)
    assert torch.equal(copy.deepcopy(network)(*inputs), expected)
    wide = copy.deepcopy(network).double()
    assert wide(*(x.double() for x in inputs)).dtype == torch.float64
    if name != "untraceable":
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        # Interpolation is decomposed, and rounds otherwise; no neuron comes after it here.
        torch.testing.assert_close(
            compiled(*inputs), expected, rtol=0, atol=1e-6 if name == "u-net" else 0
        )
        assert torch.equal(torch.export.export(network, inputs).module()(*inputs), expected)


def test_loading_says_what_is_wrong(tmp_path):
    model = zoo.prepared("vgg", lambda: zoo.vgg(False))
    sites = dict.fromkeys(trace(model).sites, 1.0)
    network = convert(model, timesteps=2, thresholds=sites)
    network.save(tmp_path / "a")
    with pytest.raises((ValueError, ConversionError), match="does not fit|has no threshold"):
        cos_ext.load_network(
            tmp_path / "a", zoo.prepared("resnet", lambda: zoo.ResNet(zoo.BasicBlock))
        )
    (tmp_path / "b").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a saved spiking network"):
        cos_ext.load_network(tmp_path / "b", model)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "c")
    with pytest.raises(ValueError, match="has the format None"):
        cos_ext.load_network(tmp_path / "c", model)


def torchvision_models():
    torchvision = pytest.importorskip(
        "torchvision", reason="torchvision is not installed (extra `vision`)", exc_type=ImportError
    )
    return torchvision.models


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121"]
)
def test_torchvision(name):
    model = zoo.prepared(
        name, lambda: getattr(torchvision_models(), name)(weights=None, num_classes=10)
    ).double()
    inputs = (torch.randn(2, 3, 64, 64).double(),)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
        network = convert(
            model,
            timesteps=LEVELS,
            rho=LEVELS,
            iterations=None,
            thresholds=thresholds,
            max_pool="before",
            example_input=inputs,
        )
        with Quantised(thresholds.values()):
            expected = copy.deepcopy(model)(*inputs)
        torch.testing.assert_close(network.rate(*inputs), expected, rtol=1e-6, atol=1e-6)
