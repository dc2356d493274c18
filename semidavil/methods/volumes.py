"""UA-MT (Yu et al., MICCAI 2019) and URPC (Luo et al., MedIA 2022), with CE or DyCE.

SemiDAViL's Synapse experiment replaces the cross-entropy inside their supervised terms by DyCE.
"""

import copy
import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.methods.base import Batch, Losses
from semidavil.runtime import seed_of
from semidavil.segmenter import ema_update
from semidavil.volumes.network import PyramidUNet, ramp_up


class VolumeMethod(nn.Module):
    """A student on labelled and unlabelled volumes.

    Args:
        student: the network to train.
        supervised_loss: (logits, labels) -> scalar, what CE or DyCE computes.
        config: the run.
    """

    kind: ClassVar[str] = "volumes"
    streams: ClassVar[frozenset[str]] = frozenset({"labelled", "unlabelled"})
    strong_views: ClassVar[int] = 0
    data_parallel: ClassVar[bool] = False
    disparity: ClassVar[bool] = False

    def __init__(self, student: PyramidUNet, supervised_loss: nn.Module, config: Config) -> None:
        super().__init__()
        self.student, self.supervised_loss, self.config = student, supervised_loss, config
        from monai.losses import DiceLoss  # seconds to import, and images need none of it

        self.dice = DiceLoss(
            to_onehot_y=True, softmax=True, squared_pred=True, batch=True,
            smooth_nr=1e-5, smooth_dr=1e-5,
        )  # fmt: skip

    def supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Half the loss under test plus half the Dice loss.

        Dice as in both official codes: squares in the denominator, sums over the whole batch; the
        mean over classes is our reading, as theirs have one organ.
        """
        dice = self.dice(logits.float(), labels[:, None])
        return 0.5 * (self.supervised_loss(logits, labels) + dice)

    def weight(self, step: int) -> float:
        """Of the unsupervised term: `weight` times a Gaussian ramp-up over epochs."""
        settings = self.config.volumes
        return settings.weight * ramp_up(step // settings.epoch_steps, settings.rampup_epochs)

    def networks(self) -> dict[str, PyramidUNet]:
        """Networks to evaluate; the first is reported."""
        return {"student": self.student}

    def losses(self, batch: Batch, step: int) -> Losses:
        """The losses of one step; `["loss"]` is the one to minimise."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""


class UAMT(VolumeMethod):
    """A mean teacher whose targets count where it is certain.

        L = (L_s + Dice) / 2 + w(t) sum_M (p_S - p_T)^2 / (C sum M)

    The teacher sees unlabelled volumes with noise clamp(0.1 N(0, 1), -0.2, 0.2). M = 1 where the
    entropy u of the mean of T further noisy passes is below (0.75 + 0.25 rampup(t, t_max)) ln C
    (the official code has ln 2 and 2 for two classes; ln C and C are our reading). The student is
    reported, as in the official code.
    """

    def __init__(self, student: PyramidUNet, supervised_loss: nn.Module, config: Config) -> None:
        super().__init__(student, supervised_loss, config)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def networks(self) -> dict[str, PyramidUNet]:
        return {"student": self.student, "teacher": self.teacher}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, images = batch["labelled"], batch["unlabelled"]["image"]
        logits = self.student(torch.cat([labelled["image"], images]))
        count = len(labelled["image"])
        supervised = self.supervised(logits[:count], labelled["label"])
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, step, 0x0A37))
        with torch.no_grad():
            target = self.teacher(self._noisy(images, generator)).float().softmax(1)
            passes = self.config.volumes.uamt_passes
            mean = sum(
                self.teacher(self._noisy(images, generator)).float().softmax(1)
                for _ in range(passes)
            )
            uncertainty = entropy(mean / passes)
        classes = logits.shape[1]
        limit = 0.75 + 0.25 * ramp_up(step, self.config.training.steps)
        certain = uncertainty < limit * math.log(classes)
        distance = (logits[count:].float().softmax(1) - target) ** 2
        consistency = (distance * certain[:, None]).sum() / (classes * certain.sum() + 1e-16)
        return {
            "loss": supervised + self.weight(step) * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": certain.float().mean(),
        }

    def _noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator) * self.config.volumes.uamt_noise
        return images + noise.clamp(-0.2, 0.2).to(images.device)

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.config.volumes.ema, step)


class URPC(VolumeMethod):
    """One network whose predictions at four scales must agree, less where they are uncertain.

    With p_s the prediction at scale s, P their mean and D_s = sum_c P_c log(P_c / p_{s,c}):

        L = 1/4 sum_s (L_s + Dice_s) / 2
            + w(t) 1/4 sum_s [ mean((P - p_s)^2 e^{-D_s}) / (mean e^{-D_s} + 1e-8) + mean D_s ]
    """

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        pyramid = self.student.pyramid(torch.cat([labelled["image"], unlabelled["image"]]))
        count, scales = len(labelled["image"]), pyramid.shape[1]
        terms = [self.supervised(pyramid[:count, s], labelled["label"]) for s in range(scales)]
        supervised = torch.stack(terms).mean()
        consistency = rectified_consistency(pyramid[count:])
        return {
            "loss": supervised + self.weight(step) * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
        }


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p_c log(p_c + 1e-6) of (B, C, *): (B, *)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)


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
