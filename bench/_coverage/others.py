"""The third list: transformers of vision, sound and text, segmentation, video, and networks that
are written out.
"""

from __future__ import annotations

from .control import control
from .huggingface import huggingface
from .networks import Network
from .segmentation import segmentation
from .tutorials import tutorials


def others() -> list[Network]:
    return [*huggingface(), *segmentation(), *tutorials(), *control()]
