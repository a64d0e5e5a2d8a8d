"""IDX files and Fashion-MNIST in them: every dtype and rank, truncated, corrupt, and of another
kind.
"""

import gzip
import struct

import numpy as np
import pytest
import torch
from damaged import IDX_CODES, assert_names, corrupted, idx_bytes

from cos_ext import data


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", IDX_CODES)
def test_idx_of_every_dtype(tmp_path, code, compress):
    array = np.array([[0, 1, 2], [100, 77, 127]], IDX_CODES[code])
    if code != 0x08:
        array[0, 2] = -120
    if code >= 0x0D:
        array[1, 1] = 0.15625
    raw = idx_bytes(array, code)
    path = tmp_path / "array-idx2"
    path.write_bytes(gzip.compress(raw) if compress else raw)
    read = data.read_idx(path)
    assert read.shape == (2, 3) and read.dtype == np.dtype(IDX_CODES[code])
    assert np.array_equal(read, array)
    assert np.array_equal(data.read_idx(str(path)), array)


@pytest.mark.parametrize("shape", [(), (4,), (0,), (0, 28, 28), (1, 2, 3, 4), (1,) * 32])
def test_idx_of_every_rank(tmp_path, shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    path = tmp_path / "array"
    path.write_bytes(idx_bytes(array))
    assert np.array_equal(data.read_idx(path), array) and data.read_idx(path).shape == shape


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_idx_truncated_anywhere(tmp_path, compress):
    raw = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    raw = gzip.compress(raw) if compress else raw
    path = tmp_path / "short"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert_names(path, lambda: data.read_idx(path))


def test_idx_of_a_wrong_length_says_which(tmp_path):
    raw = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    path = tmp_path / "short"
    for length, said in [
        (0, "begins with nothing"),
        (3, "not an IDX file"),
        (4, "2 dimensions"),
        (11, "2 dimensions"),
        (12, "needs 24 bytes, the file has 12"),
        (23, "needs 24 bytes, the file has 23"),
        (25, "needs 24 bytes, the file has 25"),
    ]:
        path.write_bytes((raw + b"\0")[:length])
        assert said in assert_names(path, lambda: data.read_idx(path))


@pytest.mark.parametrize(
    "raw",
    [
        idx_bytes(np.zeros((2, 2), np.uint8)) + b"\0",  # trailing bytes
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"\0\0\x0a\x01\0\0\0\x01\0",  # no such dtype code
        b"\0\x01\x08\x01\0\0\0\x01\0",
        b"\0\0\x08\x46" + struct.pack(">70I", *[1] * 70) + b"x",  # more dimensions than NumPy has
        b"\0\0\x0e\x03"
        + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1),  # an empty array NumPy cannot shape
        b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x",
    ],
    ids=["trailing", "png", "dtype", "magic", "rank", "empty-but-huge", "huge"],
)
def test_not_idx(tmp_path, raw):
    path = tmp_path / "other"
    path.write_bytes(raw)
    assert_names(path, lambda: data.read_idx(path))


def test_idx_in_a_corrupt_gzip(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).reshape(10, 20, 20)
    packed = gzip.compress(idx_bytes(pixels), mtime=0)
    path = tmp_path / "images.gz"
    for position in [2, *range(10, 40), len(packed) // 2, *range(len(packed) - 8, len(packed))]:
        path.write_bytes(corrupted(packed, position))
        assert_names(path, lambda: data.read_idx(path))
    path.write_bytes(
        packed[:10] + b"\xff" * 100
    )  # an invalid deflate block: zlib.error, not OSError
    assert "gzip" in assert_names(path, lambda: data.read_idx(path))


def test_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.read_idx(tmp_path / "nowhere")


# ---------------------------------------------------------------- Fashion-MNIST


def test_shipped_fashion_mnist(test_set):
    assert test_set.images.shape == (10_000, 1, 28, 28) and test_set.images.dtype == torch.uint8
    assert test_set.labels.shape == (10_000,) and test_set.labels.dtype == torch.int64
    assert torch.bincount(test_set.labels).tolist() == [1000] * 10
    assert test_set.num_classes == len(test_set.classes) == 10
    assert test_set.labels[:5].tolist() == [
        9,
        2,
        1,
        1,
        6,
    ]  # ankle boot, pullover, trouser, trouser, shirt
    normalised = test_set.normalise(test_set.images)
    assert abs(normalised.mean()) < 0.02 and abs(normalised.std() - 1) < 0.02


def write_fashion(folder, images, labels, stem="train", dot=False, compress=False):
    separator, suffix = "." if dot else "-", ".gz" if compress else ""
    for kind, array in (("images", images), ("labels", labels)):
        raw = idx_bytes(array)
        name = f"{stem}-{kind}{separator}idx{array.ndim}-ubyte{suffix}"
        (folder / name).write_bytes(gzip.compress(raw) if compress else raw)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_of_a_folder(tmp_path, dot, compress):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.array([0, 9, 3, 3, 1, 8], np.uint8)
    write_fashion(tmp_path, images, labels, "train", dot, compress)
    write_fashion(tmp_path, images[:2], labels[:2], "t10k", dot, compress)
    train, test = data.fashion_mnist(tmp_path, train=True), data.fashion_mnist(str(tmp_path))
    assert (
        np.array_equal(train.images[:, 0].numpy(), images)
        and train.labels.tolist() == labels.tolist()
    )
    assert np.array_equal(test.images[:, 0].numpy(), images[:2]) and len(test) == 2
    train.images[0] = 0  # writable memory of its own


def test_fashion_mnist_errors(tmp_path):
    with pytest.raises(ValueError, match="root"):
        data.fashion_mnist(train=True)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        data.fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="images"):
        data.fashion_mnist(tmp_path / "nowhere")
    images, labels = np.zeros((6, 28, 28), np.uint8), np.zeros(6, np.uint8)
    for wrong_images, wrong_labels in [
        (images, labels[:5]),
        (images, np.zeros((6, 1), np.uint8)),
        (images[0], labels),
    ]:
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(wrong_images))
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(wrong_labels))
        assert_names(tmp_path, lambda: data.fashion_mnist(tmp_path))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images, 0x0D))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    assert_names(tmp_path, lambda: data.fashion_mnist(tmp_path))
    write_fashion(tmp_path, images, np.full(6, 10, np.uint8), "t10k")
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9"):
        data.fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="labels"):
        data.fashion_mnist(tmp_path)
