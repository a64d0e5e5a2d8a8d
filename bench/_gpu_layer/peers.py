"""SpikingJelly's neurons as calls, in up to two versions at once.

How wheels are unpacked is _shared/peers.py's; which rows are measured is rivals.py's.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.peers import unpack
from _shared.timing import Call
from torch import Tensor

from cos_ext import bench

from .cases import LEARN_OLD, LEARN_SJ, SJ_NODE, SJ_OLD, SJ_STATE, THETA
from .rows import brief


class Peers:
    """SpikingJelly, in up to two versions, from wheels that are unpacked or from where it is
    installed.
    """

    def __init__(self, wheels: str | None, device: str) -> None:
        self.cuda = device == "cuda"
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.new: Any = None  # spikingjelly.activation_based of version 2
        self.old: Any = None  # the same of version 0.0.0.0.14
        self.atan: dict[Any, Any] = {}  # of each
        self._folder = tempfile.TemporaryDirectory()  # alive as long as the modules are
        own = self._unpack(wheels)
        if not own and importlib.util.find_spec("spikingjelly") is not None:
            own = {importlib.metadata.version("spikingjelly"): None}
        # 2.x last: it stays importable for bench.spikingjelly_if.
        for version, path in sorted(own.items()):
            name = SJ_OLD if version.startswith("0.") else "SpikingJelly 2"
            try:
                self._load(version, path)
                self.versions[name] = version
            except Exception as error:
                self.skipped[name] = brief(error)
        reason = "no such wheel in COS_EXT_PEER_WHEELS"
        if not wheels:
            reason = "COS_EXT_PEER_WHEELS is not set"
        for name, module in (("SpikingJelly 2", self.new), (SJ_OLD, self.old)):
            if module is None:
                self.skipped.setdefault(name, reason)
        if self.new is not None and device == "cuda":
            functional = importlib.import_module("spikingjelly.activation_based.functional")
            try:
                selected = functional.neuron_implementation("if", torch.device("cuda", 0))
            except Exception as error:
                selected = brief(error)
            self.notes["SpikingJelly 2 selects"] = selected

    def _unpack(self, wheels: str | None) -> dict[str, Path | None]:
        found: dict[str, Path | None] = {}
        if not wheels:
            return found
        for name, version, path in unpack(Path(wheels), Path(self._folder.name), any_machine=True):
            if name.lower() == "spikingjelly":
                found[version] = path
            else:
                sys.path.append(str(path))
        return found

    def _load(self, version: str, path: Path | None) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "spikingjelly"]:
            del sys.modules[name]  # an older version's modules live on in the objects that use them
        if path is not None:
            sys.path.insert(0, str(path))
        try:
            module = importlib.import_module("spikingjelly.activation_based.neuron")
            surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
            self.atan[module] = surrogate.ATan
            if version.startswith("0."):
                self.old = module
                importlib.import_module("spikingjelly.activation_based.functional")
            else:
                self.new = module
        finally:
            if path is not None and version.startswith("0."):
                sys.path.remove(str(path))

    def forms(
        self, dtype: torch.dtype, device: str
    ) -> dict[str, tuple[Callable[[Tensor], Call], bool]]:
        """By name: what makes a call for an input, and whether it is if_forward's function with
        v_init = 0.
        """
        forms: dict[str, tuple[Callable[[Tensor], Call], bool]] = {}
        single = dtype == torch.float32
        if self.new is not None:
            forms[SJ_NODE] = (self._new_node, single)
            if not single:
                forms[SJ_STATE] = (lambda x: functools.partial(self._with_float_state, x), True)
        if self.old is not None:
            forms[f"{SJ_OLD} jit"] = (lambda x: self._old_node(x, "torch"), single)
            if device == "cuda" and dtype != torch.bfloat16:  # its kernels know float and half2
                forms[f"{SJ_OLD} cupy"] = (lambda x: self._old_node(x, "cupy"), single)
        return forms

    def learners(self, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
        """Its neurons with ATan and a soft reset that is detached, by name. They start from 0."""
        learners = {}
        if self.new is not None:
            learners[LEARN_SJ] = functools.partial(self._learner, self.new)
        if self.old is not None and self.cuda and dtype != torch.bfloat16:
            learners[LEARN_OLD] = functools.partial(self._learner, self.old, backend="cupy")
        return learners

    def _learner(self, module: Any, x: Tensor, **options: Any) -> Tensor:
        _give_numpy_int()
        options |= {
            "v_threshold": THETA,
            "v_reset": None,
            "surrogate_function": self.atan[module](),
        }
        return module.IFNode(detach_reset=True, step_mode="m", **options)(x)

    def _new_node(self, x: Tensor) -> Call:
        call = bench.spikingjelly_if(x, THETA)
        if call is None:
            raise ImportError("spikingjelly.activation_based cannot be imported")
        return call

    def _with_float_state(self, x: Tensor) -> Tensor:
        """Its fused kernel, which IFNode does not reach in half precision: the state there takes
        the input's dtype.
        """
        functional = importlib.import_module("spikingjelly.activation_based.functional")
        with torch.inference_mode():
            return functional.if_multi_step(
                x, torch.zeros_like(x[0], dtype=torch.float32), THETA, None
            )[0]

    def _old_node(self, x: Tensor, backend: str) -> Call:
        node = self.old.IFNode(v_threshold=THETA, v_reset=None, step_mode="m", backend=backend)
        node.train(backend == "cupy")  # in eval mode it takes the jit loop whatever the back end

        def call() -> Tensor:
            node.reset()
            with torch.no_grad():
                return node(x)

        _give_numpy_int()
        return call


def _give_numpy_int() -> None:
    if not hasattr(np, "int"):
        np.int = int  # its cupy back end asks for this name, which NumPy took away
