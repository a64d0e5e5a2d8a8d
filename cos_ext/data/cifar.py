"""CIFAR-10 and CIFAR-100, from the official archives or from what was unpacked of them. Nothing is
batched here.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .images import ImageSet

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

_Arrays = list[tuple[np.ndarray, np.ndarray]]  # pixels [N, 3072] and labels [N], by batch


def cifar10(root: str | Path, *, train: bool = False) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009), 32x32, from the official python or binary version, unpacked or as
    .tar.gz.

    Args:
        root: the folder that holds the batches, the unpacked folder or the archive; or the archive
            itself.
        train: the 50,000 training images instead of the 10,000 test images.

    Raises:
        FileNotFoundError: nothing of the kind is there.
        ValueError: a batch is truncated or corrupt.
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
    files = _read_files(root, python_names, archives)
    if files:
        found = _from_python(name, root, files, label_key)
    else:
        files = _read_files(root, binary_names, archives)
        found = _from_binary(name, root, files, label_bytes)
    if not files:
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


def _read_files(root: Path, names: list[str], archives: list[str]) -> dict[str, bytes]:
    """The wanted batches, from a folder (at any of the official places) or straight from an
    official archive; nothing where they are not there.
    """
    for folder in (root / name for name in _FOLDERS):
        if all((folder / name).is_file() for name in names):
            return {name: (folder / name).read_bytes() for name in names}
    for archive in [root] if root.is_file() else [root / name for name in archives]:
        found = _from_archive(archive, names) if archive.is_file() else {}
        if found:
            return found
    return {}


def _from_archive(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The wanted batches, or nothing where one of them is not in the archive."""
    try:
        with tarfile.open(archive) as tar:
            members = {
                Path(member.name).name: member for member in tar.getmembers() if member.isfile()
            }
            assert tar.fileobj is not None
            while tar.fileobj.read(1 << 20):
                pass  # only at the end of the file does gzip compare its checksum
            if not all(name in members for name in names):
                return {}
            opened = {name: tar.extractfile(members[name]) for name in names}
            return {name: file.read() for name, file in opened.items() if file is not None}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} is a truncated or corrupt archive: {error}") from error


def _from_python(name: str, root: Path, files: dict[str, bytes], label_key: bytes) -> _Arrays:
    found = []
    for batch, raw in files.items():
        try:
            content = _PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
            pixels = np.asarray(content[b"data"], dtype=np.uint8)
            labels = np.asarray(content[label_key], dtype=np.int64)
            if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or labels.shape != pixels.shape[:1]:
                raise ValueError(f"data {pixels.shape} and labels {labels.shape}")
        except Exception as error:  # unpickling damaged bytes can raise nearly anything
            raise ValueError(
                f"{name}: {batch} in {root} is truncated or corrupt: {error}"
            ) from error
        found.append((pixels, labels))
    return found


def _from_binary(name: str, root: Path, files: dict[str, bytes], label_bytes: int) -> _Arrays:
    """Records of label bytes, the last of which is wanted, and pixels."""
    found, record = [], label_bytes + _PIXELS
    for batch, raw in files.items():
        if not raw or len(raw) % record:
            raise ValueError(
                f"{name}: {batch} in {root} is truncated: {len(raw)} bytes are no multiple of "
                f"{record}"
            )
        table = np.frombuffer(raw, np.uint8).reshape(-1, record)
        found.append((table[:, label_bytes:], table[:, label_bytes - 1].astype(np.int64)))
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Only what CIFAR's batches hold: dicts, lists, bytes and NumPy arrays. Anything else in the
    file is refused.
    """

    _ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR batch")
        if name == "_reconstruct":
            # Wherever this NumPy keeps it: numpy.core before 2.0, numpy._core since.
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)
