"""What is seen of running neurons: by forward hooks, by record(), by two threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from chains import Chain, images
from torch import nn

import cos_ext
from cos_ext import convert, evaluate
from cos_ext._neuron.simulation import over_time


def pooled(**options):
    """Neurons whose spikes are pooled on the way out, and their firing rate on the images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 2)
    )
    x = torch.randn(4, 1, 8, 8)
    return convert(model, timesteps=8, rho=4, thresholds={"1": 0.5}, **options), x


def residual(**options):
    """Two additions and a BatchNorm fused into neurons."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
            self.act, self.out = (cos_ext.QCFS(4) for _ in range(2))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            h = self.act(self.stem(x))
            h = self.out(self.b(h) + self.a(h))
            return self.head(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))

    return convert(Block(), timesteps=8, rho=4, **options), torch.randn(4, 1, 8, 8)


def by_counts():
    return pooled(emission="even", execution="counts")


@pytest.mark.parametrize("made", [pooled, residual, by_counts])
def test_a_hook_sees_spikes(made):
    network, x = made()
    expected = network(x)
    truth = network.statistics([x], progress=False)
    for site, node in network.nodes().items():
        seen = []
        handle = node.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.clone()))
        assert torch.allclose(network(x), expected, atol=1e-6)
        handle.remove()
        (spikes,) = seen
        assert set(spikes.unique().tolist()) <= {0.0, node.v_threshold.item()}, site
        rate = (spikes > 0).double().mean().item()
        assert rate == pytest.approx(truth.layers[site].spike_rate, abs=2e-3), site
    assert torch.equal(network(x), expected)


def test_a_global_hook_sees_spikes():
    network, x = pooled()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(o) if isinstance(m, cos_ext.IFNode) else None
    )
    try:
        network(x)
    finally:
        handle.remove()
    assert set(seen[0].unique().tolist()) == {0.0, 0.5}


def test_what_a_hook_keeps_is_not_written_over():
    network, x = residual()
    kept = []
    conv = network.module.get_submodule("stem")
    for module in (conv, network.module.get_submodule("a"), network.module.get_submodule("b")):
        module.register_forward_hook(lambda m, i, o: kept.append((o, o.clone())))
    network(x)
    assert len(kept) == 3 and all(torch.equal(o, clone) for o, clone in kept)


def test_evaluate_with_hooks_reports_the_same_rate():
    network, x = pooled()
    data = [(x, torch.zeros(4, dtype=torch.long))]
    rate = evaluate(network, data, progress=False).spike_rate
    network.nodes()["1"].register_forward_hook(lambda *_: None)
    assert evaluate(network, data, progress=False).spike_rate == rate


@pytest.mark.parametrize("made", [pooled, residual])
@pytest.mark.parametrize("rho, iterations", [(0, 1), (4, 1), (8, None)])
def test_a_record_is_what_the_neurons_did(made, rho, iterations):
    network, x = made()
    network.rho, network.iterations = rho, iterations
    expected = network(x)
    with network.record(what=("spikes", "counts", "v")) as recording:
        assert torch.allclose(network(x), expected, atol=1e-6)
    assert list(recording) == list(network.nodes())
    for site, node in network.nodes().items():
        spikes, counts, v = recording[site]
        assert spikes.dtype == torch.bool and spikes.shape == v.shape and len(v) == 8
        assert torch.equal(counts, spikes.sum(0).int())
        currents = []
        hook = node.register_forward_pre_hook(
            lambda n, args, currents=currents: currents.append(n._currents(*args)[0].clone())
        )
        network(x)
        hook.remove()
        x_seq = over_time(currents[0], node._settings)
        theta = node.v_threshold
        plain = (
            cos_ext.functional.cos_forward(
                x_seq, theta, node.v_init, rho=rho, iterations=iterations, return_v=True
            )
            if rho
            else cos_ext.functional.if_forward(x_seq, theta, node.v_init, return_v=True)
        )
        assert torch.equal(plain.spikes != 0, spikes), site
        assert torch.equal(plain.v, v[-1]), site
        # A step's potential is the one before, and the current, less what was sent.
        steps = v[:-1] + x_seq[1:]
        assert torch.equal(v[1:], torch.where(spikes[1:], steps - theta, steps)), site


def test_a_record_of_several_calls_and_parts_goes_along_the_batch():
    network, x = pooled()
    with network.record() as whole:
        network(x)
    with network.record("1") as recording:
        network.memory_limit = network.activation_bytes(x[:1]) * 2
        network(x[:3])
        network(x[3:])
    assert torch.equal(recording["1"].spikes, whole["1"].spikes)
    assert recording["1"].counts is None and recording["1"].v is None
    assert recording.nbytes == whole["1"].spikes.numel()


def test_a_record_beside_evaluate_counts_and_threads():
    network, x = by_counts()
    counts = network.counts(x)["1"]
    data = [(x, torch.zeros(4, dtype=torch.long))]
    alone = evaluate(network, data, progress=False)
    with network.record(what="counts") as recording:
        beside = evaluate(network, data, progress=False)
        other = threading.Thread(target=network, args=(x,))
        other.start()
        other.join()
    assert torch.equal(recording["1"].counts, 2 * counts)  # over 8 steps, rho = 4
    assert beside.spike_rate == alone.spike_rate
    network(x)
    assert recording["1"].counts.shape[0] == 4


def test_what_cannot_be_recorded():
    network, x = pooled()
    for arguments, error, words in (
        ({"sites": "2"}, ValueError, "sites must be call sites of the network, got .'2'."),
        ({"sites": []}, ValueError, "sites must be call sites"),
        ({"what": "rates"}, ValueError, "what must be one or more of"),
        ({"what": ()}, ValueError, "what must be one or more of"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an int"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be >= 1"),
    ):
        with pytest.raises(error, match=words), network.record(**arguments):
            pass
    with network.record(max_bytes=8 * 4 * 4 * 64) as recording:
        network(x)
        with pytest.raises(ValueError, match="record fewer sites, samples or quantities"):
            network(x[:1])
    assert recording["1"].spikes.shape == (8, 4, 4, 8, 8)
    with pytest.raises(KeyError, match="is not recorded"):
        recording["3"]
    with network.record() as empty:
        pass
    with pytest.raises(RuntimeError, match="nothing is recorded at '1'"):
        empty["1"]
    network.emission = "even"
    with pytest.raises(ValueError, match='emission "calibrated"'), network.record(what="v"):
        pass
    network.rho = 0
    with network.record(what="v") as recording:
        network(x)
    assert recording["1"].v.shape == (8, 4, 4, 8, 8)


def test_threads_count_for_themselves():
    network, x = residual()
    inputs = [torch.randn(4, 1, 8, 8) * scale for scale in (0.1, 1.0, 4.0)]
    data = [[(x, torch.zeros(4, dtype=torch.long))] * 3 for x in inputs]
    network(x)  # memory is planned
    alone = [evaluate(network, d, progress=False).spike_rate for d in data]
    summed = [network.statistics([x], progress=False) for x in inputs]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            rates = pool.map(lambda d: evaluate(network, d, progress=False).spike_rate, data)
            sums = pool.map(lambda x: network.statistics([x], progress=False), inputs)
            assert list(rates) == alone and list(sums) == summed


class Walks(nn.Module):
    """Cannot be traced: its control flow depends on the batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4 * 36, 3)

    def forward(self, x):
        if len(x) > 10**9:
            x = -x
        return self.head(self.act(self.conv(x)).flatten(1))


