"""Models in which a conversion can go wrong without a sound: each must be exact, or refused, with
and without an example.

The reference is quantised.py. What converts in everyday networks is in test_zoo.py, the single
rules are in test_convert.py and test_refusals.py.
"""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch
from quantised import LEVELS, Quantised, thresholds_of
from torch import nn
from torch.nn import functional as TF
from untraced import untraced

from cos_ext import ConversionError, convert
from cos_ext.conversion.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def conv(a=3, b=8):
    return nn.Conv2d(a, b, 3, padding=1)


class Model(nn.Module):
    """Layers by name and a forward."""

    def __init__(self, function, **layers):
        super().__init__()
        self.c1, self.c2, self.relu, self.fc = conv(), conv(8, 8), nn.ReLU(), nn.Linear(8, 5)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, x)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


class Untraceable(Model):
    def forward(self, x):
        untraced(x)
        return self.function(self, x)


def build(function, cls=Model, **layers):
    torch.manual_seed(4)
    return cls(function, **layers).double().eval()


def exact(model, *, example, x=X, max_pool="before"):
    """The network's rate and the quantised model's output on x."""
    with torch.no_grad():
        thresholds = thresholds_of(model, (x,))
        network = convert(
            model,
            timesteps=LEVELS,
            rho=LEVELS,
            iterations=None,
            thresholds=thresholds,
            max_pool=max_pool,
            example_input=x[:2] if example else None,
        )
        with Quantised(thresholds.values()):
            expected = copy.deepcopy(model)(x.clone())
        torch.testing.assert_close(network.rate(x), expected, rtol=1e-7, atol=1e-7)
    return network


def shared_pool(m, x):
    x = m.pool(TF.relu(m.c1(x)))
    return m.head(m.pool(TF.relu(m.c2(x))))


def shared_pool_static_first(m, x):
    return m.head(m.pool(TF.relu(m.c2(TF.relu(m.c1(m.pool(x)))))))


def tied_weights(m, x):
    h = m.relu(m.bn(m.c2(TF.relu(m.c1(x)))))
    return m.head(TF.conv_transpose2d(h, m.c2.weight, padding=1))


def manual_pool(m, x):
    y = m.relu(m.c1(x))
    return m.fc(y.sum((2, 3)) / (y.size(2) * y.size(3)))


def size_of_spiking(m, x):
    y = m.relu(m.c1(x)).mean((2, 3))
    return m.wide(torch.cat([y, x.view(y.size(0), -1)], 1))


def parameter_sizes(m, x):
    y = m.relu(m.c1(x)).view(x.size(0), m.c1.weight.shape[0], -1)
    return m.fc(y.mean(2))


def unused_activation(m, x):
    y = m.relu(m.c1(x))
    TF.relu(m.c2(y))
    return m.head(y)


def u_net_with_one_relu(m, x):
    x = m.relu(m.c1(x))
    skip = m.relu(m.c2(x))
    y = TF.interpolate(m.pool(skip), scale_factor=2.0)
    return m.head(m.relu(m.join(torch.cat([y, skip], 1))))


def ellipsis_and_matmul(m, x):
    return m.fc((m.relu(m.c1(x))[..., 0].mean(2)) @ m.square)


def clone_then_in_place(m, x):
    x = x.clone().sub_(0.5)
    return m.head(m.relu(m.c1(x)))


def twice_in_place(m, x):
    y = m.c1(x)
    y *= 2
    return m.head(m.relu(y))


EXACT = {
    "one pool, two calls": (shared_pool, {"pool": nn.MaxPool2d(2)}),
    "one pool, the first static": (shared_pool_static_first, {"pool": nn.MaxPool2d(2)}),
    "tied weights": (tied_weights, {"bn": nn.BatchNorm2d(8)}),
    "manual pooling": (manual_pool, {}),
    "size of a spiking tensor": (size_of_spiking, {"wide": nn.Linear(8 + 192, 5)}),
    "sizes of parameters": (parameter_sizes, {}),
    "unused activation": (unused_activation, {}),
    "u-net with one relu": (u_net_with_one_relu, {"pool": nn.MaxPool2d(2), "join": conv(16, 8)}),
    "ellipsis and matmul": (ellipsis_and_matmul, {"square": nn.Parameter(torch.randn(8, 8) / 3)}),
    "in place on a clone": (clone_then_in_place, {}),
    "in place on what nobody else reads": (twice_in_place, {}),
}


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", list(EXACT))
def test_exact(name, example):
    function, layers = EXACT[name]
    model = build(function, **layers)
    if name == "unused activation":
        network = convert(
            model, timesteps=LEVELS, rho=LEVELS, iterations=None, thresholds={"relu": 0.9}
        )
        assert list(network.nodes()) == ["relu"]
        return
    if isinstance(getattr(model, "bn", None), nn.BatchNorm2d):
        model.bn.running_var.fill_(0.4)
        model.bn.running_mean.fill_(0.1)
    exact(model, example=example)


