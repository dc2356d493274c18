"""Evaluation on the target validation set."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from semidavil.data.loading import EvalSet
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
    data: EvalSet,
    encode: Encode,
    num_classes: int,
    window: tuple[int, int],
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    threshold: float = 0.95,
    kept: Collection[str] = (),
    temperature: float = 1.0,
) -> dict[str, Evaluation]:
    """Evaluates each network on the whole set, at the labels' own size.

    Args:
        window: (height, width) of `sliding_window`.
        threshold, temperature: the confidence from which a prediction would be a pseudo-label, and what
            it is read at.
        kept: names of the images whose predictions the evaluations keep.
    """
    found = {name: Evaluator(num_classes, threshold, kept, temperature) for name in networks}
    loader = DataLoader(data, batch_size, num_workers=num_workers, collate_fn=list)
    for items in loader:
        images = torch.stack([item["image"] for item in items]).to(device)
        spoken = zip(*(item["captions"] for item in items), strict=True)
        languages = [encode(list(texts)) for texts in spoken]
        labels = [item["label"].to(device) for item in items]
        names = [item["name"] for item in items]
        same_size = len({label.shape for label in labels}) == 1
        for name, network in networks.items():
            logits = sliding_window(network.eval(), images, languages, window)
            if same_size:
                found[name].add(_at_size(logits, labels[0].shape), torch.stack(labels), names)
            else:
                for one, label, image in zip(logits, labels, names, strict=True):
                    found[name].add(_at_size(one[None], label.shape), label[None], [image])
    return {name: evaluator.result() for name, evaluator in found.items()}


def sliding_window(
    network: Segmenter, images: Tensor, languages: Sequence[Language], window: tuple[int, int]
) -> Tensor:
    """Logits (B, C, H, W) from overlapping windows of the training crops' size.

    A vision transformer's position embeddings are trained at the crop's size; whole images would
    stretch them. Windows overlap by about a third, and their logits are averaged where they do.

    Args:
        languages: the captions' tokens: of the images, or of each of `sliding_windows`.
    """
    boxes = sliding_windows(images.shape[-2:], window).boxes
    if len(languages) == 1:
        languages = [*languages] * len(boxes)
    if len(boxes) == 1:
        return network(images, *languages)
    total: Tensor | None = None
    counts = images.new_zeros(images.shape[-2:])
    for box, language in zip(boxes, languages, strict=True):
        part = (..., *box.slices)
        logits = network(images[part], language).float()
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
        total[part] += logits
        counts[part] += 1
    assert total is not None
    return total / counts


def _at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) at another (height, width)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return upsample(logits.float(), size)
