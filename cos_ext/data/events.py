"""Frames of event recordings, a sequence for each, made with tonic. Files are read by tonic, and
nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._numbers import whole

BINS = {"time": "n_time_bins", "events": "n_event_bins"}  # as tonic calls them


class EventFrames:
    """Makes batches of sequences of event recordings: a ``collate_fn`` for torch's DataLoader, with
    tonic's ToFrame (extra ``events``).

    ::

        recordings = tonic.datasets.NMNIST("data", train=False)
        collate = cos_ext.data.EventFrames(recordings.sensor_size, timesteps=8)
        loader = DataLoader(recordings, batch_size=32, collate_fn=collate)
        cos_ext.evaluate(network, loader, over_time=True)

    A frame has how many events each pixel sent, by polarity: events that are up and down are two
    channels. A recording is cut into T bins: of equal time, or of equally many events. What
    ToFrame leaves over at its end, less than a bin, is in no frame.

    Args:
        sensor_size: (width, height, polarities), as tonic's data sets have it.
        timesteps: T, the frames of a recording: as many as the network wants, max(timesteps, rho).
        by: "time" or "events".

    Raises:
        ImportError: tonic is not installed.
        TypeError, ValueError: an argument is out of range.
    """

    def __init__(self, sensor_size: Sequence[int], timesteps: int, *, by: str = "time") -> None:
        try:
            from tonic.transforms import ToFrame
        except ImportError as error:
            raise ImportError("EventFrames needs tonic: pip install '.[events]'") from error
        sizes = tuple(sensor_size)
        if len(sizes) != 3:
            raise ValueError(
                f"sensor_size must be (width, height, polarities), got {len(sizes)} number(s)"
            )
        width, height, polarities = (whole("sensor_size", size, 1) for size in sizes)
        if by not in BINS:
            raise ValueError(f"by must be one of {tuple(BINS)}, got {by!r}")
        self.sensor_size = (width, height, polarities)
        self.timesteps, self.by = whole("timesteps", timesteps, 1), by
        self._to_frame = ToFrame(self.sensor_size, **{BINS[by]: self.timesteps})

    def frames(self, events: Any) -> Tensor:
        """The frames of one recording, float32 [T, polarities, height, width].

        Args:
            events: a structured array with the fields x, y, t and p, in the order of t.

        Raises:
            TypeError: events has other fields.
            ValueError: it is too short for T frames, or has events outside of the sensor.
        """
        names = getattr(getattr(events, "dtype", None), "names", None) or ()
        if not {"x", "y", "t", "p"} <= set(names):
            raise TypeError(
                "events must be a structured array with the fields x, y, t and p, got "
                f"{list(names) or type(events).__name__}"
            )
        self._check_length(events)
        for name, size in zip(("x", "y", "p"), self.sensor_size):
            least, most = int(events[name].min()), int(events[name].max())
            if least < 0 or most >= size:
                raise ValueError(
                    f"{name} of an event must lie in 0..{size - 1} with sensor_size = "
                    f"{self.sensor_size}, got {least}..{most}"
                )
        return torch.from_numpy(self._to_frame(events)).float()

    def _check_length(self, events: Any) -> None:
        """ValueError where ToFrame would lose all events, or has none."""
        length = len(events)
        if self.by == "time" and length:
            length = int(events["t"][-1] - events["t"][0])
        if length < self.timesteps:
            what = "units of time" if self.by == "time" and len(events) else "events"
            raise ValueError(
                f"a recording must be long enough for {self.timesteps} frames, got {length} "
                f"{what}; leave it out, or take fewer timesteps"
            )

    def __call__(self, recordings: Sequence[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        """A batch of (events, label): sequences float32 [T, B, polarities, height, width], and
        labels int64 [B].

        Raises:
            TypeError, ValueError: as for :meth:`frames`.
        """
        sequences = [self.frames(events) for events, _ in recordings]
        labels = torch.tensor([int(label) for _, label in recordings])
        return torch.stack(sequences, 1), labels