def test_a_functional_pool_does_not_take_the_place_of_a_module():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.max_pool2d, self.c = nn.MaxPool2d(3, 1, 1), conv(8, 8)

        def forward(self, x):
            return self.max_pool2d(TF.relu(self.c(TF.max_pool2d(x, 2))))

    exact(build(lambda m, x: m.head(m.block(m.relu(m.c1(x)))), block=Block()), example=False)


def test_defaults_of_forward_are_kept():
    class WithDefaults(Model):
        def forward(self, x, features=None, scale=2.0, *, flag=False):
            y = self.relu(self.c1(x)) * scale
            return self.head(y) if features is None and not flag else y

    class WithContainers(Model):
        def forward(self, x, factors=(2.0, 0.5), *, names={"relu": 1.5}):  # noqa: B006
            return self.head(self.relu(self.c1(x)) * factors[0] * names["relu"])

    class WithItsName(Model):
        def forward(self, factors_1, factors=(2.0, 0.5)):
            return self.head(self.relu(self.c1(factors_1)) * factors[1])

    for kind in (WithDefaults, WithContainers, WithItsName):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network = exact(build(None, kind), example=False)
        assert network(X).shape == (LEVELS, 8, 5)


def test_questions_for_types_need_an_example():
    class Asks(Model):
        def forward(self, x):
            return (
                self.head(self.relu(self.c1(x)))
                if isinstance(x, torch.Tensor)
                else self.head(self.c2(self.relu(self.c1(x))))
            )

    class AsksInVain(Model):
        def forward(self, x):
            parts = [x, x]
            return self.head(self.relu(self.c1(parts[0] if isinstance(parts, list) else parts)))

    with pytest.raises(ConversionError, match="Asks asks for types"):
        convert(build(None, Asks), timesteps=4, thresholds={"relu": 1.0})
    model = build(None, Asks)
    with torch.no_grad(), Quantised([1.0]):
        expected = copy.deepcopy(model)(X)
    options = {"timesteps": LEVELS, "rho": LEVELS, "iterations": None}
    network = convert(model, thresholds={"relu": 1.0}, example_input=X[:2], **options)
    torch.testing.assert_close(network.rate(X), expected, rtol=1e-7, atol=1e-7)
    exact(build(None, AsksInVain), example=True)


def discarded_in_place(m, x):
    y = m.c1(x)
    y.sub_(0.5)
    return m.head(m.relu(y))


def alias(m, x):
    y = m.c1(x)
    z = y
    y *= 2
    return m.head(m.relu(y)) + z.mean((1, 2, 3)).unsqueeze(1)


def in_place_function(m, x):
    y = m.c1(x)
    TF.silu(y, inplace=True)
    return m.head(m.relu(y))


def rank_mismatch(m, x):
    y = m.relu(m.c1(x))
    return m.fc(y.mean((2, 3)))[:, :4] + y.mean((1, 2, 3))


def parameter_with_a_batch(m, x):
    return m.fc(m.relu(m.c1(x)).mean((2, 3)) + m.q)


def parameter_of_higher_rank(m, x):
    return m.fc((m.relu(m.c1(x)).mean((2, 3)) * m.q).mean(1))


