"""The data sets by name. How each is read is in a file of its own."""

from __future__ import annotations

from pathlib import Path

from .cifar import cifar10, cifar100
from .fashion import fashion_mnist
from .folder import ImageFolder
from .images import ImageSet

DATASETS = ("fashion-mnist", "cifar10", "cifar100", "folder")


def load(
    name: str, root: str | Path | None, *, train: bool = False, size: int = 224
) -> ImageSet | ImageFolder:
    """The data set of this name.

    Args:
        name: one of ``DATASETS``.
        root: its folder. None: what ships with cos_ext, for "fashion-mnist" only. For "folder" the
            images of one split are expected in root/train or root/val, in root/test, or in root
            itself.
        train: the training images instead of the test images; from a folder, augmented.
        size: of the images of a folder, in pixels.

    Raises:
        FileNotFoundError: something is missing.
        ValueError: there is no such name, root is missing, or a file is damaged.
    """
    if name not in DATASETS:
        raise ValueError(f"data set must be one of {DATASETS}, got {name!r}")
    if name == "fashion-mnist":
        return fashion_mnist(root, train=train)
    if root is None:
        raise ValueError(
            f"root must name the folder of {name}: only Fashion-MNIST's test set ships with cos_ext"
        )
    if name == "folder":
        splits = ["train"] if train else ["val", "test"]
        folders = (Path(root) / split for split in splits)
        folder = next((folder for folder in folders if folder.is_dir()), Path(root))
        return ImageFolder(folder, size=size, augment=train)
    return (cifar10 if name == "cifar10" else cifar100)(root, train=train)
