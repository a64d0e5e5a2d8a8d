"""What is not affine between neurons, as differences on running means: against a plain loop, in
every way to run a network.
"""

import functools

import pytest
import torch
from differences import NETS, Net, X, image, made, net, plain, tokens
from torch import nn
from torch.nn import functional as TF
from untraced import untraced

import cos_ext
from cos_ext import QCFS, ConversionError
from cos_ext.network.modules import Walked

pytestmark = pytest.mark.usefixtures("one_thread")
convert = functools.partial(cos_ext.convert, spikes="rectifiers")  # GELU and others have none
NEAR = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_step_is_that_of_a_plain_loop(name):
    model = net(name)
    network = made(model, timesteps=7, example_input=X)
    torch.testing.assert_close(network(X), plain(model, X, 7), **NEAR)
    assert "difference" in {entry.status for entry in network.report.entries}


class Looks(Net):
    """torch.fx fails on it; a run does not."""

    def forward(self, x):
        if x.shape[-1] != 6:
            raise ValueError("6 columns")
        return super().forward(x)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_step_where_the_model_is_traced_by_running_it(name):
    model = net(name)
    model.__class__ = Looks
    network = made(model, timesteps=3, example_input=X)
    assert network.options["ran_on"]
    torch.testing.assert_close(network(X), plain(model, X, 3), **NEAR)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_mean_is_the_models_output_by_steps_and_by_counts(name):
    """At T = rho = L the neurons' means are the activations."""
    model = net(name)
    options = {"iterations": None, "emission": "even", "example_input": X}
    network = made(model, timesteps=4, rho=4, **options)
    by_steps = network(X)
    torch.testing.assert_close(by_steps.mean(0), model(X), **NEAR)
    network.execution = "counts"
    torch.testing.assert_close(network(X), by_steps, **NEAR)


@pytest.mark.parametrize("name", NETS)
def test_every_difference_is_refused_by_name_where_asked(name):
    model = net(name)
    report = made(model, timesteps=4, example_input=X).report
    found = {(e.site, e.kind) for e in report.entries if e.status == "difference"}
    assert found and all(
        "running means" in e.reason for e in report.entries if e.status == "difference"
    )
    with pytest.raises(ConversionError) as caught:
        made(model, timesteps=4, example_input=X, nonlinear="error")
    offenders = caught.value.report.unsupported()  # without what follows from them
    assert offenders and {(e.site, e.kind) for e in offenders} <= found
    assert all("difference" in e.reason for e in offenders)


def test_the_share_behind_neurons_leaves_out_what_reads_means():
    model = net("GELU")  # conv, second by spikes, second on means, head
    report = made(model, timesteps=4, example_input=X).report
    conv, second, head = 36 * 36, 36 * 4 * 36, 432
    assert report.behind == pytest.approx((second + head) / (conv + 2 * second + head))


def writes_by_position(m, h, x):
    y = m.second(h)
    return TF.silu(y, True) + y


def writes_by_name(m, h, x):
    y = m.second(h)
    return TF.hardswish(y, inplace=True) + y


def module_writes(m, h, x):
    y = m.second(h)
    return m.f(y) + y


@pytest.mark.parametrize("function", [writes_by_position, writes_by_name, module_writes])
def test_writing_over_what_others_read_is_refused(function):
    model = Net(function, f=nn.Hardswish(inplace=True))
    with pytest.raises(ConversionError, match="in place on a tensor that others may read"):
        made(model, timesteps=4)


def root(h):
    return torch.sqrt(h.mean((1, 2, 3), keepdim=True) - 0.01)


def logarithm(h):
    return h.mean((1, 2, 3), keepdim=True).log()


def inverse(h):
    return 1 / h.mean((1, 2, 3), keepdim=True)


def test_samples_lead_after_products_without_an_example():
    """So that what follows may be reshaped by, or added to, what has the batch in front."""

    def product(m, h, x):
        t = tokens(h)
        both = torch.einsum("bci,bcj->bij", h.flatten(2)[:, :, :6], h.flatten(2)[:, :, :6])
        return h + (h.flatten(2) @ t).mean((1, 2), keepdim=True).unsqueeze(3) + both.unsqueeze(1)

    model = Net(product)
    network = made(model, timesteps=5)
    with torch.no_grad():
        torch.testing.assert_close(network(X), plain(model, X, 5), **NEAR)


def test_a_mask_that_could_meet_another_dimension_is_refused():
    def masked(m, h, x):
        t, mask = tokens(h).unsqueeze(1), m.skip(x).flatten(2)[:, :1].expand(-1, 36, -1)
        return image(TF.scaled_dot_product_attention(t, t, t, attn_mask=mask).squeeze(1))

    with pytest.raises(ConversionError, match="whose batch is not known to meet"):
        made(Net(masked), timesteps=4)


