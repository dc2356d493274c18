"""Each attention against its own matrix products alone: forward and backward, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/attentions.py [--quick]

At the paper's sizes, 1,024 patches of 768 channels and captions that fill the context of 77 tokens. The
products are those of the attention's layers and of the common readout, each with the gradients that
training asks for; what is beyond them is what softmaxes, norms and copies cost. CPU time, one thread,
measured in turn.
"""

import torch
import torch.nn.functional as F
from rows import Row, print_rows
from timing import Step, in_turn
from torch import Tensor, nn

from semidavil.models.fusion import FUSIONS
from semidavil.models.readout import Towers
from semidavil.models.text import Language

GOAL = 1.2
VISION, LANGUAGE, JOINT, DIM = 768, 512, 512, 256


def measure(quick: bool) -> list[Row]:
    """A row for each attention at 1,024 patches x 77 tokens; at 64 x 16 if `quick`."""
    torch.set_num_threads(1)
    images, side, words, repeats = (2, 8, 16, 2) if quick else (2, 32, 77, 5)
    rows = []
    for name, products in PRODUCTS.items():
        towers = Towers(
            VISION, LANGUAGE, words, nn.Linear(VISION, JOINT), nn.Linear(LANGUAGE, JOINT)
        )
        fusion = FUSIONS[name](towers, DIM)
        # As a ViT leaves them: the channels of a patch beside each other.
        vision = torch.randn(images, side, side, VISION).permute(0, 3, 1, 2).requires_grad_()
        language = Language.of([torch.randn(words, LANGUAGE) for _ in range(images)])
        probe = torch.randn_like(vision)
        leaves = [vision, *fusion.parameters()]

        def attention(fusion=fusion, vision=vision, language=language, probe=probe, leaves=leaves):
            torch.autograd.grad(fusion(vision, language), leaves, probe)

        bare = products(images, side, words)
        found = in_turn(attention, lambda bare=bare: [product() for product in bare], repeats)
        what = f"{name}, {images} x {side**2} patches x {words} tokens"
        rows.append(Row(what, *found, "its bare matrix products", goal=GOAL))
    return rows


def product(left: tuple[int, ...], right: tuple[int, ...], frozen: bool = False) -> Step:
    """One product and its gradients at both factors, at the right one alone if the left is `frozen`."""
    a, b = torch.randn(left, requires_grad=not frozen), torch.randn(right, requires_grad=True)
    leaves = [b] if frozen else [a, b]
    upstream = torch.randn((a.detach() @ b.detach()).shape)
    return lambda: torch.autograd.grad(a @ b, leaves, upstream)


def convolution(maps: tuple[int, ...], kernel: tuple[int, ...], dilation: int = 1) -> Step:
    # The channels of a place beside each other, which is the fastest.
    x = torch.randn(maps).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(kernel, requires_grad=True)
    padding = dilation * (kernel[-1] // 2)

    def run(x: Tensor = x, weight: Tensor = weight) -> Tensor:
        return F.conv2d(x, weight, padding=padding, dilation=dilation)

    upstream = torch.randn_like(run())
    return lambda: torch.autograd.grad(run(), [x, weight], upstream)


def readout(pixels: int, map_dim: int) -> list[Step]:
    return [
        product((pixels, map_dim), (map_dim, DIM)),
        product((pixels, VISION + DIM), (VISION + DIM, VISION)),
    ]


def similarity(images: int, side: int, words: int) -> list[Step]:
    return [
        product((images * side**2, VISION), (VISION, JOINT)),
        product((images * words, LANGUAGE), (LANGUAGE, JOINT), frozen=True),
        product((images, side**2, JOINT), (images, JOINT, words)),
    ]


def dlg(images: int, side: int, words: int) -> list[Step]:
    pixels, patches = images * side**2, side**2
    return [
        *(product((pixels, VISION), (VISION, DIM)) for _ in range(2)),
        *(product((images * words, LANGUAGE), (LANGUAGE, DIM), frozen=True) for _ in range(2)),
        product((images, patches, DIM), (images, DIM, words)),
        product((images, patches, words), (images, words, DIM)),
        product((images, words, patches), (images, patches, DIM)),
        product((images, patches, DIM), (images, DIM, words)),
        *readout(pixels, DIM + words),
    ]


def wpct(images: int, side: int, words: int) -> list[Step]:
    smoothing = [convolution((images * words, 1, side, side), (1, 1, 3, 3)) for _ in range(2)]
    return [*similarity(images, side, words), *smoothing, *readout(images * side**2, words)]


def cross_attention(images: int, side: int, words: int) -> list[Step]:
    pixels, heads = images * side**2, 8
    return [
        product((pixels, VISION), (VISION, DIM)),
        *(product((images * words, LANGUAGE), (LANGUAGE, DIM)) for _ in range(2)),
        product((images * heads, side**2, DIM // heads), (images * heads, DIM // heads, words)),
        product((images * heads, side**2, words), (images * heads, words, DIM // heads)),
        *readout(pixels, DIM),
    ]


def vlga(images: int, side: int, words: int) -> list[Step]:
    d, maps, pooled = DIM // 2, images * words, (-(-side // 4)) ** 2
    size = maps, d, side, side
    tokens, heads = images * pooled * words, images * pooled * 4
    layer = [
        *(product((tokens, d), (d, d)) for _ in range(4)),
        product((heads, words, d // 4), (heads, d // 4, words)),
        product((heads, words, words), (heads, words, d // 4)),
        product((tokens, d), (d, 4 * d)),
        product((tokens, 4 * d), (4 * d, d)),
    ]
    return [
        *similarity(images, side, words),
        convolution((maps, 1, side, side), (d, 1, 7, 7)),
        convolution(size, (d, d, 1, 1)),
        *(convolution(size, (d, d, 3, 3), rate) for rate in (6, 12, 18)),
        convolution((maps, 5 * d, side, side), (d, 5 * d, 1, 1)),
        *layer,
        *layer,
        *readout(images * side**2, words),
    ]


PRODUCTS = {"dlg": dlg, "wpct": wpct, "cross_attention": cross_attention, "vlga": vlga}


if __name__ == "__main__":
    print_rows(measure, __doc__)
