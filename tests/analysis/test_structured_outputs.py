"""Scores among several outputs: which tensor evaluate(), early exit and fits read."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_network import batches, numbers
from torch import Tensor, nn

import cos_ext
from cos_ext import QCFS, Confidence, convert, early_exit, evaluate, fit_confidence

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET: dict[str, Any] = {"progress": False}


@dataclass
class Given:
    heads: dict
    image: Tensor


class Heads(nn.Module):
    """Two heads of 7 and 5 classes; one gives a plain tensor, where it is asked to."""

    def __init__(self, give):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), QCFS(4, 1.0), nn.Flatten())
        self.one, self.two, self.give = nn.Linear(96, 7), nn.Linear(96, 5), give

    def forward(self, x):
        features = self.body(x)
        return self.give(x, self.one(features), self.two(features))


def network(give, **options):
    made = convert(Heads(give).eval(), **{"timesteps": 4, "rho": 4, **options})
    for name, parameter in made.named_parameters():  # sums that are the same in any order
        if name.endswith(("weight", "bias")):
            parameter.data.copy_((parameter * 32).round() / 32)
    return made


def data():
    return [((x * 8).round() / 8, labels) for x, labels in batches()]


def both(x, a, b):
    return Given({"seven": [a], "five": b}, x)


PATHS = {
    "function": lambda given: given.heads["seven"][0],
    "path": ("heads", "seven", 0),
}


@pytest.mark.parametrize("output", PATHS.values(), ids=PATHS)
def test_scores_are_those_of_the_tensor_that_is_named(output):
    plain, many = network(lambda x, a, b: a), network(both)
    expected = numbers(evaluate(plain, data(), **QUIET))
    assert numbers(evaluate(many, data(), output=output, **QUIET)) == expected
    metric = {"metric": lambda y, target: (y.argmax(1) == target).float(), "output": output}
    assert evaluate(many, data(), **metric, **QUIET).metric == pytest.approx(expected["accuracy"])
    found = fit_confidence(many, data(), output=output, **QUIET)
    assert found.points == fit_confidence(plain, data(), **QUIET).points
    plain.rho = many.rho = 0
    stop = {"stop": Confidence(0.19), "leave_every": 1}
    left = numbers(evaluate(many, data(), output=output, **stop, **QUIET))
    assert left == numbers(evaluate(plain, data(), **stop, **QUIET)) and left["stopped"][0] > 0
    x = data()[0][0]
    ours, theirs = early_exit(many, x, output=output, **stop), early_exit(plain, x, **stop)
    assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.steps, theirs.steps)


@pytest.mark.parametrize("output", [0, "logits", ("logits",), None])
def test_a_key_an_index_or_the_only_tensor(output):
    give = (lambda x, a, b: (a, None)) if output == 0 else (lambda x, a, b: {"logits": a, "n": 3})
    expected = evaluate(network(lambda x, a, b: a), data(), **QUIET).accuracy
    assert evaluate(network(give), data(), output=output, **QUIET).accuracy == expected


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, ValueError, r"one tensor of scores.*gives 3 tensors, in a Given.*output="),
        ("head", ValueError, r"output='head' is not in what the network gives, 3 tensors"),
        (("heads", "six"), ValueError, "is not in what the network gives"),
        (("heads", "seven", 2), ValueError, "is not in what the network gives"),
        (("heads", "five", 2), ValueError, "is not in what|must lead to a tensor"),
        ("heads", ValueError, r"must lead to a tensor.*leads to a dict"),
        (1.5, TypeError, "output must be a function, or a key, index or attribute"),
        ((), TypeError, "output must be a function, or a key, index or attribute"),
        (lambda given: given.heads, TypeError, "must give a tensor of scores, it gave dict"),
    ],
)
def test_errors_of_output(output, error, message):
    many, x = network(both, rho=0), data()
    for measure in (
        lambda: evaluate(many, x, output=output, **QUIET),
        lambda: fit_confidence(many, x, output=output, **QUIET),
        lambda: early_exit(many, x[0][0], stop=Confidence(0.5), output=output),
    ):
        with pytest.raises(error, match=message):
            measure()


def test_the_readout_of_early_exit_is_that_of_its_tensor():
    def give(x, a, b):
        return {"a": a.softmax(1), "b": b.sigmoid()}

    applied, dropped = (network(give, rho=0, readout=each) for each in ("mean", "drop"))
    x, stop = data()[0][0], Confidence(0.19)
    for name, last in (("a", lambda y: y.softmax(1)), ("b", torch.sigmoid)):
        expected = early_exit(dropped, x, stop=stop, output=name)
        found = early_exit(applied, x, stop=stop, output=name)
        assert torch.equal(found.mean, last(expected.mean))
    with pytest.raises(ValueError, match="with a readout, got a function"):
        early_exit(applied, x, stop=stop, output=lambda given: given["a"])


def test_fits_of_scores_take_the_only_tensor_and_refuse_several():
    x = [batch for batch, _ in data()]
    one, many = network(lambda x, a, b: [a], rho=0), network(both, rho=0)
    model = Heads(lambda x, a, b: [a]).eval()
    found = cos_ext.fit_adafire(one, model, x, levels=2, **QUIET)
    assert set(found.levels) == {"body.1"}
    with pytest.raises(ValueError, match=r"scores \[B, K, ...\].*\(7, 7\), \(7, 5\)"):
        cos_ext.fit_adafire(many, Heads(both).eval(), x, levels=2, **QUIET)
    learns = network(lambda x, a, b: {"a": a}, rho=0, trainable=True)
    result = cos_ext.fine_tune(learns, data(), epochs=1, teacher=model, **QUIET)
    assert result.history[-1]["loss"] > 0
    learns = network(both, rho=0, trainable=True)
    with pytest.raises(ValueError, match="must give one tensor of logits, it gives 3 tensors"):
        cos_ext.fine_tune(learns, data(), epochs=1, **QUIET)
