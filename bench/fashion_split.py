"""Writes a data set to train a network on, where nothing can be downloaded.

    python bench/fashion_split.py DIR [--test N] [--size 28|32]

The 10,000 Fashion-MNIST images that ship with cos_ext, which are the test set: the first N as the
test set, the others as the training set, in the files that ``--dataset fashion-mnist --data DIR``
reads. Images of 32 x 32 have zeros around them. Accuracies on it are not those of Fashion-MNIST.
Nothing is trained here.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np

from cos_ext import data


def write_idx(path: Path, array: np.ndarray) -> None:
    """LeCun's format, unsigned bytes."""
    head = bytes((0, 0, 0x08, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--test", type=int, default=1000, metavar="N", help="1000 by default")
    parser.add_argument("--size", type=int, choices=(28, 32), default=32)
    args = parser.parse_args()
    folder, zeros = args.folder, ((args.size - 28) // 2,) * 2
    folder.mkdir(parents=True, exist_ok=True)
    shipped = data.fashion_mnist()
    images = np.pad(shipped.images[:, 0].numpy(), ((0, 0), zeros, zeros))
    labels = shipped.labels.numpy().astype(np.uint8)
    for stem, part in (("t10k", slice(args.test)), ("train", slice(args.test, None))):
        write_idx(folder / f"{stem}-images-idx3-ubyte", images[part])
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels[part])


if __name__ == "__main__":
    main()
