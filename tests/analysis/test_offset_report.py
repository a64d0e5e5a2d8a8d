"""The offset-spike report itself: files, the printed table, the figure, arguments, the command. Its
numbers: test_offsets.py.
"""

import csv
import json
import sys

import pytest
import torch
from offset_network import STAGES, Small, report_of, small
from torch import nn

from cos_ext import QCFS, convert
from cos_ext.analysis.offsets import (
    OFFSETS,
    CountError,
    LayerOffsets,
    OffsetSpikeReport,
)
from cos_ext.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images():
    return torch.randn(40, 2, 6, 6, dtype=torch.float64)


@pytest.fixture
def report(images):
    ann = small()
    return report_of(ann, convert(ann, timesteps=6, rho=5, max_pool="before"), [images])


def test_json_and_csv_hold_the_report(report, tmp_path):
    report.to_json(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content == report.to_dict()
    again = tuple(
        LayerOffsets(
            layer["site"],
            layer["neurons"],
            {s: tuple(h) for s, h in layer["histograms"].items()},
            CountError(**layer["isolated"]),
            CountError(**layer["accumulated"]),
            layer["note"],
        )
        for layer in content["layers"]
    )
    names = ("samples", "rho", "network_timesteps", "network_rho", "network_iterations")
    assert (
        OffsetSpikeReport(again, tuple(content["stages"]), *(content[name] for name in names))
        == report
    )
    report.to_csv(tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["site"], row["stage"]) for row in rows] == [
        (layer.site, s) for layer in report.layers for s in report.stages
    ]
    columns = list(rows[0])[3 : 3 + len(OFFSETS)]
    assert columns == [
        "psi_-4_or_less",
        *(f"psi_{k}" for k in ("-3", "-2", "-1", "0", "+1", "+2", "+3")),
        "psi_+4_or_more",
    ]
    for row in rows:
        layer = next(layer for layer in report.layers if layer.site == row["site"])
        assert tuple(int(row[column]) for column in columns) == layer.histograms[row["stage"]]
        shares = tuple(
            float(row[name])
            for name in ("share_0", "share_1", "share_2", "share_3", "share_beyond")
        )
        assert shares == layer.shares(row["stage"]) and sum(shares) == pytest.approx(1)
        assert float(row["accumulated_mean_error"]) == layer.accumulated.mean_error


def test_it_prints_every_layer_and_stage_and_the_total(report):
    lines = str(report).splitlines()
    for layer in (*report.layers, report.total):
        first = next(
            index for index, line in enumerate(lines) if line.split()[:1] == layer.site.split()[:1]
        )
        for line, stage in zip(lines[first:], report.stages):
            assert stage in line and f"{layer.shares(stage)[0]:.2%}" in line.replace(">", "")
    assert "1 iteration)" in lines[1] and "over 5 steps, 40 samples" in lines[0]
    total = report.total
    assert total.neurons == sum(layer.neurons for layer in report.layers)
    mean = (
        sum(layer.neurons * layer.accumulated.mean_error for layer in report.layers) / total.neurons
    )
    assert total.accumulated.mean_error == pytest.approx(mean)


def test_shares_that_are_not_all_or_nothing_do_not_print_as_such():
    layer = LayerOffsets("a", 10**6, {"before": (0, 0, 0, 1, 10**6 - 1, 0, 0, 0, 0)}, None, None)
    printed = str(OffsetSpikeReport((layer,), ("before",), 1, 4, 4, 0, 1))
    assert ">99.99%" in printed and "<0.01%" in printed and "not calibrated" in printed


