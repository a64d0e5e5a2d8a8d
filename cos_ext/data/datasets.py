"""Data sets, read with NumPy alone: Fashion-MNIST (IDX), CIFAR-10/100 (the official archives) and
image folders.

Small sets are held in memory as uint8 and batched here; no training or evaluation code lives in
this file.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ASSETS = Path(__file__).resolve().parent.parent / "assets"

_FASHION_CLASSES = (
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
_CIFAR_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_CIFAR_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set in memory.

    images: uint8 [N, C, H, W]; labels: int64 [N]; mean, std: per channel, for pixels scaled to [0,
    1]. `len()` and indexing (a normalised float32 [C, H, W] and an int) make it usable as a torch
    map-style data set.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"images and labels must have one length, got {len(self.images)} and "
                f"{len(self.labels)}"
            )
        if (
            len(self.labels)
            and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes
        ):
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}, got "
                f"{self.labels.min()}..{self.labels.max()}"
            )
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise ValueError(
                f"mean and std must have one value per channel, got {self.mean} and {self.std} "
                f"for {self.images.shape[1]} channels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(
            self.images[index : index + 1] if index >= 0 else self.images[[index]]
        )[0], int(self.labels[index])

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images (all for None), sharing memory."""
        if count is None:
            return self
        if not 1 <= count <= len(self):
            raise ValueError(f"samples must lie in 1..{len(self)}, got {count}")
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32, scaled to [0, 1], then (pixel - mean) / std per
        channel.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        scale = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(scale)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        """An iterable of (float32 [B, C, H, W], int64 [B]); `augment` is a random crop (padding
        1/8) and a mirror.

        shard: (i, n) gives the batches i, i + n, i + 2n, ... alone: without padding or repetition,
        perhaps none.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        _check_shard(shard, shuffle)
        return Batches(self, batch_size, shuffle, augment, drop_last, generator, shard)


@dataclass
class Batches:
    """What :meth:`ImageSet.batches` returns: re-iterable, with a length. Each pass draws a new
    order.
    """

    source: ImageSet
    batch_size: int
    shuffle: bool = False
    augment: bool = False
    drop_last: bool = False
    generator: torch.Generator | None = field(default=None, repr=False)
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> range:
        count = len(self.source) / self.batch_size
        return range(
            self.shard[0], math.floor(count) if self.drop_last else math.ceil(count), self.shard[1]
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        total = len(self.source)
        order = torch.randperm(total, generator=self.generator) if self.shuffle else None
        for index in self._numbers():
            chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
            picked = order[chosen] if order is not None else chosen
            images = self.source.images[picked]
            yield (
                self.source.normalise(self._augmented(images) if self.augment else images),
                self.source.labels[picked],
            )

    def _augmented(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        pad = max(1, height // 8)
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        top, left = (
            torch.randint(0, 2 * pad + 1, (count,), generator=self.generator) for _ in range(2)
        )
        mirrored = torch.rand(count, generator=self.generator) < 0.5
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + left[:, None]
        rows = torch.arange(height) + top[:, None]
        sample = torch.arange(count)[:, None, None]
        return (
            padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]]
            .movedim(-1, 1)
            .contiguous()
        )


def _check_shard(shard: tuple[int, int], shuffle: bool) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {tuple(shard)}")
    if count > 1 and shuffle:
        raise ValueError(
            "shuffle must be False with a shard: processes that draw other orders would share out "
            "no whole set"
        )


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


def _find(root: Path, names: list[str], what: str) -> Path:
    for name in names:
        for candidate in (root / name, root / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"{what}: none of {names} (or with .gz) in {root}")


def fashion_mnist(root: str | Path | None = None, *, train: bool = False) -> ImageSet:
    """Fashion-MNIST (Xiao et al. 2017), 28x28, from the official IDX files, plain or gzip.

    Args:
        root: the folder with the IDX files. None: the 10,000 test images that ship with cos_ext,
            for train=False only. Debian's package dataset-fashion-mnist puts all four files in
            /usr/share/datasets/fashion-mnist.
        train: the 60,000 training images instead of the 10,000 test images.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not what it should be.
    """
    if root is None:
        if train:
            raise ValueError(
                "root must name the folder of the IDX files for train=True: only the test set "
                "ships with cos_ext"
            )
        root = ASSETS / "fashion-mnist"
    stem = "train" if train else "t10k"
    images = read_idx(
        _find(
            Path(root),
            [f"{stem}-images-idx3-ubyte", f"{stem}-images.idx3-ubyte"],
            "Fashion-MNIST images",
        )
    )
    labels = read_idx(
        _find(
            Path(root),
            [f"{stem}-labels-idx1-ubyte", f"{stem}-labels.idx1-ubyte"],
            "Fashion-MNIST labels",
        )
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
        _FASHION_CLASSES,
    )


class _PlainUnpickler(pickle.Unpickler):
    """Only what CIFAR's batches hold: dicts, lists, bytes and NumPy arrays. Anything else in the
    file is refused.
    """

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR batch")
        if (
            name == "_reconstruct"
        ):  # wherever this NumPy keeps it: numpy.core before 2.0, numpy._core since
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)


def _cifar_files(root: Path, names: list[str], archives: list[str]) -> dict[str, bytes]:
    """The wanted batches, from a folder (at any of the official places) or straight from the
    official archive.
    """
    folders = [
        root,
        root / "cifar-10-batches-py",
        root / "cifar-10-batches-bin",
        root / "cifar-100-python",
        root / "cifar-100-binary",
    ]
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            return {name: (folder / name).read_bytes() for name in names}
    for archive in [root] if root.is_file() else [root / name for name in archives]:
        if not archive.is_file():
            continue
        try:
            with tarfile.open(archive) as tar:
                members = {
                    Path(member.name).name: member for member in tar.getmembers() if member.isfile()
                }
                while tar.fileobj.read(
                    1 << 20
                ):  # only at the end of the file does gzip compare its checksum
                    pass
                if all(name in members for name in names):
                    return {name: tar.extractfile(members[name]).read() for name in names}
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{archive} is a truncated or corrupt archive: {error}") from error
    return {}


def _cifar(
    name: str,
    root: str | Path,
    train: bool,
    label_key: bytes,
    label_bytes: int,
    python_names: list[str],
    binary_names: list[str],
    archives: list[str],
) -> ImageSet:
    root = Path(root)
    pixels, labels = [], []
    files = _cifar_files(root, python_names, archives)
    for batch, raw in files.items():
        try:
            content = _PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
            data = np.asarray(content[b"data"], dtype=np.uint8)
            label = np.asarray(content[label_key], dtype=np.int64)
            if data.ndim != 2 or data.shape[1] != 3072 or label.shape != data.shape[:1]:
                raise ValueError(f"data {data.shape} and labels {label.shape}")
        except Exception as error:  # unpickling damaged bytes can raise nearly anything
            raise ValueError(
                f"{name}: {batch} in {root} is truncated or corrupt: {error}"
            ) from error
        pixels.append(data)
        labels.append(label)
    if not files:
        files = _cifar_files(root, binary_names, archives)
        for batch, raw in files.items():
            record = label_bytes + 3072
            if not raw or len(raw) % record:
                raise ValueError(
                    f"{name}: {batch} in {root} is truncated: {len(raw)} bytes are no multiple of "
                    f"{record}"
                )
            table = np.frombuffer(raw, np.uint8).reshape(-1, record)
            pixels.append(table[:, label_bytes:])
            labels.append(table[:, label_bytes - 1].astype(np.int64))
    if not files:
        raise FileNotFoundError(
            f"{name}: neither {python_names} nor {binary_names} nor {archives} in {root}"
        )
    images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, 32, 32))
    return ImageSet(
        images,
        torch.from_numpy(np.concatenate(labels)),
        _CIFAR_MEAN[name],
        _CIFAR_STD[name],
        100 if name == "cifar100" else 10,
    )


def cifar10(root: str | Path, *, train: bool = False) -> ImageSet:
    """CIFAR-10 (Krizhevsky 2009), 32x32, from the official python or binary version, unpacked or as
    .tar.gz.

    Args:
        root: the folder that holds the batches, the unpacked folder or the archive; or the archive
            itself.
        train: the 50,000 training images instead of the 10,000 test images.

    Raises:
        FileNotFoundError, ValueError: nothing of the kind is there, or a batch is truncated or
            corrupt.
    """
    numbers = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    return _cifar(
        "cifar10",
        root,
        train,
        b"labels",
        1,
        numbers,
        [f"{name}.bin" for name in numbers],
        ["cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"],
    )


def cifar100(root: str | Path, *, train: bool = False) -> ImageSet:
    """CIFAR-100 (Krizhevsky 2009) with its fine labels. Arguments and errors as for
    :func:`cifar10`.
    """
    batch = "train" if train else "test"
    return _cifar(
        "cifar100",
        root,
        train,
        b"fine_labels",
        2,
        [batch],
        [f"{batch}.bin"],
        ["cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"],
    )


class ImageFolder(torch.utils.data.Dataset):
    """An ImageNet-style folder, `root/<class>/<image>`, read with Pillow (extra `vision`).

    Items are (float32 [3, size, size] normalised with ImageNet's mean and std, int). For evaluation
    the shorter side is resized to size·256/224 and the centre is cropped; with `augment` a random
    area (8% to 100%) is cropped and mirrored.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: root has no class folder, or a class folder has no image.
        ValueError (from indexing): an image file is truncated or corrupt.
    """

    EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")

    def __init__(self, root: str | Path, *, size: int = 224, augment: bool = False) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ImportError("ImageFolder needs Pillow: pip install 'cos_ext[vision]'") from error
        self.root, self.size, self.augment = Path(root), size, augment
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of class folders, got {self.root}")
        self.classes = tuple(sorted(entry.name for entry in self.root.iterdir() if entry.is_dir()))
        if not self.classes:
            raise FileNotFoundError(f"{self.root} has no class folders")
        self.num_classes = len(self.classes)
        self.samples: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            found = sorted(
                path
                for path in (self.root / name).rglob("*")
                if path.suffix.lower() in self.EXTENSIONS
            )
            if not found:
                raise FileNotFoundError(
                    f"{self.root / name} has no image ({', '.join(self.EXTENSIONS)})"
                )
            self.samples += [(path, label) for path in found]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self.samples[index]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (
            Exception
        ) as error:  # Pillow's decoders raise SyntaxError, ValueError and more for damaged bytes
            raise ValueError(f"{path} is truncated or is not an image: {error}") from error
        pixels = (
            torch.from_numpy(np.array(self._cropped(image, Image)))
            .permute(2, 0, 1)
            .float()
            .div_(255)
        )
        return (pixels - torch.tensor(_IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
            _IMAGENET_STD
        ).view(3, 1, 1), label

    def _cropped(self, image: Any, pillow: Any) -> Any:
        width, height = image.size
        if self.augment:
            area = width * height * float(torch.empty(()).uniform_(0.08, 1.0))
            ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
            w, h = (
                min(width, max(1, round(math.sqrt(area * ratio)))),
                min(height, max(1, round(math.sqrt(area / ratio)))),
            )
            left, top = (
                int(torch.randint(0, width - w + 1, ())),
                int(torch.randint(0, height - h + 1, ())),
            )
            image = image.resize(
                (self.size, self.size),
                pillow.Resampling.BILINEAR,
                box=(left, top, left + w, top + h),
            )
            return (
                image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image
            )
        scale = self.size * 256 / 224 / min(width, height)
        resized = image.resize(
            (max(self.size, round(width * scale)), max(self.size, round(height * scale))),
            pillow.Resampling.BILINEAR,
        )
        left, top = (resized.width - self.size) // 2, (resized.height - self.size) // 2
        return resized.crop((left, top, left + self.size, top + self.size))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        workers: int = 0,
        generator: torch.Generator | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> torch.utils.data.DataLoader:
        """A torch DataLoader over this folder; `shard` as for :meth:`ImageSet.batches`."""
        _check_shard(shard, shuffle)
        if shard[1] > 1:
            order = torch.utils.data.BatchSampler(range(len(self)), batch_size, drop_last)
            return torch.utils.data.DataLoader(
                self, batch_sampler=list(order)[shard[0] :: shard[1]], num_workers=workers
            )
        return torch.utils.data.DataLoader(
            self,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=workers,
            generator=generator,
        )


DATASETS = ("fashion-mnist", "cifar10", "cifar100", "folder")


def load(
    name: str, root: str | Path | None, *, train: bool = False, size: int = 224
) -> ImageSet | ImageFolder:
    """The data set called `name`, one of DATASETS.

    For "folder" the images of one split are expected in root/train or root/val, in root/test, or in
    root itself.
    """
    if name not in DATASETS:
        raise ValueError(f"data set must be one of {DATASETS}, got {name!r}")
    if name == "fashion-mnist":
        return fashion_mnist(root, train=train)
    if root is None:
        raise ValueError(
            f"root must name the folder of {name}: only Fashion-MNIST's test set ships with cos_ext"
        )
    if name == "folder":
        splits = ["train"] if train else ["val", "test"]
        folder = next(
            (Path(root) / split for split in splits if (Path(root) / split).is_dir()), Path(root)
        )
        return ImageFolder(folder, size=size, augment=train)
    return (cifar10 if name == "cifar10" else cifar100)(root, train=train)