REFUSED = {
    "discarded in-place operation": (discarded_in_place, {}, "sub_.*in place"),
    "in-place operation on an alias": (alias, {}, "imul.*in place"),
    "in-place function": (in_place_function, {}, "silu.*in place"),
    "tensors of different rank": (rank_mismatch, {}, "dimensions: the batch of one meets"),
    "a parameter with a batch": (
        parameter_with_a_batch,
        {"q": nn.Parameter(torch.rand(8, 8))},
        "first dimension may meet the batch",
    ),
    "a parameter of higher rank": (
        parameter_of_higher_rank,
        {"q": nn.Parameter(torch.rand(8, 1, 8))},
        "may meet the batch",
    ),
    "the size of a spiking batch": (
        lambda m, x: (lambda y: m.fc(y + x.new_full((y.size(0), 8), 1.0)))(
            m.relu(m.c1(x)).mean((2, 3))
        ),
        {},
        "new_full.*size of the batch of a spiking",
    ),
    "a list as output": (
        lambda m, x: m.head(m.relu(m.c1(x))).chunk(2, 1),
        {},
        "list whose length is not known",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name):
    function, layers, message = REFUSED[name]
    model = build(function, **layers)
    with pytest.raises(ConversionError, match=message):
        convert(model, timesteps=4, thresholds={"relu": 1.0})


def tripled(module, args, out):
    return out * 3


@pytest.mark.parametrize("cls", [Model, Untraceable])
@pytest.mark.parametrize(
    "patch",
    [
        lambda m: m.register_forward_hook(tripled),
        lambda m: m.relu.register_forward_hook(tripled),
        lambda m: m.c1.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
        lambda m: setattr(
            m,
            "forward",
            types.MethodType(lambda self, x: self.head(self.relu(self.c1(x))).abs(), m),
        ),
        lambda m: setattr(
            m.relu, "forward", types.MethodType(lambda self, x: TF.leaky_relu(x, 0.3), m.relu)
        ),
        lambda m: setattr(
            m.c1,
            "forward",
            types.MethodType(lambda self, x: TF.conv2d(x, self.weight, padding=1).abs(), m.c1),
        ),
    ],
    ids=[
        "hook",
        "hook of a relu",
        "pre-hook",
        "forward",
        "forward of a relu",
        "forward of a convolution",
    ],
)
def test_hooks_and_patched_forwards_are_refused(patch, cls):
    model = build(lambda m, x: m.head(m.relu(m.c1(x))), cls)
    patch(model)
    with pytest.raises(ConversionError, match="hooks|patched forward|forward that was set"):
        convert(model, timesteps=4, thresholds={"relu": 1.0}, example_input=X[:2])


def squares(m, x):
    return m.head(m.relu2(m.c2(m.relu(m.c1(x)) ** 2)))


@pytest.mark.parametrize(
    "example, thresholds",
    [(X[:2], {"relu": 50.0, "relu2": 50.0}), (0 * X[:1], {"relu": 0.5, "relu2": 0.5})],
)
def test_an_example_that_exercises_nothing_vouches_for_nothing(example, thresholds):
    model = build(squares, Untraceable, relu2=nn.ReLU())
    with pytest.raises(ConversionError, match="is not the quantised ANN|does not exercise"):
        convert(model, timesteps=4, thresholds=thresholds, example_input=example)


def test_pooled_spikes_of_an_untraceable_model_are_checked():
    def forward(m, x):
        y = torch.sigmoid(m.c2(m.pool(m.relu(m.c1(x)))))
        return m.head(y * y)

    with pytest.raises(ConversionError, match="is not the quantised ANN"):
        convert(
            build(forward, Untraceable, pool=nn.MaxPool2d(2)),
            timesteps=4,
            thresholds={"relu": 1.0},
            max_pool="spike",
            example_input=X[:2],
        )


def test_control_flow_on_the_size_of_the_batch_is_noticed():
    limit = 3

    def forward(m, x):
        if x.shape[0] > limit:
            parts = x.split(2 if limit == 3 else 4)
            return torch.cat([m.head(m.relu(m.c1(part))) for part in parts])
        return m.head(m.relu(m.c1(x)))

    with pytest.raises(ConversionError, match="depends on the size of its batch"):
        convert(
            build(forward, Untraceable), timesteps=4, thresholds={"relu": 1.0}, example_input=X[:2]
        )
    limit = 16  # the example passes
    network = convert(
        build(forward, Untraceable), timesteps=4, thresholds={"relu": 1.0}, example_input=X[:2]
    )
    assert network(X[:2]).shape == (4, 2, 5)
    with pytest.raises(RuntimeError, match="depends on the size of its batch"):
        network(X)


def test_a_network_stays_in_eval_mode():
    model = build(lambda m, x: m.head(m.drop(m.relu(m.c1(x)))), drop=nn.Dropout(0.5))
    network = convert(model, timesteps=2, thresholds={"relu": 1.0})
    before = network(X)
    assert not network.train().training and torch.equal(network(X), before)


def test_call_sites_have_names_of_their_own():
    model = build(shared_pool, pool=nn.MaxPool2d(2))
    assert list(trace(model).sites) == ["relu_1", "relu_2"]  # `relu` is a module, here unused
    network = exact(model, example=True)
    assert [e.site for e in network.report.entries if e.status == "moved"] == ["pool", "pool_1"]
