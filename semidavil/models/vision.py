"""CLIP's image tower as a dense encoder of images of any size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.layers import embed_patches, for_gpus, resize_matrix
from semidavil.models.weights import linear

if TYPE_CHECKING:  # seconds to import: who only names an encoder need not wait for it
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer


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
        for_gpus(tower)
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

    def joint_projection(self) -> nn.Linear:
        """A copy of the tower's projection of its features into the joint space, c_v -> e."""
        tower = self.tower
        if _is_resnet(tower):  # of the attention pooling: one value after the other
            first, second = tower.attnpool.v_proj, tower.attnpool.c_proj
            bias = second.weight @ first.bias + second.bias
            return linear(second.weight @ first.weight, bias)
        return linear(tower.proj.T)

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
        x = embed_patches(images, tower.conv1)
        first = tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
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
    rows, columns = (
        resize_matrix(old[axis], new[axis], "bicubic", positions.device, positions.dtype)
        for axis in (0, 1)
    )
    grid = positions[1:].unflatten(0, (old[0], old[1]))
    # Autocast would round them, which open_clip's are not.
    with torch.autocast(positions.device.type, enabled=False):
        resized = torch.einsum("bj,ajc->abc", columns, torch.einsum("ai,ijc->ajc", rows, grid))
    return torch.cat([positions[:1], resized.flatten(0, 1)])


def _is_resnet(tower: nn.Module) -> "TypeGuard[ModifiedResNet]":
    from open_clip.modified_resnet import ModifiedResNet

    return isinstance(tower, ModifiedResNet)
