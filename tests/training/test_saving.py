"""save_checkpoint: weights and their record, written whole or not at all."""

import json

import pytest
import torch
from safetensors import safe_open
from toy import assert_same, network, snapshot

from cos_ext import models
from cos_ext.training.train import (
    save_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_checkpoint_round_trip(tmp_path):
    model, other = network(seed=1), network(seed=2)
    path = tmp_path / "new folder" / "net.v1.safetensors"
    save_checkpoint(model, path, {"architecture": "toy", "history": [{"loss": 0.5}]})
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "net.v1.json",
        "net.v1.safetensors",
    ]
    assert models.load_weights(other, path) == {"format": "pt"}
    assert_same(other, snapshot(model))
    record = json.loads((path.parent / "net.v1.json").read_text())
    assert record["architecture"] == "toy" and record["history"] == [{"loss": 0.5}]
    assert record["versions"]["torch"] == torch.__version__
    save_checkpoint(other, path, {"architecture": "again"})  # overwrites
    assert json.loads((path.parent / "net.v1.json").read_text())["architecture"] == "again"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "net.v1.json",
        "net.v1.safetensors",
    ]


def test_checkpoint_of_channels_last_weights(tmp_path):
    model, other = network(seed=1).to(memory_format=torch.channels_last), network(seed=2)
    save_checkpoint(model, str(tmp_path / "net.safetensors"), {})
    models.load_weights(other, tmp_path / "net.safetensors")
    assert_same(other, snapshot(model))


def test_checkpoint_is_as_readable_as_any_new_file(tmp_path):
    save_checkpoint(network(), tmp_path / "net.safetensors", {})
    (tmp_path / "plain").touch()
    modes = {file.suffix: file.stat().st_mode for file in tmp_path.iterdir()}
    assert modes[".safetensors"] == modes[".json"] == modes[""]


def test_checkpoint_with_a_bad_record_leaves_the_old_one(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(network(seed=1), path, {"number": 1})
    with pytest.raises(TypeError, match="JSON"):
        save_checkpoint(network(seed=2), path, {"number": torch.zeros(1)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("0.weight"), network(seed=1)[0].weight)
