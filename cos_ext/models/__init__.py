"""Architectures with QCFS activations, and reading their weights. Nothing spiking here."""

from .architectures import (
    ARCHITECTURES,
    VGG,
    BasicBlock,
    ResNet,
    build,
    resnet18,
    resnet20,
    resnet34,
    vgg16,
)
from .checkpoints import load_qcfs_checkpoint
from .weights import DEMO_CHECKPOINT, load_weights

__all__ = [
    "ARCHITECTURES",
    "DEMO_CHECKPOINT",
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
