"""A training step as a GPU replays it: recorded once as a CUDA graph, then started by one call.

A step of the `paper` preset is 2,400 kernels. Computing them takes a large GPU some 55 ms, and queueing
them one by one took hosts that were measured 70 to 130 ms. A recording queues all of them at once, and its
numbers are the same to the last bit. It holds for what does the same each step (`Method.replayable`), on
inputs of one shape: captions of another length are recorded anew.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semidavil.methods.base import Batch, Losses
from semidavil.models.text import Language

MOST = 40  # recordings; each keeps some megabytes for its kernels' arguments, and all share their memory

Compute = Callable[[Batch, int], Losses]


@dataclass(frozen=True)
class Recording:
    """A step on inputs of one shape: `replay` computes `losses` from what `inputs` hold."""

    inputs: Batch
    replay: Callable[[], object]
    losses: Losses


class Replay:
    """Computes steps as `compute` does, from the second on by recordings of it.

    `compute` may read nothing back, and copy nothing from the host. What it returns is overwritten by the
    next step.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.pool: Any = None
        self.computed = False  # what is made at its first use, as cuBLAS's workspace, is there
        self.failed = False

    def __call__(self, batch: Batch, step: int) -> Losses:
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in named_tensors(batch))
        recording = self.recordings.get(shape)
        if recording is None:
            if self.failed or not self.computed or len(self.recordings) == MOST:
                self.computed = True
                return self.compute(batch, step)
            try:
                recording = self._record(batch, step)
            except RuntimeError as error:
                self.failed = True
                warnings.warn(
                    f"a step could not be recorded as a CUDA graph ({str(error).splitlines()[0]}): its "
                    "kernels are queued one by one, which may be slower; --set runtime.cuda_graphs=false "
                    "does so from the start",
                    stacklevel=2,
                )
                return self.compute(batch, step)
            self.recordings[shape] = recording
        for (_, mine), (_, given) in zip(
            named_tensors(recording.inputs), named_tensors(batch), strict=True
        ):
            mine.copy_(given, non_blocking=True)
        recording.replay()
        return recording.losses

    def _record(self, batch: Batch, step: int) -> Recording:
        """Records a step; none of its kernels runs before it is replayed."""
        inputs = copied(batch)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # Another thread, which copies batches into pinned memory, goes on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            losses = self.compute(inputs, step)
        return Recording(inputs, graph.replay, losses)


def named_tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch as `finish` leaves it, in order."""
    for stream, part in batch.items():
        for name, value in part.items():
            if isinstance(value, Language):
                yield f"{stream}.{name}.tokens", value.tokens
                yield f"{stream}.{name}.mask", value.mask
            else:
                yield f"{stream}.{name}", value


def copied(batch: Batch) -> Batch:
    """The batch in tensors of its own."""
    return {
        stream: {
            name: Language(value.tokens.clone(), value.mask.clone(), value.lengths)
            if isinstance(value, Language)
            else value.clone()
            for name, value in part.items()
        }
        for stream, part in batch.items()
    }
