"""Methods on networks and batches as small as can be, for tests of what a step computes."""

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.losses import build_loss
from semidavil.methods.base import Method
from semidavil.methods.table import METHODS
from semidavil.models.fusion import FUSIONS
from semidavil.models.readout import Towers
from semidavil.models.segmenter import Decoder, Segmenter
from semidavil.models.text import Language

CLASSES, STRIDE, MAX_TOKENS = 4, 8, 6


class Patches(nn.Module):
    """A vision encoder as small as can be: one convolution per patch."""

    dim, stride = 8, STRIDE

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, self.dim, STRIDE, STRIDE)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.patch(images)

    def is_spatial(self, name: str) -> bool:
        return False


def encode(captions: list[str]) -> Language:
    tokens = torch.stack([torch.full((3, 5), float(len(text))) for text in captions]) / 10
    return Language.of(list(tokens))


def double(batch: dict) -> dict:
    """The batch in float64."""

    def one(value: object) -> object:
        if isinstance(value, Language):
            return Language(value.tokens.double(), value.mask, value.lengths)
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return {
        stream: {name: one(value) for name, value in part.items()} for stream, part in batch.items()
    }


def make_segmenter(seed: int = 0, fusion: str = "dlg") -> Segmenter:
    torch.manual_seed(seed)
    towers = Towers(8, 5, MAX_TOKENS, nn.Linear(8, 4), nn.Linear(5, 4))
    return Segmenter(Patches(), FUSIONS[fusion](towers, 8), Decoder(8, 8, CLASSES))


def make_method(name: str, **settings: object) -> Method:
    changes = {
        key.replace("__", ".") if "__" in key else f"training.{key}": value
        for key, value in settings.items()
    }
    config = Config().replace(
        {"training.method": name, "loss.name": "ce", "model.decoder_dim": 8, **changes}
    )
    loss = build_loss(config.loss, CLASSES)
    method = METHODS[name](make_segmenter(), loss, config)
    if name == "semivl":
        method.guide = NoGuide()
        method.language = lambda stream: stream["language"]  # captions, as all others have
    return method


class NoGuide:
    """A frozen CLIP that is sure of nothing."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), *images.shape[-2:])
        return torch.zeros(size), torch.zeros(size, dtype=torch.int64)


def make_batch(*streams: str, size: int = 16, seed: int = 0, views: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    batch: dict = {}
    for name in ("source", "labelled"):
        if name in streams:
            batch[name] = {
                "image": rand(2, 3, size, size),
                "label": (rand(2, size, size) * CLASSES).long(),
                "language": encode(["road", "a car"]),
            }
    if "unlabelled" in streams:
        batch["unlabelled"] = {
            "image": rand(2, 3, size, size),
            "strong": rand(views, 2, 3, size, size),
            "cutmix": rand(views, 2, size, size) < 0.5,
            "disparity": rand(2, size, size) * (rand(2, size, size) < 0.8),
            "language": encode(["sky", "a tree"]),
        }
    return batch
