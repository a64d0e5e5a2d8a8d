"""CIFAR-10 and CIFAR-100, from the official archives or from what was unpacked of them. Nothing is
batched here.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .images import ImageSet
from .pickles import read_plain

_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}
_PIXELS = 3 * 32 * 32
# Where the batches of an unpacked archive may lie, below the folder that was named.
_FOLDERS = (
    "",
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    "cifar-100-python",
    "cifar-100-binary",
)

# No more is read. The largest official batch has 155 MB, the archives 178 MB in 10 members.
_MOST_BYTES = 1 << 28
_MOST_MEMBERS = 1000
_MOST_READ = 1 << 20  # at a time, of what describes a member

_Batch = tuple[np.ndarray, np.ndarray]  # pixels [N, 3072] and labels [N]
_Arrays = list[_Batch]
_Decoder = Callable[[str, Any, int], _Batch]  # of a batch's name, an open file, and its size


def cifar10(root: str | Path, *, train: bool = False) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009), 32x32, from the official python or binary version, unpacked or as
    .tar.gz.

    Args:
        root: the folder that holds the batches, the unpacked folder or the archive; or the archive
            itself.
        train: the 50,000 training images instead of the 10,000 test images.

    Raises:
        FileNotFoundError: nothing of the kind is there.
        ValueError: a batch is truncated or corrupt, is far larger than the official ones, or has
            pixels or labels that are not integers in range.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    return _cifar("cifar10", Path(root), names, b"labels", 1)


def cifar100(root: str | Path, *, train: bool = False) -> ImageSet:
    """CIFAR-100 (Krizhevsky 2009) with its fine labels. Arguments and errors as for
    :func:`cifar10`.
    """
    names = ["train" if train else "test"]
    return _cifar("cifar100", Path(root), names, b"fine_labels", 2)


def _cifar(
    name: str, root: Path, python_names: list[str], label_key: bytes, label_bytes: int
) -> ImageSet:
    """The set in these batches of the python version, or, where they are not there, the binary
    one.
    """
    stem = f"cifar-{name.removeprefix('cifar')}"
    archives = [f"{stem}-python.tar.gz", f"{stem}-binary.tar.gz"]
    binary_names = [f"{batch}.bin" for batch in python_names]
    found: _Arrays = _read(root, python_names, archives, _from_python(name, root, label_key))
    if not found:
        found = _read(root, binary_names, archives, _from_binary(name, root, label_bytes))
    if not found:
        raise FileNotFoundError(
            f"{name}: neither {python_names} nor {binary_names} nor {archives} in {root}"
        )
    pixels = np.concatenate([pixels for pixels, _ in found])
    return ImageSet(
        torch.from_numpy(pixels.reshape(-1, 3, 32, 32)),
        torch.from_numpy(np.concatenate([labels for _, labels in found])),
        _MEAN[name],
        _STD[name],
        100 if name == "cifar100" else 10,
    )


def _read(root: Path, names: list[str], archives: list[str], decode: _Decoder) -> _Arrays:
    """The wanted batches, from a folder (at any of the official places) or straight from an
    official archive; nothing where they are not there.
    """
    for folder in (root / name for name in _FOLDERS):
        if all((folder / name).is_file() for name in names):
            return [_from_file(folder / name, decode) for name in names]
    for archive in [root] if root.is_file() else [root / name for name in archives]:
        found = _from_archive(archive, names, decode) if archive.is_file() else []
        if found:
            return found
    return []


def _from_file(path: Path, decode: _Decoder) -> _Batch:
    size = path.stat().st_size
    with open(path, "rb") as file:
        return decode(path.name, file, size)


def _from_archive(archive: Path, names: list[str], decode: _Decoder) -> _Arrays:
    """The wanted batches, or nothing where one of them is not in the archive."""
    try:
        with open(archive, "rb") as packed:
            zipped = packed.peek(2)[:2] == b"\x1f\x8b"
            with gzip.GzipFile(fileobj=packed) if zipped else packed as stream:
                members = _members(stream)
                if not all(name in members for name in names):
                    return []
                found = []
                for name in sorted(names, key=lambda name: members[name][0]):  # no way back
                    start, size = members[name]
                    stream.seek(start)
                    found.append((name, decode(name, _Part(stream, size), size)))
                ordered = dict(found)
                return [ordered[name] for name in names]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} is a truncated or corrupt archive: {error}") from error


def _members(stream: Any) -> dict[str, tuple[int, int]]:
    """Where the files of an archive begin, and their sizes, by name without folders."""
    members: dict[str, tuple[int, int]] = {}
    bounded: Any = _Bounded(stream)
    with tarfile.open(fileobj=bounded, mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= _MOST_MEMBERS or member.size > _MOST_BYTES or member.issparse():
                raise tarfile.ReadError(f"{member.name} is not of a CIFAR archive")
            if member.isfile():
                members[Path(member.name).name] = member.offset_data, member.size
        while bounded.read(1 << 20):
            pass  # only at the end of the file does gzip compare its checksum
    return members


class _Bounded:
    """What tarfile needs of a file. It ends with an error where no CIFAR archive goes on."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.tell = stream, stream.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_READ:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        self._check(self.tell() + size)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self.stream.seek(position)

    def _check(self, position: int) -> None:
        if position > 2 * _MOST_BYTES:
            raise tarfile.ReadError(f"it has more than {2 * _MOST_BYTES >> 20} MiB")


