"""Architectures with QCFS activations, and reading their weights. Nothing spiking here."""

from .architectures import (
    ARCHITECTURES,
    VGG,
    BasicBlock,
    ResNet,
    build,
    load_weights,
    resnet18,
    resnet20,
    resnet34,
    vgg16,
)
from .checkpoints import load_qcfs_checkpoint

__all__ = [
    "ARCHITECTURES",
    "VGG",
    "BasicBlock",
    "ResNet",
    "build",
    "load_qcfs_checkpoint",
    "load_weights",
    "resnet18",
    "resnet20",
    "resnet34",
    "vgg16",
]
