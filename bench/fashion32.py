"""Writes a data set to train a network for 32 x 32 images on, where nothing can be downloaded.

    python bench/fashion32.py DIR

The 10,000 Fashion-MNIST images that ship with cos_ext, with two rows and columns of zeros around
them: the first 1,000 as the test set, the others as the training set, in the files that
``--dataset fashion-mnist --data DIR`` reads. For timing on trained networks; accuracies on it are
not those of Fashion-MNIST. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np

from cos_ext import data

TEST = 1000


def write_idx(path: Path, array: np.ndarray) -> None:
    """LeCun's format, unsigned bytes."""
    head = bytes((0, 0, 0x08, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    shipped = data.fashion_mnist()
    images = np.pad(shipped.images[:, 0].numpy(), ((0, 0), (2, 2), (2, 2)))
    labels = shipped.labels.numpy().astype(np.uint8)
    for stem, part in (("t10k", slice(TEST)), ("train", slice(TEST, None))):
        write_idx(folder / f"{stem}-images-idx3-ubyte", images[part])
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels[part])


if __name__ == "__main__":
    main()
