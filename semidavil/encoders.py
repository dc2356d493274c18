"""CLIP's two towers: a dense vision encoder and a frozen, memoised text encoder."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:  # seconds to import: who only names an encoder need not wait for it
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import TextTransformer, VisionTransformer


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


class VisionEncoder(nn.Module):
    """CLIP's image tower as a dense encoder of images of any size.

    Its state dict is the tower's. What dense features do not use (the pooling head) is frozen, so
    that no optimiser decays it.

    Args:
        tower: open_clip's image tower.
        mean, std: the normalisation that the weights were trained with.

    Attributes:
        dim: channels c_v of the features.
        stride: pixels per feature.
        native_size: (height, width) in pixels that the position embeddings were trained at.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: "VisionTransformer | ModifiedResNet",
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.tower = tower
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        size = tower.image_size
        self.native_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        if _is_resnet(tower):
            self.dim, self.stride = tower.attnpool.v_proj.in_features, 32
            tower.attnpool.requires_grad_(False)
        else:
            self.dim, self.stride = tower.ln_post.normalized_shape[0], tower.patch_size[0]
            tower.proj.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Dense features (B, c_v, H/stride, W/stride) of images (B, 3, H, W) in [0, 1].

        The last layer's, after the tower's final normalisation where it has one.

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        return self.forward_features(images, [-1])[0]

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Outputs of several layers, in ascending order: a ViT's blocks or a ResNet's five stages.

        Negative indices count from the end. A ViT's are all (B, c_v, H/stride, W/stride), only the
        last block's is normalised; a ResNet's stages have strides 4, 4, 8, 16, 32.
        """
        height, width = self._grid(images)
        images = (images - self.mean) / self.std
        if _is_resnet(self.tower):
            wanted = sorted(index % 5 for index in indices)
            output = self.tower.forward_intermediates(
                images, indices=wanted, stop_early=True, intermediates_only=True
            )
            return output["image_intermediates"]
        blocks = len(self.tower.transformer.resblocks)
        wanted = sorted(index % blocks for index in indices)
        _, layers = self.tower.transformer.forward_intermediates(
            self._embed_patches(images, height, width), indices=wanted, stop_early=True
        )
        patches = [
            self.tower.ln_post(layer[:, 1:]) if index == blocks - 1 else layer[:, 1:]
            for index, layer in zip(wanted, layers, strict=True)
        ]
        return [layer.transpose(1, 2).unflatten(2, (height, width)) for layer in patches]

    def embed(self, images: Tensor) -> Tensor:
        """L2-normalised embeddings (B, e, h, w) of every location in the joint image-text space.

        MaskCLIP (Zhou et al., ECCV 2022), as in its official code and SemiVL's: the last block's
        attention is replaced by its value path, the residual and the MLP stay (the paper's text
        speaks of the value and output projections only). ResNets: the value and output projections
        of the attention pooling. ViTs that average their tokens already align each token with text:
        the final norm and projection of each.
        """
        height, width = self._grid(images)
        tower = self.tower
        if _is_resnet(tower):
            pool = tower.attnpool
            features = self(images).flatten(2).transpose(1, 2)
            native = tuple(side // self.stride for side in self.native_size)
            positions = resize_positions(pool.positional_embedding, native, (height, width))[1:]
            joint = pool.c_proj(pool.v_proj(features + positions.to(features.dtype)))
        else:
            x = self._embed_patches((images - self.mean) / self.std, height, width)
            *blocks, last = tower.transformer.resblocks
            for block in blocks:
                x = block(x)
            if tower.pool_type == "tok":
                x = x[:, 1:]
                x = x + last.ls_1(_value_path(last.attn, last.ln_1(x)))
                x = x + last.ls_2(last.mlp(last.ln_2(x)))
            else:
                x = last(x)[:, 1:]
            joint = tower.ln_post(x) @ tower.proj
        return F.normalize(joint, dim=-1).transpose(1, 2).unflatten(2, (height, width))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the vision encoder's stride "
                f"{self.stride}: pad or resize the images"
            )
        return height // self.stride, width // self.stride

    def _embed_patches(self, images: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, 1 + hw, c_v), class token first: open_clip's, but for any grid."""
        tower = self.tower
        x = tower.conv1(images).flatten(2).transpose(1, 2)
        first = tower.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        positions = resize_positions(tower.positional_embedding, tower.grid_size, (height, width))
        return tower.ln_pre(torch.cat([first, x], dim=1) + positions.to(x.dtype))


def _value_path(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    return attention.out_proj(F.linear(x, weight, bias))


def resize_positions(positions: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Position embeddings (1 + h w, c), the class token's first, for another grid (h', w').

    Bicubic with antialiasing, as open_clip does it when it loads weights of another size; the same
    tensor where the grid is the same. Differentiable, and deterministic on a GPU, where the
    backward pass of PyTorch's own bicubic interpolation is not.
    """
    if tuple(old) == tuple(new):
        return positions
    rows = _resize_matrix(old[0], new[0]).to(positions)
    columns = _resize_matrix(old[1], new[1]).to(positions)
    grid = positions[1:].unflatten(0, (old[0], old[1]))
    resized = torch.einsum("bj,ajc->abc", columns, torch.einsum("ai,ijc->ajc", rows, grid))
    return torch.cat([positions[:1], resized.flatten(0, 1)])


def _is_resnet(tower: nn.Module) -> "TypeGuard[ModifiedResNet]":
    from open_clip.modified_resnet import ModifiedResNet

    return isinstance(tower, ModifiedResNet)


def hash_weights(*towers: nn.Module, about: str = "") -> str:
    """Of the weights as they are now, the same on every device."""
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for tower in towers:
        for name, value in sorted(tower.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _resize_matrix(old: int, new: int) -> Tensor:
    """Bicubic resizing is linear: the matrix (new, old) that does it along one axis."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        identity = torch.eye(old)[None, None]
        return F.interpolate(identity, (new, old), mode="bicubic", antialias=True)[0, 0]


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

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised sentence embeddings (n, e) in the joint image-text space."""
        ids = self.tokenizer(list(texts)).to(self.tower.positional_embedding.device)
        return F.normalize(self.tower(ids), dim=-1)


@dataclass
class VLM:
    """Both towers of one CLIP. `mean` and `std` are already inside `vision`."""

    vision: VisionEncoder
    text: TextEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    logit_scale: float = 100.0  # cosine similarities times this are logits

    @property
    def device(self) -> torch.device:
        return self.vision.mean.device

    def to(self, device: torch.device | str) -> "VLM":
        """Moves both towers in place; returns itself."""
        self.vision.to(device)
        self.text.to(device)
        return self

    def fingerprint(self) -> str:
        """A hash of the weights as they are now and the normalisation, the same on every device."""
        about = repr((self.mean, self.std, self.logit_scale))
        return hash_weights(self.vision, self.text, about=about)
