"""open_clip's own image towers: CLIP's ViT and ResNet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.dense import attend, require_attention, require_known
from semidavil.models.layers import embed_patches, for_gpus
from semidavil.models.vision import VisionEncoder, resize_positions
from semidavil.models.weights import linear

if TYPE_CHECKING:  # seconds to import: who only names an encoder need not wait for it
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer


class ClipViT(VisionEncoder):
    """CLIP's vision transformer, with a class token that pools, or with tokens that are averaged."""

    tower: "VisionTransformer"

    def __init__(
        self, tower: "VisionTransformer", mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(tower, mean, std)
        for_gpus(tower)
        self.native_size = _native_size(tower)
        self.dim, self.stride = tower.ln_post.normalized_shape[0], tower.patch_size[0]
        tower.proj.requires_grad_(False)

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        height, width = self._grid(images)
        images = (images - self.mean) / self.std
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

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        """See `VisionEncoder.embed`. ViTs that average their tokens already align each token with text:
        their `maskclip` is the final norm and projection of each."""
        require_known(dense)
        height, width = self._grid(images)
        tower = self.tower
        x = self._embed_patches((images - self.mean) / self.std, height, width)
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = block(x)
        if dense != "maskclip":
            query, key, value = last.attn.heads(last.ln_1(x))
            gathered = attend(dense, query, key, value, (height, width), prefix=1)
            x = last.ls_1(last.attn.project(gathered))[:, 1:]
        elif tower.pool_type == "tok":
            x = x[:, 1:]
            x = x + last.ls_1(_value_path(last.attn, last.ln_1(x)))
            x = x + last.ls_2(last.mlp(last.ln_2(x)))
        else:
            x = last(x)[:, 1:]
        joint = tower.ln_post(x) @ tower.proj
        return F.normalize(joint, dim=-1).transpose(1, 2).unflatten(2, (height, width))

    def joint_projection(self) -> nn.Linear:
        return linear(self.tower.proj.T)

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    def checkpoint_activations(self) -> None:
        self.tower.set_grad_checkpointing()

    def _embed_patches(self, images: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, 1 + hw, c_v), class token first: open_clip's, but for any grid."""
        tower = self.tower
        x = embed_patches(images, tower.conv1)
        first = tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        positions = resize_positions(tower.positional_embedding, tower.grid_size, (height, width))
        return tower.ln_pre(torch.cat([first, x], dim=1) + positions.to(x.dtype))


class ClipResNet(VisionEncoder):
    """CLIP's ResNet, without the attention that pools its last stage. It has five stages."""

    tower: "ModifiedResNet"

    def __init__(
        self, tower: "ModifiedResNet", mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(tower, mean, std)
        for_gpus(tower)
        self.native_size = _native_size(tower)
        self.dim, self.stride = tower.attnpool.v_proj.in_features, 32
        tower.attnpool.requires_grad_(False)

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        self._grid(images)
        images = (images - self.mean) / self.std
        wanted = sorted(index % 5 for index in indices)
        output = self.tower.forward_intermediates(
            images, indices=wanted, stop_early=True, intermediates_only=True
        )
        return output["image_intermediates"]

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        """See `VisionEncoder.embed`: the value and output projections of the attention pooling."""
        require_attention(dense)
        height, width = self._grid(images)
        pool = self.tower.attnpool
        features = self(images).flatten(2).transpose(1, 2)
        native = tuple(side // self.stride for side in self.native_size)
        positions = resize_positions(pool.positional_embedding, native, (height, width))[1:]
        joint = pool.c_proj(pool.v_proj(features + positions.to(features.dtype)))
        return F.normalize(joint, dim=-1).transpose(1, 2).unflatten(2, (height, width))

    def joint_projection(self) -> nn.Linear:
        pool = self.tower.attnpool
        first, second = pool.v_proj, pool.c_proj  # one after the other
        bias = second.weight @ first.bias + second.bias
        return linear(second.weight @ first.weight, bias)


def _native_size(tower: "VisionTransformer | ModifiedResNet") -> tuple[int, int]:
    size = tower.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _value_path(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    return attention.out_proj(F.linear(x, weight, bias))
