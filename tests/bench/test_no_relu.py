"""bench/no_relu.py runs, on a few images, so that the commands in docs/results/transformers.md
do not rot.

No accuracy is checked here.
"""

from __future__ import annotations

import json

import pytest
import torch
from conftest import bench_script


@pytest.fixture(scope="module")
def script():
    return bench_script("no_relu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The shipped images, split."""
    split = bench_script("fashion_split")
    monkeypatch.setattr("sys.argv", ["fashion_split.py", str(tmp_path), "--size", "28"])
    split.main()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("net", ["vit", "mobilenet"])
def test_the_documented_commands(script, folder, capsys, one_thread, net):
    weights, results = folder / f"{net}.safetensors", folder / "results.json"
    common = ["--net", net, "--data", str(folder), "--quiet"]
    few = ["--epochs", "1", "--images", "40", "--batch-size", "20"]
    assert script.main(["train", *common, *few, "--output", str(weights)]) == 0
    few = ["--samples", "4", "--calibration-images", "8", "--choice-images", "4"]
    few += ["--times", "1", "2"]
    with pytest.warns(UserWarning, match="multiplications of"):  # most of "activations" is dense
        given = ["convert", *common, *few, "--weights", str(weights), "--json", str(results)]
        assert script.main(given) == 0
    record = json.loads(results.read_text())
    assert set(record["agreement"]) == {"activations", "inputs"}
    assert len(record["rows"]) == (1 + 2) * 2 + 1 + 2
    assert all(len(row["accuracy"]) == row["timesteps"] for row in record["rows"])
    out = capsys.readouterr().out
    assert f"{net}: 4 held-out images" in out
    assert "| inputs | 4 | calibrated |" in out and "| inputs | 0 | calibrated |" in out


def test_a_seed_decides_the_training(script, test_set, one_thread):
    few = test_set.first(8)
    settings = {"epochs": 1, "rate": 1e-3, "batch_size": 4, "progress": False}
    (first, found), (second, _), (third, _) = (
        script.train_net("vit", few, few, seed=seed, **settings) for seed in (0, 0, 1)
    )
    assert not first.training and len(found["losses"]) == 1
    weights = [model.head.weight for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
