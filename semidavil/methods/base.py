"""What every method offers to the training loop."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.segmenter import Segmenter
from semidavil.vlm import Language

Batch = dict[str, dict[str, Any]]
Losses = dict[str, Tensor]  # "loss" is minimised; the others are logged under their names


class Method(nn.Module):
    """One student, trained by gradient on the labelled streams; subclasses add what they need.

    Args:
        student: the network to train.
        encode: captions to token features; the frozen text tower, memoised.
        supervised_loss: (logits, targets) -> scalar.
        config: the run.
    """

    streams: ClassVar[frozenset[str]] = frozenset()  # of "source", "labelled", "unlabelled"
    strong_views: ClassVar[int] = 0  # strong views of each unlabelled image

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

    def losses(self, batch: Batch) -> Losses:
        """The losses of one step; `["loss"]` is the one to minimise."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""

    def networks(self) -> dict[str, Segmenter]:
        """Networks to evaluate, by name; the first is the one whose score is reported."""
        return {"student": self.student}

    def supervised(
        self, batch: Batch, extra: Sequence[tuple[Tensor, list[str]]] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The supervised loss, and logits of `extra` (images, captions) from the same forward pass.

        One pass over all streams is one large batch instead of several small ones. Each labelled
        stream is mined and normalised by itself, then they are averaged, so that source and target
        weigh the same (our reading: the paper names both and no weights).
        """
        labelled = [batch[name] for name in ("source", "labelled") if name in batch]
        images = [part["image"] for part in labelled] + [images for images, _ in extra]
        captions = [text for part in labelled for text in part["caption"]]
        captions += [text for _, texts in extra for text in texts]
        logits = self.student(torch.cat(images), self.encode(captions))
        parts = list(logits.split([len(x) for x in images]))
        terms = [self.supervised_loss(parts[i], part["label"]) for i, part in enumerate(labelled)]
        return torch.stack(terms).mean(), parts[len(labelled) :]
