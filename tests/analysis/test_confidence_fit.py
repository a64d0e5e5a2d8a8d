"""Thresholds fitted to held-out data: the front is what evaluate() measures, and no point is worse
than another.
"""

import itertools
import math

import pytest
import torch
from tiny_network import batches, tiny

import cos_ext
from cos_ext import Confidence, ConfidenceFit, evaluate, fit_confidence
from cos_ext.analysis.confidence_fit import FAMILIES, ConfidencePoint
from cos_ext.analysis.threshold_search import by_step, stops

pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(network, flip=4):
    """Batches labelled with the network's own last answers, but for every ``flip``-th sample."""
    found = []
    for x, _ in batches():
        labels = network(x).sum(0).argmax(-1)
        labels[::flip] = (labels[::flip] + 1) % 7
        found.append((x, labels))
    return found


def fitted(network, data, **options):
    return fit_confidence(network, data, progress=False, **{"temperature": 0.2, **options})


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("score", ["max_softmax", "entropy"])
@pytest.mark.parametrize("rho", [0, 3])
def test_points_are_what_evaluate_measures(family, score, rho):
    network = tiny(timesteps=5, rho=rho)
    data = labelled(network)
    fit = fitted(network, data, family=family, score=score, points=20, first_step=2)
    # AdaFire's rule has no low thresholds.
    assert len(fit.points) > 1 or family == "adafire"
    assert fit.samples == 31
    for point in [*fit.points, fit.full]:
        found = evaluate(network, data, progress=False, stop=point.stop, first_step=2)
        assert found.accuracy[-1] == pytest.approx(point.accuracy)
        assert found.mean_latency == pytest.approx(point.mean_latency)
        assert found.mean_pipeline_latency == pytest.approx(point.mean_pipeline_latency)
    plain = evaluate(network, data, progress=False, first_step=2)
    assert fit.full.accuracy == plain.accuracy[-1] and fit.full.mean_latency == rho + 5


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_front_rises(family):
    network = tiny(timesteps=5, rho=0)
    points = fitted(network, labelled(network), family=family).points
    for before, after in itertools.pairwise(points):
        assert before.mean_latency < after.mean_latency and before.accuracy < after.accuracy


def test_a_constant_is_the_best_there_is():
    """On so few samples every threshold that matters is tried."""
    network = tiny(timesteps=4, rho=0)
    data = labelled(network)
    fit = fitted(network, data, points=500)
    best = {point.mean_latency: point.accuracy for point in fit.points}
    for threshold in torch.linspace(0, 1, 60).tolist():
        stop = Confidence(threshold, temperature=0.2)
        found = evaluate(network, data, progress=False, stop=stop)
        assert any(
            latency <= found.mean_latency + 1e-9 and accuracy >= found.accuracy[-1] - 1e-9
            for latency, accuracy in best.items()
        )


def test_steps_of_their_own_find_what_one_threshold_cannot():
    """Sure and wrong at t = 1, unsure and right at t = 2."""
    scores = torch.tensor([[0.9] * 8, [0.5] * 8, [0.95] * 8])
    right = torch.tensor([[False] * 8, [True] * 8, [True] * 8])
    found = {tuple(stops(scores, limits).tolist()) for limits in by_step(scores, right, 20)}
    assert (1,) * 8 in found
    assert all((stops(scores, limit) != 1).all() for limit in torch.linspace(0, 1, 50).tolist())


def test_the_rule_of_adafire():
    scores = torch.tensor([[0.2, 0.4, 0.9], [0.5, 0.7, 0.9], [0.9, 0.9, 0.9]])
    right = torch.tensor([[True, True, False], [True, True, True], [True] * 3])
    first, *_ = FAMILIES["adafire"](scores, right, 5)
    assert first == pytest.approx((1.0, math.exp(0.3 - 0.7)))  # β = 0


