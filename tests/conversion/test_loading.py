"""Saved networks whose files are damaged: nothing but the documented ValueError."""

import copy
import json
import random

import pytest
import torch
from safetensors import safe_open
from torch import nn

import cos_ext
from cos_ext._files import write_tensors

ODD = [
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, 10**400, "x", "", [], [1, 2], {},
    {"x": 1}, [[1]], {"1": None}, {"1": [1 << 40]}, {"1": [-1]}, {"1": float("nan")}, {"1": -1.0},
    {"1": {"rho": "x"}}, {"1": {"x": 1}}, {"9": {"rho": 1}},
]  # fmt: skip


def model():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    ).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "network"
    thresholds = {"1": torch.ones(3, 1, 1), "3": 1.0}
    network = cos_ext.convert(model(), timesteps=4, rho=3, thresholds=thresholds)
    network.set_layer("3", rho=2)
    network.save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
    cos_ext.load_network(path, model())
    return path.read_bytes(), header, tensors


def load(path):
    """Whether it loads; an error that is not documented goes through."""
    try:
        cos_ext.load_network(path, model())
    except ValueError:  # a ConversionError is one
        return False
    return True


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_any_value_in_any_place_of_the_header(value, saved, tmp_path):
    _, header, tensors = saved
    path = tmp_path / "file"
    for name in header:
        write_tensors(path, tensors, {**header, name: value})
        loads = load(path)
        assert not loads or name not in ("format", "layers", "thresholds") or value == {}
    for name in ("layers", "thresholds", "biases"):
        for site in ("1", "3"):
            changed = copy.deepcopy(header)
            changed[name][site] = value
            write_tensors(path, tensors, changed)
            load(path)


# What files of older versions do not have.
OPTIONAL = {
    *("cos_ext", "calibration", "execution", "biases", "static", "fuse", "readout"),
    *("memory_format", "convolution", "convolutions", "trainable", "neuron", "method"),
    "nonlinear",
    "spikes",
}


def test_any_part_of_the_header_may_be_missing(saved, tmp_path):
    _, header, tensors = saved
    for name in header:
        write_tensors(tmp_path / "file", tensors, {k: v for k, v in header.items() if k != name})
        assert load(tmp_path / "file") == (name in OPTIONAL)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("site", ["1", "3"])
def test_thresholds_must_be_positive_and_finite(site, value, saved, tmp_path):
    _, header, tensors = saved
    name = f"module.{site}.v_threshold"
    changed = {**tensors, name: torch.full_like(tensors[name], value)}
    write_tensors(tmp_path / "file", changed, header)
    with pytest.raises(ValueError, match="positive and finite"):
        cos_ext.load_network(tmp_path / "file", model())


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 20, 1 << 20], [2**70], [-3], ["3"], [3.0, 1, 1]]
)
def test_a_claim_beyond_the_file_takes_no_memory(shape, saved, tmp_path):
    _, header, tensors = saved
    for name in ("thresholds", "biases"):
        changed = {**header, name: {**header[name], "1": shape}}
        write_tensors(tmp_path / "file", tensors, changed)
        with pytest.raises(ValueError, match="damaged"):
            cos_ext.load_network(tmp_path / "file", model())


@pytest.mark.parametrize("seed", range(2))
def test_flipped_and_missing_bytes(seed, saved, tmp_path):
    raw, chance, path = saved[0], random.Random(seed), tmp_path / "file"
    head = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(60):
        damaged = bytearray(raw)
        damaged[chance.randrange(head)] = chance.randrange(256)
        path.write_bytes(bytes(damaged))
        load(path)
        path.write_bytes(raw[: chance.randrange(len(raw))])
        assert not load(path)


def test_a_header_that_is_too_deep(saved, tmp_path):
    from safetensors.torch import save_file

    _, _, tensors = saved
    for text in ("[" * 100_000, '{"format":' * 10_000, "[]", "null", "9" * 5000, "\x00"):
        save_file(tensors, tmp_path / "file", metadata={"cos_ext": text})
        with pytest.raises(ValueError, match="is not a saved|has the format"):
            cos_ext.load_network(tmp_path / "file", model())


def test_no_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        cos_ext.load_network(tmp_path / "none", model())
