"""What convert() accepts, operation by operation, what it reports, and its arguments. What it
refuses: test_refusals.py; the shipped network: test_network.py.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, InPlace, Wrapped, lossless

from cos_ext import QCFS, ConversionError, convert

pytestmark = pytest.mark.usefixtures("one_thread")


def small(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3))


def lambda_free_forward(m, x):
    return m.head((m.act(m.conv(x)) + m.conv(x)).flatten(1))


def test_relu_needs_a_threshold_and_takes_one():
    model = small(nn.ReLU())
    model(IMAGES)
    with pytest.raises(ConversionError, match=r"1 \(ReLU\): has no threshold of its own"):
        convert(model, timesteps=4)
    network = convert(model, timesteps=4, thresholds={"1": torch.full((4, 1, 1), 0.7)})
    assert network.nodes()["1"].v_threshold.shape == (4, 1, 1)
    assert (
        convert(model, timesteps=4, thresholds={"1": 2.0}, example_input=IMAGES)
        .nodes()["1"]
        .v_threshold.item()
        == 2.0
    )
    with pytest.raises(ValueError, match=r"thresholds names \['typo'\].*\['1'\]"):
        convert(model, timesteps=4, thresholds={"1": 1.0, "typo": 1.0})
    with pytest.raises(ConversionError, match="v_threshold must be positive"):
        convert(model, timesteps=4, thresholds={"1": -1.0})


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Identity(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.ZeroPad2d(1),
        nn.Sequential(nn.Conv2d(4, 8, 1, groups=4), QCFS(4, 0.5)),
    ],
)
def test_modules_that_stay(layer):
    torch.manual_seed(1)
    model = small(QCFS(4, 0.8), layer, QCFS(4, 0.6))
    model(IMAGES)
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_mean.uniform_(-0.1, 0.1)
    lossless(model)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.head((m.act(m.conv(x)) + m.second(m.other(x))).flatten(1)),
        lambda m, x: m.head(
            torch.flatten(torch.add(m.act(m.conv(x)), m.other(x)), 1)
        ),  # spiking + static
        lambda m, x: m.head((m.other(x) + m.act(m.conv(x))).view(-1, 144)),
        lambda m, x: m.wide(torch.cat([m.act(m.conv(x)), m.other(x)], 1).flatten(1)),
        lambda m, x: m.wide(
            torch.cat((m.act(m.conv(x)), m.second(m.other(x))), dim=1).reshape(-1, 288)
        ),
        lambda m, x: m.short(m.act(m.conv(x)).mean((2, 3))),
        lambda m, x: m.short(TF.adaptive_avg_pool2d(m.act(m.conv(x)), 1).flatten(1)),
    ],
)
def test_functions_that_stay(forward):
    torch.manual_seed(2)
    lossless(
        Wrapped(
            forward,
            other=nn.Conv2d(1, 4, 1),
            second=QCFS(4, 0.5),
            wide=nn.Linear(288, 3),
            short=nn.Linear(4, 3),
        )
    )


def test_parameters_and_constants_are_added_as_they_are():
    class Shifted(Wrapped):
        def __init__(self):
            super().__init__(lambda m, x: m.head((m.act(m.conv(x)) + m.shift + 0.125).flatten(1)))
            self.shift = nn.Parameter(torch.randn(4, 1, 1))

    lossless(Shifted())


def in_place_addition(m, x):
    y = m.norm(m.a(x))
    y += m.b(m.q1(m.c(x)))
    return m.d(m.q2(y))


def in_place_addition_to_a_static_tensor(m, x):
    y = m.a(x)
    y += m.b(m.q1(m.c(x)))
    return m.d(m.q2(y))


@pytest.mark.parametrize("forward", [in_place_addition, in_place_addition_to_a_static_tensor])
def test_in_place_additions_that_nobody_else_sees(forward):
    torch.manual_seed(4)
    model = InPlace(forward).double().eval()
    network = convert(
        model, timesteps=4, rho=4, iterations=None, example_input=torch.rand(3, 6).double()
    )
    x = torch.rand(5, 6).double()
    torch.testing.assert_close(network.rate(x), model(x), rtol=0, atol=1e-9)
    assert network.nodes()["q2"].inplace


def test_an_in_place_relu_that_owns_its_input_converts():
    model = InPlace(lambda m, x: m.d(m.relu(m.norm(m.a(x)))))
    assert convert(model, timesteps=4, thresholds={"relu": 1.0}).nodes()["relu"].static_input


def test_an_example_tells_where_the_batch_is():
    lossless(Wrapped(lambda m, x: m.head((m.act(m.conv(x)) + torch.roll(x, 1, 3)).flatten(1))))
    with pytest.raises(
        ConversionError,
        match="not the quantised ANN|depends on the other samples|does not run|has the batch",
    ):
        lossless(
            Wrapped(
                lambda m, x: m.head((m.act(m.conv(x)) + torch.roll(x, 1, 3).mean(0)).flatten(1))
            )
        )


def test_keyword_calls_convert():
    lossless(Wrapped(lambda m, x: m.head(m.act(z=m.conv(input=x)).flatten(start_dim=1))))
    lossless(Wrapped(lambda m, x: m.head(torch.reshape(m.act(m.conv(x)), shape=(-1, 144)))))
    short = nn.Linear(4, 3)
    lossless(Wrapped(lambda m, x: m.short(m.act(m.conv(x)).mean((-1, -2))), short=short))
    lossless(
        Wrapped(
            lambda m, x: m.short(m.act(m.conv(x)).mean(dim=[2, 3], keepdim=True).flatten(1)),
            short=short,
        )
    )


def test_networks_can_be_pickled(tmp_path):
    network = lossless(Wrapped(lambda_free_forward))
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    assert torch.equal(loaded(IMAGES.double()), network(IMAGES.double()))


def test_view_by_the_size_of_a_spiking_tensor():
    def forward(m, x):
        y = m.act(m.conv(x))
        return m.head(y.view(y.size(0), -1))

    lossless(Wrapped(forward))


def test_a_module_object_under_two_names_is_two_sites():
    act = QCFS(4, 0.5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.Flatten(), nn.Linear(16, 3)
    )
    assert list(lossless(model).nodes()) == ["1", "1_1"]


def test_a_subclass_of_an_activation_is_not_taken_for_it():
    class Leaky(nn.ReLU):
        def forward(self, x):
            return TF.leaky_relu(x)

    model = small(Leaky())
    model(IMAGES)
    with pytest.raises(ConversionError):
        convert(model, timesteps=4, thresholds={"1": 1.0})


def test_the_report_names_everything_and_prints():
    network = lossless(Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)), spare=nn.ReLU()))
    assert [(e.site, e.status) for e in network.report.entries] == [
        ("conv", "kept"),
        ("act", "converted"),
        ("flatten", "kept"),
        ("head", "kept"),
        ("spare", "unused"),
    ]
    lines = str(network.report).splitlines()
    assert lines[0].split() == ["call", "site", "kind", "status", "threshold", "reason"]
    assert any(
        "act" in line and "converted" in line and "learned; static input" in line for line in lines
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"timesteps": 0}, ValueError, "timesteps must be >= 1"),
        ({"timesteps": 2.0}, TypeError, "timesteps must be an int"),
        ({"timesteps": 4, "rho": -1}, ValueError, "rho must be >= 0"),
        ({"timesteps": 4, "rho": 1.0}, TypeError, "rho must be an int"),
        ({"timesteps": 4, "iterations": -1}, ValueError, "iterations must be >= 0"),
        (
            {"timesteps": 4, "max_pool": "maybe"},
            ValueError,
            "max_pool must be one of .*got .maybe.",
        ),
        ({"timesteps": 4, "thresholds": [1.0]}, TypeError, "thresholds must be a mapping"),
        ({"timesteps": 4, "example_input": "x"}, TypeError, "example_input must be a tensor"),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        convert(Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1))), **options)
    with pytest.raises(TypeError, match="model must be an nn.Module, got function"):
        convert(lambda x: x, timesteps=4)


def test_a_model_whose_head_is_spiking_gives_rates():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), QCFS(4, 0.5))
    network = lossless(model)
    out = network(IMAGES.double())
    assert out.shape == (4, 2, 5)
    assert set(out.unique().tolist()) <= {0.0, 0.5}


def test_neurons_do_not_overwrite_what_others_read():
    torch.manual_seed(3)

    def forward(m, x):
        y = m.conv2(m.act(m.conv(x)))
        return m.head((m.second(y) + y).flatten(1))

    network = lossless(Wrapped(forward, conv2=nn.Conv2d(4, 4, 1), second=QCFS(4, 0.5)))
    assert not network.nodes()["second"].inplace
    plain = lossless(
        Wrapped(
            lambda m, x: m.head(m.second(m.conv2(m.act(m.conv(x)))).flatten(1)),
            conv2=nn.Conv2d(4, 4, 1),
            second=QCFS(4, 0.5),
        )
    )
    assert plain.nodes()["second"].inplace