@pytest.mark.parametrize("function", [root, logarithm, inverse])
@pytest.mark.parametrize("execution", ["steps", "counts"])
def test_nan_and_infinity_are_shown_for_their_sample_alone(function, execution):
    model = Net(lambda m, h, x: h * 0.1 + function(h).clamp(-9, 9))
    with torch.no_grad():
        model.conv.weight.abs_()
        model.conv.bias.zero_()
    x = X + 0.5
    x[1] = 0  # which makes no spikes
    options = {"rho": 4, "emission": "even"} if execution == "counts" else {}
    network = made(model, timesteps=4, example_input=X + 0.5, **options)
    network.execution = execution
    out = network(x)
    if function is root:
        assert out[:, 1].isnan().all()
    assert torch.equal(out[:, [0, 2]], network(x[[0, 2]])) and out[:, [0, 2]].isfinite().all()
    unbound = Net(lambda m, h, x: h * 0.1 + function(h))
    unbound.load_state_dict(model.state_dict())
    network = made(unbound, timesteps=4, example_input=X + 0.5, **options)
    network.execution = execution
    out = network(x)
    assert out[:, 1].isnan().all()
    assert torch.equal(out[:, [0, 2]], network(x[[0, 2]])) and out[:, [0, 2]].isfinite().all()


def test_a_sample_once_infinite_stays_marked_in_portions():
    """Its neurons have kept the infinity, and could not tell."""
    model = Net(lambda m, h, x: h * 0.1 + logarithm(h))
    with torch.no_grad():
        model.conv.weight.abs_()
        model.conv.bias.zero_()
    x = X + 0.5
    x[1] = 0.04  # whose first spikes come late
    network = made(model, timesteps=40, example_input=X + 0.5)
    whole = network(x)
    assert whole[:, 1].isnan().all() and whole[:, 0].isfinite().all()
    running = network.begin(x)
    first, second = running.advance(20), running.advance(20)
    assert first[:, 1].isnan().all() and second[:, 1].isnan().all()
    torch.testing.assert_close(torch.cat([first, second])[:, 0], whole[:, 0], **NEAR)


class Walks(nn.Module):
    """Cannot be traced by torch.fx: it looks at the type of its input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), QCFS(4, 1.0)
        self.gelu, self.pool, self.norm = nn.GELU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4)
        self.spare = nn.SiLU()  # which nothing calls
        self.second, self.two, self.head = nn.Conv2d(4, 4, 3), QCFS(4, 0.7), nn.Linear(4, 3)

    def forward(self, x):
        untraced(x)
        h = self.pool(self.norm(self.gelu(self.act(self.conv(x)))))
        return self.head(self.two(self.second(h) + 0.3).flatten(1))


def test_recurrent_layers_are_not_walked():
    class Sequence(Walks):
        def __init__(self):
            super().__init__()
            self.over = nn.GRU(6, 6, batch_first=True)

        def forward(self, x):
            untraced(x)
            return self.over(self.act(self.conv(x)).flatten(1, 2))[0]

    with pytest.raises(ConversionError, match=r"over \(GRU\): gives several tensors"):
        made(Sequence().double().eval(), timesteps=4, example_input=X)


def test_a_model_that_is_walked(tmp_path):
    model = Walks().double().eval()
    network = made(model, timesteps=7, example_input=X)
    assert isinstance(network.module, Walked)
    statuses = {entry.site: entry.status for entry in network.report.entries}
    on_means = {site for site, status in statuses.items() if status == "difference"}
    assert on_means == {"gelu", "pool", "norm"} and statuses["spare"] == "unused"
    with torch.no_grad():
        torch.testing.assert_close(network(X), plain(model, X, 7), **NEAR)
        running = network.begin(X)
        portions = torch.cat([running.advance(steps) for steps in (2, 1, 4)])
        torch.testing.assert_close(portions, network(X), **NEAR)
    network.save(tmp_path / "file")
    loaded = cos_ext.load_network(tmp_path / "file", model, example_input=X)
    assert torch.equal(loaded(X), network(X))
    with pytest.raises(ConversionError) as caught:
        made(model, timesteps=4, example_input=X, nonlinear="error")
    offenders = {entry.site for entry in caught.value.report.unsupported()}
    assert offenders == {"gelu", "pool", "norm", "spare"}


def test_a_walked_module_that_is_called_twice_is_refused():
    class Twice(Walks):
        def forward(self, x):
            untraced(x)
            h = self.pool(self.gelu(self.gelu(self.act(self.conv(x)))))
            return self.head(self.two(self.second(h)).flatten(1))

    with pytest.raises(ConversionError, match=r"gelu \(GELU\).*not called once; give every call"):
        made(Twice().double().eval(), timesteps=4, example_input=X)


def test_a_gate_may_be_reshaped_before_it_scales():
    """It is no activation whose spikes a layer reads."""
    model = net("squeeze and excitation")
    report = convert(model, timesteps=4, example_input=X).report
    assert [e.status for e in report.entries if "sigmoid" in e.site] == ["difference"]
