"""Maxima over whole dimensions, and poolings that stand before neurons already."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped, lossless

from cos_ext import QCFS, ConversionError, convert

MAXIMA = {
    "max": lambda m, h: torch.max(h, 2)[0],
    "max values": lambda m, h: h.max(dim=3).values,
    "max keepdim": lambda m, h: h.max(-1, keepdim=True)[0].squeeze(3),
    "amax": lambda m, h: h.amax(2),
    "amax of two": lambda m, h: torch.amax(h, (2, 3)),
    "amax keepdim": lambda m, h: h.amax(dim=(-1, -2), keepdim=True).flatten(1),
    "max_pool2d": lambda m, h: TF.max_pool2d(h, (h.size(2), h.size(3))),
    "max_pool2d shape": lambda m, h: TF.max_pool2d(h, h.shape[2:]),
    "max_pool2d list": lambda m, h: TF.max_pool2d(h, kernel_size=[h.shape[2], h.shape[3]]),
    "adaptive": lambda m, h: TF.adaptive_max_pool2d(h, 1),
}


@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("example", [False, True])
def test_maxima_over_whole_dimensions_are_max_poolings(name, example):
    def forward(m, x):
        h = MAXIMA[name](m, m.act(m.conv(x))).flatten(1)
        return m.out(m.two(m.last(h)))

    size = MAXIMA[name](None, torch.zeros(1, 4, 6, 6)).numel()
    layers = {"last": nn.Linear(size, 5), "two": QCFS(4, 1.0), "out": nn.Linear(5, 3)}
    torch.manual_seed(0)
    model = Wrapped(forward, **layers)
    with pytest.raises(ConversionError, match='choose max_pool="difference".*"before"'):
        convert(model, timesteps=4, rho=4, max_pool="error", example_input=IMAGES)
    with pytest.raises(ConversionError, match="max pooling does not commute"):
        convert(model, timesteps=4, rho=4, nonlinear="error", example_input=IMAGES)
    by_default = lossless(model)
    (entry,) = (e for e in by_default.report.entries if e.status == "difference")
    assert "running means" in entry.reason
    network = lossless(model, max_pool="before")
    x = IMAGES.double()
    if not example and "-" not in name:
        network = convert(
            model, timesteps=4, rho=4, iterations=None, max_pool="before", example_input=x
        )
    with torch.no_grad():
        assert torch.allclose(network.rate(x), model(x), atol=1e-9)
    for options in ({"max_pool": "before", "emission": "even", "execution": "counts"},):
        counted = convert(model, timesteps=4, rho=4, example_input=x, **options)
        assert torch.allclose(counted.rate(x), model(x), atol=1e-9)
    averaged = convert(model, timesteps=4, rho=4, max_pool="avg", example_input=x)
    assert any("MeanOver" in e.reason or "Avg" in e.reason for e in averaged.report.entries)
    spikes = convert(model, timesteps=4, rho=4, max_pool="spike", example_input=x)
    assert spikes(x).shape == network(x).shape


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 1), nn.Linear(16, 8)
        self.acts, self.head = nn.ModuleList(QCFS(4, 1.0) for _ in range(3)), nn.Linear(8, 2)

    def forward(self, x):
        h = self.acts[1](self.b(self.acts[0](self.a(x))))
        h = TF.max_pool1d(h, h.size(2)).squeeze(2)
        return self.head(self.acts[2](self.c(h)))


def test_pointnet():
    torch.manual_seed(0)
    model, x = PointNet().double().eval(), torch.randn(3, 3, 11).double()
    network = convert(
        model, timesteps=4, rho=4, iterations=None, max_pool="before", example_input=x
    )
    assert torch.allclose(network.rate(x), model(x), atol=1e-9)
    other = torch.randn(2, 3, 7).double()  # clouds of another size
    assert torch.allclose(network.rate(other), model(other), atol=1e-9)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda h: torch.max(h, 2)[1].float(), "no rule converts"),
        (lambda h: torch.max(h, 0)[0], "may be the batch"),
        (lambda h: h.amax((0, 2)), "may be the batch"),
        (lambda h: torch.max(h, h * 0.5), "no rule converts"),
        (lambda h: h.max() + h, "no rule converts"),
    ],
)
def test_other_maxima_are_refused(function, words):
    model = Wrapped(lambda m, x: function(m.act(m.conv(x))).flatten(1))
    for choice in ("before", "spike"):
        with pytest.raises(ConversionError, match=words):
            convert(model, timesteps=4, rho=4, max_pool=choice)


def test_thresholds_along_what_is_pooled_are_refused():
    model = Wrapped(lambda m, x: m.relu(m.conv(x)).amax(1).flatten(1), relu=nn.ReLU())
    channels = torch.linspace(0.5, 1.5, 4).view(4, 1, 1)
    options = {"timesteps": 4, "rho": 4, "max_pool": "before", "example_input": IMAGES}
    with pytest.raises(ConversionError, match="one threshold for all positions"):
        convert(model, thresholds={"relu": channels}, **options)
    convert(model, thresholds={"relu": 1.0}, **options)


@pytest.mark.parametrize("static", [True, False], ids=["of the image", "of spikes"])
def test_a_pooling_of_a_pooling_that_others_read_too(static):
    """As GoogLeNet has it."""

    def forward(m, x):
        h = m.conv(x) if static else m.second(m.act(m.conv(x)))
        h = TF.max_pool2d(m.two(h), 3, 2, ceil_mode=True)
        again = m.four(m.third(TF.max_pool2d(h, 3, 1, 1)))
        return m.out(torch.cat([m.three(m.third(h)), again], 1).flatten(1))

    convolutions = {name: nn.Conv2d(4, 4, 3, padding=1) for name in ("second", "third")}
    acts = {name: QCFS(4, theta) for name, theta in (("two", 0.5), ("three", 0.25), ("four", 0.75))}
    torch.manual_seed(0)
    model = Wrapped(forward, **convolutions, **acts, out=nn.Linear(72, 3))
    network = lossless(model, max_pool="before")
    moved = {e.reason for e in network.report.entries if e.status == "moved"}
    assert moved == {"before the neurons of two"}
    lossless(model, max_pool="before", emission="even", execution="counts")


def test_a_pooling_that_is_before_neurons_already():
    def forward(m, x):
        h = m.act(m.conv(x))
        h = m.two(TF.max_pool2d(m.second(h), 2))
        return m.out(h.flatten(1))

    layers = {"second": nn.Conv2d(4, 4, 3, padding=1), "two": QCFS(4, 1.0), "out": nn.Linear(36, 3)}
    torch.manual_seed(0)
    model = Wrapped(forward, **layers)
    network = lossless(model, max_pool="before")
    (entry,) = (e for e in network.report.entries if "of currents" in e.reason)
    assert entry.status == "kept" and "two" in entry.reason
    network.rho = 8
    network.timesteps = 8
    lossless(model, max_pool="before", emission="even", execution="counts")
    lossless(model, max_pool="before", fuse=False)
    # A sum in between.
    summed = Wrapped(
        lambda m, x: forward(m, x) + m.out(m.act(x).mean(3).flatten(1).repeat(1, 6)), **layers
    )
    del summed
