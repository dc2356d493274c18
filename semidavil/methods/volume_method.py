"""What UA-MT and URPC share.

SemiDAViL's Synapse experiment replaces the cross-entropy inside their supervised terms by DyCE.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.methods.base import Batch, Losses
from semidavil.models.unet3d import PyramidUNet
from semidavil.seeds import seed_of
from semidavil.settings import Volumes


class VolumeMethod(nn.Module):
    """A student on labelled and unlabelled volumes.

    Args:
        student: the network to train.
        supervised_loss: (logits, labels) -> scalar, what CE or DyCE computes.
        config: the run.
    """

    def __init__(self, student: PyramidUNet, supervised_loss: nn.Module, config: Config) -> None:
        super().__init__()
        self.student, self.supervised_loss, self.config = student, supervised_loss, config
        from monai.losses import DiceLoss  # seconds to import, and images need none of it

        self.dice = DiceLoss(
            to_onehot_y=True, softmax=True, squared_pred=True, batch=True,
            smooth_nr=1e-5, smooth_dr=1e-5,
        )  # fmt: skip

    @staticmethod
    def dropout(settings: Volumes) -> Sequence[float]:
        """What its `PyramidUNet` is made with."""
        raise NotImplementedError

    def generator(self, step: int) -> torch.Generator:
        """What the noise and the dropout of a step are drawn from, on the CPU."""
        return torch.Generator().manual_seed(seed_of(self.config.seed, step, 0x0A37))

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


def ramp_up(position: float, length: float) -> float:
    """exp(-5 (1 - t/T)^2), and 1 from T on (Laine and Aila, ICLR 2017)."""
    if length <= 0 or position >= length:
        return 1.0
    return float(torch.exp(torch.tensor(-5.0 * (1.0 - position / length) ** 2)))
