"""Fashion-MNIST, and the format of its files, IDX. Nothing is batched here."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

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


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file (LeCun's format), plain or gzip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an IDX file, or is truncated, or has bytes beyond its array.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or corrupt gzip file: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_DTYPES:
        raise ValueError(f"{path} is not an IDX file: it begins with {raw[:4].hex() or 'nothing'}")
    dtype, ndim = np.dtype(_IDX_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise ValueError(
            f"{path} is truncated: its header names {ndim} dimensions and the file has {len(raw)} "
            "bytes"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise ValueError(
            f"{path} is truncated or corrupt: shape {shape} needs {expected} bytes, the file has "
            f"{len(raw)}"
        )
    try:
        return np.frombuffer(raw, dtype, offset=start).reshape(shape)
    except ValueError as error:  # more dimensions, or longer ones, than NumPy knows
        raise ValueError(f"{path} holds no array that NumPy can represent: {error}") from error


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
    if images.ndim != 3 or images.dtype.itemsize != 1 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{root}: images {images.shape} {images.dtype} and labels {labels.shape} are not "
            "Fashion-MNIST"
        )
    return ImageSet(
        torch.from_numpy(images.astype(np.uint8))[:, None],
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
