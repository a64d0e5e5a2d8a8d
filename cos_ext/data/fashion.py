"""Fashion-MNIST, and the format of its files, IDX. Nothing is batched here."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .images import ImageSet

ASSETS = Path(__file__).resolve().parent.parent / "assets"  # what ships with cos_ext

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DEFLATE = 1032  # the most bytes that one byte of a gzip file can stand for
_PIECE = 1 << 20


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file (LeCun's format), plain or gzip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an IDX file, or is truncated, or has bytes beyond its array.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(2)[:2] != b"\x1f\x8b":
            return _read_array(path, file, size, size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_array(path, unpacked, None, size * _DEFLATE)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or corrupt gzip file: {error}") from error


def _read_array(path: Path, file: Any, size: int | None, most: int) -> np.ndarray:
    """The array in an open file of ``size`` bytes, None if that is unknown, and at most ``most``.
    Nothing is read beyond what its header claims.
    """
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES:
        raise ValueError(f"{path} is not an IDX file: it begins with {head.hex() or 'nothing'}")
    dtype, ndim = np.dtype(_IDX_DTYPES[head[2]]), head[3]
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(
            f"{path} is truncated: its header names {ndim} dimensions and the file has "
            f"{4 + len(sizes)} bytes"
        )
    shape = struct.unpack(f">{ndim}I", sizes)
    expected = 4 + 4 * ndim + math.prod(shape) * dtype.itemsize
    wrong = f"{path} is truncated or corrupt: shape {shape} needs {expected} bytes, the file has "
    if expected > most or size not in (None, expected):
        raise ValueError(wrong + (f"at most {most}" if size is None else f"{size}"))
    try:
        array = np.empty(shape, dtype)
    except ValueError as error:  # more dimensions, or longer ones, than NumPy knows
        raise ValueError(f"{path} holds no array that NumPy can represent: {error}") from error
    rest, found = array.reshape(-1).view(np.uint8), 0
    while found < rest.size and (more := file.readinto(rest[found : found + _PIECE])):
        found += more
    if found < rest.size:
        raise ValueError(wrong + str(expected - rest.size + found))
    if file.read(1):
        raise ValueError(wrong + "more")
    return array


def fashion_mnist(root: str | Path | None = None, *, train: bool = False) -> ImageSet:
    """Fashion-MNIST (Xiao et al. 2017), 28x28, from the official IDX files, plain or gzip.

    Args:
        root: the folder with the IDX files. None: the 10,000 test images that ship with cos_ext,
            for train=False only. Debian's package dataset-fashion-mnist puts all four files in
            /usr/share/datasets/fashion-mnist.
        train: the 60,000 training images instead of the 10,000 test images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be, or train=True comes without root.
    """
    if root is None:
        if train:
            raise ValueError(
                "root must name the folder of the IDX files for train=True: only the test set "
                "ships with cos_ext"
            )
        root = ASSETS / "fashion-mnist"
    stem = "train" if train else "t10k"
    images, labels = (
        read_idx(
            _find(
                Path(root),
                [f"{stem}-{what}-idx{dims}-ubyte", f"{stem}-{what}.idx{dims}-ubyte"],
                f"Fashion-MNIST {what}",
            )
        )
        for what, dims in (("images", 3), ("labels", 1))
    )
    fits = images.ndim == 3 and labels.shape == images.shape[:1]
    if not fits or images.dtype != np.uint8 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"{root}: images {images.shape} {images.dtype} and labels {labels.shape} are not "
            "Fashion-MNIST"
        )
    return ImageSet(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        (0.2860,),
        (0.3530,),
        10,
        _CLASSES,
    )


def _find(root: Path, names: list[str], what: str) -> Path:
    for name in names:
        for candidate in (root / name, root / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"{what}: none of {names} (or with .gz) in {root}")
