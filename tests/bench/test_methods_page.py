"""bench/methods.py: its records are what the library says of the networks, and its page and figures
are of the records.
"""

import json
import sys
import xml.etree.ElementTree

import pytest
from conftest import bench_script

import cos_ext
from cos_ext import convert, evaluate
from cos_ext.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return bench_script("methods")


@pytest.fixture(scope="module")
def record(script, tmp_path_factory):
    """Two records of a few images: accuracy, and costs."""
    folder = tmp_path_factory.mktemp("records")
    for name, sizes in (("a", ["24", "0"]), ("b", ["0", "8"])):
        argv = ["--images", sizes[0], "--costs", sizes[1], "--rho", "2", "--only", "srp", "even"]
        assert script.main([*argv, "--json", str(folder / f"{name}.json")]) == 0
    return [folder / "a.json", folder / "b.json"]


def test_accuracies_are_those_of_the_networks(record, shipped_model, test_set):
    written = json.loads(record[0].read_text())
    assert written["command"].startswith("python bench/methods.py --images 24 --costs 0")
    assert list(written["ann"]) == ["accuracy"]
    for row in written["rows"]:
        network = convert(shipped_model, timesteps=8, rho=2, method=row["name"])
        result = evaluate(network, test_set.first(24).batches(24), progress=False)
        assert list(row["accuracy"].values()) == [result.accuracy[t - 1] for t in (1, 2, 4, 8)]
        assert "costs" not in row


def test_costs_are_those_of_the_networks(record, shipped_model, test_set):
    written = json.loads(record[1].read_text())
    even = next(row for row in written["rows"] if row["name"] == "even")
    assert "accuracy" not in even
    for steps in (1, 2, 4, 8):
        network = convert(shipped_model, timesteps=steps, rho=2, method="even")
        images = test_set.first(8)
        result = evaluate(network, images.batches(8), progress=False)
        report = network.energy_report(images.batches(8), progress=False)
        layers = network.statistics(images.batches(8), progress=False).layers.values()
        assert even["costs"][str(steps)] == {
            "latency": steps + 2,
            "pipeline_latency": result.pipeline_latency[-1],
            "spikes": pytest.approx(
                sum(each.spikes for each in layers) / sum(each.neurons for each in layers)
            ),
            "microjoules": pytest.approx(1e6 * report.snn_joules[-1]),
        }
    assert written["ann"] == {"microjoules": pytest.approx(1e6 * report.ann_joules)}
    srp = next(row for row in written["rows"] if row["name"] == "srp")
    assert all(costs["microjoules"] is None for costs in srp["costs"].values())


def test_the_page_and_the_figures_are_drawn(script, record, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    assert script.main(["--draw", *map(str, record), "--figures", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "| method | needs | latency at t | T = 1 | T = 2 | T = 4 | T = 8 |"
    assert lines[0] == head
    rows = json.loads(record[0].read_text())["rows"]
    accuracy = [f"{100 * value:.2f}" for value in rows[0]["accuracy"].values()]
    assert lines[2] == f"| even | nothing | 2 + t | {' | '.join(accuracy)} |"
    assert lines[7].startswith("| even | ") and lines[8].endswith("| - | - | - | - |")
    drawn = sorted(path.name for path in tmp_path.iterdir())
    kinds = ("energy", "latency", "pipeline-latency", "spikes")
    assert drawn == [f"methods-{kind}.svg" for kind in kinds]
    for path in tmp_path.iterdir():
        xml.etree.ElementTree.parse(path)


def test_every_method_has_a_line_in_a_figure(script):
    families = sys.modules["_methods.figures"].FAMILIES  # which the script has imported
    lines = [name for names in families.values() for name in names]
    assert sorted(lines) == sorted(name for name, _ in script.ROWS)
    assert set(METHODS) <= {name.split(",")[0] for name in lines}


def test_records_that_do_not_belong_together_are_refused(script, record, tmp_path):
    with pytest.raises(SystemExit, match="even: no record has its costs"):
        script.main(["--draw", str(record[0])])
    other = json.loads(record[1].read_text()) | {"rho": 3}
    (tmp_path / "c.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"must agree in rho, got \[2, 3\]"):
        script.main(["--draw", str(record[0]), str(tmp_path / "c.json")])
    with pytest.raises(SystemExit):
        script.main(["--images", "0"])


def test_moving_averages_are_fitted_over_many_small_batches(script, test_set):
    images = script.Subset(cos_ext.data.fashion_mnist(train=False), range(100))
    once = list(script._fitted(METHODS["ftbc"], images))
    often = list(script._fitted(METHODS["parallel-shift"], images))
    assert [len(x) for x, _ in once] == [100]
    assert [len(x) for x, _ in often] == [20] * 50
