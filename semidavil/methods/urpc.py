"""URPC (Luo et al., MedIA 2022), with CE or DyCE."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semidavil.methods.base import Batch, Losses
from semidavil.methods.volume_method import VolumeMethod
from semidavil.settings import Volumes


class URPC(VolumeMethod):
    """One network whose predictions at four scales must agree, less where they are uncertain.

    With p_s the prediction at scale s, P their mean and D_s = sum_c P_c log(P_c / p_{s,c}):

        L = 1/4 sum_s (L_s + Dice_s) / 2
            + w(t) 1/4 sum_s [ mean((P - p_s)^2 e^{-D_s}) / (mean e^{-D_s} + 1e-8) + mean D_s ]

    Each scale drops channels, more where it is coarser, as `unet_3D_dv_semi` in the official code. Learning
    rate and ramp-up are UA-MT's here, so that both share a schedule (our reading); the official code's for
    BraTS are 0.1 and 400 epochs.
    """

    @staticmethod
    def dropout(settings: Volumes) -> Sequence[float]:
        """As in the official code: behind each level of the decoder."""
        return (0.0, *settings.urpc_dropout)

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        images = torch.cat([labelled["image"], unlabelled["image"]])
        pyramid = self.student.pyramid(images, self.generator(step))
        count, scales = len(labelled["image"]), pyramid.shape[1]
        terms = [self.supervised(pyramid[:count, s], labelled["label"]) for s in range(scales)]
        supervised = torch.stack(terms).mean()
        consistency = rectified_consistency(pyramid[count:])
        return {
            "loss": supervised + self.weight(step) * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
        }


def rectified_consistency(pyramid: Tensor) -> Tensor:
    """URPC's unsupervised term of logits (B, S, C, D, H, W)."""
    log_p = pyramid.float().log_softmax(2)
    p = log_p.exp()
    mean = p.mean(1, keepdim=True)
    variance = (mean * (mean.clamp(min=1e-12).log() - log_p)).sum(2)  # (B, S, D, H, W)
    trust = (-variance).exp()
    squares = ((mean - p) ** 2).mean(2)  # over classes
    axes = (0, 2, 3, 4)
    rectified = (squares * trust).mean(axes) / (trust.mean(axes) + 1e-8)
    return (rectified + variance.mean(axes)).mean()
