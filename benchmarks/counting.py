"""From logits to the confusion matrices of a validation set, against torchmetrics and a bare count.

    OMP_NUM_THREADS=1 python benchmarks/counting.py [--quick]

Cityscapes' 500 images at 512x1024. Ours counts each image by itself and the confident pixels once more,
the others count all in one. CPU time, one thread, batch by batch in turn.
"""

import torch
from rows import Row, print_rows
from timing import in_turn
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.evaluation.street import Evaluator

CLASSES, IMAGES = 19, 500
GOAL = 0.5


def measure(quick: bool) -> list[Row]:
    """Seconds for 500 images, from the median over batches of 4; of small images if `quick`."""
    torch.set_num_threads(1)
    batch, size, repeats = (2, (32, 64), 2) if quick else (4, (512, 1024), 9)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, CLASSES, *size, generator=generator)
    targets = torch.randint(CLASSES, (batch, *size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.1] = IGNORE_INDEX
    names = [str(image) for image in range(batch)]
    evaluator = Evaluator(CLASSES, 0.95)
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE_INDEX, validate_args=False)

    def bare() -> Tensor:
        valid = targets != IGNORE_INDEX
        pairs = targets[valid] * CLASSES + logits.argmax(1)[valid]
        return pairs.bincount(minlength=CLASSES**2)

    references = {
        "torchmetrics' confusion matrix": lambda: metric.update(logits, targets),
        "a bare argmax and bincount": bare,
    }
    rows = []
    for against, reference in references.items():
        found = in_turn(lambda: evaluator.add(logits, targets, names), reference, repeats)
        ours, theirs = (ms / 1000 * IMAGES / batch for ms in found)
        what = f"logits to confusion matrices, {IMAGES} images of {size[0]}x{size[1]}"
        rows.append(Row(what, ours, theirs, against, "s", GOAL))
    return rows


if __name__ == "__main__":
    print_rows(measure, __doc__)
