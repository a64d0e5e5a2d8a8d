"""energy_report against counts in plain torch: layers of ones applied to where the inputs are not
0; steps, energies, errors.
"""

import copy
import csv
import json

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext import QCFS, convert
from cos_ext.analysis.energy import EnergyReport, LayerEnergy, energy_report
from cos_ext.cli import main
from cos_ext.network.network import Walked

pytestmark = pytest.mark.usefixtures("one_thread")


def report_of(network, *batches, **options):
    return network.energy_report(batches, progress=False, **options)


def ones(layer):
    """The layer with weights 1 and no bias, in float64: of an indicator, it gives how many inputs
    each output adds.
    """
    layer = copy.deepcopy(layer).double()
    nn.init.ones_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def inputs_of(network, site, *inputs):
    """What a module of the network reads, [S, B, ...]."""
    seen = []
    hook = network.module.get_submodule(site).register_forward_pre_hook(
        lambda m, args: seen.append(args[0].clone())
    )
    network(*inputs)
    hook.remove()
    return seen[0].unflatten(0, (-1, len(inputs[0])))


def expected(network, site, *inputs):
    """Operations at each step and MACs of one pass, per image: every output of a layer of ones says
    what was added to it.
    """
    x, layer = inputs_of(network, site, *inputs), ones(network.module.get_submodule(site))
    steps = [layer((step != 0).double()).sum().item() / x.shape[1] for step in x]
    return pytest.approx(steps, rel=1e-12), layer(torch.ones_like(x[0, :1]).double()).sum().item()


def chain(layer, levels=3, channels=4):
    """Neurons on the image itself, the layer, neurons, and the output."""
    return nn.Sequential(nn.Identity(), QCFS(levels, 1.0), layer, QCFS(levels, 0.5))


