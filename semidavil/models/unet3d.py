"""The network of both volume methods."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semidavil.models.dropout import drop_channels
from semidavil.models.layers import upsample

LEVELS = 5
SCALES = 4  # predictions of the pyramid, one a level of the decoder


class PyramidUNet(nn.Module):
    """A 3D U-Net (MONAI's DynUNet) with predictions at four scales, all of full size.

    UA-MT's and URPC's codes build on V-Net and a 3D U-Net of their own; here both share one network,
    so that the losses are what differs (our reading).

    Args:
        dropout: the share of channels that is dropped behind the bottleneck and behind each level of the
            decoder, the coarsest first.
    """

    def __init__(self, num_classes: int, width: int, dropout: Sequence[float]) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet  # seconds to import, and images need none of it

        filters = [width * 2 ** min(level, 4) for level in range(LEVELS)]
        self.dropout = tuple(dropout)
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

    def pyramid(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, S, C, D, H, W) of volumes (B, 1, D, H, W), the finest scale first.

        Args:
            generator: what the channels that dropout leaves out are drawn from; None: no dropout.
        """
        *coarser, finest = self._decode(images, generator)
        logits = [self.net.output_block(finest).float()]
        heads = self.net.deep_supervision_heads
        for head, features in zip(heads, reversed(coarser), strict=True):
            # Trilinear, as in URPC's code: MONAI's own stack of the heads takes the nearest voxel.
            logits.append(upsample(head(features).float(), images.shape[2:]))
        return torch.stack(logits, 1)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, C, D, H, W), the finest scale's."""
        return self.net.output_block(self._decode(images, generator)[-1])

    def _decode(self, images: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """The features of each level of the decoder, the coarsest first."""

        def drop(features: Tensor, share: float) -> Tensor:
            if generator is None or not share:
                return features
            return drop_channels(features, share, generator)

        skips = [self.net.input_block(images)]
        for downsample in self.net.downsamples:
            skips.append(downsample(skips[-1]))
        features, levels = drop(self.net.bottleneck(skips[-1]), self.dropout[0]), []
        blocks = zip(self.net.upsamples, reversed(skips), self.dropout[1:], strict=True)
        for up_block, skip, share in blocks:
            features = drop(up_block(features, skip), share)
            levels.append(features)
        return levels
