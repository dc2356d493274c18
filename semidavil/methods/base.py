"""What every method offers to the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.distributed import gather, share, shares_of, world_size
from semidavil.models.segmenter import Features, Segmenter
from semidavil.models.text import Language
from semidavil.models.vlm import VLM

Batch = dict[str, dict[str, Any]]
Losses = dict[str, Tensor]  # "loss" is minimised; the others are logged under their names


@dataclass(frozen=True)
class Part:
    """One group of images in a joint forward pass: what it was decoded from, and to.

    Where several processes share the batch, features and language are this one's share of the images
    and logits those of all: a method that reads more than logits is not `data_parallel`.
    """

    features: Features
    language: Language
    logits: Tensor


class Method(nn.Module):
    """One student, trained by gradient on the labelled streams; subclasses add what they need.

    Which streams a method draws from, and what else the harness must know of it, is in `names.METHODS`.

    Args:
        student: the network to train.
        encode: captions to token features; the frozen text tower, memoised.
        supervised_loss: (logits, targets) -> scalar.
        config: the run.
    """

    def __init__(
        self,
        student: Segmenter,
        encode: Callable[[Sequence[str]], Language],
        supervised_loss: nn.Module,
        config: Config,
    ) -> None:
        super().__init__()
        self.student = student
        self.encode = encode
        self.supervised_loss = supervised_loss
        self.config = config
        self.extend()

    def extend(self) -> None:
        """Called last in the constructor: where a subclass makes what it keeps beside the student."""

    def use_vlm(self, vlm: VLM, classes: Sequence[str]) -> None:
        """Called once, before training, with the VLM that the student has just started from."""

    def losses(self, batch: Batch, step: int) -> Losses:
        """The losses of step number `step`, counted from 0; `["loss"]` is the one to minimise."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""

    def networks(self) -> dict[str, Segmenter]:
        """Networks to evaluate, by name; the first is the one whose score is reported."""
        return {"student": self.student}

    def supervised(
        self, batch: Batch, extra: Sequence[tuple[Tensor, list[str]]] = ()
    ) -> tuple[Tensor, list[Part]]:
        """The supervised loss, and what the student makes of `extra` (images, captions).

        One pass over all streams is one large batch instead of several small ones. Each labelled
        stream is mined and normalised by itself, then they are averaged, so that source and target
        weigh the same (our reading: the paper names both and no weights).
        """
        labelled = [batch[name] for name in ("source", "labelled") if name in batch]
        groups = [(part["image"], part["caption"]) for part in labelled] + list(extra)
        parts = forward_groups(self.student, self.encode, groups)
        terms = [
            self.supervised_loss(mine.logits, part["label"])
            for mine, part in zip(parts[: len(labelled)], labelled, strict=True)
        ]
        return torch.stack(terms).mean(), parts[len(labelled) :]


def forward_groups(
    network: Segmenter,
    encode: Callable[[Sequence[str]], Language],
    groups: Sequence[tuple[Tensor, list[str]]],
) -> list[Part]:
    """All groups (images, captions) through the network as one batch, then taken apart again."""
    shares = [images[share(len(images))] for images, _ in groups]
    features = network.encode(torch.cat(shares))
    language = encode([text for _, captions in groups for text in captions])
    if world_size() > 1:  # after encoding: captions are padded to the longest of the whole batch
        language = language[shares_of([len(images) for images, _ in groups])]
    logits = network.decode(features, language)
    parts, start = [], 0
    for images in shares:
        rows = slice(start, start + len(images))
        parts.append(Part(features[rows], language[rows], gather(logits[rows])))
        start = rows.stop
    return parts


def confident_share(confidence: Tensor, threshold: float, valid: Tensor) -> Tensor:
    """The share of valid pixels (B, H, W) whose confidence reaches the threshold."""
    return (valid & (confidence >= threshold)).sum() / valid.sum().clamp(min=1)


def paste(values: Tensor, box: Tensor) -> Tensor:
    """CutMix: inside `box` (B, H, W) the values (B, [C,] H, W) of the batch's next image."""
    mask = box if values.dim() == box.dim() else box.unsqueeze(1)
    return torch.where(mask, values.roll(-1, dims=0), values)
