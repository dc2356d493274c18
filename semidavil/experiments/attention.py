"""Where each word of a caption matters to a finished network: a map of every word over the picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from semidavil.data.augment import as_floats
from semidavil.data.images import resize_image
from semidavil.data.windows import sliding_windows
from semidavil.experiments.predictor import Predictor
from semidavil.methods.base import Method
from semidavil.models.fusion import require_shape
from semidavil.models.layers import upsample
from semidavil.models.text import TextEncoder

REST = "(start, end)"  # tokens that stand for no word


@dataclass(frozen=True)
class WordMaps:
    """Maps of a caption's words.

    Attributes:
        words: as they are written; last comes `REST`.
        maps: (words, H, W) float32, at the size at which the network looks at the picture. A word's is the
            sum of its tokens'. Where windows overlap, it is their mean.
        are_weights: whether they are attention weights, which sum to 1 over the words at each pixel; else
            their scale is learnt, and means something within one word's map alone.
        cut: words that the text encoder has no room for; they have no map.
    """

    words: tuple[str, ...]
    maps: np.ndarray
    are_weights: bool
    cut: tuple[str, ...]


def why_no_words(predictor: Predictor) -> str:
    """Why this network has no map of words; empty where it has one."""
    config = predictor.config
    if not predictor.sees_captions:
        return f"The attention {config.model.fusion} reads no caption."
    if type(predictor.method).language is not Method.language:
        return f"The method {config.training.method} reads no words of the caption, one by one."
    fusion = predictor.network.fusion
    if not hasattr(fusion, "word_maps"):
        return f"The attention {config.model.fusion} has no map of words (word_maps)."
    if not isinstance(getattr(fusion, "words_are_weights", None), bool):
        return (
            f"The attention {config.model.fusion} does not say whether its word_maps are weights, which sum "
            "to 1 over words: words_are_weights = True, or False."
        )
    return ""


@torch.inference_mode()
def word_maps(predictor: Predictor, image: np.ndarray, caption: str) -> WordMaps:
    """The maps of a caption's words on a picture (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the network has none; see `why_no_words`.
    """
    if why := why_no_words(predictor):
        raise ValueError(why)
    network, crop = predictor.network, predictor.config.data.crop
    fusion: Any = network.fusion
    size = predictor.working_size(image.shape[:2])
    small = torch.from_numpy(np.ascontiguousarray(resize_image(image, size)))
    images = as_floats(small.permute(2, 0, 1)[None].to(predictor.device))
    language = predictor.language(caption)
    words, cut, owner = owners(predictor.vlm.text, caption, language.lengths[0])
    # (words, N): which tokens are summed up in which word.
    sums = torch.nn.functional.one_hot(torch.tensor(owner), len(words)).T.to(images)
    total, counts = images.new_zeros(len(words), *size), images.new_zeros(size)
    for box in sliding_windows(size, crop).boxes:
        part = images[(..., *box.slices)]
        with predictor.autocast:
            seen = network.encode(part)
            maps = fusion.word_maps(seen.vision, language)
        wanted = (1, language.tokens.shape[1], *seen.vision.shape[-2:])
        require_shape(fusion, "word_maps", maps, wanted, "to_grid(weights of the tokens, h, w)")
        of_tokens = maps[0].float()  # (N, h, w)
        of_words = torch.einsum("wn,nij->wij", sums, of_tokens)
        padded = [network.vision.stride * side for side in of_tokens.shape[-2:]]
        shown = upsample(of_words[None], padded)[0, :, : box.height, : box.width]
        total[(..., *box.slices)] += shown
        counts[box.slices] += 1
    maps = (total / counts).cpu().numpy()
    return WordMaps(words, maps, bool(fusion.words_are_weights), cut)


def owners(
    text: TextEncoder, caption: str, length: int
) -> tuple[tuple[str, ...], tuple[str, ...], list[int]]:
    """The words that have tokens, those that are cut off, and of each of `length` tokens its word's number.

    Tokenizers differ in how they cut words and in which tokens they add: how many tokens a caption has up to
    each of its words says which are whose. An end token is last, a start token, where there is one, first.
    """
    written = caption.split()
    counts = text.count_tokens([" ".join(written[:n]) for n in range(len(written) + 1)])
    added = counts[0]
    words, owner = list[str](), [-1] * (added - 1)
    for word, before, after in zip(written, counts, counts[1:], strict=False):
        room = length - 1 - len(owner)  # the last is the end token, also where the rest is cut off
        if room <= 0:
            break
        owner += [len(words)] * min(after - before, room)
        words.append(word)
    owner += [-1] * (length - len(owner))
    numbers = [len(words) if number < 0 else number for number in owner]
    return (*words, REST), tuple(written[len(words) :]), numbers
