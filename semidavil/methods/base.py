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
class Rates:
    """How AdamW trains a method's networks.

    Attributes:
        lr: the learning rate before the schedule, of all but the vision encoder.
        backbone_factor: the vision encoder learns at lr * this; 0 freezes it.
        weight_decay: of the weights.
        decay_norms: whether norms decay as well.
    """

    lr: float
    backbone_factor: float
    weight_decay: float
    decay_norms: bool = True


@dataclass(frozen=True)
class Labelled:
    """Logits (B, C, H, W) of a labelled stream, its labels (B, H, W), and its share of L_sup."""

    logits: Tensor
    labels: Tensor
    share: float = 1.0


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
        """The losses of step number `step`, counted from 0; `["loss"]` is the one to minimise.

        Without unlabelled images, L_sup alone.
        """
        labelled, _ = self.see(batch)
        supervised = self.supervised(labelled)
        return {"loss": supervised, "loss_sup": supervised}

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""

    def networks(self) -> dict[str, Segmenter]:
        """Networks to evaluate, by name; the first is the one whose score is reported."""
        return {"student": self.student}

    def rates(self) -> Rates:
        """Learning rates and weight decay; those of `training` unless the method's paper has its own."""
        training = self.config.training
        return Rates(training.lr, training.backbone_lr_factor, training.weight_decay)

    def see(
        self, batch: Batch, extra: Sequence[tuple[Tensor, list[str]]] = ()
    ) -> tuple[list[Labelled], list[Part]]:
        """What the student makes of the labelled streams, and of `extra` (images, captions).

        One pass over all of them is one large batch instead of several small ones.
        """
        streams = [batch[name] for name in ("source", "labelled") if name in batch]
        groups = [(stream["image"], stream["caption"]) for stream in streams] + list(extra)
        parts = forward_groups(self.student, self.encode, groups)
        of_source = self.config.training.source_share
        shares = (of_source, 1 - of_source) if len(streams) == 2 else (1.0,) * len(streams)
        labelled = [
            Labelled(part.logits, stream["label"], weight)
            for part, stream, weight in zip(parts[: len(streams)], streams, shares, strict=True)
        ]
        return labelled, parts[len(streams) :]

    def supervised(self, labelled: Sequence[Labelled], loss: nn.Module | None = None) -> Tensor:
        """L_sup of the labelled streams, by the configured loss or another one.

        The paper names both streams and no weights. "per_stream": each is mined and normalised by
        itself, and `source_share` says what the source weighs: half (our reading).
        "joint": one call on both together, as in the released code, where most of the mined pixels may
        be one domain's.
        """
        loss = loss or self.supervised_loss
        if self.config.training.supervised == "joint":
            logits = torch.cat([part.logits for part in labelled])
            return loss(logits, torch.cat([part.labels for part in labelled]))
        terms = [part.share * loss(part.logits, part.labels) for part in labelled]
        return torch.stack(terms).sum()


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


def confident_share(confidence: Tensor, threshold: float) -> Tensor:
    """The share of pixels whose confidence (B, H, W) reaches the threshold."""
    return (confidence >= threshold).float().mean()


def paste(values: Tensor, box: Tensor) -> Tensor:
    """CutMix: inside `box` (B, H, W) the values (B, [C,] H, W) of the batch's next image."""
    mask = box if values.dim() == box.dim() else box.unsqueeze(1)
    return torch.where(mask, values.roll(-1, dims=0), values)
