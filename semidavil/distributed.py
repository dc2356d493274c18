"""One run on several processes that share every batch, with the result of a single one.

Averaging the losses of shares would not do: DyCE mines the hardest pixels of the whole batch, every
loss divides by what is valid in all of it, and CutMix pastes the next image, which may be another
process's. So every process draws the whole batch, which depends on the seed and the step alone,
computes the logits of its own rows, gathers everybody's, and from there on does what a single process
does. The loss is the same everywhere; its gradient reaches each process's own rows; the sum over all
processes is the gradient of the whole batch. Only the order of summation differs from one process:
results agree within float rounding, and the run's key is the same.

What is not shared: loading the batch, the loss itself, evaluation and checkpoints (the first process).

`train` starts the processes of `runtime.world_size` on its machine. Under torchrun, which may span
machines, it joins those that are there:

    torchrun --nproc-per-node 2 -m semidavil train --set training.batch_size=4
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.device import choose_device

PATIENCE = timedelta(hours=12)  # for the first process to evaluate; a lost one is noticed otherwise


class ParallelError(RuntimeError):
    """Processes that cannot train together; the message says why and what to do."""


def world_size() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; the first, 0, reports, evaluates and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(count: int) -> slice:
    """This process's rows of a batch of `count`, which `world_size` divides."""
    size = count // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def shares_of(counts: Sequence[int]) -> list[int]:
    """This process's rows of several batches, one after another: its `share` of each."""
    starts = accumulate(counts, initial=0)
    return [s + row for s, n in zip(starts, counts, strict=False) for row in range(n)[share(n)]]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(world_size())]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        # Every process has computed the same loss: the others' copies of it must not count again.
        return gradients[0][share(len(gradients[0]))]


def gather(mine: Tensor) -> Tensor:
    """The rows of all processes, in the batch's order; gradients flow to this process's own."""
    return mine if world_size() == 1 else _Gather.apply(mine.contiguous())


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Makes each gradient the sum over all processes, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, total in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(total.view_as(gradient))


def from_first(value: Any) -> Any:
    """The first process's `value`, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, device=_device_of_backend())
    return box[0]


def once_per_machine(work: Callable[[], object]) -> None:
    """Does `work` in the first process of each machine while the others wait for it."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        work()
    if world_size() > 1:
        dist.barrier()


def _device_of_backend() -> torch.device:
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def require_same_start(step: int, method: nn.Module) -> None:
    """Refuses what would train apart without a word.

    Raises:
        ParallelError: processes that start at different steps, or batch normalisation.
    """
    if world_size() == 1:
        return
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules()):
        raise ParallelError(
            "batch normalisation would see a share of the batch (CLIP's ResNets and most networks of "
            "convolutions have it): choose a vision transformer as model.vlm or model.encoder, or "
            "runtime.world_size=1"
        )
    if (first := from_first(step)) != step:
        raise ParallelError(
            f"process {rank()} starts after step {step} and process 0 after step {first}: the "
            "checkpoint must lie in a folder that all of them reach"
        )


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """In the group of processes that the environment describes, as torchrun does; or alone.

    Raises:
        ParallelError: more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield
        return
    device = choose_device(config.runtime.device)
    if device.type == "cuda":
        place, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= found:
            raise ParallelError(
                f"each process needs a GPU of its own, and PyTorch sees {found}: use "
                f"runtime.world_size={max(1, found)}, or runtime.device=cpu"
            )
        torch.cuda.set_device(place)
    # So that a wrong number of processes is refused as the same setting would be.
    config.replace({"runtime.world_size": size})
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device that this process trains on: of several GPUs, its own."""
    device = choose_device(name)
    if device.type == "cuda" and world_size() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return device
