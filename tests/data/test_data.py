"""cos_ext.data: file formats, damaged files, batching and augmentation. No models, no training, no
download.
"""

import builtins
import gzip
import io
import os
import pickle
import struct
import sys
import tarfile

import numpy as np
import pytest
import torch

from cos_ext import data
from cos_ext.data import ImageSet

IDX_CODES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(IDX_CODES[code]).tobytes()


def corrupted(raw, position):
    damaged = bytearray(raw)
    damaged[position] ^= 0x5A
    return bytes(damaged)


def assert_names(path, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- IDX


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


# ---------------------------------------------------------------- CIFAR

NAMES = {
    "cifar10": {
        "python": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
        "binary": ("cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
        True: [f"data_batch_{i}" for i in range(1, 6)],
        False: ["test_batch"],
        "key": b"labels",
    },
    "cifar100": {
        "python": ("cifar-100-python.tar.gz", "cifar-100-python"),
        "binary": ("cifar-100-binary.tar.gz", "cifar-100-binary"),
        True: ["train"],
        False: ["test"],
        "key": b"fine_labels",
    },
}
READERS = {"cifar10": data.cifar10, "cifar100": data.cifar100}
ROUTES = [(version, packed) for version in ("python", "binary") for packed in (False, True)]


def python2_pickle(value):
    """Protocol 2 as Python 2's cPickle wrote it: str is a byte string, arrays come from
    numpy.core.
    """

    def short(text):
        return b"U" + bytes([len(text)]) + text

    def encode(item):
        if isinstance(item, np.ndarray):
            rows, columns = item.shape
            return (
                b"cnumpy.core.multiarray\n_reconstruct\n"
                b"cnumpy\nndarray\n"
                b"K\0\x85" + short(b"b") + b"\x87R"
                b"(K\x01J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
                b"cnumpy\ndtype\n" + short(b"u1") + b"K\0K\x01\x87R"
                b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
                b"\x89T" + struct.pack("<i", item.nbytes) + item.tobytes() + b"tb"
            )
        if isinstance(item, dict):
            return b"}(" + b"".join(encode(part) for pair in item.items() for part in pair) + b"u"
        if isinstance(item, list):
            return b"](" + b"".join(encode(part) for part in item) + b"e"
        return short(item) if isinstance(item, bytes) else b"J" + struct.pack("<i", item)

    return b"\x80\x02" + encode(value) + b"."


def pack(archive, members, **tar_options):
    with tarfile.open(archive, "w:gz", **tar_options) as tar:
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))


def cifar_batches(name, train, count=7):
    """{batch: (pixels uint8 [n, 3, 32, 32], labels)}: noise, so a wrong order of channels, rows or
    batches shows.
    """
    rng = np.random.default_rng([train, name == "cifar100"])
    classes = 100 if name == "cifar100" else 10
    return {
        batch: (
            rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
            rng.integers(0, classes, count),
        )
        for batch in NAMES[name][train]
    }


def cifar_files(name, version, train, pickler=python2_pickle):
    files = {}
    for batch, (pixels, labels) in cifar_batches(name, train).items():
        if version == "python":
            count = len(labels)
            content = {
                b"batch_label": batch.encode(),
                NAMES[name]["key"]: labels.tolist(),
                b"data": pixels.reshape(count, 3072),
                b"filenames": [b"a.png"] * count,
            }
            files[batch] = pickler(
                content | ({b"coarse_labels": [0] * count} if name == "cifar100" else {})
            )
        else:
            coarse = [19] if name == "cifar100" else []
            records = [
                bytes([*coarse, label]) + image.tobytes() for image, label in zip(pixels, labels)
            ]
            files[f"{batch}.bin"] = b"".join(records)
    return files


def write_cifar(root, name, version, packed, pickler=python2_pickle):
    archive, folder = NAMES[name][version]
    contents = cifar_files(name, version, True, pickler) | cifar_files(
        name, version, False, pickler
    )
    files = {f"{folder}/{file}": raw for file, raw in contents.items()} | {
        f"{folder}/readme.html": b"<html>"
    }
    if packed:
        pack(root / archive, files)
        return root / archive
    for file, raw in files.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(raw)
    return root / folder