def test_plot(report, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    matplotlib.use("Agg")
    figure = report.plot(tmp_path / "offsets.png")
    assert (tmp_path / "offsets.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure.axes) == len(report.stages)
    for axes, stage in zip(figure.axes, report.stages):
        assert axes.get_title(loc="left").startswith(stage)
        for index, layer in enumerate(report.layers):
            # Containers hold ±1, ±2, ±3 and beyond; the bars of a layer stand on each other.
            bars = [container[index] for container in axes.containers]
            assert [bar.get_height() / 100 for bar in bars] == pytest.approx(
                layer.shares(stage)[1:]
            )
            top = bars[-1].get_y() + bars[-1].get_height()
            assert top / 100 == pytest.approx(1 - layer.shares(stage)[0])
    from matplotlib import pyplot

    pyplot.close(figure)


def test_plot_without_matplotlib_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[plots\]'"):
        report.plot()


def test_errors_name_the_argument(images):
    ann = small()
    network = convert(ann, timesteps=4, rho=4, max_pool="before")
    other = Small(pooled=False).double()
    other.act4 = QCFS(4)
    other.last = nn.Sequential(other.last, QCFS(4))
    wider = small()
    wider.first, wider.second = (
        nn.Conv2d(2, 8, 3, padding=1).double(),
        nn.Conv2d(8, 6, 3, padding=1).double(),
    )
    for arguments, error, message in (
        ((3, network, [images]), TypeError, "ann must be an nn.Module, got int"),
        ((network, network, [images]), TypeError, "ann must be the model .* got a SpikingNetwork"),
        ((ann, ann, [images]), TypeError, "network must be a SpikingNetwork, got Small"),
        ((ann, network, images), TypeError, "batches must be an iterable of batches .* got Tensor"),
        ((ann, network, 5), TypeError, "batches must be an iterable"),
        ((ann, network, ["x"]), TypeError, "batches must yield tensors"),
        ((ann, network, []), ValueError, "batches must yield at least one sample"),
        ((ann, network, [images[:0]]), ValueError, "batches must yield at least one sample"),
        (
            (other, network, [images]),
            ValueError,
            r"ann must be the model .*'act3'\]; it has .*'last.1'",
        ),
        (
            (wider, network, [images]),
            ValueError,
            r"ann must be the model .* 'act1' is \(40, 8, 6, 6\), .* \(40, 6, 6, 6\)",
        ),
        (
            (small().float(), network, [images]),
            ValueError,
            "ann must have the network's dtype torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            report_of(*arguments)
    for iterations, error in (
        (-1, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="iterations must be"):
            report_of(ann, network, [images], iterations=iterations)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
    network.rho = 0
    network.nodes()["act2"].configure(v_reset=0.0)
    with pytest.raises(ValueError, match=r"network must have soft reset .* \['act2'\]"):
        report_of(ann, network, [images])


def test_the_demo_prints_and_writes_the_report(capsys, tmp_path):
    path = tmp_path / "report.json"
    arguments = [
        "demo",
        "--report",
        "--samples",
        "6",
        "--timesteps",
        "4",
        "--quiet",
        "--json",
        str(path),
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["stages"] == list(STAGES) and len(content["layers"]) == 19
    assert (content["samples"], content["rho"], content["network_iterations"]) == (6, 4, 1)
    assert (
        "stages.2.2.act2" in out
        and "all layers" in out
        and "accumulated" in out
        and "ANN accuracy" not in out
    )
    assert main([*arguments, "--iterations", "1", "--exact"]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["stages"], content["network_iterations"]) == (
        ["before", "1 iteration", "exact"],
        None,
    )
    assert main([*arguments, "--iterations", "-1"]) == 2
    assert "iterations must be >= 0" in capsys.readouterr().err


def test_the_demo_draws_the_report(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    path = tmp_path / "report.png"
    assert (
        main(
            [
                "demo",
                "--report",
                "--samples",
                "2",
                "--timesteps",
                "4",
                "--quiet",
                "--plot",
                str(path),
            ]
        )
        == 0
    )
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_demo_without_matplotlib_fails_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert (
        main(["demo", "--report", "--samples", "2", "--quiet", "--plot", str(tmp_path / "x.png")])
        == 2
    )
    captured = capsys.readouterr()
    assert "plots]" in captured.err and "stages" not in captured.out
