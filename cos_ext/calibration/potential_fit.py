"""A static calibration that is under way: its passes over the data, the layers that are done, and
the file from which an interrupted one goes on.

What its settings are, and what becomes of the network, is decided in potentials.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._batches import device_of
from .._files import read_tensors, write_tensors
from .._loops import moved
from ..network.network import SpikingNetwork
from ..neuron import IFNode
from .shift_statistics import ShiftStatistic

FORMAT = "cos_ext static calibration, 1"


def shifts_potentials(settings: Mapping[str, Any]) -> bool:
    """Whether the calibration may shift potentials with this rho and these iterations."""
    return settings["rho"] >= 2 and settings["iterations"] != 0


class _Reached(BaseException):
    """A pass has come to the layer that is being fitted. No Exception: a model's own handlers must
    not take it.
    """


class Fit:
    """What has been seen, the layers that are done, and the file that keeps both.

    Args:
        network: whose neurons are fitted; they keep their potentials until a layer is done.
        own: rho and iterations of every site.
        description: of the fit: what an interrupted one and one that goes on must share.
        path: the file; None: the fit cannot be interrupted.
        save_every: batches between two writes of it.
        progress: a progress bar on stderr.

    Attributes:
        starts: the potentials before the fit, by site.
        samples: of a whole pass; 0 before there was one.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        own: Mapping[str, Mapping[str, Any]],
        description: Mapping[str, Any],
        path: Path | None,
        save_every: int,
        progress: bool,
    ) -> None:
        self.network, self.own, self.description = network, own, description
        self.path, self.save_every, self.progress = path, save_every, progress
        self.nodes = network.nodes()
        self.starts = {site: node.v_init for site, node in self.nodes.items()}
        self.sites = [site for site in self.nodes if shifts_potentials(own[site])]
        self.where = device_of(network)
        self.wanted = network.inputs
        self.statistics: dict[str, ShiftStatistic] = {}  # of the layers that are being fitted
        self.shifts: dict[str, Tensor] = {}  # of those that are done
        self.seen = 0  # batches of this pass
        self.count = 0  # samples of this pass
        self.samples = 0

    def layer_by_layer(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The shifts by site, each layer on what the fitted ones before it emit, in a pass for
        each.
        """
        for site, shift in self.shifts.items():  # of a fit that was interrupted
            self.nodes[site].v_init = self.shifted(site, shift)
        for site in self.sites[len(self.shifts) :]:
            title = f"{site} ({len(self.shifts) + 1}/{len(self.sites)})"
            self._pass(batches, [site], title, stop=True)
            self.nodes[site].v_init = self.shifted(site, self.shifts[site])
            self._save()
        return self.shifts

    def at_once(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The shifts by site, in one pass."""
        self._pass(batches, self.sites, "static calibration", stop=False)
        return self.shifts

    def shifted(self, site: str, shift: Tensor) -> Tensor:
        """The potential before the fit plus a shift, in its dtype."""
        start = self.starts[site]
        result = (start.double() + shift.to(start.device)).to(start.dtype)
        if not result.isfinite().all():
            raise ValueError(
                f"the potentials of {site!r} must be finite in {result.dtype}, shifts reach "
                f"{shift.abs().max():.3g}"
            )
        return result

    def _pass(self, batches: Iterable[Any], sites: list[str], title: str, stop: bool) -> None:
        """Read the batches that have not been seen yet, and conclude the shifts of ``sites``."""
        handles = [
            self.nodes[site].register_forward_pre_hook(self._hook(site, stop)) for site in sites
        ]
        try:
            for batch in tqdm(
                islice(batches, self.seen, None),
                title,
                length_hint(batches) or None,
                initial=self.seen,
                leave=False,
                disable=not self.progress,
            ):
                inputs = moved(batch, self.wanted, self.where, copy=True)
                if inputs[0].shape[0]:
                    self._run(inputs)
                self.seen += 1
                self.count += inputs[0].shape[0]
                if self.seen % self.save_every == 0:
                    self._save()
        finally:
            for handle in handles:
                handle.remove()
        self._conclude(sites)

    def _run(self, inputs: list[Tensor]) -> None:
        try:
            with self.network._by_steps():
                self.network(*inputs)
        except _Reached:
            pass

    def _conclude(self, sites: list[str]) -> None:
        """The shifts of ``sites`` at the end of a pass, and a fresh start for the next."""
        if self.count == 0:
            raise ValueError(
                "batches must yield at least one sample"
                + (" at every pass" if self.samples else "")
                + ", it yielded none"
            )
        if self.samples and self.count != self.samples:
            raise ValueError(
                f"batches must be the same at every pass, it yielded {self.count} samples after "
                f"{self.samples}"
            )
        for site in sites:
            if site not in self.statistics:
                raise ValueError(f"the layer {site!r} was not run on these batches")
            self.shifts[site] = self.statistics[site].result(self.nodes[site])
        self.samples, self.seen, self.count, self.statistics = self.count, 0, 0, {}

    def _hook(self, site: str, stop: bool) -> Callable[[IFNode, tuple[Tensor, ...]], None]:
        own = self.own[site]

        def hook(node: IFNode, args: tuple[Tensor, ...]) -> None:
            # Before the neurons: they may write their spikes over the currents.
            x, steps = node._currents(*args)[0], node.timesteps
            folded = (
                x.expand(steps, *x.shape)
                if node.static_input
                else x.unflatten(0, (steps, x.shape[0] // steps))
            )
            if site not in self.statistics:
                self.statistics[site] = ShiftStatistic(
                    site, self.description, folded.shape[2:], x.device
                )
            self.statistics[site].see(node, folded[: own["rho"]], own["rho"], own["iterations"])
            if stop:
                raise _Reached

        return hook

    def _fingerprint(self) -> dict[str, Any]:
        """What an interrupted fit and one that goes on must have in common, but for the data."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().flatten()
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        return {
            **self.description,
            "emission": self.network.emission,
            "sites": self.sites,
            "weights": digest.hexdigest(),
        }

    def _save(self) -> None:
        if self.path is None:
            return
        header = {
            "format": FORMAT,
            "fit": self.fingerprint,
            "seen": self.seen,
            "count": self.count,
            "samples": self.samples,
            "values": {site: s.values for site, s in self.statistics.items()},
            "shapes": {site: list(s.neurons) for site, s in self.statistics.items()},
        }
        tensors = {f"shift {site}": shift for site, shift in self.shifts.items()}
        for site, statistic in self.statistics.items():
            tensors[f"sum {site}"], tensors[f"finite {site}"] = statistic.sum, statistic.finite
        write_tensors(self.path, tensors, header)

    def restore(self) -> None:
        """Take up the state that the file has, where there is one."""
        if self.path is None:
            return
        self.fingerprint = json.loads(json.dumps(self._fingerprint()))  # as a file has it
        if not self.path.exists():
            if not self.path.parent.is_dir():
                raise ValueError(f"state must be a file in a folder that exists, got {self.path}")
            return
        header, tensors = self._read(self.path)
        self.seen, self.count, self.samples = header["seen"], header["count"], header["samples"]
        for site in self.sites:
            if f"shift {site}" in tensors:
                self.shifts[site] = tensors[f"shift {site}"].to(self.where)
            if f"sum {site}" in tensors:
                statistic = ShiftStatistic(
                    site, self.description, torch.Size(header["shapes"][site]), self.where
                )
                statistic.sum = tensors[f"sum {site}"].to(self.where)
                statistic.finite = tensors[f"finite {site}"].to(self.where)
                statistic.values = header["values"][site]
                self.statistics[site] = statistic

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The header and the tensors of the file; ValueError where it is not of this fit."""
        try:
            header, tensors = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"state: {error}") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"state: {path} must be a file of fit_v_init ({FORMAT!r}), it is none")
        theirs, ours = header.get("fit"), self.fingerprint
        if not isinstance(theirs, dict):
            raise ValueError(f"state: {path} is damaged: its header says no fit")
        if theirs != ours:
            changed = sorted(name for name in ours if theirs.get(name) != ours[name])
            raise ValueError(
                f"state: {path} is of a fit with other settings: {changed} differ; use the "
                "same, or another file"
            )
        wrong = self._damage(header, tensors)
        if wrong:
            raise ValueError(f"state: {path} is damaged: {wrong}; remove it, and fit anew")
        return header, tensors

    def _damage(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
        """What cannot be of a fit that wrote this file; None: nothing."""
        for name in ("seen", "count", "samples"):
            if not _is_count(header.get(name)):
                return f"{name} must be an int >= 0, got {header.get(name)!r}"
        values, shapes = header.get("values"), header.get("shapes")
        if not isinstance(values, dict) or not isinstance(shapes, dict):
            return "values and shapes must be given by call site"
        done = [site for site in self.sites if f"shift {site}" in tensors]
        if done != self.sites[: len(done)]:
            return f"it has shifts of {done}, the order is {self.sites}"
        coming = self.sites[len(done) :][:1] if self.description["sequential"] else self.sites
        if not values.keys() <= set(coming) or bool(done) != bool(header["samples"]):
            return f"it has shifts of {done}, {header['samples']} samples, sums of {sorted(values)}"
        kinds = {"shift": done, "sum": values, "finite": values}
        wanted = {f"{kind} {site}" for kind, sites in kinds.items() for site in sites}
        if wanted != tensors.keys() or values.keys() != shapes.keys() or values.keys() - self.nodes:
            return f"its tensors {sorted(tensors)} are not those of its header, {sorted(wanted)}"
        for site in done:
            shift = tensors[f"shift {site}"]
            if shift.dtype != torch.float64 or not shift.isfinite().all():
                return f"the shifts of {site!r} must be finite float64"
        for site, count in values.items():
            if not _is_count(count):
                return f"values of {site!r} must be an int >= 0, got {count!r}"
            try:  # on meta: a claim takes no memory
                size, meta = torch.Size(shapes[site]), torch.device("meta")
                fresh = ShiftStatistic(site, self.description, size, meta)
            except (TypeError, ValueError, RuntimeError) as error:
                return f"shapes of {site!r} are {shapes[site]!r}: {error}"
            for name in ("sum", "finite"):
                own, given = getattr(fresh, name), tensors[f"{name} {site}"]
                if own.shape != given.shape or own.dtype != given.dtype:
                    return f"{name} of {site!r} must be {own.dtype} {tuple(own.shape)}"
        return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