def assert_is_source(image_set, name, train):
    source = cifar_batches(name, train)
    assert np.array_equal(
        image_set.images.numpy(), np.concatenate([pixels for pixels, _ in source.values()])
    )
    assert np.array_equal(
        image_set.labels.numpy(), np.concatenate([labels for _, labels in source.values()])
    )
    assert image_set.num_classes == (100 if name == "cifar100" else 10)
    assert len(image_set.mean) == len(image_set.std) == 3


@pytest.mark.parametrize("version, packed", ROUTES)
@pytest.mark.parametrize("name", READERS)
def test_cifar_by_every_route(tmp_path, name, version, packed):
    place = write_cifar(tmp_path, name, version, packed)
    for train in (True, False):
        for root in (
            tmp_path,
            str(tmp_path),
            place,
        ):  # the folder around it, and the folder or archive itself
            assert_is_source(READERS[name](root, train=train), name, train)
        assert_is_source(data.load(name, tmp_path, train=train), name, train)


def numpy2_pickle(value):
    return pickle.dumps(value, protocol=2).replace(
        b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    )


def numpy1_pickle(value):
    return numpy2_pickle(value).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize(
    "pickler",
    [numpy1_pickle, numpy2_pickle, lambda value: pickle.dumps(value, protocol=4)],
    ids=["numpy.core", "numpy._core", "protocol 4"],
)
@pytest.mark.parametrize("name", READERS)
def test_cifar_pickled_by_python_3(tmp_path, name, pickler):
    assert b"multiarray" in pickler(np.zeros(3))
    write_cifar(tmp_path, name, "python", False, pickler)
    assert_is_source(READERS[name](tmp_path), name, False)


def test_the_python2_pickle_is_what_python_reads():
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    content = pickle.loads(python2_pickle({b"labels": [3, 300], b"data": pixels}), encoding="bytes")
    assert content[b"labels"] == [3, 300] and np.array_equal(content[b"data"], pixels)


def test_cifar_of_column_major_arrays(tmp_path):
    write_cifar(
        tmp_path,
        "cifar10",
        "python",
        False,
        lambda value: numpy1_pickle({**value, b"data": np.asfortranarray(value[b"data"])}),
    )
    assert_is_source(data.cifar10(tmp_path, train=True), "cifar10", True)


