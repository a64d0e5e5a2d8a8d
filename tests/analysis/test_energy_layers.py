"""energy_report by layer, against counts in plain torch: every kind of layer and function, what
counts as spikes, and what cannot be counted. By step: test_energy_steps.py.
"""

import pytest
import torch
from energy_counts import chain, expected, inputs_of, ones, report_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as TF
from untraced import untraced

from cos_ext import QCFS, convert

pytestmark = pytest.mark.usefixtures("one_thread")

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
        """Products with time in other dimensions than the first, of which nothing can be traced: a
        batch decides.
        """

        def __init__(self):
            super().__init__()
            self.act, self.first, self.weight = (
                QCFS(4, 0.5),
                nn.Linear(4, 4),
                nn.Parameter(torch.randn(6, 4)),
            )
            self.several, self.bias = nn.Parameter(torch.randn(3, 4, 6)), torch.zeros(6)

        def forward(self, x):
            untraced(x)
            x = self.act(self.first(x))
            return (
                (self.weight @ x.t()).t()
                + (x @ self.several).sum(0)
                + TF.conv1d(self.weight.t()[None], x[:, :, None])[0]
                + TF.linear(x.t().contiguous().t(), self.weight, self.bias)
            )

    x = torch.randn(4, 4)
    network = convert(Elsewhere().eval(), timesteps=2, example_input=x)
    with pytest.raises(ValueError, match="cannot be counted") as error:
        report_of(network, x)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and all(line.startswith("  forward (Elsewhere, ") for line in lines[1:])
    assert "mm" in lines[1] and "is not time" in lines[1]
    assert "batches of matrices" in lines[2] and "weights depend on" in lines[3]
    assert "addmm" in lines[4] and "is not time" in lines[4]
    assert not any(m._forward_hooks for m in network.modules())


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
