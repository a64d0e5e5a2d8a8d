"""Tensors that begin with pieces of samples, as windows of images do; functions that torch.fx.wrap
hides; what torch's encoder layers are written out as.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped, lossless

from cos_ext import ConversionError, calibrate_thresholds, convert
from cos_ext.conversion.attention import Attention, write_out
from cos_ext.conversion.facts import Facts


def halves(x):
    return x.reshape(-1, 2, 36)


def head(m, h):
    return m.head(h.reshape(-1, 144))


PIECES = {
    "of spikes": lambda h, static: halves(h) + halves(2 * h),
    "of spikes and static": lambda h, static: halves(h) - halves(static),
    "products": lambda h, static: halves(h) @ halves(h).transpose(1, 2) @ halves(static),
    "attention": lambda h, static: TF.scaled_dot_product_attention(
        *[halves(h)] * 2, halves(static)
    ),
}


@pytest.mark.parametrize("function", PIECES.values(), ids=PIECES)
def test_pieces_of_the_same_samples_meet(function):
    def forward(self, x):
        static = self.conv(x)
        return head(self, function(self.act(static), static))

    network = lossless(Wrapped(forward))
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    singly = torch.cat([network.rate(each[None]) for each in x])
    torch.testing.assert_close(network.rate(x), singly)


STACKED = {
    "sum": lambda parts: torch.stack(parts).sum(dim=0),
    "mean": lambda parts: torch.mean(torch.stack(tuple(parts), 0), 0),
    "how many": lambda parts: torch.stack([parts[2] > 0, parts[2] > 0.1]).sum(0) + parts[0],
    "by name": lambda parts: torch.stack(dim=0, tensors=parts).sum(dim=[0], dtype=torch.float64),
}


@pytest.mark.parametrize("function", STACKED.values(), ids=STACKED)
def test_what_is_stacked_before_the_batch_and_summed_at_once(function):
    def forward(self, x):
        static = self.conv(x)
        h = self.act(static)
        return self.head(function([h, 2 * h, static]).flatten(1))

    lossless(Wrapped(forward))


def test_pieces_of_a_batch_that_was_moved_are_refused():
    def forward(self, x):
        static = self.conv(x)
        return head(self, halves(self.act(static)) + halves(static.transpose(0, 1)))

    with pytest.raises(ConversionError, match="depends on the other samples"):
        convert(Wrapped(forward), timesteps=2, example_input=IMAGES)


def test_what_is_known_of_pieces():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    spikes, moved, more = (graph.call_function(torch.neg, (x,)) for _ in range(3))
    shapes = {x: (2, 3), spikes: (4, 3), moved: (4, 3), more: (6, 3)}
    facts = Facts.of_example({node: torch.Size(shape) for node, shape in shapes.items()}, 2)
    facts.spiking |= {spikes, more}
    facts.outermost.add(x)
    assert facts.in_step([spikes]) and not facts.in_step([spikes, moved])
    assert not facts.in_step([spikes, more])
    facts.batched |= {x, moved}
    facts.keep_order(moved)
    assert facts.in_step([spikes, moved])


@torch.fx.wrap
def dropped(x, training):
    return x * 2 if training else x


def test_a_function_that_is_wrapped_is_seen_through():
    def forward(self, x):
        h = dropped(self.act(self.conv(x)), self.training)
        h += 1
        return self.head(h.flatten(1))

    network = lossless(Wrapped(forward))
    assert all(node.target is not dropped for node in network.module.graph.nodes)
    with pytest.raises(ConversionError, match="no rule converts this function"):
        convert(Wrapped(forward), timesteps=2)


def encoder(norm_first, layers=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu"
    )
    if not layers:
        return layer.double().eval()
    norm = nn.LayerNorm(8)
    return nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False).double().eval()


WORDS = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
def test_attention_of_encoder_layers_is_written_out(norm_first, layers):
    model = nn.Sequential(encoder(norm_first, layers), nn.Linear(8, 3).double())
    written = write_out(copy.deepcopy(model))
    attention = [m for m in written.modules() if isinstance(m, Attention)]
    assert len(attention) == max(layers, 1)
    sites = calibrate_thresholds(model, [WORDS], progress=False, spikes="inputs")
    options = {"thresholds": sites, "spikes": "inputs", "example_input": WORDS, "rho": 4}
    network = convert(model, timesteps=4, **options)  # which checks itself on the example
    # Two products of attention have four operands, of which one may come first; three layers.
    assert len(sites) >= 6 * max(layers, 1)
    assert network.rate(WORDS).shape == (3, 5, 3)


REPEATED = {
    "added": lambda line, x: line,
    "as often as there are samples": lambda line, x: line.expand(x.shape[0], -1),
    "by another name": lambda line, x: line.repeat(x.size(0), 1),
}


@pytest.mark.parametrize("repeated", REPEATED.values(), ids=REPEATED)
def test_layers_of_constants_have_no_neurons_before_them(repeated):
    def forward(self, x):
        bias = self.second(self.first(repeated(self.line, x)))
        return self.head(self.second(self.conv(x)).flatten(1) + bias.repeat(1, 24))

    model = Wrapped(forward, first=nn.Linear(6, 6), second=nn.Linear(6, 6))
    model.register_buffer("line", torch.linspace(-1, 1, 6)[None])
    sites = calibrate_thresholds(model, [IMAGES], progress=False, spikes="inputs")
    assert list(sites) == ["second_input", "head_input"]


class Normalised(nn.Module):
    """A BatchNorm whose forward is its own, of channels that have no variance."""

    def __init__(self):
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.zeros(4))

    def forward(self, x):
        return TF.batch_norm(x, self.running_mean, self.running_var, eps=self.eps) / 1000


def test_a_variance_of_0_is_fine_beside_an_epsilon():
    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).flatten(1))

    lossless(Wrapped(forward, norm=Normalised()))
    with pytest.raises(ConversionError, match=r"1/sqrt\(norm.running_var"):
        model = Wrapped(forward, norm=Normalised())
        model.norm.running_var -= 1
        convert(model, timesteps=2, example_input=IMAGES)