@pytest.mark.parametrize("name", READERS)
def test_cifar_missing(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        READERS[name](tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        READERS[name](tmp_path / "nowhere")
    folder = write_cifar(tmp_path, name, "python", False)
    (folder / NAMES[name][True][-1]).unlink()
    with pytest.raises(FileNotFoundError, match=NAMES[name][True][-1]):
        READERS[name](tmp_path, train=True)
    assert len(READERS[name](tmp_path)) == 7


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar_truncated_or_corrupt_archive(tmp_path, version):
    archive = write_cifar(tmp_path, "cifar10", version, True)
    raw = archive.read_bytes()
    for length in [0, 1, 5, 11, 100, len(raw) // 3, len(raw) // 2, len(raw) - 2000, len(raw) - 9]:
        archive.write_bytes(raw[:length])
        for root in (tmp_path, archive):
            assert_names(archive, lambda: data.cifar10(root, train=True))
    # Noise does not compress, so a changed byte becomes a changed pixel that only gzip's checksum
    # notices.
    for position in [0, 40, len(raw) // 4, len(raw) // 2, 3 * len(raw) // 4, len(raw) - 6]:
        archive.write_bytes(corrupted(raw, position))
        for train in (True, False):
            assert_names(archive, lambda: data.cifar10(tmp_path, train=train))
    archive.write_bytes(raw)
    assert_is_source(data.cifar10(tmp_path, train=True), "cifar10", True)


def test_cifar_archive_that_is_something_else(tmp_path):
    other = tmp_path / "cifar-10-python.tar.gz"
    other.write_bytes(b"<html>404</html>" * 100)
    assert_names(other, lambda: data.cifar10(tmp_path))
    assert_names(other, lambda: data.cifar10(other))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_cifar_truncated_batch(tmp_path, name, packed):
    batch = NAMES[name][False][0]
    archive, folder = NAMES[name]["python"]
    raw = cifar_files(name, "python", False)[batch]
    for damaged in [raw[:length] for length in (0, 1, 2, 30, len(raw) // 2, len(raw) - 1)] + [
        b"not a pickle",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({b"labels": [1]}, protocol=2),
        python2_pickle({b"data": np.zeros((2, 3072), np.uint8), NAMES[name]["key"]: [1]}),
        python2_pickle({b"data": np.zeros((2, 3071), np.uint8), NAMES[name]["key"]: [1, 2]}),
    ]:
        if packed:
            pack(tmp_path / archive, {f"{folder}/{batch}": damaged})
        else:
            (tmp_path / batch).write_bytes(damaged)
        assert batch in assert_names(tmp_path, lambda: READERS[name](tmp_path))


@pytest.mark.parametrize("name", READERS)
def test_cifar_truncated_binary_batch(tmp_path, name):
    batch = f"{NAMES[name][False][0]}.bin"
    raw = cifar_files(name, "binary", False)[batch]
    for length in (0, 1, 3072, len(raw) - 1):
        (tmp_path / batch).write_bytes(raw[:length])
        assert batch in assert_names(tmp_path, lambda: READERS[name](tmp_path))


def test_cifar_labels_out_of_range(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match=r"0\.\.9"):
        data.cifar10(tmp_path)


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar_pickle_that_runs_code_is_refused(tmp_path, protocol):
    witness = tmp_path / "executed"
    for attack in (
        Attack(os.system, f"touch '{witness}'"),
        Attack(os.mkdir, str(witness)),
        Attack(builtins.eval, f"open({str(witness)!r}, 'w').close()"),
    ):
        pixels = np.zeros((1, 3072), np.uint8)
        raw = pickle.dumps({b"data": pixels.tolist(), b"labels": [attack]}, protocol=protocol)
        (tmp_path / "test_batch").write_bytes(raw)
        assert "does not belong" in assert_names(tmp_path, lambda: data.cifar10(tmp_path))
        assert not witness.exists()
        pickle.loads(raw)  # the same bytes do act where nothing refuses them, so this test can fail
        assert witness.exists()
        witness.rmdir() if witness.is_dir() else witness.unlink()


@pytest.mark.parametrize(
    "module, name",
    [
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core._os", "system"),
        ("builtins", "getattr"),
    ],
)
def test_cifar_pickle_may_only_name_what_arrays_need(tmp_path, module, name):
    (tmp_path / "test_batch").write_bytes(b"\x80\x04" + f"c{module}\n{name}\n.".encode())
    assert "does not belong" in assert_names(tmp_path, lambda: data.cifar10(tmp_path))


# ---------------------------------------------------------------- ImageSet and batches


def numbered(count=10, channels=1, height=8, width=8, classes=10):
    """Every image constant, and as bright as its index, so that a batch tells which images it
    has.
    """
    images = (
        torch.arange(1, count + 1, dtype=torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, channels, height, width)
    )
    return ImageSet(
        images.contiguous(),
        torch.arange(count) % classes,
        (0.0,) * channels,
        (1.0,) * channels,
        classes,
    )


def seen(batches):
    return [
        round(float(pixel) * 255) - 1 for images, _ in batches for pixel in images.amax((1, 2, 3))
    ]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 9, 10, 11])
def test_batch_lengths(batch_size, drop_last):
    batches = numbered().batches(batch_size, drop_last=drop_last)
    sizes = [len(labels) for _, labels in batches]
    whole, rest = divmod(10, batch_size)
    assert sizes == [batch_size] * whole + ([rest] if rest and not drop_last else [])
    assert len(batches) == len(sizes)
    assert seen(batches) == list(range(sum(sizes)))
    assert seen(batches) == list(range(sum(sizes)))  # re-iterable


def test_batches_are_normalised_float32_with_int64_labels():
    images, labels = next(iter(numbered().batches(4)))
    assert images.dtype == torch.float32 and images.shape == (4, 1, 8, 8)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 3]


def test_shuffle_gives_every_image_once_with_its_label():
    source = numbered(200, classes=200)
    batches = source.batches(7, shuffle=True, generator=torch.Generator().manual_seed(1))
    first, second = seen(batches), seen(batches)
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second != list(range(200)) != first
    assert [int(label) for _, labels in batches for label in labels] != first
    for images, labels in batches:
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long() - 1, labels)
    assert len(seen(source.batches(7, shuffle=True, drop_last=True))) == 196


@pytest.mark.parametrize("augment", [False, True])
def test_same_seed_same_batches(augment):
    source = ImageSet(
        torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8),
        torch.arange(40) % 10,
        (0.5,) * 3,
        (0.25,) * 3,
        10,
    )

    def run(seed):
        batches = source.batches(
            16, shuffle=True, augment=augment, generator=torch.Generator().manual_seed(seed)
        )
        return torch.cat([images for _ in range(2) for images, _ in batches])

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    before = torch.get_rng_state()
    run(3)
    assert torch.equal(
        torch.get_rng_state(), before
    )  # a generator of one's own leaves torch's alone


