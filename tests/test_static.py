"""fit_v_init against plain torch over all data at once; splits, interruptions, files, failures; the
shipped network.
"""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import cos_ext
from cos_ext import QCFS, IFNode, convert, evaluate, fit_v_init, reference
from cos_ext._files import write_tensors
from cos_ext.calibration.shift_statistics import PER, STATISTICS, ShiftStatistic

pytestmark = pytest.mark.usefixtures("one_thread")
RHO = 4
BIN = 2 ** (1 / 16)  # by which a median may be off


class Small(nn.Module):
    """A static layer, a residual branch, a max pooling that alone reads its neurons, one layer
    after a Linear.

    Weights and images are multiples of 1/64: every sum is exact, so that the split into batches
    cannot change a current.
    """

    def __init__(self):
        super().__init__()
        self.first, self.act1 = nn.Conv2d(2, 6, 3, padding=1), QCFS(4, 0.5)
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), QCFS(4, 0.5)
        self.third, self.act3 = nn.Conv2d(6, 4, 1), QCFS(4, 0.5)
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.act4 = nn.Linear(36, 12), QCFS(4, 0.5)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.act1(self.first(x))
        x = self.pool(self.act3(self.third(self.act2(self.second(x)) + x)))
        return self.last(self.act4(self.hidden(x.flatten(1))))


