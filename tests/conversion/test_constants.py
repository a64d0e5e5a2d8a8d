"""Constants that meet spikes, maxima over whole dimensions, and whose memory an output is."""

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
    "einsum left": lambda m, h: torch.einsum("nm,bcmk->bcnk", m.left, h),
    "einsum right": lambda m, h: torch.einsum("bcnk, km -> bcnm", h, m.right),
    "einsum both": lambda m, h: torch.einsum("nm,bcmk,kl->bcnl", m.left, h, m.right),
    "einsum by channel": lambda m, h: torch.einsum("bcmk,cnm->bcnk", [h, m.many]),
}


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
    with pytest.raises(ConversionError, match='choose max_pool="before"'):
        convert(model, timesteps=4, rho=4, example_input=IMAGES)
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


FRESH = {
    "GroupNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.GroupNorm(2, 4)}),
    "InstanceNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.InstanceNorm2d(4)}),
    "LayerNorm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.LayerNorm([4, 6, 6])}),
    "max pooling": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.MaxPool2d(3, 1, 1)}),
    "F.max_pool2d": (lambda m, x: TF.max_pool2d(m.conv(x), 3, 1, 1), {}),
    "average pooling": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.AvgPool2d(3, 1, 1)}),
    "cat": (lambda m, x: torch.cat([m.conv(x)[:, :2], m.conv(x)[:, 2:]], 1), {}),
    "slice": (lambda m, x: m.conv(torch.cat([x, x], 2))[:, :, :6], {}),
    "sigmoid": (lambda m, x: torch.sigmoid(m.conv(x)), {}),
    "exp": (lambda m, x: m.conv(x).exp(), {}),
    "cast": (lambda m, x: m.conv(x).to(torch.float64), {}),
    "split": (lambda m, x: torch.split(m.conv(torch.cat([x, x], 2)), 6, 2)[0], {}),
    "softmax": (lambda m, x: m.conv(x).softmax(1), {}),
}


@pytest.mark.parametrize("name", FRESH)
@pytest.mark.parametrize("write", ["relu", "add"])
def test_what_is_fresh_may_be_written_over(name, write):
    make, layers = FRESH[name]

    def forward(m, x):
        y = make(m, x)
        if write == "add":
            y += 0.25
            return m.head(m.act(y).flatten(1))
        return m.head(m.act(m.second(m.relu(y))).flatten(1))

    torch.manual_seed(0)
    layers = {**layers, "relu": nn.Identity(), "second": nn.Conv2d(4, 4, 3, padding=1)}
    lossless(Wrapped(forward, **layers))
    if write == "relu":
        layers["relu"] = nn.ReLU(inplace=True)
        model = Wrapped(forward, **layers).double()
        convert(model, timesteps=4, rho=4, thresholds={"relu": 1.0}, example_input=IMAGES.double())


def test_embeddings_are_fresh():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.relu, self.head = nn.Embedding(7, 5), nn.ReLU(True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.relu(self.words(x)).mean(1))

    x = torch.randint(0, 7, (2, 4))
    convert(Words(), timesteps=4, thresholds={"relu": 1.0}, example_input=x)
    convert(Words(), timesteps=4, thresholds={"relu": 1.0})


def test_a_skip_that_is_added_to_a_pooling():
    def forward(m, x):
        h = m.act(m.conv(x))
        y = m.pool(m.second(h))
        y += h
        return m.head(m.two(y).flatten(1))

    layers = {
        "second": nn.Conv2d(4, 4, 3, padding=1),
        "pool": nn.MaxPool2d(3, 1, 1),
        "two": QCFS(4, 1.0),
    }
    torch.manual_seed(0)
    lossless(Wrapped(forward, **layers), max_pool="before")


def test_what_others_read_is_still_refused():
    def forward(m, x):
        y = m.conv(x)
        z = y[:, :2]
        z += 1
        return m.head(m.act(y).flatten(1))

    with pytest.raises(ConversionError, match="others may read"):
        convert(Wrapped(forward), timesteps=4, rho=4)
    with pytest.raises(ConversionError, match="others may read"):
        convert(
            Wrapped(lambda m, x: m.head(m.act(torch.relu_(x.expand(-1, 4, -1, -1))).flatten(1))),
            timesteps=4,
            thresholds={"relu": 1.0},
        )


def test_the_report_of_energy_refuses_what_it_cannot_count():
    model = Linears(lambda m, x: head(m, m.act(m.conv(x)) @ m.right))
    network = convert(model, timesteps=4, rho=4, example_input=IMAGES)
    assert network.energy_report([IMAGES], progress=False).layers
    left = Linears(lambda m, x: head(m, m.left @ m.act(m.conv(x))))
    network = convert(left, timesteps=4, rho=4, example_input=IMAGES)
    with pytest.raises(ValueError, match="cannot be counted"):
        network.energy_report([IMAGES], progress=False)
