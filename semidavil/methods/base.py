"""What every method offers to the training loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.distributed import gather, share, shares_of, world_size
from semidavil.flops import TRAINED, forward_flops
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
class Encoded:
    """Images that the student's encoder has seen, and what their captions say: input of `decode`."""

    features: Features
    language: Language


@dataclass(frozen=True)
class StudentOutput:
    """What the student makes of one step's images.

    Where several processes share the batch, logits are those of all; what is only encoded is this one's share
    of the images: a method that reads it is not `data_parallel`.
    """

    labelled: list[Labelled]
    views: list[Tensor]  # logits of each of `Method.see`'s views
    encoded: list[Encoded]


View = tuple[Tensor, Language]  # images (B, 3, H, W) and their captions


class Method(nn.Module):
    """One student, trained by gradient on the labelled streams; subclasses add what they need.

    Which streams a method draws from, and what else the harness must know of it, is in `names.METHODS`.

    Args:
        student: the network to train.
        supervised_loss: (logits, targets) -> scalar.
        config: the run.
    """

    def __init__(
        self,
        student: Segmenter,
        supervised_loss: nn.Module,
        config: Config,
    ) -> None:
        super().__init__()
        self.student = student
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
        supervised = self.supervised(self.see(batch).labelled)
        return {"loss": supervised, "loss_sup": supervised}

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""

    # Whether `losses` does the same for every step number.
    same_each_step = False

    def replayable(self) -> bool:
        """Whether a GPU may replay a step that it has seen once, see `semidavil.replay`.

        Not where a caption's length, which the host knows, decides what is computed.
        """
        return self.same_each_step and not getattr(self.student.fusion, "reads_lengths", False)

    # Forward passes of encoder and decoder for each unlabelled image; one with gradients counts as TRAINED.
    unlabelled_passes = (0, 0)
    # What the encoder's pass over a labelled image counts as.
    labelled_pass = TRAINED

    def flops(self, batch: Batch) -> float:
        """FLOPs of a step on these images, as `semidavil.flops` counts them."""
        counts = {name: len(stream["image"]) for name, stream in batch.items()}
        first, training = next(iter(batch.values())), self.student.training
        image, language = first["image"][:1], self.language(first)[:1]
        self.student.eval()  # batch normalisation would learn from the image
        encode = forward_flops(lambda: self.student.encode(image))
        decode = forward_flops(lambda: self.student(image, language)) - encode
        self.student.train(training)
        labelled = counts.get("source", 0) + counts.get("labelled", 0)
        encoded, decoded = (n * counts.get("unlabelled", 0) for n in self.unlabelled_passes)
        encoded, decoded = encoded + self.labelled_pass * labelled, decoded + TRAINED * labelled
        return float(encode * encoded + decode * decoded)

    def networks(self) -> dict[str, Segmenter]:
        """Networks to evaluate, by name; the first is the one whose score is reported."""
        return {"student": self.student}

    def rates(self) -> Rates:
        """Learning rates and weight decay; those of `training` unless the method's paper has its own."""
        training = self.config.training
        return Rates(training.lr, training.backbone_lr_factor, training.weight_decay)

    def language(self, stream: dict[str, Any]) -> Language:
        """What is said of a stream's images: their captions."""
        return stream["language"]

    def see(
        self, batch: Batch, views: Sequence[View] = (), encoded: Sequence[View] = ()
    ) -> StudentOutput:
        """What the student makes of the labelled streams, of `views`, and of images that are only `encoded`.

        One pass over all of them is one large batch instead of several small ones.
        """
        streams = [batch[name] for name in ("source", "labelled") if name in batch]
        own = [(stream["image"], self.language(stream)) for stream in streams]
        logits, features = forward_groups(self.student, [*own, *views], encoded)
        of_source = self.config.training.source_share
        shares = (of_source, 1 - of_source) if len(streams) == 2 else (1.0,) * len(streams)
        labelled = [
            Labelled(part, stream["label"], weight)
            for part, stream, weight in zip(logits[: len(streams)], streams, shares, strict=True)
        ]
        return StudentOutput(labelled, logits[len(streams) :], features)

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
    network: Segmenter, decoded: Sequence[View], encoded: Sequence[View] = ()
) -> tuple[list[Tensor], list[Encoded]]:
    """All groups through the encoder as one batch, and those that are `decoded` on through the decoder.

    Returns:
        The logits of each decoded group, and what the encoder makes of each of the others.
    """
    groups = [*decoded, *encoded]
    shares = [images[share(len(images))] for images, _ in groups]
    features = network.encode(torch.cat(shares))
    # Joined before it is shared: captions are padded to the longest of the whole batch, as in one process.
    language = Language.joined([said for _, said in groups])
    if world_size() > 1:
        language = language[shares_of([len(images) for images, _ in groups])]
    sizes = list(map(len, shares))
    count = len(decoded)
    own, alone = features, []
    if encoded:
        # Split rather than sliced: a slice's gradient is a batch of zeros with a few rows in it.
        own, *alone = features.split([sum(sizes[:count]), *sizes[count:]])
    logits = network.decode(own, language[: sum(sizes[:count])])
    starts = list(accumulate(sizes, initial=0))[count:]
    return (
        [gather(part) for part in logits.split(sizes[:count])],
        [
            Encoded(part, language[start : start + len(part.vision)])
            for part, start in zip(alone, starts, strict=False)
        ],
    )


def confident_share(confidence: Tensor, threshold: float) -> Tensor:
    """The share of pixels whose confidence (B, H, W) reaches the threshold."""
    return (confidence >= threshold).float().mean()


def paste(values: Tensor, box: Tensor) -> Tensor:
    """CutMix: inside `box` (B, H, W) the values (B, [C,] H, W) of the batch's next image."""
    mask = box if values.dim() == box.dim() else box.unsqueeze(1)
    return torch.where(mask, values.roll(-1, dims=0), values)