@pytest.mark.parametrize("height, width, pad", [(28, 28, 3), (32, 32, 4), (8, 16, 1), (4, 4, 1)])
def test_augmentation_only_shifts_and_mirrors(height, width, pad):
    count, channels = 60, 2
    images = torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8)
    source = ImageSet(images, torch.zeros(count, dtype=torch.int64), (0.5, 0.25), (0.5, 0.25), 1)
    augmented, _ = next(
        iter(source.batches(count, augment=True, generator=torch.Generator().manual_seed(0)))
    )
    assert augmented.shape == images.shape and augmented.is_contiguous()
    used = set()
    for result, image in zip(augmented, images):
        # Black before normalisation: the border becomes (0 - mean) / std, not 0.
        padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        matches = []
        for mirror in (False, True):
            source_image = padded.flip(-1) if mirror else padded
            for top in range(2 * pad + 1):
                for left in range(2 * pad + 1):
                    window = source_image[:, top : top + height, left : left + width]
                    if torch.equal(source.normalise(window[None])[0], result):
                        matches.append((mirror, top, left))
        assert len(matches) == 1
        used.add(matches[0])
    assert {mirror for mirror, _, _ in used} == {False, True}
    assert {top for _, top, _ in used} == {left for _, _, left in used} == set(range(2 * pad + 1))
    assert torch.equal(next(iter(source.batches(count)))[0], source.normalise(images))


def test_normalise():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    image_set = ImageSet(pixels, torch.tensor([0]), (0.5, 0.1, 0.25), (0.5, 0.2, 0.125), 1)
    normalised = image_set.normalise(image_set.images)
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised.flatten(), torch.tensor([-1.0, 0.5, 6.0]))
    assert image_set.images.flatten().tolist() == [0, 51, 255]


def test_indexing():
    source = numbered(5)
    for index in range(-5, 5):
        image, label = source[index]
        assert image.shape == (1, 8, 8) and image.dtype == torch.float32 and type(label) is int
        assert label == index % 5 and round(float(image[0, 0, 0]) * 255) == label + 1
    for index in (5, 100, -6):
        with pytest.raises(IndexError):
            source[index]
    assert [label for _, label in source] == [0, 1, 2, 3, 4]  # iteration ends
    loader = torch.utils.data.DataLoader(source, 2)
    assert [labels.tolist() for _, labels in loader] == [[0, 1], [2, 3], [4]]


def test_first():
    source = numbered(5)
    assert source.first(None) is source
    part = source.first(2)
    assert (
        len(part) == 2
        and part.images.data_ptr() == source.images.data_ptr()
        and part.num_classes == 10
    )
    assert len(source.first(5)) == 5 and len(source.first(1)) == 1
    for count in (0, -1, 6):
        with pytest.raises(ValueError, match=rf"1\.\.5, got {count}"):
            source.first(count)


def test_image_set_checks():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    for wrong in (images.float(), images[:, 0]):
        with pytest.raises(ValueError, match="uint8"):
            ImageSet(wrong, labels, (0.0,), (1.0,), 10)
    with pytest.raises(ValueError, match="4 and 3"):
        ImageSet(images, labels[:3], (0.0,), (1.0,), 10)
    for wrong in (labels + 7, labels - 1):
        with pytest.raises(ValueError, match=r"0\.\.9, got"):
            ImageSet(images, wrong, (0.0,), (1.0,), 10)
    for mean, std in [
        ((0.0,) * 3, (1.0,)),
        ((0.0,), (1.0,) * 3),
    ]:  # would broadcast to three channels
        with pytest.raises(ValueError, match="mean and std"):
            ImageSet(images, labels, mean, std, 10)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        ImageSet(images, labels, (0.0,), (1.0,), 10).batches(0)
    empty = ImageSet(images[:0], labels[:0], (0.0,), (1.0,), 10)
    assert len(empty) == 0 and list(empty.batches(3)) == []


# ---------------------------------------------------------------- load and ImageFolder


