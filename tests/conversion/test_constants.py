"""Constants that meet spikes: products, and what is made for every sample."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped, lossless

from cos_ext import QCFS, ConversionError, convert

torch.manual_seed(0)
LEFT, RIGHT, MANY = torch.randn(6, 6), torch.randn(6, 6), torch.randn(4, 6, 6)


class Linears(Wrapped):
    """With constants: parameters, buffers, and what is computed from them."""

    def __init__(self, forward, **layers):
        torch.manual_seed(0)
        super().__init__(forward, **layers)
        self.register_buffer("left", LEFT.clone())
        self.right = nn.Parameter(RIGHT.clone())
        self.register_buffer("many", MANY.clone())
        self.register_buffer("line", torch.linspace(-1, 1, 6))
        self.register_buffer("waves", torch.complex(MANY[..., :4], -MANY[..., 2:]))


def head(m, h):
    return m.head(h.flatten(1))


PRODUCTS = {
    "A @ h": lambda m, h: m.left @ h,
    "h @ W": lambda m, h: h @ m.right,
    "A @ h @ W": lambda m, h: m.left @ h @ m.right,
    "matmul": lambda m, h: torch.matmul(m.left, h),
    "computed": lambda m, h: m.left.softmax(-1).t() @ h,
    "by channel": lambda m, h: m.many @ h,
    "h by channel": lambda m, h: h @ m.many,
    "a batch of one": lambda m, h: m.many[None] @ h,
    "vector": lambda m, h: (m.line @ h).unsqueeze(2).expand(-1, 4, 6, 6),
    "addmm": lambda m, h: torch.addmm(m.line, h.reshape(-1, 6), m.right).view(-1, 4, 6, 6),
    "turned": lambda m, h: (m.left @ h.mT).mT,
    "Fourier, lines": lambda m, h: torch.fft.fft(h).real - torch.fft.ifft(h, dim=1).imag,
    "Fourier, planes": lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h) * m.waves, s=(6, 6)),
    "Fourier, spaces": lambda m, h: torch.fft.ifftn(torch.fft.fftn(h, dim=(1, 2)), dim=(2,)).real,
    "einsum left": lambda m, h: torch.einsum("nm,bcmk->bcnk", m.left, h),
    "einsum right": lambda m, h: torch.einsum("bcnk, km -> bcnm", h, m.right),
    "einsum both": lambda m, h: torch.einsum("nm,bcmk,kl->bcnl", m.left, h, m.right),
    "einsum by channel": lambda m, h: torch.einsum("bcmk,cnm->bcnk", [h, m.many]),
}


def test_what_addmm_multiplies_counts_as_work():
    model = Linears(lambda m, x: head(m, PRODUCTS["addmm"](m, m.act(m.conv(x)))))
    behind = 4 * 6 * 6 * 6 + model.head.weight.numel()
    first = model.conv.weight.numel() * 6 * 6
    network = convert(model, timesteps=4, example_input=IMAGES[:2])
    assert network.report.behind == pytest.approx(behind / (behind + first))


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("execution", ["steps", "counts"])
def test_products_with_constants_are_linear(product, execution):
    model = Linears(lambda m, x: head(m, m.two(product(m, m.act(m.conv(x))))), two=QCFS(4, 1.0))
    options = {} if execution == "steps" else {"emission": "even", "execution": "counts"}
    network = lossless(model, **options)
    x = IMAGES.double()
    network.memory_limit = network.activation_bytes(x) - 8
    split = network(x)
    network.memory_limit = None
    assert torch.allclose(split, network(x), atol=1e-12)


REFUSED = {
    "two spiking": (lambda m, h: h @ h.transpose(2, 3), "both depend on the model's input"),
    "over the batch": (
        lambda m, h: torch.einsum("bcmk,bn->cmkn", h, m.left[:2, :4]),
        "dimension of",
    ),
    "all that is there": (lambda m, h: torch.fft.fftn(h).real, "dim .None. may be the batch"),
    "waves over the batch": (lambda m, h: torch.fft.fft(h, dim=0).real, "may be the batch"),
    "the batch turned": (lambda m, h: h.T, "no rule converts the attribute T"),
    "the batch last": (lambda m, h: torch.einsum("bcmk->cmkb", h), "dimension of its own"),
    "matrices for the batch": (
        lambda m, h: m.many[:2].unsqueeze(1) @ h,
        "or multiplies it by matrices of its own",
    ),
    "an ellipsis": (lambda m, h: torch.einsum("nm,...mk->...nk", m.left, h), "write all letters"),
    "two spiking in einsum": (lambda m, h: torch.einsum("bcmk,bcnk->bcmn", h, h), "both depend"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_products_are_refused(name):
    product, words = REFUSED[name]
    model = Linears(lambda m, x: product(m, m.act(m.conv(x))))
    with pytest.raises(ConversionError, match=words):
        convert(model, timesteps=4, rho=4, nonlinear="error")
    if not name.startswith("two spiking"):
        with pytest.raises(ConversionError, match=words):
            convert(model, timesteps=4, rho=4)


def test_a_product_with_the_batch_alone_is_refused():
    model = Linears(lambda m, x: m.left[:2, :2] @ head(m, m.act(m.conv(x))))
    with pytest.raises(ConversionError, match="sums over the batch"):
        convert(model, timesteps=4, rho=4)


EXPANDED = {
    "expand": lambda m, h: m.line.expand(h.shape[0], 1, 6, 6),
    "expand a list": lambda m, h: m.line.expand((h.size(0), 1, 6, 6)),
    "unpacked": lambda m, h: (lambda b, c, y, x: m.line.expand(b, 1, y, x))(*sizes(h)),
    "repeat": lambda m, h: m.line.repeat(h.size(0), 1, 6, 1),
    "zeros": lambda m, h: torch.zeros((h.size(0), 1, 6, 6), dtype=torch.float64) + 0.5,
    "ones": lambda m, h: torch.ones((h.size(0), 1, 6, 6), dtype=torch.float64),
    "new_ones": lambda m, h: h.new_ones(h.size(0), 1, 6, 6),
    "linspace": lambda m, h: torch.linspace(-1, 1, h.size(3), dtype=torch.float64).expand(
        h.size(0), 1, 6, 6
    ),
}


def sizes(h):
    b, c, y, x = h.shape
    return b, c, y, x


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", EXPANDED)
def test_constants_for_every_sample_follow_the_folded_batch(name, example):
    made = EXPANDED[name]

    def forward(m, x):
        h = m.act(m.conv(x))
        return head(m, m.two(m.five(torch.cat([h, made(m, h)], 1))))

    layers = {"five": nn.Conv2d(5, 4, 3, padding=1), "two": QCFS(4, 1.0)}
    model = Linears(forward, **layers)
    network = lossless(model)
    if not example:
        network = convert(model, timesteps=4, rho=4, iterations=None)
        with torch.no_grad():
            expected = model(IMAGES.double())
        assert torch.allclose(network.rate(IMAGES.double()), expected, atol=1e-9)
    three = torch.rand(3, 1, 6, 6).double()
    with torch.no_grad():
        assert torch.allclose(network.rate(three), model(three), atol=1e-9)
    by_counts = convert(
        model,
        timesteps=4,
        rho=4,
        emission="even",
        execution="counts",
        example_input=IMAGES.double(),
    )
    assert torch.allclose(by_counts.rate(three), network.rate(three), atol=1e-9)
    network.memory_limit = network.activation_bytes(three) - 8
    assert torch.allclose(network(three).mean(0), model(three), atol=1e-9)


@pytest.mark.parametrize("operation", [torch.mul, torch.div, torch.add])
def test_a_constant_for_every_sample_is_a_factor(operation):
    def forward(m, x):
        h = m.act(m.conv(x))
        return head(m, m.two(operation(h, (m.line + 3).expand(h.size(0), 4, 6, 6))))

    lossless(Linears(forward, two=QCFS(4, 1.0)))


def test_a_token_after_neurons():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.token = (
                nn.Linear(5, 8),
                QCFS(4, 1.0),
                nn.Parameter(torch.randn(8)),
            )
            self.b, self.out, self.head = nn.Linear(8, 8), QCFS(4, 1.0), nn.Linear(8, 3)

        def forward(self, x):
            h = self.act(self.a(x))
            token = self.token.expand(h.shape[0], 1, 8)
            return self.head(self.out(self.b(torch.cat([token, h], 1))).mean(1))

    torch.manual_seed(0)
    model, x = Token().eval(), torch.randn(3, 4, 5)
    for example in (None, x):
        network = convert(model, timesteps=4, rho=4, iterations=None, example_input=example)
        assert torch.allclose(network.rate(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda m, h: m.line.expand(h.size(0) // 1, 1, 6, h.size(0)), "size of the batch|computed"),
        (lambda m, h: h.repeat(1, 1), "may repeat the batch"),
    ],
)
def test_other_repeats_are_refused(make, words):
    model = Linears(lambda m, x: head(m, torch.cat([(h := m.act(m.conv(x))), make(m, h)], 1)))
    with pytest.raises(ConversionError, match=words):
        convert(model, timesteps=4, rho=4)


def test_rectifiers_of_constants_are_no_neurons():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.head = nn.Linear(5, 8), QCFS(4, 1.0), nn.Linear(8, 3)
            self.scale, self.relu = nn.Parameter(torch.randn(8)), nn.ReLU()
            self.register_buffer("table", torch.randn(8))

        def forward(self, x):
            h = self.act(self.a(x)) * TF.relu(self.scale)
            return self.head(h * self.relu(self.table) + self.table.clamp(0, 1))

    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(4, 5)
    for example in (None, x):
        network = convert(model, timesteps=4, rho=4, iterations=None, example_input=example)
        assert list(network.nodes()) == ["act"]
        assert torch.allclose(network.rate(x), model(x), atol=1e-5)
    reasons = [e.reason for e in network.report.entries if "constants" in e.reason]
    assert len(reasons) == 3


def test_the_report_of_energy_counts_products_with_constants():
    model = Linears(lambda m, x: head(m, m.act(m.conv(x)) @ m.right))
    network = convert(model, timesteps=4, rho=4, example_input=IMAGES)
    counted = network.energy_report([IMAGES], progress=False)
    plain = convert(
        model, timesteps=4, rho=4, example_input=IMAGES, memory_format=torch.contiguous_format
    )
    assert counted.layers == plain.energy_report([IMAGES], progress=False).layers
    left = Linears(lambda m, x: head(m, m.left @ m.act(m.conv(x))))
    network = convert(left, timesteps=4, rho=4, example_input=IMAGES)
    assert "spikes" in {e.input for e in network.energy_report([IMAGES], progress=False).layers}


LIKE = {
    "expand_as": lambda h, scale: h + scale.expand_as(h),
    "ones_like": lambda h, scale: h + torch.ones_like(h),
    "zeros_like": lambda h, scale: torch.cat([h, torch.zeros_like(h)], 3)[..., :6],
}


@pytest.mark.parametrize("function", LIKE.values(), ids=LIKE)
def test_constants_in_the_shape_of_spikes(function):
    scale = nn.Linear(6, 1, bias=False)

    def forward(self, x):
        return self.head(function(self.act(self.conv(x)), self.scale.weight).flatten(1))

    lossless(Wrapped(forward, scale=scale))


def test_a_matrix_product_by_its_other_name():
    def forward(self, x):
        return self.head(self.act(self.conv(x)).flatten(1)).mm(self.scale.weight)

    lossless(Wrapped(forward, scale=nn.Linear(5, 3, bias=False)))


def test_spikes_are_repeated_within_samples_alone():
    def forward(self, x):
        h = self.act(self.conv(x))
        return self.head((h.mean((2, 3), keepdim=True).expand_as(h) + h).flatten(1))

    lossless(Wrapped(forward))

    def flat(self, x):
        h = self.act(self.conv(x)).flatten(1, 2)
        return self.head((h.mean(2, keepdim=True).expand_as(h) + h).flatten(1))

    lossless(Wrapped(flat))
    with pytest.raises(ConversionError, match="may repeat the batch"):
        convert(Wrapped(flat), timesteps=2)  # how many dimensions there are is not known
