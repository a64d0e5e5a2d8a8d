"""offset_spike_report against computations in plain torch from full tensors, and on real images.

What it prints, writes and refuses: test_offset_report.py.
"""

import copy

import pytest
import torch
from offset_network import SITES, STAGES, report_of, small
from torch import nn

from cos_ext import QCFS, convert, reference
from cos_ext.analysis.offsets import (
    OFFSETS,
    CountError,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    return torch.randn(40, 2, 6, 6, dtype=torch.float64)


def histogram(psi):
    return tuple(int((psi.clamp(-4, 4) == value).sum()) for value in OFFSETS)


def seen_in(ann, network, images):
    """Currents and spikes of the network's nodes [S, B, ...], inputs and outputs of the ANN's
    activations, by site.
    """
    steps = max(network.timesteps, network.rho)
    seen, hooks = {}, []
    for site, node in network.nodes().items():
        static = node.static_input

        def before(m, args, site=site, static=static):
            x = args[0].clone()
            seen["x", site] = (
                x.expand(steps, *x.shape) if static else x.unflatten(0, (steps, len(images)))
            )

        def after(m, args, out, site=site):
            seen["spikes", site] = out.clone().unflatten(0, (steps, len(images)))

        hooks += [node.register_forward_pre_hook(before), node.register_forward_hook(after)]
    ann = copy.deepcopy(ann)
    for site in SITES:
        activation = ann.get_submodule(site)
        hooks.append(
            activation.register_forward_pre_hook(
                lambda m, args, site=site: seen.update({("z", site): args[0].clone()})
            )
        )
        hooks.append(
            activation.register_forward_hook(
                lambda m, args, out, site=site: seen.update({("a", site): out.clone()})
            )
        )
    with torch.no_grad():
        network(images)
        ann(images)
    for hook in hooks:
        hook.remove()
    return seen


def counted(x_seq, theta, v):
    """Spikes of soft-reset neurons by the definition."""
    count = torch.zeros_like(x_seq[0])
    for x in x_seq:
        m = v + x
        fired = m >= theta
        v, count = m - theta * fired, count + fired
    return count


def check(layer, seen, theta, rho, z, a):
    x = seen["x", layer.site][:rho]
    desired = ((x.sum(0) + theta / 2) / theta).floor().clamp(0, rho)
    for stage, iterations in STAGES.items():
        start = reference.calibrate_v_init(x, theta, rho=rho, iterations=iterations).v_init
        assert layer.histograms[stage] == histogram(desired - counted(x, theta, start)), (
            layer.site,
            stage,
        )
        assert sum(layer.histograms[stage]) == layer.neurons == x[0].numel()
    # The input of act1 is the same at every step, which makes no offset spikes.
    assert (layer.histograms["before"][4] < layer.neurons) == (layer.site != "act1")
    count = counted(z.expand(rho, *z.shape), theta, theta / 2)
    wanted = (z * rho / theta + 0.5).floor().clamp(0, rho)
    assert layer.isolated.equal_share == (count == wanted).double().mean().item()
    assert layer.isolated.mean_error == pytest.approx(
        ((count - wanted).abs() / rho).mean().item(), abs=1e-12
    )
    count = (seen["spikes", layer.site][:rho] / theta).round().sum(0)
    wanted = (a * rho / theta + 0.5 + 1e-9).floor()
    assert layer.accumulated.equal_share == (count == wanted).double().mean().item()
    assert layer.accumulated.mean_error == pytest.approx(
        (count / rho - a / theta).abs().mean().item(), rel=1e-12
    )


@pytest.mark.parametrize(
    "timesteps, rho, iterations, activation",
    [
        (6, 4, 1, lambda: QCFS(4, 0.5)),
        (3, 6, None, lambda: QCFS(4, 0.5)),
        (5, 0, 1, lambda: QCFS(8, 0.5)),
        (3, 9, 0, lambda: nn.ReLU(inplace=True)),
    ],
)
def test_everything_equals_a_plain_computation_from_full_tensors(
    timesteps, rho, iterations, activation, images
):
    ann = small(activation=activation, pooled=False)
    thresholds = dict.fromkeys(SITES, 0.6) if isinstance(ann.act1, nn.ReLU) else None
    network = convert(
        ann, timesteps=timesteps, rho=rho, iterations=iterations, thresholds=thresholds
    )
    report = report_of(ann, network, [images])
    seen, steps = seen_in(ann, network, images), rho or timesteps
    assert (report.rho, report.samples, report.stages) == (steps, 40, tuple(STAGES))
    assert (report.network_timesteps, report.network_rho, report.network_iterations) == (
        timesteps,
        rho,
        iterations,
    )
    assert [layer.site for layer in report.layers] == list(SITES)
    for layer in report.layers:
        theta = network.nodes()[layer.site].v_threshold
        check(layer, seen, theta, steps, seen["z", layer.site], seen["a", layer.site])
        assert layer.histograms["exact"][4] == layer.neurons
    worst = max(abs(psi) for psi, count in zip(OFFSETS, report.total.histograms["before"]) if count)
    assert worst >= 2
    for hooked in (*network.modules(), *ann.modules()):
        assert not hooked._forward_hooks and not hooked._forward_pre_hooks


def test_offset_spikes_known_by_hand_are_in_their_columns():
    """θ = 1, 20 steps. Neurons A and B fire at t = 1, 3, 5, ... and 2, 4, 6, ..., C once, at t =
    17.

    The currents 10 (A - B) add up to 0, yet each 10 fires: 10 spikes too many. 8 C asks for 8, and
    4 steps remain.
    """
    ann = nn.Sequential(
        nn.Identity(), QCFS(20, 1.0), nn.Linear(3, 2, bias=False), QCFS(20, 1.0), nn.Linear(2, 1)
    )
    ann[2].weight.data = torch.tensor([[10.0, -10, 0], [0, 0, 8]])
    network = convert(ann.double(), timesteps=20, rho=20)
    report = report_of(
        ann, network, [torch.tensor([[0.5, 0.49, 0.03]], dtype=torch.float64)], iterations=7
    )
    assert report.layers[1].histograms == {
        "before": (1, 0, 0, 0, 0, 0, 0, 0, 1),
        "1 iteration": (1, 0, 0, 0, 0, 0, 0, 1, 0),
        "2 iterations": (1, 0, 0, 0, 0, 0, 1, 0, 0),
        "3 iterations": (1, 0, 0, 0, 0, 1, 0, 0, 0),
        **{f"{k} iterations": (1, 0, 0, 0, 1, 0, 0, 0, 0) for k in (4, 5, 6)},
        "7 iterations": (0, 1, 0, 0, 1, 0, 0, 0, 0),
        "exact": (0, 0, 0, 0, 2, 0, 0, 0, 0),
    }
    assert report.layers[1].shares("2 iterations") == (0, 0, 0.5, 0, 0.5)


def test_thresholds_per_channel_and_a_potential_other_than_half(images):
    ann = small(activation=nn.ReLU, pooled=False)
    thresholds = {
        "act1": torch.rand(6, 1, 1).double() + 0.3,
        "act2": torch.rand(6, 1, 1).double() + 0.3,
        "act3": 0.4,
    }
    network = convert(ann, timesteps=5, rho=5, thresholds=thresholds)
    report, seen = report_of(ann, network, [images]), seen_in(ann, network, images)
    for layer in report.layers:
        theta = network.nodes()[layer.site].v_threshold
        check(layer, seen, theta, 5, seen["z", layer.site], seen["a", layer.site])
    network.nodes()["act2"].v_init.zero_()
    shifted = report_of(ann, network, [images]).layers[1]
    assert shifted.isolated.equal_share < report.layers[1].isolated.equal_share


@pytest.mark.parametrize("rho", [3, 255, 300])
def test_halves_round_up_whatever_the_rounding_of_the_activation(rho):
    levels = torch.arange(2 * rho + 1)  # every second one is a half at rho levels
    for theta in (0.1, 0.3, 0.7, 1.1, 2.3, 5.9):
        ann = nn.Sequential(nn.Identity(), QCFS(2 * rho, theta), nn.Linear(len(levels), 1))
        network = convert(ann, timesteps=1, rho=rho)
        report = report_of(ann, network, [((levels + 0.1) * theta / (2 * rho))[None]])
        assert (
            report.layers[0].accumulated.equal_share == report.layers[0].isolated.equal_share == 1
        )
        assert report.layers[0].accumulated.mean_error == pytest.approx(
            rho / (2 * rho + 1) / (2 * rho), rel=1e-4
        )


@pytest.mark.parametrize("extra_reader", [True, False])
def test_max_pooling_moved_before_the_neurons_is_applied_to_the_ann_too(extra_reader, images):
    ann = small()
    if not extra_reader:
        ann = nn.Sequential(
            ann.first,
            ann.act1,
            nn.MaxPool2d(2),
            ann.second,
            ann.act2,
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(24, 3).double(),
        )
    network = convert(ann, timesteps=4, rho=4, iterations=None, max_pool="before")
    report = report_of(ann, network, [images])
    assert [layer.site for layer in report.layers] == list(network.nodes())
    if extra_reader:
        assert [layer.site for layer in report.layers] == ["act1", "act2", "act2_pool", "act3"]
        assert report.layers[2].neurons * 4 == report.layers[1].neurons
    # Exact, with rho = T = L: each layer has the ANN's counts, and pooled ones the largest of each
    # window.
    for layer in report.layers:
        assert (
            layer.accumulated == CountError(pytest.approx(0, abs=1e-12), 1.0) and layer.note == ""
        )


def test_neurons_without_a_site_in_the_ann_are_left_out_with_a_note(images, monkeypatch):
    ann = small()
    network = convert(ann, timesteps=4, rho=4, max_pool="before")
    monkeypatch.setattr(
        "cos_ext.analysis.offsets.counterparts",
        lambda network, sites: {site: (site, None) for site in sites},
    )
    report = report_of(ann, network, [images])
    assert report.layers[2].isolated is None and report.layers[2].accumulated is None
    assert "no activation of the ANN" in report.layers[
        2
    ].note and "act2_pool: no activation" in str(report)
    assert sum(report.layers[2].histograms["exact"]) == report.layers[2].neurons == 40 * 6 * 9


def test_batches_play_no_part(images):
    ann = small()
    network = convert(ann, timesteps=6, rho=5, iterations=2, max_pool="before")
    whole = report_of(ann, network, [(images, torch.zeros(40))])
    limit = network.activation_bytes(images[:7])
    for split, network.memory_limit in ((3, None), (17, None), (40, limit), (17, limit)):
        parts = report_of(ann, network, [images[:0], *images.split(split)])
        for a, b in zip(whole.layers, parts.layers):
            assert (a.neurons, a.histograms) == (b.neurons, b.histograms)
            assert a.isolated.equal_share == b.isolated.equal_share
            assert a.accumulated.equal_share == b.accumulated.equal_share
            assert a.accumulated.mean_error == pytest.approx(b.accumulated.mean_error, rel=1e-12)


def test_exact_calibration_leaves_no_offset_spike_on_real_images(shipped_model, test_set):
    model = copy.deepcopy(shipped_model).double()
    network = convert(model, timesteps=8, rho=8, iterations=None)
    images = [images.double() for images, _ in test_set.first(12).batches(6)]
    report = report_of(model, network, images, iterations=1)
    assert len(report.layers) == 19 and report.stages == ("before", "1 iteration", "exact")
    for layer in report.layers:
        assert layer.histograms["exact"] == (0, 0, 0, 0, layer.neurons, 0, 0, 0, 0), layer.site
        assert layer.isolated.equal_share == layer.accumulated.equal_share == 1.0, layer.site
        assert layer.accumulated.mean_error < 1e-12
        assert layer.shares("before")[0] <= layer.shares("1 iteration")[0]
    assert report.layers[0].shares("before")[0] == 1  # its input is the same at every step
    assert report.total.shares("before")[0] < 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype, images):
    ann = small().to(dtype)
    network = convert(ann, timesteps=4, rho=4, iterations=None, max_pool="before")
    report = report_of(ann, network, [images.to(dtype)])
    assert report.total.shares("exact")[0] == 1
    assert report.total.isolated.equal_share > 0.97
