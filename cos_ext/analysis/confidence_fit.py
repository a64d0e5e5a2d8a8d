"""Thresholds of early exit, fitted to held-out data: a front of mean latency against accuracy. When
a sample stops by a threshold is in confidence.py, running until then in readout.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._batches import device_of
from .._files import write_json
from .._numbers import real, whole
from .._tables import percent, table
from ..network.latency import pipeline_watch
from ..network.network import SpikingNetwork
from ..network.settings import steady
from .confidence import Confidence
from .readout import Readout, checked, read_of
from .scores import by_class, check_labels, chosen
from .threshold_search import adafire, by_step, constant, stops

FORMAT = "cos_ext.confidence"
FAMILIES: dict[str, Callable[[Tensor, Tensor, int], Iterable[Any]]] = {
    "constant": constant,
    "adafire": adafire,
    "by_step": by_step,
}


@dataclass(frozen=True)
class ConfidencePoint:
    """One choice of thresholds, and what it comes to on the data of the fit.

    Attributes:
        stop: what :func:`cos_ext.evaluate` and :func:`cos_ext.early_exit` take.
        accuracy: of the answers, as a fraction; with ``labels=False`` the share that agrees with
            the answer at T.
        mean_latency: watch_steps + t at the step where a sample stops, the mean.
        mean_pipeline_latency: the same where all layers run at once.
    """

    stop: Confidence
    accuracy: float
    mean_latency: float
    mean_pipeline_latency: float


@dataclass(frozen=True)
class ConfidenceFit:
    """The front that :func:`fit_confidence` found. Prints as a table.

    Attributes:
        points: by rising latency and rising accuracy: no other that was tried is better in one and
            as good in the other.
        full: the last step for all samples.
        samples: how many it was fitted on.
        settings: of the fit and the network: family, labels, first_step, timesteps, watch_steps.
    """

    points: list[ConfidencePoint]
    full: ConfidencePoint
    samples: int
    settings: dict[str, Any] = field(default_factory=dict)

    def pick(self, *, within: float | None = None, latency: float | None = None) -> ConfidencePoint:
        """One point: by accuracy the fastest, or by latency the most accurate. One argument.

        Args:
            within: the accuracy may be so much below that at T, as a fraction: 0.001 is 0.1 points.
            latency: the mean latency may be so large.

        Raises:
            TypeError, ValueError: not one argument, or no number; no point is so fast.
        """
        if (within is None) == (latency is None):
            raise TypeError("give one of within and latency")
        if within is not None:
            least = self.full.accuracy - real("within", within)
            return next((p for p in self.points if p.accuracy >= least), self.full)
        most = real("latency", latency)
        fast = [point for point in self.points if point.mean_latency <= most]
        if not fast:
            raise ValueError(
                f"latency must be at least {self.points[0].mean_latency:.3f}, the smallest on the "
                f"front, got {most}"
            )
        return fast[-1]

    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, strings and lists."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; :meth:`load` reads it. The file is complete or not there."""
        write_json(path, {"format": FORMAT, **_finite(self.to_dict())})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConfidenceFit:
        """What :meth:`save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no such file.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            points = [_point(each) for each in found.pop("points")]
            return cls(points, _point(found.pop("full")), **found)
        except OSError:
            raise
        except Exception as error:  # anything else may be in it
            raise ValueError(f"{path} is no file of ConfidenceFit.save(): {error}") from error

    def __str__(self) -> str:
        shown = self.points
        if len(shown) > 12:  # evenly, the ends included
            shown = [shown[round(i * (len(shown) - 1) / 11)] for i in range(12)]
        rows = [["thresholds", "mean latency", "pipelined", "of T", "accuracy"]]
        for point in [*shown, self.full]:
            share = point.mean_latency / self.full.mean_latency
            rows.append(
                [
                    "all steps" if point is self.full else _words(point.stop),
                    f"{point.mean_latency:.3f}",
                    f"{point.mean_pipeline_latency:.3f}",
                    f"{share:.1%}",
                    percent(point.accuracy),
                ]
            )
        what = "accuracy" if self.settings.get("labels", True) else "agreement with the answer at T"
        return (
            f"{table(rows, left=(0,))}\n{len(self.points)} points, {what} on {self.samples} samples"
        )


@torch.no_grad()
def fit_confidence(
    network: SpikingNetwork,
    loader: Iterable[tuple[Any, Tensor]],
    *,
    score: str = "max_softmax",
    temperature: float = 1.0,
    family: str = "constant",
    labels: bool = True,
    first_step: int = 1,
    points: int = 200,
    device: str | torch.device | None = None,
    progress: bool = True,
    output: Any = None,
) -> ConfidenceFit:
    """Find the thresholds of early exit on held-out data.

    One pass of all T steps; kept are a score and a bit for each sample and step. Then ``points``
    choices of a family are tried, and those on the front of mean latency against accuracy are
    given. Nothing is drawn at random. The data must not be those that are reported on, nor those
    that the network was trained on, where it is surer than elsewhere.

    * "constant": one threshold for all steps (Dynamic Confidence, Li et al., ICCV 2023).
    * "adafire": β + (1 - β) exp(min E - E(t)) for many β, E(t) the mean score at t of the samples
      that are right there (AdaFire, Wang et al., AAAI 2025).
    * "by_step": thresholds by step that maximise accuracy - λ · latency for many λ, step by step
      from the last to the first, three times over: this library's own. It fits T - 1 numbers, and
      wants more samples than the others.

    Args:
        network: any; put in eval mode, and moved to ``device`` where one is given. What is fitted
            holds for its present settings.
        loader: as for :func:`cos_ext.evaluate`, in this process.
        score, temperature: as for :class:`cos_ext.Confidence`.
        family: one of the three.
        labels: False: no label is looked at. Right is then what agrees with the answer at T.
        first_step: as for :func:`cos_ext.evaluate`.
        points: how many choices are tried, >= 2.
        device: where to compute; None: where the network is.
        progress: a progress bar on stderr.
        output: which of several outputs are the scores, as for :func:`cos_ext.evaluate`.

    Raises:
        TypeError: network is not a SpikingNetwork, labels are no integers, or an argument has
            another type.
        ValueError: there is no such family or score; a number is out of range; the loader yields no
            sample; outputs are not [T, B, classes] or [T, B], or several without ``output``.
        RuntimeError: the network's settings are changed meanwhile.
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {list(FAMILIES)}, got {family!r}")
    points = whole("points", points, 2)
    never = Confidence(math.inf, score, temperature)
    readout = checked(Readout(first_step, output=output), network)
    if device is not None:
        network.to(device)
    network.eval()
    scores, right = _collected(network, loader, never, readout, labels, progress)
    tried = FAMILIES[family](scores, right, points)
    watched = (network.watch_steps, pipeline_watch(network))

    def point(threshold: float | tuple[float, ...]) -> ConfidencePoint:
        stop = Confidence(threshold, score, temperature)
        at = stops(scores, threshold)
        mean = at.double().mean().item() + 1
        accuracy = right.gather(0, at[None]).double().mean().item()
        return ConfidencePoint(stop, accuracy, watched[0] + mean, watched[1] + mean)

    settings = {
        "family": family,
        "labels": bool(labels),
        "first_step": readout.first_step,
        "timesteps": network.timesteps,
        "watch_steps": network.watch_steps,
    }
    found = _front([point(threshold) for threshold in tried])
    return ConfidenceFit(found, point(math.inf), scores.shape[1], settings)


