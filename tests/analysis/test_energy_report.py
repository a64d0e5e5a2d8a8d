"""The energy report itself: energies and ratios from its counts, what it prints and writes, its
arguments, and the command. The counts: test_energy_layers.py and test_energy_steps.py.
"""

import csv
import json

import pytest
import torch
from energy_counts import make_net, report_of

import cos_ext
from cos_ext import convert
from cos_ext.analysis.energy import EnergyReport, LayerEnergy, energy_report
from cos_ext.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def images():
    return torch.randn(7, 2, 6, 6)


@pytest.fixture
def numbers():
    """A report whose every figure can be worked out in the head: T = 2, rho = 3."""
    layers = (
        LayerEnergy("a", "Conv2d", "static", 100.0, 0, (3, 3), (), 1.0),
        LayerEnergy("b", "Conv2d", "spikes", 1000.0, 3, (1, 2), (10.0, 20.0, 30.0), 0.25),
        LayerEnergy("c", "Linear", "graded", 50.0, 0, (1, 2), (4.0, 6.0, 8.0), 0.5),
    )
    return EnergyReport(
        layers, 40.0, (160.0, 200.0), {"add": 12.0}, 5, 2, 3, 1, "calibrated", 0.9, 4.6, 0.5, 2, 1.8
    )


def test_energies_and_ratios(numbers):
    assert numbers.latency == [4, 5]
    assert numbers.acs == [70, 90] and numbers.graded_macs == [4, 10] and numbers.static_macs == 100
    assert numbers.layers[1].kept_operations == (60, 60)
    assert numbers.ann_macs == 1150 and numbers.ann_joules == pytest.approx(1150 * 4.6e-12)
    first, second = (
        (0.9 * 70 + 4.6 * 104 + 0.5 * 160) * 1e-12,
        (0.9 * 90 + 4.6 * 110 + 0.5 * 200) * 1e-12,
    )
    assert numbers.snn_joules == pytest.approx([first, second])
    kept = [(0.9 * 60 + 4.6 * 104 + 0.5 * 160) * 1e-12, (0.9 * 60 + 4.6 * 110 + 0.5 * 200) * 1e-12]
    assert numbers.kept_joules == pytest.approx(kept)
    quantised = (1000 * 1.8 + 150 * 4.6) * 1e-12
    assert numbers.quantised_joules == pytest.approx(quantised)
    assert numbers.ann_ratio == pytest.approx([1150 * 4.6e-12 / first, 1150 * 4.6e-12 / second])
    assert numbers.quantised_ratio == pytest.approx([quantised / first, quantised / second])


def test_prints_and_writes_what_it_counted(numbers, tmp_path):
    text = str(numbers)
    rows = [line.split() for line in text.splitlines()]
    assert ["b", "Conv2d", "spikes", "25.00%", "1,000", "60", "90", "AC"] in rows
    assert ["a", "Conv2d", "static", "-", "100", "0", "100", "MAC"] in rows
    assert ["all", "layers", "1,150", "60", "200"] in rows and ["neurons", "200", "updates"] in rows
    assert rows[-1] == [
        "Not",
        "counted,",
        "per",
        "image",
        "and",
        "step:",
        "add",
        "(12",
        "elements).",
    ]
    assert "T = 2, rho = 3, iterations = 1" in text and "2-bit ANN" in text
    answer = next(row for row in rows if row[:2] == ["2", "5"])
    assert answer[2:5] == ["90", "110", "200"] and answer[5] == f"{numbers.snn_joules[1] * 1e6:.4g}"
    numbers.to_json(tmp_path / "energy.json")
    content = json.loads((tmp_path / "energy.json").read_text())
    assert content == numbers.to_dict()
    assert content["snn_joules"] == numbers.snn_joules and content["layers"][1]["operations"] == [
        70,
        90,
    ]
    numbers.to_csv(tmp_path / "energy.csv")
    with open(tmp_path / "energy.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["site"], row["t"]) for row in table] == [(site, t) for site in "abc" for t in "12"]
    assert (float(table[3]["operations"]), table[3]["operation"], table[3]["latency"]) == (
        90,
        "AC",
        "5",
    )


def test_bits_and_energies_of_the_quantised_ann(net, images):
    network = convert(net, timesteps=6)
    for rho, bits in ((0, 3), (1, 1), (3, 2), (4, 3), (7, 3), (8, 4)):
        network.rho = rho
        report = report_of(network, images)
        assert report.bits == bits and report.quantised_mac_energy == pytest.approx(
            min(0.9 * bits, 4.6)
        )
        assert report.neuron_energy == 0.9
    report = report_of(network, images, bits=8, ac_energy=2, mac_energy=5, neuron_energy=0)
    assert (report.bits, report.quantised_mac_energy, report.neuron_energy) == (8, 5, 0)
    assert report_of(network, images, quantised_mac_energy=0.23).quantised_mac_energy == 0.23


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"ac_energy": -1}, ValueError, "ac_energy must be a finite energy >= 0"),
        ({"mac_energy": float("inf")}, ValueError, "mac_energy must be a finite"),
        ({"neuron_energy": float("nan")}, ValueError, "neuron_energy must not be NaN"),
        ({"quantised_mac_energy": "1"}, TypeError, "quantised_mac_energy must be a float, got str"),
        ({"bits": 0}, ValueError, "bits must be >= 1 or None, got 0"),
        ({"bits": 2.0}, TypeError, "bits must be an int or None, got float"),
    ],
)
def test_bad_arguments(net, images, options, error, message):
    with pytest.raises(error, match=message):
        report_of(convert(net, timesteps=2), images, **options)


def test_bad_networks_and_batches(net, images):
    network = convert(net, timesteps=2)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Net"):
        energy_report(net, [images])
    with pytest.raises(TypeError, match="batches must be an iterable of batches .* got Tensor"):
        network.energy_report(images)
    for batches in ([], [images[:0]]):
        with pytest.raises(ValueError, match="at least one sample"):
            network.energy_report(batches, progress=False)
    with pytest.raises(RuntimeError):
        report_of(network, images[:, :1])
    assert isinstance(report_of(network, images), cos_ext.EnergyReport)


def test_demo_energy(capsys, tmp_path):
    path = tmp_path / "energy.json"
    arguments = ["demo", "--energy", "--samples", "3", "--timesteps", "2", "--rho", "2", "--quiet"]
    assert main([*arguments, "--exact", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert (
        "T = 2, rho = 2, exact" in out
        and "2-bit ANN / SNN" in out
        and "stages.2.0.shortcut.0" in out
    )
    content = json.loads(path.read_text())
    assert (content["samples"], content["latency"]) == (3, [3, 4])
    assert main([*arguments, "--plot", str(tmp_path / "x.png")]) == 2
    assert "--plot" in capsys.readouterr().err
    assert main([*arguments, "--report", "--json", str(path)]) == 0
    out, content = capsys.readouterr().out, json.loads(path.read_text())
    assert "2-bit ANN / SNN" in out and "offset spikes" in out.lower()
    assert content["report"]["samples"] == content["energy"]["samples"] == 3
