"""What CLIP sees in an image and where, in words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from semidavil.benchmarks import Benchmark
from semidavil.language.base import CaptionError, Size
from semidavil.models.vlm import VLM, class_embeddings

STREET = Benchmark.scene


class Positions:
    """What CLIP sees in an image, and where: zero-shot labels of its patches put into words.

    "a street scene with road at the bottom, building on the left and right, sky at the top". A
    stand-in for a captioner such as the paper's BLIP-2, which describes content and positions too,
    and no equal one: it gives a method the benchmark's class names, while the paper says that its
    captions describe content and positions instead of fixed class definitions. Classes are named in
    order of their area; the smallest are left out where the text encoder's context is short.

    Args:
        classes: names to look for.
        size: images are resized to this height and width, in pixels; see `size_of_images` and
            `size_of_windows`.
        words: what classes are also called: they are looked for by these as well.
        scene: what a caption begins with.
    """

    VERSION = 1  # raise it when the same image would get another caption
    TEMPLATES = (
        "a photo of a {0}",
        "a picture of the {0}",
        "a {0} in {1}",
        "a rendered {0} in {1}",
    )
    MIN_SHARE = 0.01  # of the image's area; smaller classes are more often noise than there

    prompt = ""

    def __init__(
        self,
        vlm: VLM | None,
        classes: Sequence[str],
        size: Size | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
        scene: str = STREET,
    ) -> None:
        if vlm is None:
            raise CaptionError("the captioner positions looks at images through a VLM: pass one")
        self.vlm, self.classes = vlm, list(classes)
        self.size: Size | None = _whole_patches(size or size_of_images(vlm), vlm.vision.stride)
        self.identity = f"positions {self.VERSION} {self.size} {self.classes} {vlm.fingerprint()}"
        self.words, self.scene = dict(words or {}), scene
        if self.words or scene != STREET:
            self.identity += f" {sorted(self.words.items())} {scene}"
        if vlm.dense != "maskclip":
            self.identity += f" {vlm.dense}"

    @cached_property
    def text(self) -> Tensor:
        """Embeddings of the classes (C, e): half a second, for nothing where all captions are on disk."""
        prompts = [
            [
                template.format(word, self.scene)
                for word in (name, *self.words.get(name, ()))
                for template in self.TEMPLATES
            ]
            for name in self.classes
        ]
        return class_embeddings(self.vlm, prompts)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        stacked = np.stack([np.asarray(image) for image in images])
        batch = torch.from_numpy(stacked).to(self.vlm.device).permute(0, 3, 1, 2).float() / 255
        with _evaluating(self.vlm.vision):
            embeddings = self.vlm.embed(batch)
        scores = torch.einsum("behw,ce->bchw", embeddings.float(), self.text.to(embeddings.device))
        # The most likely class under softmax(logit scale * cosine), whatever the scale.
        found = scores.argmax(1)
        masks = F.one_hot(found, len(self.classes)).float()  # (B, h, w, C)
        rows = thirds(masks.mean(2)).cpu().numpy()  # (B, 3, C): shares of the image's area
        columns = thirds(masks.mean(1)).cpu().numpy()
        described = [
            phrases(self.classes, *shares, self.MIN_SHARE)
            for shares in zip(rows, columns, strict=True)
        ]
        return self._fit(described)

    def _fit(self, captions: list[list[str]]) -> list[str]:
        """Sentences, each short enough for the text encoder."""
        texts = [sentence(parts, self.scene) for parts in captions]
        limit = self.vlm.text.max_tokens
        for index, count in enumerate(self.vlm.text.count_tokens(texts)):
            parts = captions[index]
            while count > limit and parts:
                parts = parts[:-1]
                texts[index] = sentence(parts, self.scene)
                (count,) = self.vlm.text.count_tokens([texts[index]])
        return texts


def sentence(parts: Sequence[str], scene: str = STREET) -> str:
    """The caption of phrases such as "road at the bottom", the most important first."""
    return f"{scene} with {', '.join(parts)}" if parts else scene


def phrases(
    classes: Sequence[str], rows: np.ndarray, columns: np.ndarray, min_share: float
) -> list[str]:
    """Classes with their places, the largest first.

    Args:
        rows, columns: (3, C) shares of the image's area by third.
        min_share: classes of a smaller area are left out.
    """
    shares = rows.sum(0)
    order = sorted(range(len(shares)), key=lambda index: (-shares[index], index))
    return [
        f"{classes[index]} {describe_place(rows[:, index], columns[:, index])}"
        for index in order
        if shares[index] >= min_share
    ]


def thirds(shares: Tensor) -> Tensor:
    """Shares (B, 3, C) of the first, middle and last third in the mean of (B, n, C) over n."""
    count = shares.shape[1]
    edges = torch.arange(count + 1, device=shares.device) / count * 3
    low, high = edges[:-1, None], edges[1:, None]
    third = torch.arange(3, device=shares.device)[None]
    overlap = (torch.minimum(high, third + 1) - torch.maximum(low, third)).clamp(min=0)
    return torch.einsum("nt,bnc->btc", overlap / (high - low) / count, shares)


def describe_place(rows: np.ndarray, columns: np.ndarray) -> str:
    """Where a class lies, from its area in the thirds from top to bottom and from left to right."""
    top, _, bottom = rows / rows.sum()
    left, centre, right = columns / columns.sum()
    if min(left, centre, right) >= 0.15:  # it spans the image: say how high
        if abs(top - bottom) < 0.25:
            return "in the centre"
        return "at the top" if top > bottom else "at the bottom"
    if min(left, right) >= 0.25:
        return "on the left and right"
    if max(left, right) >= 0.5:
        return "on the left" if left > right else "on the right"
    return "in the centre"


def size_of_windows(vlm: VLM, window: Size) -> Size:
    """The height that the VLM was trained at, and the width that keeps a window's shape."""
    height = vlm.vision.native_size[0]
    return height, round(height * window[1] / window[0])


def size_of_images(vlm: VLM) -> Size:
    """The size that the VLM was trained at, twice as wide where that is square, as streets are."""
    height, width = vlm.vision.native_size
    return (height, 2 * width) if height == width else (height, width)


def _whole_patches(size: Size, stride: int) -> Size:
    height, width = (max(1, round(side / stride)) * stride for side in size)
    return height, width


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
