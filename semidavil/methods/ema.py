"""The moving average that a teacher is of its student."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, step: int | None) -> None:
    """theta_T <- a theta_T + (1 - a) theta_S (SemiDAViL, eq. 6), in place.

    a = min(1 - 1/(step + 1), decay) with `step` counted from 0, so that the first steps are a plain
    average and the teacher is not held back by its initialisation (our reading, as in Mean Teacher
    and UA-MT's code; SemiDAViL's released code has the plain decay from the first step on, which a `step` of
    None stands for). Buffers are copied, as there.
    """
    alpha = decay if step is None else min(1 - 1 / (step + 1), decay)
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = [p.detach() for p in student.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - alpha)
    if buffers := list(teacher.buffers()):
        torch._foreach_copy_(buffers, list(student.buffers()))
