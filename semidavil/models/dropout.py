"""Dropout whose masks depend on a generator of the caller's."""

import torch
from torch import Tensor


def drop_channels(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Features (B, C, *) of which whole channels are set to 0 and the rest is scaled up.

    As `torch.nn.Dropout2d` and `Dropout3d`, which draw from a global generator: masks would depend on what
    ran before, and a resumed run would end with other numbers.

    Args:
        share: of the channels, those that are dropped, in [0, 1).
        generator: on the CPU, so that the same channels are dropped on every device.
    """
    kept = torch.rand(features.shape[:2], generator=generator) >= share
    mask = kept.view(*kept.shape, *[1] * (features.dim() - 2)).to(features, non_blocking=True)
    return features * (mask / (1 - share))
