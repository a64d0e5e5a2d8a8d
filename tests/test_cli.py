"""The command line as a user calls it, in process: what it prints, writes and refuses. Training
itself: test_train.py.
"""

import gzip
import json
import struct

import numpy as np
import pytest
import torch

from cos_ext import data
from cos_ext.cli import DEMO_CHECKPOINT, main


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_demo_prints_one_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "demo.json"
    code, out, _ = run(capsys, "demo", "--samples", 60, "--quiet", "--json", path)
    assert code == 0
    assert "ANN accuracy" in out and "60 images" in out
    rows = [line.split() for line in out.splitlines()]
    header = next(row for row in rows if row[:1] == ["calibration"])
    assert [word for word in header if word.isdigit()] == ["1", "2", "4", "8"]
    names = [line[:14].strip() for line in out.splitlines() if "%" in line and "(" in line]
    assert names == ["none", "1 iteration", "2 iterations", "exact"]
    content = json.loads(path.read_text())
    assert content["results"]["exact"]["latency"] == [5, 6, 7, 8, 9, 10, 11, 12]
    assert content["results"]["none"]["latency"][0] == 1
    exact = content["results"]["exact"]
    assert f"{exact['accuracy'][7]:.2%} (12)" in out
    assert exact["samples"] == 60 and 0 < exact["spike_rate"] < 1 and exact["images_per_second"] > 0


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--iterations", 3], ["none", "3 iterations"]),
        (["--exact"], ["none", "exact"]),
        (["--iterations", 1, "--exact"], ["none", "1 iteration", "exact"]),
    ],
)
def test_demo_chooses_calibrations(capsys, tmp_path, options, expected):
    path = tmp_path / "demo.json"
    code, _, _ = run(
        capsys,
        "demo",
        "--samples",
        8,
        "--timesteps",
        3,
        "--rho",
        2,
        "--quiet",
        "--json",
        path,
        *options,
    )
    assert code == 0
    content = json.loads(path.read_text())
    assert list(content["results"]) == expected
    assert content["results"][expected[1]]["latency"] == [3, 4, 5]


def test_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    path = tmp_path / "demo.png"
    code, _, _ = run(
        capsys, "demo", "--samples", 8, "--timesteps", 2, "--quiet", "--exact", "--plot", path
    )
    assert code == 0 and path.read_bytes()[:4] == b"\x89PNG"


def test_plot_without_matplotlib_fails_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = run(capsys, "demo", "--samples", 8, "--quiet", "--plot", tmp_path / "x.png")
    assert code == 2 and "pip install '.[plots]'" in err and "t = 1" not in out


@pytest.mark.slow
def test_eval_agrees_with_demo(capsys, tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert run(capsys, "demo", "--samples", 50, "--quiet", "--exact", "--json", a)[0] == 0
    assert (
        run(
            capsys,
            "eval",
            "--checkpoint",
            DEMO_CHECKPOINT,
            "--samples",
            50,
            "--quiet",
            "--exact",
            "--json",
            b,
        )[0]
        == 0
    )
    first, second = (json.loads(path.read_text()) for path in (a, b))
    assert first["ann_accuracy"] == second["ann_accuracy"]
    assert all(
        first["results"][name]["accuracy"] == second["results"][name]["accuracy"]
        for name in ("none", "exact")
    )


def test_eval_without_a_record_asks_for_the_architecture(capsys, tmp_path):
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(DEMO_CHECKPOINT.read_bytes())
    code, _, err = run(capsys, "eval", "--checkpoint", copy, "--samples", 5, "--quiet")
    assert code == 2 and "--arch is needed" in err
    code, _, err = run(
        capsys, "eval", "--checkpoint", copy, "--arch", "resnet20", "--samples", 5, "--quiet"
    )
    assert code == 2 and "--levels is needed" in err
    code, out, _ = run(
        capsys,
        "eval",
        "--checkpoint",
        copy,
        "--arch",
        "resnet20",
        "--levels",
        8,
        "--samples",
        5,
        "--quiet",
    )
    assert code == 0 and "5 images" in out
    code, _, err = run(
        capsys, "eval", "--checkpoint", copy, "--arch", "vgg16", "--levels", 8, "--quiet"
    )
    assert code == 2 and "does not fit the model" in err


def test_a_truncated_checkpoint_is_refused(capsys, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(DEMO_CHECKPOINT.read_bytes()[:-1000])
    code, _, err = run(
        capsys, "eval", "--checkpoint", broken, "--arch", "resnet20", "--levels", 8, "--quiet"
    )
    assert code == 2 and "truncated or is not a checkpoint" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--samples", "0"], "samples must lie in 1..10000"),
        (["--samples", "10001"], "samples must lie in 1..10000"),
        (["--timesteps", "0"], "timesteps must be >= 1"),
        (["--rho", "-1"], "rho must be >= 0"),
        (["--iterations", "-1", "--samples", "4"], "iterations must be >= 0"),
        (["--batch-size", "0"], "batch_size must be >= 1"),
        (["--device", "nonsense"], "must be cpu, cuda or cuda:N"),
    ],
)
def test_bad_options_end_with_a_message(capsys, arguments, message):
    code, _, err = run(capsys, "demo", "--quiet", *arguments)
    assert code == 2 and message in err


