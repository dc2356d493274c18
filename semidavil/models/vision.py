"""Image towers as dense encoders of images of any size: the contract of all of them.

Behind it: `clip_vision` (open_clip's own ViT and ResNet) and `timm_vision` (everything that timm builds).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semidavil.models.layers import resize_matrix


class VisionEncoder(nn.Module):
    """An image tower as a dense encoder of images of any size.

    Its state dict is the tower's. What dense features do not use (the pooling head) is frozen, so
    that no optimiser decays it.

    Args:
        tower: the tower, as its library builds it.
        mean, std: the normalisation that the weights were trained with.

    Attributes:
        dim: channels c_v of the features.
        stride: pixels per feature.
        native_size: (height, width) in pixels that the tower was trained at.
    """

    dim: int
    stride: int
    native_size: tuple[int, int]
    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Dense features (B, c_v, H/stride, W/stride) of images (B, 3, H, W) in [0, 1].

        The last layer's, after the tower's final normalisation where it has one.

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        return self.forward_features(images, [-1])[0]

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Outputs of several layers, in ascending order: a transformer's blocks or a network's stages.

        Negative indices count from the end. A transformer's are all (B, c_v, H/stride, W/stride), and only
        the last block's is normalised; stages have strides and channels of their own.
        """
        raise NotImplementedError

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        """L2-normalised embeddings (B, e, h, w) of every location in the joint image-text space.

        Args:
            dense: what takes the place of the last attention, see `names.DENSE`. `maskclip` (Zhou et al.,
                ECCV 2022): the last attention before the tower's projection is replaced by its value path.
                `clearclip`, `naclip`: see `dense.attend`.

        Raises:
            ValueError: the tower has no joint space, or no attention for what is asked.
        """
        raise NotImplementedError

    def joint_projection(self) -> nn.Linear | None:
        """A copy of the tower's projection of its features into the joint space, c_v -> e.

        None where there is no joint space, or where no linear layer leads into it.
        """
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """The blocks of a vision transformer; of other networks, none."""
        return []

    def checkpoint_activations(self) -> None:
        """From now on, blocks compute their activations twice instead of keeping them.

        Raises:
            ValueError: no vision transformer: batch norm would count every image twice.
        """
        raise ValueError(
            "runtime.checkpoint_activations is for vision transformers: choose one as model.vlm or "
            "model.encoder, or a smaller training.batch_size"
        )

    def is_spatial(self, name: str) -> bool:
        """Whether a parameter lets locations exchange: of attention, or a position embedding."""
        return ".attn." in name or name.endswith(("positional_embedding", "pos_embed"))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the vision encoder's stride "
                f"{self.stride}: pad or resize the images"
            )
        return height // self.stride, width // self.stride


def resize_positions(
    positions: Tensor, old: Sequence[int], new: Sequence[int], prefix: int = 1
) -> Tensor:
    """Position embeddings (prefix + h w, c) for another grid (h', w').

    Bicubic with antialiasing, as open_clip and timm do it when they load weights of another size; the same
    tensor where the grid is the same. Differentiable, and deterministic on a GPU, where the
    backward pass of PyTorch's own bicubic interpolation is not.

    Args:
        prefix: those of class token and registers, which come first and stay.
    """
    if tuple(old) == tuple(new):
        return positions
    rows, columns = (
        resize_matrix(old[axis], new[axis], "bicubic", positions.device, positions.dtype)
        for axis in (0, 1)
    )
    grid = positions[prefix:].unflatten(0, (old[0], old[1]))
    # Autocast would round them, which open_clip's are not.
    with torch.autocast(positions.device.type, enabled=False):
        resized = torch.einsum("bj,ajc->abc", columns, torch.einsum("ai,ijc->ajc", rows, grid))
    return torch.cat([positions[:prefix], resized.flatten(0, 1)])