def _collected(
    network: SpikingNetwork,
    loader: Iterable[tuple[Any, Tensor]],
    stop: Confidence,
    readout: Readout,
    labels: bool,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """The scores [T, n] and which answers are right, bool [T, n], on the CPU."""
    scores, right, where = [], [], device_of(network)
    for inputs, given in steady(network, tqdm(loader, "fit", disable=not progress, leave=False)):
        read = read_of(network, _moved(inputs, where), readout)
        totals = by_class(read.totals)
        answers = chosen(totals)
        if labels:
            check_labels(given, totals)
            goal = given.to(answers.device)
        else:
            goal = answers[-1]
        right.append(((answers == goal) & totals.isnan().any(-1).logical_not()).cpu())
        scores.append(stop.scores(read.means).cpu())
    if not scores or not sum(each.shape[1] for each in scores):
        raise ValueError("loader must yield at least one sample, it yielded none")
    return torch.cat(scores, 1), torch.cat(right, 1)


def _moved(inputs: Any, where: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(where)
    if isinstance(inputs, (tuple, list)):
        return tuple(x.to(where) for x in inputs)
    return {name: x.to(where) for name, x in inputs.items()}


def _front(tried: list[ConfidencePoint]) -> list[ConfidencePoint]:
    """Those than which none is as fast and more accurate, or as accurate and faster."""
    found: list[ConfidencePoint] = []
    for point in sorted(tried, key=lambda p: (p.mean_latency, -p.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def _words(stop: Confidence) -> str:
    limits = stop.threshold if isinstance(stop.threshold, tuple) else (stop.threshold,)
    return " ".join(f"{limit:.4g}" for limit in limits)


def _finite(found: Any) -> Any:
    """Infinite numbers by their names, which JSON lacks."""
    if isinstance(found, dict):
        return {name: _finite(each) for name, each in found.items()}
    if isinstance(found, (list, tuple)):
        return [_finite(each) for each in found]
    return str(found) if isinstance(found, float) and math.isinf(found) else found


def _point(found: dict[str, Any]) -> ConfidencePoint:
    stop = dict(found["stop"])
    given = stop.pop("threshold")
    limits = tuple(map(float, given)) if isinstance(given, list) else float(given)
    numbers = {name: value for name, value in found.items() if name != "stop"}
    return ConfidencePoint(Confidence(limits, **stop), **numbers)