LAYERS = {
    "Conv1d": (nn.Conv1d(4, 6, 3, 2, 1), (4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, 3, 2, 1), (4, 7, 8)),
    "Conv2d, groups, dilation": (
        nn.Conv2d(4, 6, (3, 2), (1, 3), (2, 0), (2, 1), groups=2),
        (4, 7, 8),
    ),
    "Conv2d, depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (4, 6, 5)),
    "Conv2d, same": (nn.Conv2d(4, 3, (1, 5), padding="same", dilation=2), (4, 6, 5)),
    "Conv2d, circular": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (4, 6, 5)),
    "Conv3d": (nn.Conv3d(4, 2, (1, 2, 3), (1, 2, 1), (0, 1, 1)), (4, 3, 4, 5)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, 2, 1), (4, 5)),
    "ConvTranspose2d": (
        nn.ConvTranspose2d(4, 6, 3, 2, 2, output_padding=1, groups=2, dilation=(1, 2)),
        (4, 4, 5),
    ),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 2, 2, 1, 1), (4, 3, 3, 4)),
    "Linear": (nn.Linear(5, 7), (5,)),
    "Linear, several positions": (nn.Linear(5, 7), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_counts_as_a_layer_of_ones_on_the_indicator(name):
    layer, shape = LAYERS[name]
    network, x = convert(chain(layer), timesteps=3, rho=2), torch.rand(5, *shape)
    (found,) = report_of(network, x).layers
    steps, macs = expected(network, "2", x)
    assert found.per_step == steps and found.macs == macs
    assert (found.site, found.kind, found.input, found.watch) == (
        "2",
        type(layer).__name__,
        "spikes",
        2,
    )
    assert 0 < sum(found.per_step[:2]) < 2 * macs
    seen = inputs_of(network, "2", x)
    if "circular" not in name:
        assert found.nonzero == pytest.approx((seen != 0).double().mean().item())


def test_zeros_padded_beforehand_are_inputs_of_the_ann_and_cost_no_accumulate():
    model = nn.Sequential(QCFS(3, 1.0), nn.ZeroPad1d(2), nn.Conv1d(4, 3, 4), QCFS(3, 0.5))
    network, x = convert(model, timesteps=2), torch.rand(3, 4, 9)
    (found,) = report_of(network, x).layers
    assert found.per_step == expected(network, "2", x)[0]
    assert found.macs == 3 * 10 * 4 * 4
    assert found.nonzero == pytest.approx((inputs_of(network, "2", x) != 0).double().mean().item())


def test_a_convolution_counted_output_by_output():
    """Stride, padding, dilation and groups, in loops over outputs and taps."""
    network = convert(
        chain(nn.Conv1d(4, 6, 3, stride=2, padding=3, dilation=2, groups=2)), timesteps=4
    )
    x = torch.rand(3, 4, 9)
    seen, count, macs = inputs_of(network, "2", x), [0] * 4, 0
    for out_channel in range(6):
        for position in range(network.module.get_submodule("2")(x).shape[-1]):
            for tap in range(3):
                i = 2 * position - 3 + 2 * tap
                if 0 <= i < 9:
                    for channel in (0, 1) if out_channel < 3 else (2, 3):
                        macs += 1
                        for t in range(4):
                            count[t] += int((seen[t, :, channel, i] != 0).sum())
    (found,) = report_of(network, x).layers
    assert found.per_step == pytest.approx([c / 3 for c in count], rel=1e-12) and found.macs == macs


@settings(max_examples=60, deadline=None)
@given(
    transposed=st.booleans(),
    size=st.integers(1, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    extra=st.integers(0, 2),
)
def test_any_convolution(transposed, size, kernel, stride, padding, dilation, groups, extra):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        assume(extra < max(stride, dilation))
        layer = nn.ConvTranspose1d(2, 4, kernel, output_padding=extra, **options)
        length = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
    else:
        layer = nn.Conv1d(2, 4, kernel, **options)
        length = size + 2 * padding - dilation * (kernel - 1)
    assume(length > 0)
    network, x = convert(chain(layer), timesteps=2), torch.rand(2, 2, size)
    (found,) = report_of(network, x).layers
    steps, macs = expected(network, "2", x)
    assert found.per_step == steps and found.macs == macs


class Net(nn.Module):
    """A static layer and a static shortcut, a residual block, an average pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(2, 6, 3, padding=1), QCFS(4, 0.5)
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.third, self.act3 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.image = nn.Conv2d(2, 6, 1)
        self.pool, self.fc = nn.AvgPool2d(3), nn.Linear(24, 5)

    def forward(self, x):
        y = self.act1(self.first(x))
        z = self.act2(self.second(y) + self.image(x))
        z = self.act3(self.third(z) + y)
        return self.fc(self.pool(z).flatten(1))


class Untraceable(Net):
    def forward(self, x):
        if (
            x.sum(dtype=torch.float32).shape == torch.Size([]) and len(x) > 0
        ):  # len() of a proxy: torch.fx gives up
            y = self.act1(self.first(x))
        z = torch.zeros(len(x), 6, 6, 6, dtype=x.dtype)
        z[:, :4] = self.second(y)[:, :4]  # into memory that did not depend on spikes
        z[:, 4:] = self.second(y)[:, 4:]
        z = self.act2(z + self.image(x))
        z = self.act3(self.third(z) + y)
        return self.fc(self.pool(z).flatten(1))


@pytest.fixture
def net():
    model = Net().eval()
    for layer in (model.second, model.third):
        layer.weight.data.mul_(3)
    return model


@pytest.fixture
def images():
    return torch.randn(7, 2, 6, 6)


SITES = ("second", "third", "fc")


def cumulative(per_step, watch, reads):
    return pytest.approx(
        [sum(per_step[:watch]) + sum(per_step[:steps]) for steps in reads], rel=1e-12
    )


# For T = 3: settings, and by layer the steps watched and those read for an answer at t; by neurons
# the steps emitted.
STEPS = {
    "not calibrated": (
        {"rho": 0},
        {"second": (0, [1, 2, 3]), "third": (0, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [1, 2, 3], "act2": [1, 2, 3], "act3": [1, 2, 3]},
    ),
    # act1 and act2 feed neurons that watch 2 steps, whatever t is.
    "calibrated": (
        {"rho": 2},
        {"second": (2, [2, 2, 3]), "third": (2, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 3], "act2": [2, 2, 3], "act3": [1, 2, 3]},
    ),
    "rho > T": (
        {"rho": 5},
        {"second": (5, [5, 5, 5]), "third": (5, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [5, 5, 5], "act2": [5, 5, 5], "act3": [1, 2, 3]},
    ),
    # These neurons emit their count from the steps that they watched; the currents after those are
    # not read.
    "front": (
        {"rho": 2, "emission": "front"},
        {"second": (2, [0, 0, 0]), "third": (2, [0, 0, 0]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 2], "act2": [2, 2, 2], "act3": [1, 2, 3]},
    ),
    "a layer of its own": (
        {"rho": 1, "act3": {"rho": 4}},
        {"second": (1, [4, 4, 4]), "third": (4, [1, 2, 3]), "fc": (0, [1, 2, 3])},
        {"act1": [4, 4, 4], "act2": [4, 4, 4], "act3": [1, 2, 3]},
    ),
    "the first not calibrated": (
        {"rho": 2, "act1": {"rho": 0}, "act3": {"emission": "even"}},
        {"second": (2, [2, 2, 2]), "third": (2, [0, 0, 0]), "fc": (0, [1, 2, 3])},
        {"act1": [2, 2, 2], "act2": [2, 2, 2], "act3": [1, 2, 3]},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_watched_and_those_of_the_answer(name, net, images):
    given_settings, layers, emitted = STEPS[name]
    own = {site: value for site, value in given_settings.items() if site.startswith("act")}
    network = convert(
        net, timesteps=3, **{key: v for key, v in given_settings.items() if key not in own}
    )
    for site, changes in own.items():
        network.set_layer(site, **changes)
    report = report_of(network, images)
    found = {layer.site: layer for layer in report.layers}
    assert list(found) == ["first", "second", "image", "third", "fc"]
    for site, (watch, reads) in layers.items():
        steps, macs = expected(network, site, images)
        layer = found[site]
        assert layer.per_step == steps and layer.macs == macs
        assert (layer.watch, list(layer.reads)) == (watch, reads)
        assert layer.watched == pytest.approx(sum(layer.per_step[:watch]), rel=1e-12)
        assert list(layer.operations) == cumulative(layer.per_step, watch, reads)
        assert list(layer.kept_operations) == cumulative(
            layer.per_step, 0, [max(watch, steps) for steps in reads]
        )
    nodes, neurons = network.nodes(), 6 * 6 * 6
    assert report.neurons == 3 * neurons
    updates = [
        neurons * sum(nodes[site].rho + steps[t] for site, steps in emitted.items())
        for t in range(3)
    ]
    assert list(report.neuron_updates) == updates
    assert report.rho == max(node.rho for node in nodes.values())
    assert report.latency == [report.rho + t for t in (1, 2, 3)]
    for site in ("first", "image"):  # static: one pass, whatever t and rho are
        layer, (_, macs) = (
            found[site],
            (None, ones(getattr(net, site))(torch.ones(1, 2, 6, 6).double()).sum().item()),
        )
        assert layer.input == "static" and layer.operation == "MAC" and layer.watched == 0
        assert layer.macs == macs and layer.operations == layer.kept_operations == (macs,) * 3
    assert found["fc"].input == "graded" and found["fc"].operation == "MAC"
    assert found["second"].input == found["third"].input == "spikes"
    # The two sums before neurons and the pooling, of all 6 channels of 6 x 6.
    assert report.uncounted == {"add": 2 * neurons, "avg_pool2d": neurons}


def test_how_the_data_are_split_into_batches_plays_no_part(net, images):
    network = convert(net, timesteps=4, rho=2)
    whole = report_of(network, images).to_dict()
    labels = torch.zeros(7)
    assert (
        report_of(
            network, images[:3], images[3:3], (images[3:4], labels[3:4]), images[4:]
        ).to_dict()
        == whole
    )
    generator = (images[i : i + 2] for i in range(0, 7, 2))
    assert network.energy_report(generator, progress=False).to_dict() == whole


def test_the_network_is_as_it_was_and_inference_mode_changes_nothing(net, images):
    network = convert(net, timesteps=4, rho=2)
    before, original = network(images), images.clone()
    report = report_of(network, images).to_dict()
    assert torch.equal(network(images), before) and torch.equal(images, original)
    with torch.inference_mode():
        assert report_of(network, images).to_dict() == report
        assert report_of(network, images + 0).to_dict() == report
    assert report_of(copy.deepcopy(network), images).to_dict() == report


def test_a_model_that_cannot_be_traced_counts_like_its_traced_twin(net, images):
    twin = Untraceable().eval()
    twin.load_state_dict(net.state_dict())
    network = convert(twin, timesteps=3, rho=4, example_input=images)
    assert isinstance(network.module, Walked)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    ours, theirs = report_of(network, images), report_of(convert(net, timesteps=3, rho=4), images)
    by_site = {layer.site: layer for layer in ours.layers}
    assert list(by_site) == ["first", "second", "second (2)", "image", "third", "fc"]
    for layer in theirs.layers:
        assert by_site[layer.site] == layer
    assert by_site["second (2)"].per_step == by_site["second"].per_step
    assert ours.neuron_updates == theirs.neuron_updates and ours.latency == theirs.latency
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    with pytest.raises(RuntimeError):
        report_of(network, images[:, :1])
    with pytest.raises(TypeError, match="batches must yield tensors"):
        report_of(network, images, "labels")
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()]
    assert report_of(network, images).to_dict() == ours.to_dict()


class Functional(nn.Module):
    """The weights of a plain network, used by functions; one layer is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.last = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(27, 27),
            nn.Linear(27, 4),
        )
        self.act1, self.act2, self.act3, self.act4 = (QCFS(4, 0.4) for _ in range(4))
        self.square = nn.Parameter(torch.randn(4, 4))
        self.conv.weight.data.mul_(2)

    def forward(self, x):
        x = self.act1(x)
        x = self.act2(TF.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
        x = self.act3(self.hidden(x.flatten(1)))
        x = self.act4(self.hidden(x))
        return TF.linear(x, self.last.weight) @ self.square


def test_functions_with_parameters_and_layers_called_twice():
    model = Functional().eval()
    model.hidden.weight.data.mul_(3)
    x = torch.rand(6, 3, 3, 3)
    network = convert(model, timesteps=3, rho=2)
    report = report_of(network, x)
    sites = [layer.site for layer in report.layers]
    assert sites == ["conv2d", "hidden", "hidden (2)", "linear", "matmul"]
    assert [layer.kind for layer in report.layers] == [
        "conv2d",
        "Linear",
        "Linear",
        "linear",
        "matmul",
    ]
    spikes = {site: [] for site in network.nodes()}
    for site, node in network.nodes().items():
        node.register_forward_hook(lambda m, args, out, site=site: spikes[site].append(out.clone()))
    network(x)
    seen = {site: s[0].unflatten(0, (3, 6)) != 0 for site, s in spikes.items()}
    conv = ones(model.conv)
    assert report.layers[0].per_step == pytest.approx(
        [conv(s.double()).sum().item() / 6 for s in seen["act1"]]
    )
    for layer, site, fan_out in zip(report.layers[1:4], ("act2", "act3", "act4"), (27, 27, 4)):
        assert layer.per_step == pytest.approx([s.sum().item() * fan_out / 6 for s in seen[site]])
        assert layer.macs == 27 * fan_out
    assert report.layers[4].input == "graded" and report.layers[4].macs == 16
    assert [layer.watch for layer in report.layers] == [2, 2, 2, 0, 0]


def test_the_multiplications_of_the_shipped_resnet20_by_hand(shipped_model, test_set):
    network = convert(shipped_model, timesteps=2, rho=1)
    report = report_of(network, next(iter(test_set.first(4).batches(4))))

    def conv3(inputs, outputs, side, stride=1):
        """Of a padded 3x3 convolution, along one side: every output has 3 taps, those at the border
        lose one.
        """
        taps = 3 * side - 2 if stride == 1 else 3 * (side // 2) - 1
        return inputs * outputs * taps**2

    stage1 = 6 * conv3(16, 16, 28)
    stage2 = conv3(16, 32, 28, 2) + 5 * conv3(32, 32, 14) + 16 * 32 * 14**2
    stage3 = conv3(32, 64, 14, 2) + 5 * conv3(64, 64, 7) + 32 * 64 * 7**2
    assert report.static_macs == conv3(1, 16, 28)
    assert report.ann_macs == conv3(1, 16, 28) + stage1 + stage2 + stage3 + 640
    assert [layer.input for layer in report.layers] == ["static"] + ["spikes"] * 20 + ["graded"]
    assert report.neurons == 7 * 16 * 28**2 + 6 * 32 * 14**2 + 6 * 64 * 7**2
    assert report.uncounted == {"add": 3 * (16 * 28**2 + 32 * 14**2 + 64 * 7**2), "mean": 64 * 7**2}


class Inputs(nn.Module):
    """What stands between the neurons and the layer is given."""

    def __init__(self, between):
        super().__init__()
        self.act, self.other, self.between = QCFS(4, 1.0), QCFS(4, 0.7), between
        self.layer = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.layer(self.between(self.act(x), self.other(1.5 * x)))


@pytest.mark.parametrize(
    "between, kind",
    [
        (lambda a, b: a, "spikes"),
        (lambda a, b: 0.3 * a, "spikes"),
        (lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1), "spikes"),
        (lambda a, b: TF.pad(a, (1, 1, 1, 1)), "spikes"),
        (lambda a, b: a + b, "graded"),
        (lambda a, b: a - b, "graded"),
        (lambda a, b: TF.avg_pool2d(a, 2), "graded"),
    ],
)
def test_inputs_with_one_value_per_channel_are_spikes_and_others_graded(between, kind):
    network, x = convert(Inputs(between), timesteps=4, rho=2), torch.rand(4, 4, 8, 8)
    (found,) = report_of(network, x).layers
    assert found.input == kind
    assert found.per_step == expected(network, "layer", x)[0]


def test_thresholds_per_channel_are_spikes_and_per_position_are_graded():
    model, x = chain(nn.Conv2d(4, 2, 3)), torch.rand(4, 4, 6, 6)
    model[1] = nn.ReLU()
    for shape, kind in (((4, 1, 1), "spikes"), ((1, 6, 1), "graded")):
        network = convert(
            model, timesteps=4, thresholds={"1": torch.linspace(0.4, 0.9, max(shape)).view(shape)}
        )
        assert report_of(network, x).layers[0].input == kind


def test_static_products_of_any_kind_are_counted_once_and_those_of_constants_not_at_all():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.fold = nn.Linear(8, 8), nn.Linear(8, 3)
            self.act, self.constant = QCFS(4, 0.5), nn.Parameter(torch.randn(5, 8))
            self.other = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            x = x + self.fold(self.constant) @ self.other
            weights = torch.softmax(self.query(x) @ x.transpose(1, 2), -1)
            return self.fold(self.act(weights @ x))

    x = torch.randn(3, 5, 8)
    network = convert(Attends().eval(), timesteps=2, rho=2, example_input=x)
    report = report_of(network, x)
    assert [(layer.site, layer.input, layer.macs) for layer in report.layers] == [
        ("query", "static", 5 * 8 * 8),
        ("matmul_1", "static", 5 * 5 * 8),
        ("matmul_2", "static", 5 * 5 * 8),
        ("fold", "spikes", 5 * 8 * 3),
    ]
    assert report_of(network, x[:1], x[1:]).static_macs == report.static_macs


def test_what_cannot_be_counted_is_refused_with_its_place():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.act, self.last = (
                nn.LSTM(4, 8, batch_first=True),
                QCFS(4, 0.5),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            return self.last(self.act(self.lstm(x)[0]))

    x = torch.randn(3, 5, 4)
    network = convert(Recurrent().eval(), timesteps=2, example_input=x)
    with pytest.raises(ValueError, match=r"cannot be counted:\n  lstm \(LSTM, .*\): has no rule"):
        report_of(network, x)

    class Elsewhere(nn.Module):
        """Products with time in other dimensions than the first, of which torch.fx cannot trace a
        thing.
        """

        def __init__(self):
            super().__init__()
            self.act, self.first, self.weight = (
                QCFS(4, 0.5),
                nn.Linear(4, 4),
                nn.Parameter(torch.randn(6, 4)),
            )

        def forward(self, x):
            x = self.act(self.first(x)) if len(x) else x
            return (
                (self.weight @ x.t()).t()
                + torch.einsum("bc,dc->bd", x, self.weight)
                + TF.linear(x.t().contiguous().t(), self.weight)
            )

    x = torch.randn(4, 4)
    network = convert(Elsewhere().eval(), timesteps=2, example_input=x)
    with pytest.raises(ValueError, match="depend on spikes") as error:
        report_of(network, x)
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and all(line.startswith("  forward (Elsewhere, ") for line in lines[1:])
    assert "batches of matrices" in lines[2] and "is not time" in lines[3]
    assert not any(m._forward_hooks for m in network.modules())


def test_neurons_whose_spikes_do_not_come_step_by_step_are_refused(net, images):
    network = convert(net, timesteps=2, rho=2)
    node = network.nodes()["act2"]
    node._simulate = lambda x, inplace, **_: (
        cos_ext.functional.calibrate_v_init(x, 1.0, rho=2).v_init
    )
    with pytest.raises(ValueError, match="step by step to be counted; act2 calls calibrate_v_init"):
        report_of(network, images)


def test_several_inputs_need_one_batch_size():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act, self.last = (
                nn.Linear(3, 4),
                nn.Linear(2, 4),
                QCFS(2, 0.5),
                nn.Linear(4, 2),
            )

        def forward(self, x, y):
            return self.last(self.act(self.a(x) + self.b(y)))

    network = convert(Two(), timesteps=2)
    report = report_of(network, (torch.randn(3, 3), torch.randn(3, 2)))
    assert [(layer.site, layer.input, layer.macs) for layer in report.layers] == [
        ("a", "static", 12),
        ("b", "static", 8),
        ("last", "spikes", 8),
    ]
    with pytest.raises(ValueError, match=r"one batch size, got \[3, 2\]"):
        report_of(network, (torch.randn(3, 3), torch.randn(2, 2)))


@pytest.fixture
def numbers():
    """A report whose every figure can be worked out in the head: T = 2, rho = 3."""
    layers = (
        LayerEnergy("a", "Conv2d", "static", 100.0, 0, (3, 3), (), 1.0),
        LayerEnergy("b", "Conv2d", "spikes", 1000.0, 3, (1, 2), (10.0, 20.0, 30.0), 0.25),
        LayerEnergy("c", "Linear", "graded", 50.0, 0, (1, 2), (4.0, 6.0, 8.0), 0.5),
    )
    return EnergyReport(
        layers, 40.0, (160.0, 200.0), {"add": 12.0}, 5, 2, 3, 1, "calibrated", 0.9, 4.6, 0.5, 2, 1.8
    )


def test_energies_and_ratios(numbers):
    assert numbers.latency == [4, 5]
    assert numbers.acs == [70, 90] and numbers.graded_macs == [4, 10] and numbers.static_macs == 100
    assert numbers.layers[1].kept_operations == (60, 60)
    assert numbers.ann_macs == 1150 and numbers.ann_joules == pytest.approx(1150 * 4.6e-12)
    first, second = (
        (0.9 * 70 + 4.6 * 104 + 0.5 * 160) * 1e-12,
        (0.9 * 90 + 4.6 * 110 + 0.5 * 200) * 1e-12,
    )
    assert numbers.snn_joules == pytest.approx([first, second])
    kept = [(0.9 * 60 + 4.6 * 104 + 0.5 * 160) * 1e-12, (0.9 * 60 + 4.6 * 110 + 0.5 * 200) * 1e-12]
    assert numbers.kept_joules == pytest.approx(kept)
    quantised = (1000 * 1.8 + 150 * 4.6) * 1e-12
    assert numbers.quantised_joules == pytest.approx(quantised)
    assert numbers.ann_ratio == pytest.approx([1150 * 4.6e-12 / first, 1150 * 4.6e-12 / second])
    assert numbers.quantised_ratio == pytest.approx([quantised / first, quantised / second])


def test_prints_and_writes_what_it_counted(numbers, tmp_path):
    text = str(numbers)
    rows = [line.split() for line in text.splitlines()]
    assert ["b", "Conv2d", "spikes", "25.00%", "1,000", "60", "90", "AC"] in rows
    assert ["a", "Conv2d", "static", "-", "100", "0", "100", "MAC"] in rows
    assert ["all", "layers", "1,150", "60", "200"] in rows and ["neurons", "200", "updates"] in rows
    assert rows[-1] == [
        "Not",
        "counted,",
        "per",
        "image",
        "and",
        "step:",
        "add",
        "(12",
        "elements).",
    ]
    assert "T = 2, rho = 3, iterations = 1" in text and "2-bit ANN" in text
    answer = next(row for row in rows if row[:2] == ["2", "5"])
    assert answer[2:5] == ["90", "110", "200"] and answer[5] == f"{numbers.snn_joules[1] * 1e6:.4g}"
    numbers.to_json(tmp_path / "energy.json")
    content = json.loads((tmp_path / "energy.json").read_text())
    assert content == numbers.to_dict()
    assert content["snn_joules"] == numbers.snn_joules and content["layers"][1]["operations"] == [
        70,
        90,
    ]
    numbers.to_csv(tmp_path / "energy.csv")
    with open(tmp_path / "energy.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["site"], row["t"]) for row in table] == [(site, t) for site in "abc" for t in "12"]
    assert (float(table[3]["operations"]), table[3]["operation"], table[3]["latency"]) == (
        90,
        "AC",
        "5",
    )


def test_bits_and_energies_of_the_quantised_ann(net, images):
    network = convert(net, timesteps=6)
    for rho, bits in ((0, 3), (1, 1), (3, 2), (4, 3), (7, 3), (8, 4)):
        network.rho = rho
        report = report_of(network, images)
        assert report.bits == bits and report.quantised_mac_energy == pytest.approx(
            min(0.9 * bits, 4.6)
        )
        assert report.neuron_energy == 0.9
    report = report_of(network, images, bits=8, ac_energy=2, mac_energy=5, neuron_energy=0)
    assert (report.bits, report.quantised_mac_energy, report.neuron_energy) == (8, 5, 0)
    assert report_of(network, images, quantised_mac_energy=0.23).quantised_mac_energy == 0.23


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"ac_energy": -1}, ValueError, "ac_energy must be a finite energy >= 0"),
        ({"mac_energy": float("inf")}, ValueError, "mac_energy must be a finite"),
        ({"neuron_energy": float("nan")}, ValueError, "neuron_energy must not be NaN"),
        ({"quantised_mac_energy": "1"}, TypeError, "quantised_mac_energy must be a float, got str"),
        ({"bits": 0}, ValueError, "bits must be >= 1, got 0"),
        ({"bits": 2.0}, TypeError, "bits must be an int or None, got float"),
    ],
)
def test_bad_arguments(net, images, options, error, message):
    with pytest.raises(error, match=message):
        report_of(convert(net, timesteps=2), images, **options)


def test_bad_networks_and_batches(net, images):
    network = convert(net, timesteps=2)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Net"):
        energy_report(net, [images])
    with pytest.raises(TypeError, match="batches must be an iterable of batches .* got Tensor"):
        network.energy_report(images)
    for batches in ([], [images[:0]]):
        with pytest.raises(ValueError, match="at least one sample"):
            network.energy_report(batches, progress=False)
    with pytest.raises(RuntimeError):
        report_of(network, images[:, :1])
    assert isinstance(report_of(network, images), cos_ext.EnergyReport)


def test_demo_energy(capsys, tmp_path):
    path = tmp_path / "energy.json"
    arguments = ["demo", "--energy", "--samples", "3", "--timesteps", "2", "--rho", "2", "--quiet"]
    assert main([*arguments, "--exact", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert (
        "T = 2, rho = 2, exact" in out
        and "2-bit ANN / SNN" in out
        and "stages.2.0.shortcut.0" in out
    )
    content = json.loads(path.read_text())
    assert (content["samples"], content["latency"]) == (3, [3, 4])
    for more, message in ((["--plot", "x.png"], "--plot"), (["--report"], "one at a time")):
        assert main([*arguments, *more]) == 2 and message in capsys.readouterr().err
