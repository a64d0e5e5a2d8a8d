"""Checkpoints of the authors' repositories: how their weights enter our models.

Their names are in checkpoint_names.py; whether a checkpoint fits, in checkpoint_checks.py. No
architectures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from .._numbers import whole
from ..qcfs import QCFS
from .architectures import VGG, ResNet
from .checkpoint_checks import hints, misfits, unlike
from .checkpoint_names import KNOWN, is_threshold, linear_biases, name_of, reference_of, their_names
from .weights import read_state


def load_qcfs_checkpoint(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    architecture: str | nn.Module,
    *,
    levels: int | None = None,
) -> nn.Module:
    """A model in eval mode with the weights and thresholds of a checkpoint that the authors' code
    saved.

    Sources of the key names, all of which save a bare state dict:

    * ``hzc1208/ANN2SNN_COS`` (ecb3587), Hao et al., ICLR 2023;
    * ``putshua/SNN_conversion_QCFS`` (c27a446), Bu et al., ICLR 2022: the same names;
    * ``putshua/ANN_SNN_QCFS`` (eca136b), its successor: ``thresh`` where the others have ``up``,
      and ``act`` where a residual block of theirs has ``relu``.

    =====================================  ===============================  ========================
    theirs                                 ours                             what
    =====================================  ===============================  ========================
    ``conv1.{0,1,2}``                      ``stem.{0,1,2}``                 3x3 convolution,
                                                                            BatchNorm, threshold
    ``conv{s+2}_x.{b}.residual_function``  ``stages.{s}.{b}``               a residual block's
    ``.{0,1,2,3,4}``                       ``.{conv1,bn1,act1,conv2,bn2}``  3x3 convolutions
    ``.shortcut.{0,1}``                    ``.shortcut.{0,1}``              1x1 convolution,
                                                                            BatchNorm
    ``.relu.up`` or ``.act.thresh``        ``.act2.threshold``              after the sum
    ``fc``                                 ``fc``
    ``layer{1..5}.{4j,4j+1,4j+2}``         ``features.{i,i+1,i+2}``         3x3 convolution,
                                                                            BatchNorm, threshold
    ``classifier.{1,2,4,5,7}``             ``classifier.{1,2,4,5,7}``       512 features, or
                                                                            25088 at 224x224
    =====================================  ===============================  ========================

    A threshold of theirs, ``up`` or ``thresh``, has shape [1]; ours is a scalar.

    What their networks compute where the keys do not tell, and what becomes of it:

    * Pooling leaves no key. Their scripts replace each max pooling of VGG-16 by 2x2 average pooling
      before they train, and so it is here, the fifth pool included. As theirs, the model for 512
      features takes images of 32 to 63 pixels. (:func:`cos_ext.models.vgg16` pools globally there,
      which is equal for 32 to 47 pixels; an instance of it is accepted.) A network trained in their
      code with its max pooling kept has the same keys and cannot be told apart.
    * VGG-16's convolutions have a bias, which BatchNorm absorbs. It is subtracted from
      running_mean, in float64, so the result is the stock architecture and equal to rounding.
      VGG-16 of ANN2SNN_COS with ``bias=False`` gets zero biases in its linear layers.
    * Their ResNets, on ImageNet too, have the stem of the CIFAR networks: 3x3, stride 1, no
      pooling.
    * Dropout is the identity in eval mode. Theirs also follows every convolution, with rate 0 by
      default; ours does not.
    * L is in no state dict. The authors put the one they trained with into the file's name
      (``..._L4.pth``, ``..._L[8].pth``). What SNN_conversion_QCFS trained with ``--l=0`` clips
      without quantising, under the same keys: it has no L and is no QCFS network.

    Args:
        path_or_dict: a file of torch.save (read with weights_only=True), a .safetensors file, or a
            state dict, which is copied. Names that all begin with ``module.`` (DataParallel) are
            accepted. Tensors on any device.
        architecture: "vgg16", "resnet18", "resnet20" or "resnet34": the model is built on the CPU
            in the checkpoint's dtype; num_classes and in_channels come from its shapes. Or a ResNet
            or VGG of :mod:`cos_ext.models`: it is loaded in place, keeps its dtype and device, and
            is returned.
        levels: L of the QCFS activations. A .safetensors file may carry it as the metadata entry
            "levels", an instance has its own; otherwise it must be given. What is known twice must
            agree.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: path_or_dict, architecture or levels has the wrong type, or a dict holds what is
            not a tensor.
        ValueError: the file is damaged, is no state dict or asks for more than tensors;
            architecture is unknown; levels is missing, < 1 or contradicted; or the checkpoint does
            not fit: all missing, unexpected, mis-shaped keys, values that are not floating-point,
            thresholds that are not positive and finite, and modules of an instance that compute
            something else than theirs, in one message. Nothing has been loaded then.
    """
    if levels is not None:
        levels = whole("levels", levels, or_=" or None")
    if isinstance(architecture, str):
        name, instance = architecture, None
        if name not in KNOWN:
            raise ValueError(f"architecture must be one of {sorted(KNOWN)}, got {name!r}")
    elif isinstance(architecture, (ResNet, VGG)):
        name, instance = name_of(architecture), architecture
    else:
        raise TypeError(
            "architecture must be a name or a ResNet or VGG of cos_ext.models, "
            f"got {type(architecture).__name__}"
        )
    source, state, stated = _read(path_or_dict)
    levels = _agreed_levels(source, levels, stated, instance)

    reference = reference_of(name, state, levels)
    model = reference if instance is None else instance
    names, absorbed = their_names(reference, state)
    zeros = _absent_biases(reference, state, absorbed)
    if zeros:
        names, absorbed = {ours: theirs for ours, theirs in names.items() if ours not in zeros}, {}
    problems = misfits(model, state, names, absorbed) + unlike(reference, model, names, state)
    if problems:
        head = f"{source} does not fit {name}, nothing was loaded:"
        raise ValueError("\n  ".join([head, *problems, *hints(name, state)]))

    loaded = {ours: state[theirs] for ours, theirs in names.items()} | zeros
    loaded |= {ours: value.reshape(()) for ours, value in loaded.items() if is_threshold(ours)}
    for theirs, mean in absorbed.items():
        loaded[mean] = state[names[mean]].double() - state[theirs].double()
    if instance is None:
        model.to_empty(device="cpu")
    model.load_state_dict(loaded)
    return model.eval()


def _absent_biases(
    reference: nn.Module, state: Mapping[str, Tensor], absorbed: Mapping[str, str]
) -> dict[str, Tensor]:
    """Zeros for the biases of the linear layers, where a VGG-16 was trained without any bias."""
    zeros = linear_biases(reference)
    without = not any(key in state for key in (*absorbed, *zeros))
    return zeros if absorbed and "classifier.7.weight" in state and without else {}


def _read(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
) -> tuple[str, dict[str, Tensor], int | None]:
    """What to call the checkpoint; its tensors, without the prefix of DataParallel; L, if the
    metadata has it.
    """
    metadata: dict[str, str] = {}
    if isinstance(path_or_dict, Mapping):
        foreign = {
            key: type(value).__name__
            for key, value in path_or_dict.items()
            if not (isinstance(key, str) and isinstance(value, Tensor))
        }
        if foreign:
            raise TypeError(
                f"path_or_dict must map names to tensors, got {foreign}; "
                "if one of them is the state dict, pass that"
            )
        source, state = "the state dict", dict(path_or_dict)
    elif isinstance(path_or_dict, (str, os.PathLike)):
        source = os.fspath(path_or_dict)
        state, metadata = read_state(source)
    else:
        raise TypeError(
            f"path_or_dict must be a path or a state dict, got {type(path_or_dict).__name__}"
        )
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    levels = metadata.get("levels")
    if levels is not None and not levels.isdecimal():
        raise ValueError(f"{source}: the metadata's levels must be an integer, got {levels!r}")
    return source, state, None if levels is None else int(levels)


def _agreed_levels(
    source: str, given: int | None, stated: int | None, instance: nn.Module | None
) -> int:
    """The one L that is known; ValueError where there is none, or several."""
    found: dict[str, set[int]] = {}
    if given is not None:
        found["levels"] = {given}
    if stated is not None:
        found["the metadata"] = {stated}
    if instance is not None:
        own = {module.levels for module in instance.modules() if isinstance(module, QCFS)}
        if own:  # an instance without QCFS is refused by its modules
            found["the model"] = own
    values = set[int]().union(*found.values())
    if len(values) > 1:
        said = ", ".join(f"{who}: {sorted(values)}" for who, values in found.items())
        raise ValueError(f"{source}: one network has one L; {said}")
    if not values:
        if instance is not None:
            return 1
        raise ValueError(
            f"{source} does not say its L: pass levels=L, the one it was trained with; the authors "
            "put it into the file's name, as in '..._L4.pth' or '..._L[8].pth'"
        )
    (levels,) = values
    if levels < 1:
        raise ValueError(f"levels must be >= 1, got {levels}")
    return levels