class Untraceable(Small):
    def forward(self, x):
        for _ in range(len(x) // len(x)):  # len() of a traced tensor is no number
            return super().forward(x)


def small(kind=Small):
    torch.manual_seed(1)
    model = kind().double().eval()
    for layer, gain in (
        (model.first, 2),
        (model.second, 6),
        (model.third, 6),
        (model.hidden, 8),
        (model.last, 1),
    ):
        layer.weight.data.mul_(gain * 64).round_().div_(64)
        layer.bias.data.mul_(64).round_().div_(64)
    return model


def small_network(**options):
    return convert(small(), **{"timesteps": RHO, "rho": RHO, "max_pool": "before", **options})


@pytest.fixture
def images():
    return (torch.randn(50, 2, 6, 6, dtype=torch.float64) * 16).round() / 16


def fit(network, batches, **options):
    return fit_v_init(network, batches, progress=False, **options)


def currents(network, images):
    """Currents of the network's nodes [S, B, *neurons] by site."""
    seen, hooks = {}, []
    for site, node in network.nodes().items():

        def note(node, args, site=site):
            x, steps = args[0].clone(), node.timesteps
            seen[site] = (
                x.expand(steps, *x.shape) if node.static_input else x.unflatten(0, (steps, -1))
            )

        hooks.append(node.register_forward_pre_hook(note))
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


def expected(shift, psi, theta, per, statistic):
    """A statistic [*neurons] or [C, 1, ...] of Δ and ψ [B, *neurons], by its definition."""
    shape = shift.shape[1:]
    if per == "channel":
        shape = (shape[0], *[1] * (len(shape) - 1))
        shift, psi = (x.transpose(0, 1).flatten(1).T for x in (shift, psi))
    found = {
        "mean": lambda: shift.double().mean(0),
        "median": lambda: shift.sort(0).values[(len(shift) - 1) // 2],
        "vote": lambda: theta * ((psi > 0).sum(0) - (psi < 0).sum(0)).double() / len(psi),
    }
    return found[statistic]().reshape(shape)


def check(shift, x_seq, theta, v_init, per, statistic, iterations=1, rho=RHO):
    wanted = reference.calibrate_v_init(x_seq[:rho], theta, v_init, rho=rho, iterations=iterations)
    wanted = expected(wanted.v_init - v_init, wanted.offset_spikes, theta, per, statistic)
    assert shift.shape == wanted.shape and shift.dtype == torch.float64
    if statistic == "median":
        assert torch.equal(shift == 0, wanted == 0)
        ratio = (shift / wanted)[wanted != 0]
        assert ((ratio < BIN * 1.001) & (ratio > 1 / BIN / 1.001)).all()
    else:
        torch.testing.assert_close(shift, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_each_layer_is_fitted_to_what_it_sees_at_inference(statistic, per, images):
    network = small_network()
    before = {site: node.v_init for site, node in network.nodes().items()}
    shifts = fit(network, images.split(16), per=per, statistic=statistic)
    assert list(shifts) == list(network.nodes()) and network.rho == 0
    seen = currents(network, images)  # the fitted network at T = RHO
    for site, node in network.nodes().items():
        check(shifts[site], seen[site], 0.5, before[site], per, statistic)
        assert torch.equal(node.v_init, before[site] + shifts[site])
    if statistic != "median":
        assert sum(bool(shift.any()) for shift in shifts.values()) == 3  # all but the static one
    again = small_network()
    again.load_state_dict(network.state_dict())
    again.rho = 0
    assert torch.equal(again(images), network(images))


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_pass_sees_what_calibrated_layers_emit(statistic, per, images):
    network = small_network(iterations=None)
    before = {site: node.v_init for site, node in network.nodes().items()}
    seen = currents(network, images)
    shifts = fit(network, iter(images.split(16)), per=per, statistic=statistic, sequential=False)
    for site in network.nodes():
        check(shifts[site], seen[site], 0.5, before[site], per, statistic, iterations=None)


def test_static_currents_that_make_offset_spikes(images):
    """From v_init > θ negative constant currents fire once too often, which they never do from
    θ/2.
    """
    network = small_network()
    node = network.nodes()["act1"]
    node.v_init = torch.tensor(0.75, dtype=torch.float64)
    assert node.static_input
    seen = currents(network, images)["act1"]
    shift = fit(network, images.split(16))["act1"]
    assert (shift < 0).any()
    check(shift, seen, 0.5, 0.75, "neuron", "mean")


def test_layers_of_their_own_and_rho(images):
    network = small_network(rho=3)
    network.set_layer("act2", rho=6, iterations=None)
    network.set_layer("act3", rho=1)
    shifts = fit(network, images.split(25))
    assert list(shifts) == ["act1", "act2", "act4"]
    assert network.static_calibration == {
        "rho": 3,
        "iterations": 1,
        "per": "neuron",
        "statistic": "mean",
        "sequential": True,
        "samples": 50,
        "layers": {"act2": {"rho": 6, "iterations": None}, "act3": {"rho": 1}},
    }
    assert network.timesteps == RHO and len(network(images)) == RHO
    network.timesteps = 6
    seen = currents(network, images)
    check(shifts["act2"], seen["act2"], 0.5, 0.25, "neuron", "mean", iterations=None, rho=6)
    check(shifts["act4"], seen["act4"], 0.5, 0.25, "neuron", "mean", rho=3)
    # rho given is for all layers, and a network with rho = 0 is watched for its own time-steps.
    ours, theirs = small_network(rho=0), small_network(rho=2)
    ours.set_layer("act2", rho=0)
    theirs.set_layer("act2", rho=2)
    ours, theirs = fit(ours, images.split(25)), fit(theirs, images.split(25), rho=RHO)
    assert list(ours) == list(theirs) and all(
        torch.equal(ours[site], theirs[site]) for site in ours
    )


def test_a_model_that_cannot_be_traced_is_fitted_alike(images):
    traced = convert(small(), timesteps=RHO, rho=RHO, max_pool="spike")
    walked = convert(
        small(Untraceable), timesteps=RHO, rho=RHO, max_pool="spike", example_input=images[:4]
    )
    assert not isinstance(walked.module, torch.fx.GraphModule)
    ours, theirs = fit(walked, images.split(20)), fit(traced, images.split(20))
    assert list(ours) == list(theirs) and all(
        torch.equal(ours[site], theirs[site]) for site in ours
    )
    torch.testing.assert_close(walked(images), traced(images))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_statistics_of_any_currents_in_any_split(data):
    draw = data.draw
    per, statistic = draw(st.sampled_from(PER)), draw(st.sampled_from(STATISTICS))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    neurons = draw(st.sampled_from([(3,), (2, 3), (2, 3, 2)]))
    iterations, rho = draw(st.sampled_from([1, 2, None])), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    theta = 0.5 + torch.rand(
        (neurons[0], *[1] * (len(neurons) - 1)), generator=generator, dtype=dtype
    )
    drift = draw(st.sampled_from([-0.6, 0.0, 0.6])) * torch.linspace(1, -1, rho, dtype=dtype)
    x = (
        torch.randn(rho, 12, *neurons, generator=generator, dtype=dtype)
        + drift.view(-1, *[1] * (len(neurons) + 1)) * 3
    )
    node = IFNode(theta)
    cut = draw(st.integers(1, 11))
    results = []
    for parts in ((12,), (cut, 12 - cut)):
        seen = ShiftStatistic(
            "site", {"statistic": statistic, "per": per}, torch.Size(neurons), x.device
        )
        for part in x.split(parts, 1):
            seen.see(node, part, rho, iterations)
        results.append(seen.result(node))
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-15)
    start = theta / 2
    found = reference.calibrate_v_init(x, theta, start, rho=rho, iterations=iterations)
    shift, psi = found.v_init.double() - start.double(), found.offset_spikes
    if statistic == "vote":  # in units of θ, which differs between channels
        theta = theta.double()
        wanted = theta * expected(shift, psi, 1.0, per, statistic)
        torch.testing.assert_close(results[0], wanted, rtol=1e-12, atol=0)
    elif statistic == "mean":
        torch.testing.assert_close(
            results[0], expected(shift, psi, None, per, statistic), rtol=1e-10, atol=1e-10
        )
    else:
        wanted = expected(shift, psi, None, per, statistic)
        assert torch.equal(results[0] == 0, wanted == 0)
        size = wanted.abs().minimum(theta.double() * 2 ** (31 / 8))  # beyond which sizes are one
        ratio = (results[0] / size)[wanted != 0].abs()
        assert ((ratio < BIN * 1.001) & (ratio > 1 / BIN / 1.001)).all()
        assert torch.equal(results[0].sign(), wanted.sign())


@pytest.mark.parametrize("sequential", [True, False])
def test_the_split_plays_no_part(sequential, images):
    whole, labelled = small_network(), small_network()
    ours = fit(whole, [images], sequential=sequential)
    batches = [(x, torch.zeros(len(x))) for x in images.split([1, 7, 30, 12])] + [
        (images[:0], torch.zeros(0))
    ]
    theirs = fit(labelled, batches, sequential=sequential)
    for site in ours:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-12, atol=1e-15)
    assert labelled.static_calibration["samples"] == 50


class Breaks:
    """Batches that are lost after so many in all, over all passes."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __iter__(self):
        for batch in self.batches:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize(
    "statistic, per, sequential, after",
    [
        ("mean", "neuron", True, 7),
        ("mean", "channel", True, 8),
        ("median", "neuron", True, 14),
        ("vote", "channel", True, 3),
        ("mean", "neuron", False, 4),
        ("median", "channel", False, 3),
        ("vote", "neuron", False, 1),
    ],
)
def test_an_interrupted_fit_goes_on(statistic, per, sequential, after, images, tmp_path):
    options = {"statistic": statistic, "per": per, "sequential": sequential}
    batches, state = images.split(10), tmp_path / "state"
    wanted, network = small_network(), small_network()
    shifts = fit(wanted, batches, **options)
    before = network.state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(network, Breaks(batches, after), state=state, save_every=2, **options)
    unchanged(network, before)
    assert state.exists() == (after > 1) and not list(tmp_path.glob("*.part"))
    runs = []
    network = small_network()  # as after a restart
    network.register_forward_pre_hook(lambda module, args: runs.append(1))
    again = fit(network, batches, state=state, save_every=2, **options)
    # Of the batches before the interruption only those after the last writing, at 2, 4 and the end
    # of a pass, run again.
    kept = 5 * (after // 5) + after % 5 // 2 * 2
    assert len(runs) == (5 * len(network.nodes()) if sequential else 5) - kept
    assert all(torch.equal(again[site], shifts[site]) for site in shifts)
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), wanted.state_dict().values())
    )
    assert network.static_calibration == wanted.static_calibration and not list(tmp_path.iterdir())


def test_a_state_of_something_else_is_refused(images, tmp_path):
    batches, state = images.split(10), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(small_network(), Breaks(batches, 7), state=state, save_every=1)
    kept, other = state.read_bytes(), small_network()
    other.module.get_submodule("second").weight.data[0, 0, 0, 0] += 1
    for network, options, changed in (
        (small_network(), {"per": "channel"}, "per"),
        (other, {}, "weights"),
        (small_network(), {"statistic": "vote"}, "statistic"),
        (small_network(), {"rho": 3}, "rho"),
        (small_network(iterations=None), {}, "iterations"),
        (small_network(), {"sequential": False}, "sequential"),
    ):
        before = network.state_dict()
        with pytest.raises(ValueError, match=rf"other settings: \['{changed}'\] differ"):
            fit(network, batches, state=state, **options)
        unchanged(network, before)
    with pytest.raises(ValueError, match="same at every pass, it yielded 40 samples after 50"):
        fit(small_network(), batches[:4], state=state)
    assert state.read_bytes() == kept
    state.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="damaged"):
        fit(small_network(), batches, state=state)
    small_network().save(state)
    with pytest.raises(ValueError, match="must be a file of fit_v_init"):
        fit(small_network(), batches, state=state)
    with pytest.raises(ValueError, match="a folder that exists"):
        fit(small_network(), batches, state=tmp_path / "none" / "state")


@pytest.mark.parametrize("per", PER)
def test_files_carry_the_potentials(per, images, tmp_path):
    network = small_network()
    fit(network, images.split(25), per=per)
    network.save(tmp_path / "file")
    again = cos_ext.load_network(tmp_path / "file", small())
    assert again.static_calibration == network.static_calibration and again.rho == 0
    assert torch.equal(again(images), network(images)) and not torch.equal(
        again(images), small_network(rho=0)(images)
    )
    with pytest.raises(ValueError, match="rho must stay 0"):
        again.rho = 4
    with pytest.raises(ValueError, match="rho must stay 0"):
        again.set_layer("act2", rho=4)
    assert again.rho == 0 and again.nodes()["act2"].rho == 0
    again.timesteps = 6
    assert len(again(images)) == 6


def test_older_files_load(images, tmp_path):
    network = small_network()
    network.save(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del header["static"]
    write_tensors(tmp_path / "old", tensors, header)
    again = cos_ext.load_network(tmp_path / "old", small())
    assert again.static_calibration is None and again.rho == RHO
    assert all(node.v_init.shape == () for node in again.nodes().values())
    assert torch.equal(again(images), network(images))


def test_potentials_that_do_not_fit_the_thresholds_do_not_load():
    node = IFNode(torch.ones(3, 1, 1))
    node.load_state_dict(
        {"v_threshold": torch.ones(3, 1, 1), "v_init": torch.arange(12.0).view(3, 2, 2)}
    )
    assert torch.equal(node.v_init, torch.arange(12.0).view(3, 2, 2))
    with pytest.raises(RuntimeError, match="v_init"):
        node.load_state_dict({"v_threshold": torch.ones(3, 1, 1), "v_init": torch.ones(4, 1, 1)})
    assert node.v_init.shape == (3, 2, 2)


def unchanged(network, before):
    now = network.state_dict()
    assert list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in now)
    assert network.static_calibration is None and network.timesteps == RHO
    for node in network.nodes().values():
        assert (
            not node._forward_pre_hooks
            and node.timesteps == max(RHO, node.rho)
            and node.v_init.shape == ()
        )


class Other:
    """Other batches at the pass that is given."""

    def __init__(self, *passes):
        self.passes = iter(passes)

    def __iter__(self):
        return iter(next(self.passes))


@pytest.mark.parametrize("sequential", [True, False])
def test_nothing_changes_where_something_fails(sequential, images):
    bad = images.clone()
    bad[-1, 0, 0, 0] = torch.inf
    wide = torch.cat([images, images], 2)
    cases = [
        ([*images.split(10), bad], ValueError, "currents of 'act1' must be finite"),
        ([images, "text"], TypeError, "batches must yield tensors"),
        ([], ValueError, "at least one sample"),
        ([images, images[:, :1]], RuntimeError, "channels"),
        ([images[:0]], ValueError, "at least one sample"),
        ([images, wide], ValueError, "per='neuron' needs the same neurons on every batch"),
    ]
    if sequential:
        cases += [
            (Other([images], [images], [images[:9]]), ValueError, "it yielded 9 samples after 50"),
            (Other([images], []), ValueError, "at every pass"),
            (iter([images]), ValueError, "sequential=False"),
        ]
    network = small_network()
    network.set_layer("act2", rho=6)
    before, potentials = network.state_dict(), [node.v_init for node in network.nodes().values()]
    for batches, error, message in cases:
        with pytest.raises(error, match=message):
            fit(network, batches, sequential=sequential)
        assert network.state_dict().keys() == before.keys() and network.static_calibration is None
        assert all(
            node.v_init is start for node, start in zip(network.nodes().values(), potentials)
        )
        assert not any(node._forward_pre_hooks for node in network.nodes().values())
        assert (
            network.rho == RHO
            and network.nodes()["act2"].rho == 6
            and network.nodes()["act1"].timesteps == 6
        )


def test_wrong_arguments(images):
    network = small_network()
    cases = (
        ({"network": small()}, TypeError, "network must be a SpikingNetwork, got Small"),
        ({"batches": images}, TypeError, "batches must be an iterable"),
        ({"batches": 3}, TypeError, "got int"),
        ({"per": "layer"}, ValueError, "per must be one of"),
        ({"statistic": "mode"}, ValueError, "statistic must be one"),
        ({"rho": 1}, ValueError, "rho must be >= 2"),
        ({"rho": 4.0}, TypeError, "rho must be an int"),
        ({"save_every": 0}, ValueError, "save_every must be >= 1"),
        ({"sequential": 1}, TypeError, "sequential must be"),
        ({"network": small_network(iterations=0)}, ValueError, "iterations >= 1"),
        ({"network": small_network(rho=1)}, ValueError, "rho >= 2"),
    )
    for changes, error, message in cases:
        arguments = {"network": network, "batches": [images], **changes}
        with pytest.raises(error, match=message):
            fit(**arguments)
    hard = small_network(rho=0)
    hard.nodes()["act2"].v_reset = 0.0
    with pytest.raises(ValueError, match="soft reset.*'act2'"):
        fit(hard, [images])
    fit(network, [images])
    with pytest.raises(ValueError, match="fitted already"):
        fit(network, [images])


def test_the_shipped_network_answers_better(shipped_model, test_set, capsys):
    """Fitted on 250 images, labels unused, and measured on 500 others."""
    chosen = slice(-250, None)
    seen = dataclasses.replace(
        test_set, images=test_set.images[chosen], labels=test_set.labels[chosen]
    )
    network = convert(shipped_model, timesteps=4)
    before = evaluate(network, test_set.first(500).batches(50), progress=False)
    fit(network, seen.batches(50))
    after = evaluate(network, test_set.first(500).batches(50), progress=False)
    with capsys.disabled():
        for t, (a, b) in enumerate(zip(before.accuracy, after.accuracy), 1):
            print(f"\nt = {t}: {a:.2%} uncalibrated, {b:.2%} from static potentials", end="")
    assert before.latency == after.latency == [1, 2, 3, 4]
    gains = [b - a for a, b in zip(before.accuracy, after.accuracy)]
    assert gains[1] > 0.02 and gains[2] > 0 and gains[3] > 0