def test_threads_share_a_walked_network():
    torch.manual_seed(0)
    inputs = [images(size, 1, 8, 8) for size in (1, 2, 3, 5)]
    network = convert(Walks(), timesteps=4, rho=4, thresholds={"act": 1.0}, example_input=inputs[1])
    expected = [network(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            assert all(map(torch.equal, pool.map(network, inputs), expected))


def test_an_energy_report_in_threads_is_its_own():
    torch.manual_seed(0)
    x, other = images(4, 1, 8, 8), images(2, 1, 8, 8)
    network = convert(Walks(), timesteps=4, rho=4, thresholds={"act": 1.0}, example_input=x)

    def report():
        return network.energy_report([x], progress=False)

    expected, busy = report(), threading.Event()

    def disturb():
        while not busy.is_set():
            network(other)

    with ThreadPoolExecutor(2) as pool:
        disturbing = pool.submit(disturb)
        try:
            assert all(report() == expected for _ in range(5))
        finally:
            busy.set()
        disturbing.result()


def test_a_chain_compiles_while_it_is_counted():
    network = convert(Chain(), timesteps=4, rho=2)
    x = images(5, 1, 8, 8)
    data = [(x, torch.zeros(5, dtype=torch.long))]
    expected = evaluate(network, data, progress=False)
    network.memory_limit = None
    network.compile(backend="aot_eager")
    network(x)
    found = evaluate(network, data, progress=False)
    assert (found.spike_rate, found.accuracy) == (expected.spike_rate, expected.accuracy)
    network.nodes()["act1"].register_forward_hook(lambda *_: None)
    assert torch.allclose(network(x), network.forward(x))


@pytest.mark.parametrize("change", [{"timesteps": 2}, {"emission": "front"}])
def test_settings_are_not_changed_while_a_network_is_recorded(change):
    network, x = pooled()
    ((name, value),) = change.items()
    with network.record():
        network(x)
        setattr(network, name, value)
        with pytest.raises(RuntimeError, match="settings were changed while it was measured"):
            network(x)


def test_neurons_of_several_shapes_are_recorded_apart():
    network = convert(
        nn.Sequential(nn.Conv2d(1, 2, 3), cos_ext.QCFS(4), nn.Conv2d(2, 2, 1)), timesteps=2
    )
    with network.record() as recording:
        network(torch.randn(2, 1, 8, 8))
        network(torch.randn(2, 1, 6, 6))
    with pytest.raises(ValueError, match="same shapes of neurons"):
        recording["1"]
