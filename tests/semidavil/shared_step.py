"""One training step of each method and loss, in float64: alone, or as one of two processes."""

import torch
import torch.distributed as dist
from small_method import double, make_batch, make_method
from torch import Tensor

from semidavil.distributed import sum_gradients
from semidavil.losses import LOSSES
from semidavil.models.text import Language
from semidavil.names import METHODS

METHOD_NAMES = [name for name, method in METHODS.items() if method.data_parallel]
CASES = [("semidavil", loss) for loss in LOSSES] + [(name, "dyce") for name in METHOD_NAMES]


def words(captions: list[str]) -> Language:
    """A token per letter, six at most, padded to the longest caption of the call."""
    letters = [torch.tensor([ord(c) for c in text[:6]], dtype=torch.float64) for text in captions]
    return Language.of([row[:, None].expand(-1, 5) / 100 for row in letters])


def gradients() -> dict[str, Tensor]:
    """The losses and the gradient of every case; with several processes, of the whole batch."""
    found = {}
    for method_name, loss in CASES:
        method = make_method(method_name, confidence=0.3, loss__name=loss).double()
        batch = double(make_batch(*METHODS[method_name].streams))
        for stream, part in batch.items():  # of unequal lengths
            part["language"] = words(
                ["sky", "a tree"] if stream == "unlabelled" else ["road", "a car"]
            )
        losses = method.losses(batch, 0)
        losses["loss"].backward()
        trained = [p for p in method.student.parameters() if p.requires_grad]
        sum_gradients(trained)
        name = f"{method_name} {loss}"
        found[f"{name} losses"] = torch.stack(
            [value.detach().double() for value in losses.values()]
        )
        found[f"{name} gradient"] = torch.cat([p.grad.flatten() for p in trained])
    return found


def as_one_of_two(rank: int, meeting: str, out: str) -> None:
    """`gradients`, written to `out`; the two processes meet at the file `meeting`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    torch.save(gradients(), out)
    dist.destroy_process_group()
