"""The network of both volume methods."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5
SCALES = 4  # predictions of the pyramid


class PyramidUNet(nn.Module):
    """A 3D U-Net (MONAI's DynUNet) with predictions at four scales, all of full size.

    UA-MT's and URPC's codes build on V-Net and a 3D U-Net of their own; here both share one network,
    so that the losses are what differs (our reading).
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet  # seconds to import, and images need none of it

        filters = [width * 2 ** min(level, 4) for level in range(LEVELS)]
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=num_classes,
            kernel_size=[3] * LEVELS,
            strides=[1] + [2] * (LEVELS - 1),
            upsample_kernel_size=[2] * (LEVELS - 1),
            filters=filters,
            norm_name="instance",
            deep_supervision=True,
            deep_supr_num=SCALES - 1,
        )

    def pyramid(self, images: Tensor) -> Tensor:
        """Logits (B, S, C, D, H, W) of volumes (B, 1, D, H, W), the finest scale first."""
        finest = self(images)
        size = finest.shape[2:]
        # MONAI's own stack of the heads, which only training mode gives, takes the nearest voxel.
        coarser = [F.interpolate(head, size, mode="trilinear") for head in self.net.heads]
        return torch.stack([finest, *coarser], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, D, H, W), the finest scale's."""
        return self.net.output_block(self.net.skip_layers(images))
