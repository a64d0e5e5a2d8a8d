"""bench/reproduce.py: its rows are what the settings say, and the images that light is fitted on
are evaluated by no row.
"""

import json

import numpy as np
import pytest
import torch
from authors import make_state
from conftest import bench_script

import cos_ext
from cos_ext import convert, data, evaluate, fit_light

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return bench_script("reproduce")


def table(printed):
    """Rows by (calibration, rho), cells as printed."""
    lines = [
        line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")
    ]
    assert lines[0][:2] == ["calibration", "rho"]
    return {
        (cells[0], cells[1]): cells[2:] for cells in lines[1:] if not cells[0].startswith("---")
    }


@pytest.mark.slow
def test_the_rows_are_evaluations_of_the_shipped_network(
    script, shipped_model, test_set, capsys, tmp_path
):
    path = tmp_path / "rows.json"
    argv = [
        "--samples",
        "16",
        "--fit-samples",
        "4",
        "--timesteps",
        "1",
        "3",
        "--rho",
        "2",
        "4",
        "--quiet",
    ]
    assert script.main([*argv, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "16 images on cpu" in printed
        and "the last 4 of the test images, on which no row is evaluated" in printed
    )
    rows, batches = table(printed), test_set.first(16).batches(16)
    names = [
        "COS, 0 iterations",
        "COS, 1 iteration",
        "COS, 2 iterations",
        "COS, exact",
        "COS, emission even",
        "parallel = COS, emission front",
        "SRP",
    ]
    once = [("ANN", "-"), ("none", "-"), ("light, fitted for T", "-"), ("parallel, rho = T", "T")]
    assert list(rows) == once + [(name, rho) for rho in ("2", "4") for name in names]

    def shown(times=(1, 3), **options):
        network = convert(shipped_model, timesteps=max(times), **options)
        if options.get("calibration") == "light":
            last = test_set.normalise(test_set.images[-4:])
            fit_light(network, shipped_model, [last], progress=False)
        result = evaluate(network, batches, progress=False)
        return [f"{100 * result.accuracy[t - 1]:.2f} ({result.latency[t - 1]})" for t in times]

    right = (
        (shipped_model(test_set.normalise(test_set.images[:16])).argmax(1) == test_set.labels[:16])
        .double()
        .mean()
    )
    assert rows["ANN", "-"] == [f"{100 * right:.2f}"] * 2
    assert rows["none", "-"] == shown()
    assert rows["light, fitted for T", "-"] == shown((1,), calibration="light") + shown(
        (3,), calibration="light"
    )
    assert rows["parallel, rho = T", "T"] == [
        shown((t,), calibration="parallel", rho=t)[0] for t in (1, 3)
    ] and rows["parallel, rho = T", "T"][1].endswith("(6)")
    assert rows["COS, exact", "4"] == shown(rho=4, iterations=None)
    assert rows["COS, emission even", "2"] == shown(rho=2, emission="even")
    assert rows["parallel = COS, emission front", "4"] == shown(rho=4, emission="front")
    assert rows["SRP", "2"] == shown(rho=2, calibration="srp")
    assert [cell.split()[0] for cell in rows["COS, 0 iterations", "4"]] == [
        cell.split()[0] for cell in rows["none", "-"]
    ]
    assert script.main([*argv[:4], "--timesteps", "3", "--rho", "1", "--only-rho", "--quiet"]) == 0
    assert list(table(capsys.readouterr().out)) == [("ANN", "-"), *((name, "1") for name in names)]
    content = json.loads(path.read_text())
    assert (
        content["images"] == 16
        and len(content["rows"]) == len(rows)
        and "reproduce.py --samples 16" in content["command"]
    )
    assert content["rows"][-1]["latency"] == {"1": 5, "3": 7}


def write_cifar100(folder, test, train):
    """Labels are the images' numbers, so that a set tells which it holds."""
    for name, count, first in (("test", test, 0), ("train", train, 50)):
        if count:
            table = np.zeros((count, 3074), np.uint8)
            table[:, 1] = np.arange(first, first + count)
            table[:, 2:] = np.random.default_rng(0).integers(0, 255, (count, 3072))
            (folder / f"{name}.bin").write_bytes(table.tobytes())


def numbers(images):
    return [int(label) for _, labels in images for label in labels]


@pytest.mark.parametrize("training", [0, 40])
def test_light_is_fitted_on_training_images_where_there_are_some(script, tmp_path, training):
    write_cifar100(tmp_path, 20, training)
    args = script._parser().parse_args(
        ["--dataset", "cifar100", "--data", str(tmp_path), "--fit-samples", "5"]
    )
    fit, evaluated, origin = script.split(args, data.load("cifar100", tmp_path))
    fit, evaluated = (numbers(script._batches(images, 4)) for images in (fit, evaluated))
    assert len(set(fit)) == 5 and not set(fit) & set(evaluated)
    if training:
        assert evaluated == list(range(20)) and min(fit) >= 50 and origin == "5 training images"
        assert fit != sorted(fit)  # not the first few
    else:
        assert (
            evaluated == list(range(15))
            and fit == list(range(15, 20))
            and "no training images" in origin
        )


@pytest.mark.parametrize("training", [False, True])
def test_image_folders(script, tmp_path, training):
    image = pytest.importorskip("PIL.Image")
    for part in ("val", "train") if training else ("val",):
        for label in range(6):
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True)
            for index in range(2):
                shade = 10 * label + index + (100 if part == "train" else 0)
                image.new("RGB", (8, 8), (shade,) * 3).save(folder / f"{index}.png")
    args = script._parser().parse_args(
        ["--dataset", "folder", "--data", str(tmp_path), "--fit-samples", "4", "--size", "8"]
    )
    fit, evaluated, origin = script.split(args, data.load("folder", tmp_path, size=8))
    shades = [
        {round((255 * (x[0, 0, 0] * 0.229 + 0.485)).item()) for x, _ in images}
        for images in (fit, evaluated)
    ]
    assert len(shades[0]) == 4 and not shades[0] & shades[1]
    assert len(shades[1]) == (12 if training else 8) and (min(shades[0]) >= 100) == training
    assert ("training images" in origin) and ("random 4 of the test images" in origin) != training
    x, labels = next(iter(script._batches(evaluated, 3)))
    assert (
        x.shape == (3, 3, 8, 8) and len(set(labels.tolist())) > 1
    )  # shuffled: folders are sorted by class


