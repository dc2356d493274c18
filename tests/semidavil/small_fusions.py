"""Every attention made small, and what it reads."""

import torch
from torch import Tensor, nn

from semidavil.models.fusion import FUSIONS
from semidavil.models.readout import Towers
from semidavil.models.text import Language

VISION, LANGUAGE, JOINT, DIM, MAX_TOKENS = 10, 6, 5, 64, 7
CONTROLS = ("none", "blank")
ATTENTIONS = [name for name in FUSIONS if name not in CONTROLS]


def make_towers() -> Towers:
    joint = nn.Linear(VISION, JOINT, bias=False), nn.Linear(LANGUAGE, JOINT)
    return Towers(VISION, LANGUAGE, MAX_TOKENS, *joint)


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FUSIONS[name](make_towers(), DIM).double()


def make_inputs(height: int = 3, width: int = 5, num_tokens: int = 4, batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    vision = torch.randn(batch, VISION, height, width, generator=generator, dtype=torch.float64)
    tokens = torch.randn(batch, num_tokens, LANGUAGE, generator=generator, dtype=torch.float64)
    mask = torch.ones(batch, num_tokens, dtype=torch.bool)
    mask[0, num_tokens - 1 :] = False
    return vision.requires_grad_(), tokens.requires_grad_(), mask


def language_of(tokens: Tensor, mask: Tensor) -> Language:
    return Language(tokens, mask, tuple(mask.sum(1).tolist()))