def test_load_names(tmp_path, test_set):
    assert torch.equal(data.load("fashion-mnist", None).labels, test_set.labels)
    for name in ("imagenet", "CIFAR10", ""):
        with pytest.raises(ValueError, match="fashion-mnist.*got"):
            data.load(name, tmp_path)
    for name in set(data.DATASETS) - {"fashion-mnist"}:
        with pytest.raises(ValueError, match="root"):
            data.load(name, None)
    with pytest.raises(ValueError, match="root"):
        data.load("fashion-mnist", None, train=True)
    for name in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(FileNotFoundError):
            data.load(name, tmp_path)


def test_image_folder_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="Pillow"):
        data.ImageFolder(tmp_path)


@pytest.fixture
def pillow():
    return pytest.importorskip(
        "PIL.Image", reason="ImageFolder needs Pillow, which is not installed"
    )


def write_images(pillow, root, sizes=((40, 30), (30, 40), (64, 64))):
    for label, (name, colour) in enumerate(
        {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}.items()
    ):
        (root / name / "deep").mkdir(parents=True)
        for index, size in enumerate(sizes):
            folder = root / name if index else root / name / "deep"
            pillow.new("RGB", size, colour).save(
                folder / f"{index}.{('png', 'JPEG', 'bmp')[index]}"
            )
        (root / name / "notes.txt").write_text("no image")


def test_image_folder(tmp_path, pillow):
    write_images(pillow, tmp_path)
    folder = data.ImageFolder(tmp_path, size=24)
    assert len(folder) == 9 and folder.classes == ("ant", "bee", "cat") and folder.num_classes == 3
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for image, label in (folder[index] for index in range(9)):
        assert image.shape == (3, 24, 24) and image.dtype == torch.float32
        pixels = image * std.view(3, 1, 1) + mean.view(3, 1, 1)
        assert torch.allclose(
            pixels, torch.eye(3)[label].view(3, 1, 1).expand(3, 24, 24), atol=0.02
        )
    assert folder[-1][1] == 2
    images, labels = next(iter(folder.batches(9)))
    assert images.shape == (9, 3, 24, 24) and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    augmented = data.ImageFolder(tmp_path, size=24, augment=True)
    assert all(augmented[index][0].shape == (3, 24, 24) for index in range(9))


def test_image_folder_crops_the_centre(tmp_path, pillow):
    (tmp_path / "one").mkdir()
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 144:368] = 255  # the 224 columns that a centre crop of size 224 keeps
    pillow.fromarray(pixels).save(tmp_path / "one" / "wide.png")
    image, _ = data.ImageFolder(tmp_path, size=224)[0]
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(image, white.view(3, 1, 1).expand(3, 224, 224), atol=1e-5)


def test_image_folder_modes(tmp_path, pillow):
    (tmp_path / "one").mkdir()
    for mode in ("L", "P", "RGBA", "LA", "1"):
        pillow.new(mode, (20, 10)).save(tmp_path / "one" / f"{mode}.png")
    folder = data.ImageFolder(tmp_path, size=16)
    assert [folder[index][0].shape for index in range(5)] == [(3, 16, 16)] * 5


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "ppm"])
def test_image_folder_truncated_images(tmp_path, pillow, kind):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / f"image.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    pillow.fromarray(noise).save(path)
    raw = path.read_bytes()
    folder = data.ImageFolder(tmp_path, size=16)
    folder[0]
    for length in [0, 1, 4, 9, 17, 20, 30, 41, 60, len(raw) // 2, 3 * len(raw) // 4]:
        path.write_bytes(raw[:length])
        assert_names(path, lambda: folder[0])
    for position in range(
        0, len(raw), 7
    ):  # a damaged image may still decode, but may not raise anything else
        path.write_bytes(corrupted(raw, position))
        try:
            folder[0]
        except ValueError as error:
            assert str(path) in str(error)


def test_image_folder_errors(tmp_path, pillow):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no class folders"):
        data.ImageFolder(tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="ant"):
        data.ImageFolder(tmp_path)


def test_load_folder_splits(tmp_path, pillow):
    write_images(pillow, tmp_path / "val")
    write_images(pillow, tmp_path / "train", ((10, 10),))
    assert len(data.load("folder", tmp_path, size=8)) == 9
    train = data.load("folder", tmp_path, train=True, size=8)
    assert len(train) == 3 and train.augment
    assert len(data.load("folder", tmp_path / "val", size=8)) == 9
