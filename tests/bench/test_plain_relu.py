"""bench/plain_relu.py runs, on a few images, so that the commands in docs/results/plain_relu.md do
not rot.

No accuracy is checked here.
"""

from __future__ import annotations

import gzip
import json
import struct

import pytest
import torch
from conftest import bench_script
from torch import nn

from cos_ext.training import train


@pytest.fixture(scope="module")
def script():
    return bench_script("plain_relu")


@pytest.fixture
def folder(tmp_path, test_set):
    """The first 40 test images, as Fashion-MNIST's four files."""
    images, labels = test_set.images[:40, 0].numpy(), test_set.labels[:40].to(torch.uint8).numpy()
    for stem in ("train", "t10k"):
        for name, array in (
            (f"{stem}-images-idx3-ubyte", images),
            (f"{stem}-labels-idx1-ubyte", labels),
        ):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


@pytest.mark.slow
def test_the_documented_commands(script, folder, capsys, one_thread):
    weights, results = folder / "resnet20.safetensors", folder / "results.json"
    common = ["--net", "resnet20", "--data", str(folder), "--quiet"]
    assert (
        script.main(
            ["train", *common, "--epochs", "1", "--batch-size", "20", "--output", str(weights)]
        )
        == 0
    )
    options = ["--samples", "2", "--calibration-images", "8", "--json", str(results)]
    assert script.main(["convert", *common, "--weights", str(weights), *options]) == 0
    record = json.loads(results.read_text())
    assert len(record["rows"]) == len(script.METHODS) * len(script.CALIBRATIONS)
    assert all(len(row["accuracy"]) == script.TIMES[-1] for row in record["rows"])
    out = capsys.readouterr().out
    assert "resnet20: 2 test images" in out and "| max | 8 | exact |" in out and "t = 32" in out


def test_every_max_pool_policy(script, test_set, one_thread):
    config = train.TrainConfig(epochs=1, schedule="onecycle")
    few = test_set.first(8)
    model, history = script.train_net("vgg", few, few, config, batch_size=4, progress=False)
    assert len(history) == 1
    record = script.study(
        model,
        ("before", "spike", "avg"),
        few.batches(4),
        few.batches(4),
        {"max": {"method": "max"}},
        [(0, 1), (4, 1)],
        timesteps=4,
    )
    found = [(row["max_pool"], row["rho"], row["latency"][-1]) for row in record["rows"]]
    assert found == [
        (policy, rho, rho + 4) for policy in ("before", "spike", "avg") for rho in (0, 4)
    ]
    assert script.tables(record).count('max_pool="') == 3


def test_average_pools_replace_max_pools_in_a_copy(script):
    model = script.NETS["vgg"]().eval()
    averaged = script.with_average_pools(model)
    assert not any(isinstance(module, nn.MaxPool2d) for module in averaged.modules())
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 3
    x = torch.randn(2, 1, 28, 28)
    assert averaged(x).shape == model(x).shape == (2, 10) and not torch.equal(averaged(x), model(x))
