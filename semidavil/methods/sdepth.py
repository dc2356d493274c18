"""S-Depth (Hoyer et al., IJCV 2023): self-supervised depth as a helper of segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.flops import TRAINED
from semidavil.losses import consistency_loss
from semidavil.methods.base import Batch, Losses, paste
from semidavil.methods.mean_teacher import MeanTeacher
from semidavil.models.layers import upsample
from semidavil.models.segmenter import Features


class SDepth(MeanTeacher):
    """Multi-task depth, DepthMix and a mean teacher that is weighed by its confidence.

    - A head on the student's encoder learns the disparity of target images (berHu on disparity
      over its mean, our reading), labelled and unlabelled: L_D.
    - DepthMix: an unlabelled image is mixed with the batch's next one so that what is nearer wins,
      M = 1[d_1 > d_2 - margin]; the teacher's labels are mixed in the same way.
    - The student learns all labels of the mixed images; the loss is weighed by the share of pixels
      whose confidence exceeds `rivals.sdepth_confidence`: q L_U.
    - `data.selection=depth` chooses the images to label by depth diversity.

    The teacher's EMA is `rivals.sdepth_ema`, as in the authors' code.

    L = L_sup + lambda q L_U + `rivals.sdepth_weight` L_D. Disparity comes from `data.depth` instead
    of a network trained on video, which no benchmark here has (our reading).
    """

    same_each_step = True
    # The student encodes two views and decodes one.
    unlabelled_passes = (1 + 2 * TRAINED, 1 + TRAINED)

    def extend(self) -> None:
        super().extend()
        dim = self.config.model.decoder_dim
        self.depth_head = nn.Sequential(
            nn.Conv2d(self.student.vision.dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, 1, 1)
        )

    def ema(self) -> float:
        return self.config.rivals.sdepth_ema

    def losses(self, batch: Batch, step: int) -> Losses:
        training, rivals, unlabelled = self.config.training, self.config.rivals, batch["unlabelled"]
        disparity, language = unlabelled["disparity"], self.language(unlabelled)
        confidence, labels = self.pseudo_labels(unlabelled["image"], language)
        mask = nearer(
            disparity, disparity.roll(-1, dims=0), rivals.sdepth_margin * mean_known(disparity)
        )
        mixed = mix(unlabelled["strong"][0], mask)
        seen = self.see(batch, [(mixed, language)], encoded=[(unlabelled["image"], language)])
        supervised = self.supervised(seen.labelled)

        everywhere = torch.ones_like(confidence)
        unsupervised = consistency_loss(seen.views[0], mix(labels, mask), everywhere, 0.0)
        quality = (confidence > rivals.sdepth_confidence).float().mean()

        depth = self._depth_loss(seen.encoded[0].features, disparity)
        return {
            "loss": supervised
            + training.consistency_weight * quality * unsupervised
            + rivals.sdepth_weight * depth,
            "loss_sup": supervised,
            "loss_con": unsupervised,
            "loss_depth": depth,
            "confident": quality,
        }

    def _depth_loss(self, weak: Features, disparity: Tensor) -> Tensor:
        found = F.softplus(self.depth_head(weak.vision))
        found = upsample(found, disparity.shape[-2:])
        return berhu(found[:, 0], disparity / mean_known(disparity), disparity > 0)


def mean_known(disparity: Tensor) -> Tensor:
    """The mean (B, 1, 1) over the known, positive, disparities of each image (B, H, W)."""
    known = disparity > 0
    total, count = disparity.sum((1, 2), keepdim=True), known.sum((1, 2), keepdim=True)
    return (total / count.clamp(min=1)).clamp(min=1e-6)


def nearer(ours: Tensor, theirs: Tensor, margin: Tensor) -> Tensor:
    """DepthMix's mask: True where our image is nearer than theirs, or less than `margin` farther.

    Where a disparity is unknown (0) it counts as infinitely far.
    """
    return ours > theirs - margin


def mix(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, [C,] H, W) where `mask` (B, H, W), those of the batch's next image elsewhere."""
    return paste(values, ~mask)


def berhu(found: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """The reversed Huber loss (Laina et al., 3DV 2016), the mean over known pixels.

    |e| where |e| <= c, (e^2 + c^2) / (2 c) beyond, with c = max |e| / 5. No known pixel: 0.
    """
    errors = torch.where(known, (found.float() - target).abs(), 0.0)
    limit = (errors.detach().amax() / 5).clamp(min=1e-6)
    far = (errors**2 + limit**2) / (2 * limit)
    return torch.where(errors <= limit, errors, far).sum() / known.sum().clamp(min=1)
