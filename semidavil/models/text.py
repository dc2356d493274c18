"""CLIP's text tower: captions as token features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from semidavil.models.weights import hash_weights, linear

if TYPE_CHECKING:  # seconds to import: who only names an encoder need not wait for it
    from open_clip.transformer import TextTransformer


@dataclass(frozen=True)
class Language:
    """Captions as token features, padded to the longest.

    Attributes:
        tokens: (B, N, c_l); a caption's real tokens come first.
        mask: (B, N) bool, True = a real token.
        lengths: the real tokens of each caption: what has a shape that depends on them need not wait for the
            device to read the mask.
    """

    tokens: Tensor
    mask: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> "Language":
        """One caption a row (n, c_l), all on one device."""
        lengths = tuple(map(len, rows))
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tokens = pad_sequence(list(rows), batch_first=True)
        return cls(tokens, mask.to(tokens.device, non_blocking=True), lengths)

    @classmethod
    def joined(cls, parts: Sequence["Language"]) -> "Language":
        """The captions of all, one after another, padded to the longest of all."""
        longest = max(part.mask.shape[1] for part in parts)
        missing = [longest - part.mask.shape[1] for part in parts]
        tokens = [F.pad(p.tokens, (0, 0, 0, n)) for p, n in zip(parts, missing, strict=True)]
        masks = [F.pad(p.mask, (0, n)) for p, n in zip(parts, missing, strict=True)]
        return cls(torch.cat(tokens), torch.cat(masks), tuple(chain(*(p.lengths for p in parts))))

    def real(self) -> Tensor:
        """Where the real tokens are in the flattened (B N): (R,) int64, ascending, on the tokens' device."""
        width = self.mask.shape[1]
        places = [row * width + i for row, n in enumerate(self.lengths) for i in range(n)]
        return torch.tensor(places, dtype=torch.int64).to(self.tokens.device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, captions: slice | list[int]) -> "Language":
        rows = range(len(self))
        chosen = rows[captions] if isinstance(captions, slice) else captions
        lengths = tuple(self.lengths[row] for row in chosen)
        if isinstance(captions, slice):
            return Language(self.tokens[captions], self.mask[captions], lengths)
        # Indexing by a list would wait for the device.
        index = torch.tensor(captions).to(self.tokens.device, non_blocking=True)
        return Language(
            self.tokens.index_select(0, index), self.mask.index_select(0, index), lengths
        )

    def repeat(self, count: int) -> "Language":
        """One caption's tokens (1, N, c_l) for each of `count` images."""
        tokens, mask = self.tokens.expand(count, -1, -1), self.mask.expand(count, -1)
        return Language(tokens, mask, self.lengths * count)

    def to(self, device: torch.device | str) -> "Language":
        tokens, mask = (part.to(device, non_blocking=True) for part in (self.tokens, self.mask))
        return Language(tokens, mask, self.lengths)

    def pin_memory(self) -> "Language":
        """In memory that a GPU copies from by itself; `DataLoader` asks for it."""
        return Language(self.tokens.pin_memory(), self.mask.pin_memory(), self.lengths)


class TextEncoder(nn.Module):
    """The text tower of a vision-language model: frozen, always in eval mode.

    Args:
        tower: open_clip's text tower.
        tokenizer: open_clip's tokenizer, texts to ids (B, context length).
        tokenizer_name: what tells apart tokenizers of towers with the same weights.

    Attributes:
        dim: channels c_l of a token.
        max_tokens: the context length N_max; longer captions are cut.
    """

    # Captions are encoded in batches of one shape, so that a caption's features are the same to the
    # last bit whatever else is asked for: matrix products of other shapes may round differently.
    BATCH = 8

    def __init__(
        self,
        tower: "TextTransformer",
        tokenizer: Callable[..., Tensor],
        tokenizer_name: str = "",
    ) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim, self.max_tokens = tower.width, tower.context_length
        self.tokenizer_name = tokenizer_name
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.tower.positional_embedding.device

    def identity(self) -> str:
        """Of all that a caption's features depend on, to the last bit, but for the CPU's threads."""
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{self.tokenizer_name} {self.max_tokens} {hash_weights(self.tower)} {card}"

    def forward(self, captions: Sequence[str]) -> Language:
        """Token features of captions after the final norm, before the projection, in float32.

        Start and end tokens count as real. N is the longest caption's number of tokens.
        """
        return Language.of(self.features(captions))

    def features(self, captions: Sequence[str]) -> list[Tensor]:
        """The same of each caption alone, (n, c_l)."""
        return self._in_batches(captions, self._encode)

    def _in_batches(
        self, texts: Sequence[str], encode: Callable[[list[str]], list[Tensor]]
    ) -> list[Tensor]:
        unique, found = list(dict.fromkeys(texts)), dict[str, Tensor]()
        for start in range(0, len(unique), self.BATCH):
            batch = unique[start : start + self.BATCH]
            found.update(zip(batch, encode(batch), strict=True))
        return [found[text] for text in texts]

    def _encode(self, texts: list[str]) -> list[Tensor]:
        """Of each text, its real tokens."""
        ids = self.tokenizer(texts + [""] * (self.BATCH - len(texts)))
        every, real = self._features(ids), self._real(ids).to(self.device)
        return [row[keep] for row, keep in zip(every, real, strict=True)][: len(texts)]

    def _places(self, texts: list[str]) -> list[Tensor]:
        """Of each text, every place of the context, padding too."""
        ids = self.tokenizer(texts + [""] * (self.BATCH - len(texts)))
        return list(self._features(ids))[: len(texts)]

    def _features(self, ids: Tensor) -> Tensor:
        """(B, context length, c_l), after the final norm."""
        # Autocast would round what is kept for callers outside of it.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            (tokens,) = self.tower.forward_intermediates(
                ids.to(self.device),
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
            )["text_intermediates"]
        return tokens

    def _real(self, ids: Tensor) -> Tensor:
        """True up to and including the end token, and never on padding."""
        tokenizer: Any = self.tokenizer
        hf = getattr(tokenizer, "tokenizer", None)  # open_clip's wrapper of a Hugging Face one
        pad = None if hf is None else hf.pad_token_id
        end = tokenizer.eot_token_id if hf is None else hf.eos_token_id
        if pad is not None and pad != end:
            return ids != pad
        is_end = ids == end
        return is_end.cumsum(1) - is_end.long() == 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens that each text needs; `max_tokens + 1` stands for all that do not fit."""
        ids = self.tokenizer(list(texts), context_length=self.max_tokens + 1)
        return self._real(ids).sum(1).tolist()

    def sentences(self, texts: Sequence[str]) -> Tensor:
        """Each text's feature (n, c_l) where the tower reads a sentence out, before its projection."""
        if self.tower.pool_type != "last":  # at the end token
            language = self(texts)
            return language.tokens[torch.arange(len(texts)), language.mask.sum(1) - 1]
        # SigLIP's reads the last place of its context, which padding has, too.
        return torch.stack([rows[-1] for rows in self._in_batches(texts, self._places)])

    def joint_projection(self) -> nn.Linear:
        """A copy of the tower's projection of a token into the joint space, c_l -> e."""
        projection = self.tower.text_projection
        if projection is None:
            return linear(torch.eye(self.dim))
        if isinstance(projection, nn.Linear):
            return linear(projection.weight, projection.bias)
        return linear(projection.T)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised sentence embeddings (n, e) in the joint image-text space."""
        ids = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.tower(ids), dim=-1)