class _Part:
    """The next bytes of a stream, as a file."""

    def __init__(self, stream: Any, size: int) -> None:
        self.stream, self.left = stream, size

    def read(self, size: int = -1) -> bytes:
        wanted = min(size, self.left) if size >= 0 else self.left
        pieces = []  # gzip takes three times what it is asked for
        while wanted and (piece := self.stream.read(min(wanted, _MOST_READ))):
            pieces.append(piece)
            wanted -= len(piece)
            self.left -= len(piece)
        return b"".join(pieces)

    def readline(self) -> bytes:
        found = self.stream.readline(self.left)
        self.left -= len(found)
        return found


def _from_python(name: str, root: Path, label_key: bytes) -> _Decoder:
    def decode(batch: str, file: Any, size: int) -> _Batch:
        try:
            _check_size(size)
            content = read_plain(file, size)
            return _pixels(content[b"data"]), _labels(content[label_key], len(content[b"data"]))
        except Exception as error:  # unpickling damaged bytes can raise nearly anything
            raise ValueError(
                f"{name}: {batch} in {root} is truncated or corrupt: {error}"
            ) from error

    return decode


def _pixels(data: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise ValueError(
            f"data must be an array [N, {_PIXELS}], got {getattr(data, 'shape', data)}"
        )
    if data.size and not 0 <= int(data.min()) <= int(data.max()) <= 255:
        raise ValueError(f"pixels must lie in 0..255, got {data.min()}..{data.max()}")
    return data.astype(np.uint8, copy=False)


def _labels(labels: Any, count: int) -> np.ndarray:
    if isinstance(labels, list) and not all(type(label) is int for label in labels):
        raise ValueError("labels must be integers")
    found = np.asarray(labels, dtype=np.int64 if isinstance(labels, list) else None)
    if found.dtype.kind not in "ui" or found.shape != (count,):
        raise ValueError(f"labels must be {count} integers, got {found.dtype} {found.shape}")
    return found.astype(np.int64)


def _from_binary(name: str, root: Path, label_bytes: int) -> _Decoder:
    """Records of label bytes, the last of which is wanted, and pixels."""
    record = label_bytes + _PIXELS

    def decode(batch: str, file: Any, size: int) -> _Batch:
        try:
            _check_size(size)
        except ValueError as error:
            raise ValueError(f"{name}: {batch} in {root} is corrupt: {error}") from error
        raw = file.read(size)
        if not raw or len(raw) % record:
            raise ValueError(
                f"{name}: {batch} in {root} is truncated: {len(raw)} bytes are no multiple of "
                f"{record}"
            )
        table = np.frombuffer(raw, np.uint8).reshape(-1, record)
        return table[:, label_bytes:], table[:, label_bytes - 1].astype(np.int64)

    return decode


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise ValueError(f"it has {size} bytes, the largest official batch has 155 million")
