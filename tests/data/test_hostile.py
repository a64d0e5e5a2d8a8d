"""Files of data sets that want to harm: claims beyond the file, decompression bombs, pickles
without data, pixels and labels out of range. Merely damaged ones are in the tests of their formats.
"""

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from damaged import assert_names, idx_bytes

from cos_ext import data

MIB = 1 << 20


@pytest.fixture
def peak():
    """A call that gives how much memory a function took at most, beyond what was there."""
    tracemalloc.start()

    def measured(call):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        return result, tracemalloc.get_traced_memory()[1] - before

    yield measured
    tracemalloc.stop()


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    "raw",
    [
        idx_header(10, 10) + bytes(100 * MIB),  # more data than it claims
        idx_header(1 << 16, 1 << 16) + bytes(MIB),  # more than gzip can hold
        idx_header(10, 10) + b"x" * 99 + bytes(0),
        bytes(100 * MIB),
    ],
    ids=["beyond its claim", "claims too much", "short", "zeros"],
)
def test_a_gzip_bomb_stops_at_its_claim(raw, tmp_path, peak):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(raw, 1))
    _, took = peak(lambda: assert_names(path, lambda: data.read_idx(path)))
    assert took < 8 * MIB


@pytest.mark.parametrize("packed", [True, False])
def test_reading_takes_no_more_than_twice_the_data(packed, tmp_path, peak):
    raw = idx_header(16, MIB) + bytes(16 * MIB)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    array, took = peak(lambda: data.read_idx(path))
    assert array.shape == (16, MIB) and took < 2 * 16 * MIB


def tar_gz(path, *members, size=None):
    """An archive of members (name, data) and perhaps a claim of another size."""
    with gzip.open(path, "wb", 1) as stream:
        for name, raw in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(raw) if size is None else size
            stream.write(entry.tobuf(tarfile.GNU_FORMAT) + raw + bytes(-len(raw) % 512))
        stream.write(bytes(1024))


def sparse_gz(path, size):
    """An archive whose batch is ``size`` zeros that take no place, GNU's old way."""
    entry = bytearray(tarfile.TarInfo("test_batch.bin").tobuf(tarfile.GNU_FORMAT))
    entry[156:157] = tarfile.GNUTYPE_SPARSE
    entry[386:410] = b"%011o\0" % size + b"%011o\0" % 0
    entry[483:495] = b"%011o\0" % size
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry)
    path.write_bytes(gzip.compress(bytes(entry) + bytes(1024)))


def pax_gz(path):
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 20 * MIB
    path.write_bytes(gzip.compress(entry.tobuf() + bytes(20 * MIB), 1))


