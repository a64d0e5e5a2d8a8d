"""Makes the event recordings in recordings/: images of Fashion-MNIST before a simulated sensor that
moves in three saccades, as MNIST was recorded for N-MNIST (Orchard et al., 2015). No camera was
there. Whole numbers throughout, so that every machine makes the same bytes. No tests here.

    python tests/data/simulate_saccades.py
"""

import itertools
from pathlib import Path

import numpy as np

import cos_ext

FOLDER = Path(__file__).parent / "recordings"
SIZE, SACCADE, STEP = 34, 100_000, 1_000  # pixels of the sensor; microseconds
# Where the image is, in 1000ths of a pixel, at the corners of the triangle.
CORNERS = ((3000, 1000), (4000, 4000), (5000, 1000), (3000, 1000))
CONTRAST = 60  # of 255, that an event stands for
IMAGES = {0: "ankle_boot", 1: "pullover"}


def seen(image, x, y):
    """What the sensor sees of an image at a place in 1000ths of a pixel: bilinear, times 10^6."""
    plane = np.zeros((SIZE + 1, SIZE + 1), dtype=np.int64)
    (column, right), (row, down) = divmod(x, 1000), divmod(y, 1000)
    plane[row : row + 28, column : column + 28] += image * (1000 - right) * (1000 - down)
    plane[row : row + 28, column + 1 : column + 29] += image * right * (1000 - down)
    plane[row + 1 : row + 29, column : column + 28] += image * (1000 - right) * down
    plane[row + 1 : row + 29, column + 1 : column + 29] += image * right * down
    return plane[:SIZE, :SIZE]


def events_of(image):
    """(x, y, t, p) of every event: each pixel remembers what it last told."""
    events, told, threshold = [], seen(image, *CORNERS[0]), CONTRAST * 10**6
    for number, (start, end) in enumerate(itertools.pairwise(CORNERS)):
        for at in range(STEP, SACCADE + 1, STEP):
            x, y = (a + (b - a) * at // SACCADE for a, b in zip(start, end))
            change = seen(image, x, y) - told
            for row, column in np.argwhere(abs(change) >= threshold):
                up = change[row, column] > 0
                told[row, column] += threshold if up else -threshold
                events.append((column, row, number * SACCADE + at, int(up)))
    return events


def to_bytes(events):
    """N-MNIST's format, 5 bytes an event: x, y, and the polarity before 23 bits of time."""
    packed = [(x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255) for x, y, t, p in events]
    return np.array(packed, dtype=np.uint8).tobytes()


def recording(number):
    """The bytes of one image's recording."""
    image = cos_ext.data.fashion_mnist().images[number, 0].numpy().astype(np.int64)
    return to_bytes(events_of(image))


def path_of(number):
    return FOLDER / f"simulated_fashion_mnist_{number}_{IMAGES[number]}.bin"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for number in IMAGES:
        path_of(number).write_bytes(recording(number))
        print(path_of(number).name, path_of(number).stat().st_size // 5, "events")
