"""The optimiser of both kinds of experiments."""

from typing import Any

import torch


def adamw(
    groups: list[dict[str, Any]], lr: float = 1e-3, weight_decay: float = 1e-2
) -> torch.optim.AdamW:
    """AdamW by PyTorch's fused kernel, which reads nothing back: 1.1 ms of a toy step, 3.1 by `foreach`.

    Args:
        groups: of parameters; `lr` and `weight_decay` are for those without their own.
    """
    return torch.optim.AdamW(groups, lr, weight_decay=weight_decay, fused=True)