@pytest.fixture
def tiny_fashion(tmp_path):
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        images, labels = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            rng.integers(0, 10, count, np.uint8),
        )
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(
                gzip.compress(header + array.tobytes())
            )
    return tmp_path


def test_train_then_eval(capsys, tiny_fashion):
    output = tiny_fashion / "out" / "net.safetensors"
    arguments = [
        "train",
        "--data",
        tiny_fashion,
        "--epochs",
        2,
        "--batch-size",
        20,
        "--threshold",
        4,
        "--lr",
        0.01,
        "--schedule",
        "onecycle",
        "--output",
        output,
        "--quiet",
    ]
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "test accuracy" in out
    record = json.loads(output.with_suffix(".json").read_text())
    assert (record["architecture"], record["levels"], len(record["history"])) == ("resnet20", 8, 2)
    assert record["versions"]["torch"] == torch.__version__
    code, out, _ = run(
        capsys, "eval", "--checkpoint", output, "--data", tiny_fashion, "--exact", "--quiet"
    )
    assert code == 0 and "20 images" in out and f"ANN accuracy {record['test_accuracy']:.2%}" in out
    code, _, err = run(capsys, *arguments[:-1], "--resume", "--lr", 0.5)
    assert code == 2 and "learning_rate" in err


@pytest.mark.parametrize("noise", ["residual", "adaptor"])
def test_train_with_noise(capsys, tiny_fashion, noise):
    output = tiny_fashion / "net.safetensors"
    arguments = ["train", "--data", tiny_fashion, "--epochs", 1, "--batch-size", 16, "--lr", 0.01]
    arguments += ["--noise", noise, "--output", output, "--quiet"]
    code, _, err = run(capsys, *arguments)
    if noise == "residual":  # 1000 of 40 images
        assert code == 2 and "--noise-samples must lie in 1..39" in err and "got 1000" in err
        code, _, _ = run(capsys, *arguments, "--noise-samples", 8)
    assert code == 0
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["noise"] == noise
    assert ("noise_std" in record["history"][0]) == (noise == "residual")
    assert run(capsys, "eval", "--checkpoint", output, "--data", tiny_fashion, "--quiet")[0] == 0


def test_train_needs_the_training_set(capsys, tmp_path):
    code, _, err = run(capsys, "train", "--output", tmp_path / "x.safetensors", "--quiet")
    assert code == 2 and "--data must name the folder" in err
    code, _, err = run(
        capsys, "train", "--data", tmp_path, "--output", tmp_path / "x.safetensors", "--quiet"
    )
    assert code == 2 and "Fashion-MNIST images" in err
    code, _, err = run(
        capsys, "train", "--dataset", "cifar10", "--output", tmp_path / "x.safetensors", "--quiet"
    )
    assert code == 2 and "cifar10" in err


def test_info_and_bench(capsys, tmp_path):
    code, out, _ = run(capsys, "info")
    assert code == 0 and torch.__version__ in out and "cpu_capability" in out and "cuda_off" in out
    path = tmp_path / "bench.json"
    assert (
        run(capsys, "bench", "--mib", 1, "--timesteps", 2, "--repeats", 2, "--json", path)[0] == 0
    )
    calls = {record["call"] for record in json.loads(path.read_text())["records"]}
    assert {
        "copy_",
        "relu_",
        "if_forward(inplace)",
        "cos_forward(inplace)",
        "plain torch, calibrated",
    } <= calls


def test_the_shipped_record_names_the_data_that_it_was_trained_on():
    record = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text())
    assert (
        record["command"].startswith("python -m cos_ext train ")
        and record["dataset"] == "fashion-mnist"
    )
    assert (data.ASSETS / "fashion-mnist" / "LICENSE").is_file()
