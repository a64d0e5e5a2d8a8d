"""The memory format a network runs in, and the layout of its output: the ANN's."""

import copy
import pickle

import pytest
import torch
from torch import nn
from untraced import untraced

import cos_ext
from cos_ext import QCFS, convert
from cos_ext.network import memory

LAST, PLAIN = torch.channels_last, torch.contiguous_format


def is_last(x):
    return x.is_contiguous(memory_format=LAST)


class Dense(nn.Module):
    """Images to images."""

    def __init__(self):
        super().__init__()
        self.one, self.act = nn.Conv2d(3, 8, 3, padding=1), QCFS(4, 1.0)
        self.two, self.act2 = nn.Conv2d(8, 8, 3, padding=1, stride=2), QCFS(4, 1.0)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x):
        return self.up(self.act2(self.two(self.act(self.one(x)))))


class Views(nn.Module):
    """What a tensor in channels_last has no view for."""

    def __init__(self):
        super().__init__()
        self.one, self.act = nn.Conv2d(3, 8, 3, padding=1), QCFS(4, 1.0)
        self.two, self.act2 = nn.Conv2d(8, 8, 1), QCFS(4, 1.0)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x):
        h = self.one(x)
        y = h.view(size=(x.size(0), 2, 4 * 36)).view_as(h)  # once per image
        h = self.act(h + y)
        h = h.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)
        h = self.act2(self.two(h))
        return self.head(h.view(-1, 8 * 36))


class Bits(nn.Module):
    """A view of another dtype stays one."""

    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Conv2d(3, 8, 3), QCFS(4, 1.0), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.two(self.act(self.one(x.view(torch.int32).view(torch.float32))))


def exact(model):
    """Whole numbers for weights, so that sums are equal in any order."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randint(-2, 3, parameter.shape))
            elif parameter.dim() == 1:
                parameter.copy_(torch.randint(-1, 2, parameter.shape) / 4)
    return model


def images(batch=3, size=6):
    return torch.randint(0, 5, (batch, 3, size, size)) / 4


def layouts(network, x):
    """By convolution, whether its output was in channels_last."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: is_last(out)}))
        for name, module in network.module.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("execution", ["steps", "counts"])
@pytest.mark.parametrize("given", [PLAIN, LAST])
def test_it_runs_channels_last_from_the_first_convolution_on(given, execution):
    x = images().to(memory_format=given)
    settings = {"timesteps": 4, "rho": 4, "emission": "even", "execution": execution}
    model = exact(Dense())
    network = convert(model, **settings)
    assert layouts(network, x) == {"one": True, "two": True, "up": True}
    plain = convert(model, **settings, memory_format=PLAIN)
    assert torch.equal(network(x), plain(x)) and network(x).unique().numel() > 10
    assert not is_last(model.one.weight), "the model has been modified"


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_grey_images_run_in_the_networks_format(memory_format):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), QCFS(4, 1.0), nn.Conv2d(4, 5, 3))
    x = images()[:, :1]
    for given in (PLAIN, LAST):
        network = convert(model, timesteps=4, memory_format=memory_format)
        network.double().float()
        last = layouts(network, x.clone(memory_format=given))
        assert last["0"] == (memory_format == LAST or given == LAST)
        assert last["2"] == last["0"]


@pytest.mark.parametrize("limit", ["auto", None, "small"])
@pytest.mark.parametrize("given", [PLAIN, LAST])
@pytest.mark.parametrize("own", [PLAIN, LAST])
@pytest.mark.parametrize("memory_format", ["auto", PLAIN, LAST])
def test_the_output_has_the_anns_layout(memory_format, own, given, limit):
    model, x = Dense().to(memory_format=own), images().to(memory_format=given)
    network = convert(model, timesteps=2, memory_format=memory_format)
    if limit == "small":
        limit = network.activation_bytes(x[:1]) + 8 * x[:, :1].numel() * 4 * 2
    network.memory_limit = limit
    assert (memory.parts(network, (x,)) > 1) == (limit not in ("auto", None))
    out = network(x)
    for step in out:
        assert step.stride() == model(x).stride()


@pytest.mark.parametrize("example", [None, images()])
@pytest.mark.parametrize("model", [Views, Bits])
def test_views_run_in_any_layout(model, example):
    model = exact(model())
    network = convert(model, timesteps=4, rho=4, iterations=None, example_input=example)
    assert is_last(network.module.one.weight)
    plain = convert(model, timesteps=4, rho=4, iterations=None, memory_format=PLAIN)
    x = images(5)
    assert torch.equal(network(x), plain(x)) and network(x).unique().numel() > 4
    assert torch.allclose(network.rate(x), model(x), atol=1e-5)


def test_copies_and_files_keep_it(tmp_path):
    model, x = Dense(), images()
    for memory_format in ("auto", PLAIN, LAST):
        network = convert(model, timesteps=2, memory_format=memory_format)
        network.save(tmp_path / "network")
        for other in (
            copy.deepcopy(network),
            pickle.loads(pickle.dumps(network)),
            cos_ext.load_network(tmp_path / "network", Dense()),
        ):
            assert is_last(other.module.one.weight) == (memory_format is not PLAIN)
            assert other.options["memory_format"] == network.options["memory_format"]
            assert torch.equal(other(x), network(x))


@pytest.mark.parametrize(
    ("memory_format", "own", "elsewhere"),
    [("auto", PLAIN, False), ("auto", LAST, True), (PLAIN, LAST, False), (LAST, PLAIN, True)],
)
def test_auto_is_for_the_cpu(memory_format, own, elsewhere):
    model = Dense().to(memory_format=own)
    network = convert(model, timesteps=2, memory_format=memory_format)
    network.to("meta")
    assert is_last(network.module.two.weight) == elsewhere
    network.to_empty(device="cpu")
    assert is_last(network.module.two.weight) == (memory_format is not PLAIN)


def test_what_the_user_lays_out_stays():
    network = convert(Dense(), timesteps=2).to(memory_format=PLAIN)
    network.double().to("cpu")
    assert not is_last(network.module.two.weight)


def test_weights_that_are_shared_stay_shared():
    model = Dense()
    model.two = nn.Conv2d(8, 3, 3, padding=1)
    model.three, model.act3 = nn.Conv2d(3, 8, 3, padding=1), QCFS(4, 1.0)
    model.three.weight = model.one.weight

    class Shared(Dense):
        def forward(self, x):
            h = self.act2(self.two(self.act(self.one(x))))
            return self.up(self.act3(self.three(h)))

    model.__class__ = Shared
    network = convert(model, timesteps=2)
    assert network.module.one.weight is network.module.three.weight
    assert is_last(network.module.three.weight)


def test_a_model_that_cannot_be_traced_keeps_its_own():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.act, self.two = nn.Conv2d(3, 8, 3), QCFS(4, 1.0), nn.Linear(128, 4)

        def forward(self, x):
            untraced(x)
            return self.two(self.act(self.one(x)).view(-1, 128))

    network = convert(Asks(), timesteps=2, example_input=images())
    assert not is_last(network.module.model.one.weight)
    assert network(images()).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("memory_format", "error"),
    [
        (None, TypeError),
        (3, TypeError),
        ("channels_last", ValueError),
        (torch.channels_last_3d, ValueError),
        (torch.preserve_format, ValueError),
    ],
)
def test_other_formats_are_refused(memory_format, error):
    with pytest.raises(error, match='memory_format must be "auto", torch.contiguous_format or'):
        convert(Dense(), timesteps=2, memory_format=memory_format)
