"""convert() on the families of zoo_curved.py: exact against a twin that shares nothing with
cos_ext, that of bench/coverage.py.
"""

import sys

import pytest
import torch
import zoo_curved
from conftest import ROOT, bench_script

import cos_ext

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def measured():
    sys.path.insert(0, str(ROOT / "bench"))
    bench_script("coverage")
    from _coverage import measure, networks

    yield measure, networks
    sys.path.remove(str(ROOT / "bench"))


def entry(networks, name):
    make, shape, spikes = zoo_curved.FAMILIES[name]
    words = 20 if name == "bert" else 0
    return networks.Network(name, make, (networks.Input(shape, words),), spikes)


@pytest.mark.parametrize("name", zoo_curved.FAMILIES)
def test_the_network_is_its_quantised_twin(measured, name):
    measure, networks = measured
    row = measure.measure(entry(networks, name))
    assert row["status"] == "exact", row
    assert row["error"] < 1e-12 and row["quantised"] > 1e-3 and row["sites"] > 2


@pytest.mark.parametrize("name", zoo_curved.FAMILIES)
@torch.no_grad()
def test_portions_parts_and_files_are_the_run(measured, name, tmp_path):
    measure, networks = measured
    network = entry(networks, name)
    torch.manual_seed(measure.SEED)
    model = measure.prepared(network)
    converted, _ = measure.conversion(network, model)
    x, leaves = network.sample(3, 7), measure.leaves
    converted.rho = 0
    whole = leaves(converted(x))
    running = converted.begin(x)
    portions = [leaves(running.advance(steps)) for steps in (1, 3)]
    for leaf, parts in zip(whole, zip(*portions, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), leaf, rtol=0, atol=1e-9)
    converted.save(tmp_path / "file")
    loaded = cos_ext.load_network(tmp_path / "file", model, example_input=x)
    for leaf, other in zip(whole, leaves(loaded(x)), strict=True):
        assert torch.equal(leaf, other)
    assert {entry.status for entry in converted.report.entries} >= {"converted", "difference"}
