"""CLIP's text tower: captions as token features, frozen and memoised."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from semidavil.models.weights import hash_weights, linear

if TYPE_CHECKING:  # seconds to import: who only names an encoder need not wait for it
    from open_clip.transformer import TextTransformer


@dataclass
class Language:
    """Captions as token features: tokens (B, N, c_l), mask (B, N) bool, True = a real token."""

    tokens: Tensor
    mask: Tensor

    def __getitem__(self, captions: slice | list[int]) -> "Language":
        return Language(self.tokens[captions], self.mask[captions])

    def repeat(self, count: int) -> "Language":
        """One caption's tokens (1, N, c_l) for each of `count` images."""
        return Language(self.tokens.expand(count, -1, -1), self.mask.expand(count, -1))

    def to(self, device: torch.device | str) -> "Language":
        return Language(self.tokens.to(device), self.mask.to(device))


_memories: dict[str, OrderedDict[str, Tensor]] = {}  # of text encoders, by identity; one at a time


class TextEncoder(nn.Module):
    """CLIP's text tower: frozen, always in eval mode, each caption encoded once.

    Args:
        tower: open_clip's text tower.
        tokenizer: open_clip's tokenizer, texts to ids (B, context length).
        memory: captions to remember, least recently used out first.
        tokenizer_name: runs of one process with the same tower and tokenizer share what they
            have encoded; without a name, this encoder remembers for itself.

    Attributes:
        dim: channels c_l of a token.
        max_tokens: the context length N_max; longer captions are cut.
    """

    # Captions are encoded in batches of one shape, so that a caption's features are the same to the
    # last bit whatever else is asked for: matrix products of other shapes may round differently,
    # and a resumed run would drift from an uninterrupted one.
    BATCH = 8

    def __init__(
        self,
        tower: "TextTransformer",
        tokenizer: Callable[..., Tensor],
        memory: int = 4096,
        tokenizer_name: str = "",
    ) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim, self.max_tokens = tower.width, tower.context_length
        self.memory, self.tokenizer_name = memory, tokenizer_name
        self._remembered: OrderedDict[str, Tensor] | None = None
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._remembered = None  # a move to another device or type
        return super()._apply(fn, recurse)

    @property
    def _known(self) -> OrderedDict[str, Tensor]:
        if self._remembered is None:
            self._remembered = OrderedDict()
            if self.tokenizer_name:
                key = self._identity()
                if key not in _memories:
                    _memories.clear()
                self._remembered = _memories.setdefault(key, self._remembered)
        return self._remembered

    def _identity(self) -> str:
        """Of all that a caption's features depend on, to the last bit."""
        weights = hash_weights(self.tower)
        device = self.tower.positional_embedding.device
        how = f"{device} {torch.get_num_threads()}"
        return f"{self.tokenizer_name} {self.max_tokens} {weights} {how}"

    def forward(self, captions: Sequence[str]) -> Language:
        """Token features of captions after the final norm, before the projection, in float32.

        Start and end tokens count as real. N is the longest caption's number of tokens.
        """
        known = self._known
        features = {text: known[text] for text in captions if text in known}
        missing = [text for text in dict.fromkeys(captions) if text not in features]
        for start in range(0, len(missing), self.BATCH):
            batch = missing[start : start + self.BATCH]
            features.update(zip(batch, self._encode(batch), strict=True))
        for text in captions:
            known[text] = features[text]
            known.move_to_end(text)
        while len(known) > self.memory:
            known.popitem(last=False)
        rows = [features[text] for text in captions]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Language(pad_sequence(rows, batch_first=True), mask.to(rows[0].device))

    def _encode(self, texts: list[str]) -> list[Tensor]:
        ids = self.tokenizer(texts + [""] * (self.BATCH - len(texts)))
        real = self._real(ids)
        device = self.tower.positional_embedding.device
        # Autocast would round what is kept for callers outside of it.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            (tokens,) = self.tower.forward_intermediates(
                ids.to(device),
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
            )["text_intermediates"]
            return [row[keep] for row, keep in zip(tokens, real.to(device), strict=True)][
                : len(texts)
            ]

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
        ids = self.tokenizer(list(texts)).to(self.tower.positional_embedding.device)
        return F.normalize(self.tower(ids), dim=-1)
