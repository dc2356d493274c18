"""Each loss against PyTorch's own cross-entropy: time and memory of value and gradient, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/losses.py [--quick]

CPU time, one thread, both measured in turn. Memory is what PyTorch's allocator has given out at the peak.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from rows import Row, print_rows
from timing import Step, in_turn
from torch import Tensor

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.losses import LOSSES, consistency_loss, pseudo_label

CLASSES = 19
AGAINST = "torch's fused cross-entropy"
GOALS = {name: 1.3 if name == "dyce" else 1.5 for name in LOSSES}
MEMORY_GOAL = 1.1


def measure(quick: bool) -> list[Row]:
    """Rows of time and of memory for each loss at (4, 19, 512, 512); at (2, 19, 64, 64) if `quick`."""
    torch.set_num_threads(1)
    batch, side, repeats = (2, 64, 2) if quick else (4, 512, 9)
    generator = torch.Generator().manual_seed(0)
    shape = batch, side, side
    logits = 3 * torch.randn(batch, CLASSES, side, side, generator=generator)
    targets = torch.randint(CLASSES, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < 0.1] = IGNORE_INDEX
    logits.requires_grad_()

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
        return lambda: torch.autograd.grad(loss(logits, targets), logits)

    fused = step(lambda x, y: F.cross_entropy(x, y, ignore_index=IGNORE_INDEX))
    where = f"forward and backward at {tuple(logits.shape)}"
    losses = {name: step(loss(CLASSES)) for name, loss in LOSSES.items()}
    times, memory = [], []
    for name, ours in losses.items():
        found = in_turn(ours, fused, repeats)
        times.append(Row(f"{name}, {where}", *found, AGAINST, goal=GOALS[name]))
        peaks = extra_memory(ours), extra_memory(fused)
        memory.append(Row(f"{name}, extra memory", *peaks, AGAINST, "MiB", MEMORY_GOAL))

    taught, confidence = logits.detach(), torch.rand(shape, generator=generator)
    known = targets.where(targets != IGNORE_INDEX, 0)
    student = step(lambda x, _: consistency_loss(x, known, confidence, 0.5))
    found = in_turn(student, fused, repeats)
    times.append(Row(f"consistency, {where}", *found, AGAINST, goal=1.5))
    found = in_turn(lambda: pseudo_label(taught), lambda: (taught.softmax(1).max(1), None), repeats)
    times.append(Row("pseudo-labels with their confidence", *found, "softmax and max"))
    return times + memory


def extra_memory(step: Step) -> float:
    """MiB that one call has allocated at its worst moment, beyond what was there before."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    found = profile.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


if __name__ == "__main__":
    print_rows(measure, __doc__)