def test_a_checkpoint_of_the_authors_runs_on_data_of_ones_own(script, capsys, tmp_path):
    write_cifar100(tmp_path, 6, 6)
    torch.save(
        dict(make_state("resnet20", classes=100, dtype=torch.float32)), tmp_path / "theirs.pth"
    )
    argv = [
        "--dataset",
        "cifar100",
        "--data",
        str(tmp_path),
        "--checkpoint",
        str(tmp_path / "theirs.pth"),
        "--timesteps",
        "1",
        "--fit-samples",
        "2",
        "--rho",
        "1",
        "--quiet",
    ]
    assert script.main(argv) == 2
    assert "--arch is needed: there is no JSON beside" in capsys.readouterr().err
    assert script.main([*argv, "--arch", "resnet20", "--levels", "4"]) == 0
    printed = capsys.readouterr().out
    assert (
        "resnet20, L = 4, cifar100: 6 images on cpu. Light is fitted on 2 training images."
        in printed
    )
    assert len(table(printed)) == 4 + 7
    model = cos_ext.models.load_qcfs_checkpoint(tmp_path / "theirs.pth", "resnet20", levels=4)
    images = data.load("cifar100", tmp_path)
    right = (model(images.normalise(images.images)).argmax(1) == images.labels).double().mean()
    assert table(printed)["ANN", "-"] == [f"{100 * right:.2f}"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rho", "0"], "--rho must be >= 1, got 0"),
        (["--fit-samples", "0"], "--fit-samples must be >= 1"),
        (["--fit-samples", "10000"], "--fit-samples must be less than 10000"),
        (["--samples", "9999", "--fit-samples", "2"], "--samples must be at most 9998"),
        (["--checkpoint", "nowhere.safetensors", "--arch", "resnet20", "--levels", "4"], "nowhere"),
        (["--dataset", "cifar10"], "root must name the folder"),
    ],
)
def test_bad_arguments(script, capsys, argv, said):
    assert script.main([*argv, "--quiet"]) == 2
    assert said in capsys.readouterr().err
