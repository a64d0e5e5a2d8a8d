"""CIFAR-10 and -100: the python and the binary version, packed and not, damaged, and malicious
pickles.
"""

import builtins
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from damaged import assert_names, corrupted

from cos_ext import data

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
            assert_names(archive, lambda root=root: data.cifar10(root, train=True))
    # Noise does not compress, so a changed byte becomes a changed pixel that only gzip's checksum
    # notices.
    for position in [0, 40, len(raw) // 4, len(raw) // 2, 3 * len(raw) // 4, len(raw) - 6]:
        archive.write_bytes(corrupted(raw, position))
        for train in (True, False):
            assert_names(archive, lambda train=train: data.cifar10(tmp_path, train=train))
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
