"""What takes the place of a vision transformer's last attention, so that each patch gets a label of its own.

A tower that is trained on whole images gathers them in its last blocks: a patch's own token says little of
the patch. Training-free remedies change the last block alone:

    maskclip   Zhou et al., ECCV 2022: no patch looks at any other; residual and MLP stay, as in the official
               code and SemiVL's. (The paper's text speaks of the value and output projections only.)
    clearclip  Lan et al., ECCV 2024: queries attend to queries; neither residual nor MLP.
    naclip     Hajimiri et al., WACV 2025: keys attend to keys, and more to those nearby; neither residual nor
               MLP (the authors' `reduced` architecture).

The last two are `attend`; the first needs no attention.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from semidavil.names import DENSE

GAUSSIAN = 5.0  # patches: the standard deviation of NACLIP's neighbourhood, the authors' own


def attend(
    dense: str, query: Tensor, key: Tensor, value: Tensor, grid: Sequence[int], prefix: int
) -> Tensor:
    """What every token gathers, (B, heads, N, d), in place of softmax(q k^T / sqrt(d)) v.

    clearclip: softmax(q q^T / sqrt(d)) v. naclip: softmax(k k^T / sqrt(d) + w) v, with w of `neighbourhood`.

    Args:
        query, key, value: (B, heads, N, d); `prefix` tokens (class token, registers), then those of the
            patches, row by row.
        grid: rows and columns of patches.
    """
    if dense == "clearclip":
        return F.scaled_dot_product_attention(query, query, value)
    near = F.pad(neighbourhood(grid, key.device), (prefix, 0, prefix, 0)).to(key.dtype)
    return F.scaled_dot_product_attention(key, key, value, attn_mask=near)


def neighbourhood(grid: Sequence[int], device: torch.device) -> Tensor:
    """exp(-distance^2 / (2 * GAUSSIAN^2)) between the centres of any two patches, (hw, hw)."""
    rows, columns = (
        torch.exp(-((line[:, None] - line) ** 2) / (2 * GAUSSIAN**2))
        for line in (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    )
    return torch.kron(rows, columns)


def require_known(dense: str) -> None:
    if dense not in DENSE:
        raise ValueError(f"unknown labels of patches {dense!r}: choose from {', '.join(DENSE)}")


def require_attention(dense: str) -> None:
    """Raises ValueError for what only a vision transformer can do."""
    require_known(dense)
    if dense != "maskclip":
        raise ValueError(
            f"model.dense={dense} changes the last attention block, and this image tower has none: choose "
            "model.dense=maskclip, or a vision transformer as model.vlm"
        )
