"""Image folders in ImageNet's style, read with Pillow one image at a time. Nothing is kept in
memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from .images import check_shard

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class ImageFolder(Dataset):
    """An ImageNet-style folder, ``root/<class>/<image>``, read with Pillow (extra ``vision``).

    Items are (float32 [3, size, size] normalised with ImageNet's mean and std, int). For evaluation
    the shorter side is resized to size·256/224 and the centre is cropped. With ``augment`` a random
    area (8% to 100%) is cropped and mirrored.

    Args:
        root: the folder of class folders.
        size: of the square images, in pixels.
        augment: random crops and mirrors, for training.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: root has no class folder, or a class folder has no image.
        ValueError: an image file is truncated or corrupt (from indexing).
    """

    EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")

    def __init__(self, root: str | Path, *, size: int = 224, augment: bool = False) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ImportError("ImageFolder needs Pillow: pip install '.[vision]'") from error
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
        except Exception as error:
            # Pillow's decoders raise SyntaxError, ValueError and more for damaged bytes.
            raise ValueError(f"{path} is truncated or is not an image: {error}") from error
        pixels = torch.from_numpy(np.array(self._cropped(image, Image))).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        return (pixels.float().div_(255) - mean) / std, label

    def _cropped(self, image: Any, pillow: Any) -> Any:
        return self._random(image, pillow) if self.augment else self._centre(image, pillow)

    def _random(self, image: Any, pillow: Any) -> Any:
        """A random area of the image, and as often as not its mirror image."""
        width, height = image.size
        area = width * height * float(torch.empty(()).uniform_(0.08, 1.0))
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        w = min(width, max(1, round(math.sqrt(area * ratio))))
        h = min(height, max(1, round(math.sqrt(area / ratio))))
        left = int(torch.randint(0, width - w + 1, ()))
        top = int(torch.randint(0, height - h + 1, ()))
        box = (left, top, left + w, top + h)
        image = image.resize((self.size, self.size), pillow.Resampling.BILINEAR, box=box)
        return image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image

    def _centre(self, image: Any, pillow: Any) -> Any:
        """The centre of the image, its shorter side resized."""
        width, height = image.size
        scale = self.size * 256 / 224 / min(width, height)
        sizes = (max(self.size, round(side * scale)) for side in (width, height))
        resized = image.resize(tuple(sizes), pillow.Resampling.BILINEAR)
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
    ) -> DataLoader:
        """A torch DataLoader over this folder; ``workers`` processes read images, and ``shard`` is
        as for :meth:`cos_ext.data.ImageSet.batches`.
        """
        check_shard(shard, shuffle)
        if shard[1] > 1:
            order = BatchSampler(range(len(self)), batch_size, drop_last)
            mine = list(order)[shard[0] :: shard[1]]
            return DataLoader(self, batch_sampler=mine, num_workers=workers)
        return DataLoader(
            self,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=workers,
            generator=generator,
        )
