"""What convert() accepts, what it refuses, and that it says everything at once. The shipped network
is in test_network.py.
"""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as TF

from cos_ext import QCFS, ConversionError, IFNode, SpikingNetwork, convert


def small(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3))


class Wrapped(nn.Module):
    """A model whose forward is the given function of (self, x), with some layers to use."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = QCFS(4, 1.0)
        self.head = nn.Linear(4 * 36, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


IMAGES = torch.rand(2, 1, 6, 6)


@fx.wrap
def mean(x):  # a rule must not go by the name
    return x.abs()


def lambda_free_forward(m, x):
    return m.head((m.act(m.conv(x)) + m.conv(x)).flatten(1))


def lossless(model, **options):
    """In float64, with rho = T = L = 4 and exact calibration, the network's rate is the model's
    output.
    """
    model = model.double().eval()
    with torch.no_grad():
        expected = model(IMAGES.double())
    network = convert(
        model, timesteps=4, rho=4, iterations=None, example_input=IMAGES.double(), **options
    )
    assert isinstance(network, SpikingNetwork)
    torch.testing.assert_close(network.rate(IMAGES.double()), expected, rtol=0, atol=1e-9)
    return network


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


class InPlace(nn.Module):
    """Linear layers and activations for the in-place cases; `function` is the forward."""

    def __init__(self, function, inplace=True):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(6, 6, bias=False) for _ in range(5))
        self.norm, self.identity = nn.BatchNorm1d(6), nn.Identity()
        self.q1, self.q2, self.relu = QCFS(4, 0.5), QCFS(4, 0.7), nn.ReLU(inplace=inplace)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


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


def alias_of_an_addition(m, x):
    y = m.a(m.q1(m.c(x)))
    z = y
    y += m.b(x)
    return m.d(m.q2(y)) + m.e(z)


def ignored_add_(m, x):
    y = m.a(x)
    y.add_(m.q1(m.b(x)))
    return m.d(m.q2(m.c(y))) + m.e(y)


def relu_of_an_alias(m, x):
    x = m.a(m.q1(m.c(x)))
    i = m.identity(x)
    return m.d(m.relu(x) + i)


def relu_read_again(m, x):
    y = m.a(x)
    m.relu(y)
    return m.d(y) + m.e(m.q1(m.b(x)))


@pytest.mark.parametrize(
    "forward", [alias_of_an_addition, ignored_add_, relu_of_an_alias, relu_read_again]
)
def test_in_place_operations_that_others_see_are_refused(forward):
    with pytest.raises(ConversionError, match="in place (to|on) a tensor that others may read"):
        convert(InPlace(forward), timesteps=4, thresholds={"relu": 1.0})


def test_an_in_place_relu_that_owns_its_input_converts():
    model = InPlace(lambda m, x: m.d(m.relu(m.norm(m.a(x)))))
    assert convert(model, timesteps=4, thresholds={"relu": 1.0}).nodes()["relu"].static_input


def test_hooks_are_refused():
    for name in ("act", "conv"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
            getattr(getattr(model, name), register)(lambda *_: None)
            with pytest.raises(ConversionError, match=f"{name} .*has forward hooks"):
                convert(model, timesteps=4)


def test_batch_norm_without_statistics_is_refused():
    model = Wrapped(
        lambda m, x: m.head(m.norm(m.act(m.conv(x))).flatten(1)), norm=nn.BatchNorm2d(4)
    )
    model.norm.running_mean = model.norm.running_var = None
    with pytest.raises(ConversionError, match="no running statistics"):
        convert(model, timesteps=4)


def test_an_example_shows_what_mixes_the_batch():
    model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
    model.conv.forward = lambda x: TF.conv2d(x, model.conv.weight.to(x), padding=1) + x.mean()
    with pytest.raises(ConversionError, match="depends on the other samples"):
        convert(model, timesteps=4, example_input=IMAGES)


def test_an_example_of_the_wrong_shape_is_told_so():
    with pytest.raises(ConversionError, match="Wrapped does not run on example_input"):
        convert(
            Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1))),
            timesteps=4,
            example_input=torch.rand(2, 5),
        )


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


@pytest.mark.parametrize(
    "forward, layers, message",
    [
        (
            lambda m, x: m.head((m.act(m.conv(x)) / x.size(0)).flatten(1)),
            {},
            "uses the size of the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.conv(x)).view(2 * x.size(0), -1)),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.conv(x)).view(-1, 72).view(x.size(0), -1)),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head((m.act(m.conv(x)) + torch.roll(x, 1, 3)).flatten(1)),
            {},
            "roll has the batch.*not known; pass example",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).view(2, -1)), {}, "fixes the batch"),
        (lambda m, x: m.head(TF.relu(m.act(m.conv(x))).flatten(1)), {}, "relu.*has no threshold"),
        (
            lambda m, x: m.head(torch.relu(m.act(m.conv(x))).flatten(1)),
            {},
            "relu.*has no threshold",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).relu_().flatten(1)), {}, "relu.*has no threshold"),
        (
            lambda m, x: m.head((m.act(m.conv(x)) * m.act(m.conv(2 * x))).flatten(1)),
            {},
            "mul.*multiplies two spiking",
        ),
        (lambda m, x: m.head((1 / m.act(m.conv(x))).flatten(1)), {}, "divides by a spiking"),
        (lambda m, x: m.head((m.act(m.conv(x)) // 2).flatten(1)), {}, "floordiv.*no rule"),
        (
            lambda m, x: m.head(TF.max_pool2d(m.act(m.conv(x)), 2).flatten(1)),
            {},
            "max_pool2d.*max pooling",
        ),
        (lambda m, x: m.head(TF.hardtanh(m.act(m.conv(x))).flatten(1)), {}, "hardtanh"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).permute(1, 0, 2, 3).flatten(1)),
            {},
            "moves the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).squeeze().flatten(1)), {}, "squeeze the batch"),
        (
            lambda m, x: m.head(torch.stack([m.act(m.conv(x))] * 2).flatten(1)),
            {},
            "may be the batch",
        ),
        (
            lambda m, x: TF.linear(m.act(m.conv(x)).flatten(1), m.head(m.conv(x).flatten(1))),
            {},
            "weights that depend",
        ),
        (
            lambda m, x: m.head(TF.pad(m.act(m.conv(x)), (0, 0, 0, 0, 0, 0, 1, 1)).flatten(1)),
            {},
            "may pad the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1).softmax(1)), {}, "softmax.*no rule"),
        (lambda m, x: m.head(m.act(m.conv(x))[x[:, 0, 0, 0] > 0].flatten(1)), {}, "indexing"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(0)), {}, "may be the batch"),
        (lambda m, x: m.head(torch.cat([m.act(m.conv(x))] * 2).flatten(1)), {}, "may be the batch"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)[0]), {}, "indexing"),
        (
            lambda m, x: m.head(m.pool(m.act(m.conv(x))).flatten(1)),
            {"pool": nn.MaxPool2d(2)},
            r"pool \(MaxPool2d\): max pooling",
        ),
        (lambda m, x: m.head(m.f(m.act(m.conv(x)))), {"f": nn.Flatten(0)}, "may merge the batch"),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.GELU()},
            r"g \(GELU\): .*rectifier that starts at 0",
        ),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.GroupNorm(2, 4)},
            r"g \(GroupNorm\)",
        ),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.LeakyReLU()},
            r"g \(LeakyReLU\)",
        ),
        (lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)), {"g": IFNode()}, "spiking already"),
        (
            lambda m, x: m.head(m.b(m.act(m.conv(x))).flatten(1)),
            {"b": nn.BatchNorm2d(4, track_running_stats=False)},
            "no running statistics",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)) + x.shape[0], {}, "adds a size"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).T,
            {},
            "no rule converts the attribute T",
        ),
        (lambda m, x: m.head(m.act(x).flatten(-3)), {}, "may be the batch"),  # of unknown rank
        (
            lambda m, x: (lambda z: z + z.sum((-1, -2)))(m.head(m.act(m.conv(x)).flatten(1))),
            {},
            "may be the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).sum(()), {}, "may be the batch"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).mean(), {}, "may be the batch"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).view(-1).sum(-1),
            {},
            "batch must be a dimension of its own",
        ),
        (
            lambda m, x: (lambda z: z.view(z.size(1), -1).sum(1))(
                m.head(m.act(m.conv(x)).flatten(1))
            ),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: (lambda z: z.view(-1, z.size(0)))(m.head(m.act(m.conv(x)).flatten(1))),
            {},
            "uses the size of the batch",
        ),
        (
            lambda m, x: m.head(torch.reshape(m.act(m.conv(x)), shape=(4, -1))),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.head.weight) + m.conv(x).flatten(1)),
            {},
            r"act \(QCFS\): is not called with one tensor",
        ),
        (
            lambda m, x: m.head(mean(m.act(m.conv(x))).flatten(1)),
            {},
            "mean.*no rule converts this function",
        ),
        (
            lambda m, x: torch.cat([m.head(m.act(m.conv(x)).flatten(1))] * 2, -2),
            {},
            "may be the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).mean(-2), {}, "may be the batch"),
        (
            lambda m, x: m.head(TF.dropout(m.act(m.conv(x)), 0.5).flatten(1)),
            {},
            "is active in evaluation",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).view(x.shape[0] + 0, -1)), {}, "adds a size"),
        (lambda m, x: m.head(m.conv(x).flatten(1)), {}, "there is no activation to convert"),
        (lambda m, x: (m.act(m.conv(x)), m.conv(x)), {}, "one tensor output"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)) if x.sum() > 0 else x,
            {},
            "cannot be traced by torch.fx",
        ),
    ],
)
def test_what_is_refused(forward, layers, message):
    with pytest.raises(ConversionError, match=message):
        convert(Wrapped(forward, **layers), timesteps=4)


def test_every_offender_is_listed_at_once():
    model = small(nn.ReLU(), nn.MaxPool2d(2), nn.GELU(), QCFS(4), nn.SiLU())
    model(IMAGES)
    with pytest.raises(ConversionError) as caught:
        convert(model, timesteps=4)
    listed = [(entry.site, entry.kind) for entry in caught.value.report.unsupported()]
    assert listed == [("1", "ReLU"), ("2", "MaxPool2d"), ("3", "GELU"), ("5", "SiLU")]
    assert all(f"{site} ({kind})" in str(caught.value) for site, kind in listed)
    assert "4 offending" in str(caught.value)


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


def test_a_non_positive_learned_threshold_is_refused():
    model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
    with torch.no_grad():
        model.act.threshold.fill_(-0.1)
    with pytest.raises(ConversionError, match=r"act \(QCFS\): v_threshold must be positive"):
        convert(model, timesteps=4)


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