BOMBS = {
    "large member": lambda path: tar_gz(path, ("test_batch.bin", b""), size=1 << 33),
    "large other": lambda path: tar_gz(path, ("other", b""), ("test_batch.bin", b""), size=1 << 33),
    "sparse": lambda path: sparse_gz(path, (1 << 33) - 1),
    "pax": pax_gz,
    "many": lambda path: tar_gz(path, *[(str(i), b"") for i in range(3000)]),
    "trailing": lambda path: path.write_bytes(gzip.compress(bytes(40 * MIB), 1)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_bomb_is_refused(bomb, tmp_path, peak, monkeypatch):
    monkeypatch.setattr(data.cifar, "_MOST_BYTES", 16 * MIB, raising=False)  # quicker
    path = tmp_path / "cifar-10-binary.tar.gz"
    BOMBS[bomb](path)
    _, took = peak(lambda: assert_names(path, lambda: data.cifar10(tmp_path)))
    assert took < 8 * MIB


def test_a_batch_beyond_all_official_ones_is_refused(tmp_path, peak):
    for name in ("test_batch", "test_batch.bin"):
        path = tmp_path / name
        with open(path, "wb") as file:
            file.truncate(1 << 33)  # takes no place on the disk
        _, took = peak(lambda: assert_names(tmp_path, lambda: data.cifar10(tmp_path)))
        assert took < 16 * MIB
        path.unlink()


def array_pickle(rows, raw):
    """A batch with an array of ``rows`` images and the state ``raw``; None leaves the state out."""
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\0K\x01tR"
    shape = b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", 3072) + b"\x86"
    made = start + (shape if raw is None else b"K\0\x85") + (dtype if raw is None else b"U\x01b")
    made += b"tR"
    if raw is not None:
        state = b"(K\x01" + shape + dtype
        made += state + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    labels = b"](" + b"K\x01" * rows + b"e"
    return b"\x80\x02}(U\x04data" + made + b"U\x06labels" + labels + b"u."


def test_the_array_pickle_of_these_tests_is_sound(tmp_path):
    (tmp_path / "test_batch").write_bytes(array_pickle(2, bytes(range(256)) * 24))
    assert data.cifar10(tmp_path).images[1, 2, 31, 31] == 255


BAD_PICKLES = {
    "no state": array_pickle(2, None),
    "short state": array_pickle(2, bytes(3072)),
    "constructor": b"\x80\x02}(U\x04datacnumpy\nndarray\n(K\x01M\0\x0c\x86tRU\x06labels](K\x01eu.",
    "huge bytes": b"\x80\x04}(U\x04data\x8e" + struct.pack("<Q", 1 << 40) + b"xu.",
    "huge string": b"\x80\x02}(U\x04dataT" + struct.pack("<i", (1 << 31) - 1) + b"xu.",
    "huge memo": b"\x80\x02}r" + struct.pack("<I", (1 << 31) - 1) + b".",
    "many parts": b"\x80\x02(" + b"]" * (300_000) + b"l.",
    "many in a frame": b"\x80\x04\x95"
    + struct.pack("<Q", 300_000)
    + b"("
    + b"]" * (300_000)
    + b"l.",
    "slow hash": b"\x80\x02}" + b"K\x01\x85q\0" + b"h\0h\0\x86q\0" * 60 + b"K\x01s.",
    "many labels": b"\x80\x02}(U\x04data](K\x01eU\x06labels]q\0" + b"]q\x01(h\0h\0e" * 2 + b"u.",
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_hostile_pickle_is_refused(case, tmp_path, peak, monkeypatch):
    if "pickles" in vars(data):
        monkeypatch.setattr(data.pickles, "_MOST_READS", 100_000)  # quicker
    (tmp_path / "test_batch").write_bytes(BAD_PICKLES[case])
    _, took = peak(lambda: assert_names(tmp_path, lambda: data.cifar10(tmp_path)))
    assert took < 20 * MIB


def test_a_pickle_may_not_ask_numpy_for_other_dtypes(tmp_path):
    for dtype in (b"O8", b"f8", b"V9", b"S3"):
        raw = array_pickle(2, bytes(6144)).replace(b"U\x02u1", b"U\x02" + dtype)
        (tmp_path / "test_batch").write_bytes(raw)
        assert "integers" in assert_names(tmp_path, lambda: data.cifar10(tmp_path))


@pytest.mark.parametrize(
    "pixels, labels, words",
    [
        (np.full((2, 3072), 300, np.int64), [0, 1], "pixels must lie in 0..255"),
        (np.full((2, 3072), -1, np.int8), [0, 1], "pixels must lie in 0..255"),
        (np.full((2, 3072), 0.5), [0, 1], "integers"),
        ([[300] * 3072] * 2, [0, 1], "must be an array"),
        (np.zeros((2, 3072), np.uint8), [0.5, 1.7], "labels must be integers"),
        (np.zeros((2, 3072), np.uint8), [True, False], "labels must be integers"),
        (np.zeros((2, 3072), np.uint8), np.array([0.5, 1.7]), "integers"),
        (np.zeros((2, 3072), np.uint8), [0, 10], r"labels must lie in 0..9"),
        (np.zeros((2, 3072), np.uint8), [-1, 0], r"labels must lie in 0..9"),
        (np.zeros((2, 3072), np.uint8), [1 << 70, 0], "test_batch"),
    ],
)
def test_cifar_values_out_of_range_or_not_integers(tmp_path, pixels, labels, words):
    content = {b"data": pixels, b"labels": labels}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=words):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, ">i4"])
def test_cifar_integers_in_range_are_read_whatever_their_width(tmp_path, dtype):
    pixels = np.arange(2 * 3072).reshape(2, 3072) % 256
    content = {b"data": pixels.astype(dtype), b"labels": np.array([3, 9], dtype)}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    found = data.cifar10(tmp_path)
    assert found.labels.tolist() == [3, 9]
    assert np.array_equal(found.images.numpy().reshape(2, 3072), pixels)


def test_a_binary_batch_takes_no_more_than_twice_its_data(tmp_path, peak):
    raw = np.zeros((4000, 3073), np.uint8).tobytes()
    (tmp_path / "test_batch.bin").write_bytes(raw)
    _, took = peak(lambda: data.cifar10(tmp_path))
    assert took < 2.1 * len(raw)


@pytest.mark.parametrize("train, rows", [(False, 6000), (True, 1500)])
def test_a_packed_pickle_takes_no_more_than_twice_its_data(train, rows, tmp_path, peak):
    archive = tmp_path / "cifar-10-python.tar.gz"
    content = array_pickle(rows, bytes(rows * 3072))
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    found, took = peak(lambda: data.cifar10(archive, train=train))
    assert took < 2.2 * found.images.numel()


@pytest.mark.parametrize("code, images", [(0x09, -1), (0x0D, 1), (0x0B, 1)])
def test_fashion_mnist_pixels_must_be_bytes(code, images, tmp_path):
    pixels = np.full((2, 28, 28), images)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(pixels, code))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    assert_names(tmp_path, lambda: data.fashion_mnist(tmp_path))


def test_fashion_mnist_labels_must_be_integers(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([0.5, 1.5]), 0x0D))
    assert_names(tmp_path, lambda: data.fashion_mnist(tmp_path))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0.5, 1.0]), torch.tensor([True, False]), torch.tensor([[0], [1]])],
)
def test_labels_of_an_image_set_are_integers(labels):
    with pytest.raises(ValueError, match=r"labels must be int64 \[N\]"):
        data.ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels, (0.5,), (0.5,), 10)
