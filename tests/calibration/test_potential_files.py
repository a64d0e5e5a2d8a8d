"""fit_v_init interrupted and continued, saved and loaded, and what is left alone where something
fails. The numbers: test_potentials.py.
"""

import json

import pytest
import torch
from fitted_networks import RHO, fit, small, small_network, unchanged
from safetensors import safe_open

import cos_ext
from cos_ext import IFNode
from cos_ext._files import read_tensors, write_tensors
from cos_ext.calibration.shift_statistics import PER

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    return (torch.randn(50, 2, 6, 6, dtype=torch.float64) * 16).round() / 16


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
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file of safetensors is no dict)
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


ODD = [None, True, -1, 1.5, 10**30, "x", [], {}, {"act2": -1}, {"act2": [1 << 40]}, {"x": 1}]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_damaged_state_is_refused(sequential, images, tmp_path):
    """Another value in any place of a state's header, another tensor, or one less."""
    batches, state, path = images.split(10), tmp_path / "state", tmp_path / "damaged"
    options = {"save_every": 1, "sequential": sequential}
    with pytest.raises(KeyboardInterrupt):
        lost = Breaks(batches, 8 if sequential else 3)
        fit(small_network(), lost, state=state, **options)
    header, tensors = read_tensors(state)

    def refused(tensors, header, words):
        write_tensors(path, tensors, header)
        with pytest.raises(ValueError, match=words):
            fit(small_network(), batches, state=path, **options)

    for name in header:
        for value in ODD:
            refused(tensors, {**header, name: value}, "state")
    for name, tensor in tensors.items():
        refused({**tensors, name: tensor.flatten()[:0]}, header, "damaged|must broadcast")
        refused({**tensors, name: tensor.to(torch.float16)}, header, "damaged")
        refused({k: v for k, v in tensors.items() if k != name}, header, "damaged")