def test_picking():
    def point(latency, accuracy):
        return ConfidencePoint(Confidence(accuracy), accuracy, latency, latency)

    fit = ConfidenceFit([point(1.0, 0.5), point(2.0, 0.89), point(3.0, 0.9)], point(8, 0.9), 10)
    assert fit.pick(within=0.0).mean_latency == 3 and fit.pick(within=0.02).mean_latency == 2
    assert fit.pick(latency=2.5).accuracy == 0.89 and fit.pick(latency=1).accuracy == 0.5
    below = ConfidenceFit(fit.points[:2], fit.full, 10)
    assert below.pick(within=0.0) is below.full
    with pytest.raises(ValueError, match="at least 1.000"):
        fit.pick(latency=0.5)
    for options in ({}, {"within": 0.1, "latency": 2}):
        with pytest.raises(TypeError, match="one of within and latency"):
            fit.pick(**options)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_saved_and_loaded(family, tmp_path):
    network = tiny(timesteps=4, rho=0)
    fit = fitted(network, labelled(network), family=family, points=30)
    fit.save(tmp_path / "fit.json")
    assert ConfidenceFit.load(tmp_path / "fit.json") == fit


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', "[1]", '{"format": 3, "x": 1}'])
def test_files_that_are_none(text, tmp_path):
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(ValueError, match=r"no file of ConfidenceFit.save\(\)"):
        ConfidenceFit.load(tmp_path / "fit.json")
    with pytest.raises(FileNotFoundError):
        ConfidenceFit.load(tmp_path / "none.json")


def test_without_labels_right_is_the_last_answer():
    network = tiny(timesteps=4, rho=0)
    data = labelled(network, flip=1000)
    agreeing = [(x, network(x).sum(0).argmax(-1)) for x, _ in data]
    expected, nobody = fitted(network, agreeing), [(x, None) for x, _ in data]
    found = fitted(network, nobody, labels=False)
    assert found.points == expected.points and found.full.accuracy == 1
    assert "agreement" in str(found) and "accuracy on 31" in str(expected)


def test_it_prints_few_lines():
    network = tiny(timesteps=5, rho=0)
    text = str(fitted(network, labelled(network), points=500))
    assert text.splitlines()[0].split()[:3] == ["thresholds", "mean", "latency"]
    assert "all steps" in text and 4 <= len(text.splitlines()) <= 15


def test_nan_is_never_right_and_runs_on():
    network = tiny(timesteps=4, rho=0)
    (x, labels), *_ = labelled(network)
    x = x.clone()
    x[0] = math.nan
    fit = fitted(network, [(x, labels)])
    assert fit.points[0].mean_latency == pytest.approx((6 * 1 + 4) / 7)
    every = fitted(network, [(torch.full_like(x, math.nan), labels)])
    assert every.points[0].mean_latency == 4 and every.full.accuracy == 0


def test_one_step():
    network = tiny(timesteps=1, rho=0)
    for family in FAMILIES:
        fit = fitted(network, labelled(network), family=family)
        assert [point.mean_latency for point in fit.points] == [1.0]


def test_float64_is_compared_in_float64():
    network = tiny(timesteps=4, rho=0).double()
    data = [(x.double(), labels) for x, labels in labelled(tiny(timesteps=4, rho=0))]
    for point in fitted(network, data).points:
        found = evaluate(network, data, progress=False, stop=point.stop)
        assert found.mean_latency == pytest.approx(point.mean_latency)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"family": "best"}, ValueError, "family must be one of"),
        ({"score": "margin"}, ValueError, "score must be one of"),
        ({"points": 1}, ValueError, "points must be >= 2"),
        ({"first_step": 9}, ValueError, "first_step must be <= 4"),
    ],
)
def test_what_does_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        fitted(tiny(), batches(), **options)
    with pytest.raises(ValueError, match="at least one sample"):
        fitted(tiny(), [])
    with pytest.raises(TypeError, match="SpikingNetwork"):
        cos_ext.fit_confidence(torch.nn.Linear(1, 1), batches())
