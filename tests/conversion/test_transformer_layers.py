"""torch's own transformer layers, which are traced into: what they compute, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

from cos_ext import ConversionError, calibrate_thresholds, convert, load_network

pytestmark = pytest.mark.usefixtures("one_thread")
T = 4
X, Y = (
    torch.rand(3, n, 8, dtype=torch.float64, generator=torch.manual_seed(n)) - 0.4 for n in (6, 5)
)


def layer(kind=nn.TransformerEncoderLayer, batch_first=True, **options):
    return kind(8, 2, 16, batch_first=batch_first, **options)


class Model(nn.Module):
    """Layers between two Linear."""

    def __init__(self, middle, **options):
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(8, 8), middle, nn.Linear(8, 3)
        self.options = options

    def forward(self, x):
        return self.head(self.middle(self.stem(x), **self.options).mean(1))


class Crossed(Model):
    def forward(self, x, y):
        return self.head(self.middle(self.stem(x), y).mean(1))


class Masked(Model):
    """With a mask for as many tokens as x has."""

    def __init__(self, middle, mask, name, **options):
        super().__init__(middle, **options)
        self.register_buffer("mask", mask)
        self.name = name

    def forward(self, x):
        mask = self.mask[: x.shape[1], : x.shape[1]]
        return self.head(self.middle(self.stem(x), **{self.name: mask}, **self.options).mean(1))


class Shown(nn.Module):
    """A layer of attention that gives its weights, too."""

    def __init__(self):
        super().__init__()
        self.attention, self.linear1 = nn.MultiheadAttention(8, 2, batch_first=True), head()
        self.activation = nn.ReLU()

    def forward(self, x, attn_mask):
        x = self.activation(self.linear1(x))
        mixed, weights = self.attention(x, x, x, attn_mask=attn_mask)
        return torch.cat([mixed, weights], -1)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
BARRED = torch.ones(9, 9).triu(2).bool()


class Own(nn.TransformerEncoderLayer):
    """A layer of a class of the user's."""


def head():
    return nn.Linear(8, 8)


def wide(model):
    model.head = nn.Linear(8 + X.shape[1], 3)
    return model


MODELS = {
    "layer": lambda: Model(layer()),
    "norm first": lambda: Model(layer(norm_first=True)),
    "without bias": lambda: Model(layer(bias=False)),
    "a class of the user's": lambda: Model(layer(Own)),
    "encoder": lambda: Model(
        nn.TransformerEncoder(layer(), 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    ),
    "decoder": lambda: Crossed(nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 2)),
    "encoder, causal": lambda: Masked(
        nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False), CAUSAL, "mask"
    ),
    "layer, causal": lambda: Masked(layer(), CAUSAL, "src_mask", is_causal=True),
    "layer, barred": lambda: Masked(layer(), BARRED, "src_mask"),
    "weights, added": lambda: wide(Masked(Shown(), CAUSAL.clamp(-2, 0), "attn_mask")),
    "weights, barred": lambda: wide(Masked(Shown(), BARRED, "attn_mask")),
    "both": lambda: Crossed(nn.Transformer(8, 2, 1, 1, 16, batch_first=True)),
}


def made(name):
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    return model, (X, Y) if isinstance(model, Crossed) else (X,)


class Staircase(nn.Module):
    """max(x, 0) in T levels of θ / T."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, x):
        return (x * T / self.theta + 0.5).floor().clamp(0, T) * self.theta / T


@pytest.mark.parametrize("name", MODELS)
def test_what_is_quantised_is_what_the_network_computes(name):
    model, inputs = made(name)
    thresholds = calibrate_thresholds(model, [inputs], progress=False)
    network = convert(
        model, timesteps=T, rho=T, iterations=None, thresholds=thresholds, example_input=inputs
    )
    twin, thetas = copy.deepcopy(model), iter(thresholds.values())
    for module in twin.modules():
        if isinstance(getattr(module, "linear1", None), nn.Linear):
            module.activation = Staircase(next(thetas))
            module.activation_relu_or_gelu = 0  # torch's fast path has an activation of its own
    assert next(thetas, None) is None
    with torch.no_grad():
        expected = twin(*inputs)
    torch.testing.assert_close(network(*inputs).mean(0), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, model(*inputs), atol=1e-3)


@pytest.mark.parametrize("name", ["layer", "layer, causal", "layer, barred"])
def test_signed_neurons_stand_inside_of_a_layer(name):
    model, inputs = made(name)
    thresholds = calibrate_thresholds(model, [inputs], spikes="inputs", progress=False)
    attention = "middle.self_attn"
    product = f"{attention}.scaled_dot_product_attention"
    assert list(thresholds) == [
        f"{attention}.query_input",
        *(f"{product}_{which}" for which in ("first", "second", "third")),
        f"{attention}.out_proj_input",
        "middle.linear1_input",
        "middle.linear2_input",
        "head_input",
    ]
    options = {"thresholds": thresholds, "spikes": "inputs", "example_input": inputs}
    network = convert(model, timesteps=256, rho=256, iterations=None, **options)
    torch.testing.assert_close(network.rate(*inputs), model(*inputs), rtol=0, atol=0.01)


def test_a_mask_with_infinity_is_loaded(tmp_path):
    model, inputs = made("encoder, causal")
    thresholds = calibrate_thresholds(model, [inputs], progress=False)
    network = convert(model, timesteps=T, thresholds=thresholds, example_input=inputs)
    network.save(tmp_path / "snn")
    again = load_network(tmp_path / "snn", model, example_input=inputs)
    assert torch.equal(again(*inputs), network(*inputs))


def test_gelu_of_a_layer_is_an_activation():
    model = Model(layer(activation=TF.gelu)).double()
    assert list(calibrate_thresholds(model, [X], progress=False)) == ["middle.gelu_spikes"]


def test_layers_without_the_batch_in_front_are_refused():
    model = Model(layer(batch_first=False)).double()
    with pytest.raises(ConversionError, match="depends on the other samples of the batch"):
        convert(model, timesteps=T, thresholds={"middle.relu": 1.0}, example_input=X)


def test_without_an_example_its_shapes_are_asked_for():
    with pytest.raises(ConversionError, match="pass example_input"):
        convert(made("layer")[0], timesteps=T, thresholds={"middle.relu": 1.0})


class OfTheBatch(nn.Module):
    """Attention to the other samples of a batch [B, E], before or after an activation."""

    def __init__(self, first, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.need_weights = first, need_weights
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def mixed(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]

    def forward(self, x):
        x = self.stem(self.mixed(x)) if self.first else self.stem(x)
        x = torch.relu(x)
        return self.head(x if self.first else self.mixed(x))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_without_a_batch_is_that_of_torch(need_weights):
    x, model = X[0], OfTheBatch(True, need_weights).double()
    thresholds = calibrate_thresholds(model, [x], progress=False)
    reached = torch.relu(model.stem(model.mixed(x))).max()
    torch.testing.assert_close(thresholds["relu"], reached.detach())
    network = convert(model, timesteps=T, rho=T, iterations=None, thresholds=thresholds)
    staircase = Staircase(thresholds["relu"])
    expected = model.head(staircase(model.stem(model.mixed(x)))).detach()
    torch.testing.assert_close(network(x).mean(0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("example", [None, X[0]])
def test_attention_to_other_samples_that_spike_is_refused(need_weights, example):
    model = OfTheBatch(False, need_weights).double()
    thresholds = calibrate_thresholds(model, [X[0]], progress=False)
    with pytest.raises(ConversionError):
        convert(model, timesteps=T, thresholds=thresholds, example_input=example)
