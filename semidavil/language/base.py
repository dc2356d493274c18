"""What every captioner offers."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

Size = tuple[int, int]


class CaptionError(ValueError):
    """A captioner or an image that cannot be used; the message names it and the remedy."""


class Captioner(Protocol):
    """Images to captions. Captioners of equal identity give an image the same caption."""

    identity: str  # begins with the name of its kind
    size: Size | None  # (height, width) that images are resized to; None: as they are
    prompt: str  # what it is asked of each image; empty if it is not asked

    def __call__(self, images: Sequence[Image.Image]) -> list[str]: ...
