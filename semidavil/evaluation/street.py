"""Evaluation on the target validation set."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semidavil.data.augment import as_floats
from semidavil.data.windows import sliding_windows
from semidavil.losses import pseudo_label
from semidavil.metrics import Evaluation
from semidavil.models.layers import upsample
from semidavil.models.segmenter import Segmenter
from semidavil.models.text import Language

Encode = Callable[[Sequence[str]], Language]


class Evaluator:
    """Collects an Evaluation batch by batch, on the device."""

    def __init__(
        self,
        num_classes: int,
        threshold: float,
        kept: Collection[str] = (),
        temperature: float = 1.0,
    ) -> None:
        self.num_classes, self.threshold, self.kept = num_classes, threshold, kept
        self.temperature = temperature
        self._labels: dict[str, np.ndarray] = {}
        self._names: list[str] = []
        self._counts: list[Tensor] = []
        self._confident: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Logits (B, C, H, W) and class indices (B, H, W); a target >= C is ignored."""
        confidence, predictions = pseudo_label(logits, self.temperature)
        # One count of all images at once, whose digits are: image, confident or not, truth, prediction.
        # What is ignored is one more truth.
        shape = (len(targets), 2, self.num_classes + 1, self.num_classes)
        images = torch.arange(len(targets), dtype=torch.int32, device=targets.device)
        digits = 2 * images[:, None, None] + (confidence >= self.threshold)
        digits = digits * shape[2] + targets.clamp(max=self.num_classes).int()
        digits = digits * shape[3] + predictions.int()
        counts = digits.flatten().bincount(minlength=math.prod(shape)).view(shape)[:, :, :-1]
        self._counts.append(counts.sum(1))
        self._confident.append(counts[:, 1])
        for name, labels in zip(names, predictions, strict=True):
            if name in self.kept:
                self._labels[name] = labels.byte().cpu().numpy()
        self._names += names

    def result(self) -> Evaluation:
        confident = torch.cat(self._confident).sum(0).cpu().numpy()
        counts = torch.cat(self._counts).cpu().numpy()
        return Evaluation(self._names, counts, confident, self._labels)


@torch.inference_mode()
def evaluate(
    networks: Mapping[str, Segmenter],
    batches: Iterable[Mapping[str, Any]],
    encode: Encode,
    num_classes: int,
    window: tuple[int, int],
    device: torch.device,
    batch_size: int,
    threshold: float = 0.95,
    kept: Collection[str] = (),
    temperature: float = 1.0,
) -> dict[str, Evaluation]:
    """Evaluates each network on all images, at the labels' own size.

    Args:
        batches: of `loading.EvalSet`, as `loaders.collate` joins them.
        encode: captions to what the networks are told of them, on the device.
        window: (height, width) of `sliding_window`.
        batch_size: the most windows of one forward pass.
        threshold, temperature: the confidence from which a prediction would be a pseudo-label, and what
            it is read at.
        kept: names of the images whose predictions the evaluations keep.
    """
    found = {name: Evaluator(num_classes, threshold, kept, temperature) for name in networks}
    for batch in batches:
        # From pinned memory, copies do not wait for what the device computes; floats are made there.
        images = as_floats(batch["image"].to(device, non_blocking=True))
        labels = [label.to(device, non_blocking=True).long() for label in batch["label"]]
        languages = [encode(list(texts)) for texts in zip(*batch["captions"], strict=True)]
        names = batch["name"]
        same_size = len({label.shape for label in labels}) == 1
        for name, network in networks.items():
            logits = sliding_window(network.eval(), images, languages, window, batch_size)
            if same_size:
                found[name].add(upsample(logits, labels[0].shape), torch.stack(labels), names)
            else:
                for one, label, image in zip(logits, labels, names, strict=True):
                    found[name].add(upsample(one[None], label.shape), label[None], [image])
    return {name: evaluator.result() for name, evaluator in found.items()}


def sliding_window(
    network: Segmenter,
    images: Tensor,
    languages: Sequence[Language],
    window: tuple[int, int],
    batch_size: int = 8,
) -> Tensor:
    """Logits (B, C, H, W) from overlapping windows of the training crops' size.

    A vision transformer's position embeddings are trained at the crop's size; whole images would
    stretch them. Windows overlap by about a third, and their logits are averaged where they do.

    Args:
        languages: the captions' tokens: of the images, or of each of `sliding_windows`.
        batch_size: windows of one forward pass.
    """
    boxes = sliding_windows(images.shape[-2:], window).boxes
    if len(languages) == 1:
        languages = [*languages] * len(boxes)
    language = Language.joined(languages)
    parts = torch.cat([images[(..., *box.slices)] for box in boxes])  # (windows B, 3, h, w)
    chunks = [slice(start, start + batch_size) for start in range(0, len(parts), batch_size)]
    logits = torch.cat([network(parts[chunk], language[chunk]).float() for chunk in chunks])
    if len(boxes) == 1:
        return logits
    total = logits.new_zeros(len(images), logits.shape[1], *images.shape[-2:])
    counts = images.new_zeros(images.shape[-2:])
    for box, part in zip(boxes, logits.split(len(images)), strict=True):
        total[(..., *box.slices)] += part
        counts[box.slices] += 1
    return total / counts
