"""UniMatch V2 (Yang, Zhao and Zhao, TPAMI 2025): one stream of strong views with complementary dropout."""

import torch
from torch import Tensor

from semidavil.distributed import gather, share
from semidavil.flops import TRAINED
from semidavil.losses import consistency_loss
from semidavil.methods.base import Batch, Encoded, Losses, Rates, confident_share, paste
from semidavil.methods.mean_teacher import MeanTeacher
from semidavil.models.text import Language
from semidavil.seeds import seed_of

VIEWS = 2


class UniMatchV2(MeanTeacher):
    """Weak-to-strong consistency whose two strong views see complementary halves of the features.

        L = (L_x + (L_1 + L_2) / 2) / 2

    The EMA teacher labels the weak view. L_1 and L_2: two strong views, each with a CutMix of its own, learn
    the teacher's labels where its confidence reaches the threshold, divided by the number of pixels. There is
    no second stream of perturbed weak views as in UniMatch: features are perturbed in the strong views
    themselves. View 1's channels are multiplied by M, of which each entry is 0 or 2 with equal chance, view
    2's by 2 - M: what one loses, the other keeps. Half of the images keep all channels in both views. All of
    it is as in the official code (LiheYoung/UniMatch-V2, unimatch_v2.py and model/semseg/dpt.py).

    Our readings: L_x is on source and labelled target. The official code drops the encoder's features, which
    are all that its decoder reads. Ours also reads the image through two convolutions, whose features are
    dropped with masks of their own: else what one view loses would come back beside its mask. Dropout is
    before the fusion with language, if there is one. No view is padded, so that no pixel is left out.

    The authors' settings on Cityscapes (`rivals.unimatch_v2_*`): AdamW at 5e-6 for the encoder and 40 times
    that for the rest, weight decay 0.01, EMA 0.996. Their DINOv2, DPT and crops of 798 pixels are not: they
    are what all methods of a comparison share, and neither is their cross-entropy over hard pixels: the loss
    is `loss.name`.
    """

    # The teacher sees the weak view, the student both strong ones.
    unlabelled_passes = (1 + VIEWS * TRAINED, 1 + VIEWS * TRAINED)

    def rates(self) -> Rates:
        rivals = self.config.rivals
        factor, decay = rivals.unimatch_v2_backbone_lr_factor, rivals.unimatch_v2_weight_decay
        return Rates(rivals.unimatch_v2_lr, factor, decay)

    def ema(self) -> float:
        return self.config.rivals.unimatch_v2_ema

    def losses(self, batch: Batch, step: int) -> Losses:
        training, unlabelled = self.config.training, batch["unlabelled"]
        language, boxes = self.language(unlabelled), unlabelled["cutmix"]
        confidence, labels = self.pseudo_labels(unlabelled["image"], language)

        strong = torch.cat(
            [paste(view, box) for view, box in zip(unlabelled["strong"], boxes, strict=True)]
        )
        views = (strong, Language.joined([language] * VIEWS))
        seen = self.see(batch, encoded=[views])
        supervised = self.supervised(seen.labelled)
        (encoded,) = seen.encoded
        # One mean over both views, which have as many pixels, is the mean of their losses.
        consistency = consistency_loss(
            self._perturbed(encoded, len(labels), step),
            torch.cat([paste(labels, box) for box in boxes]),
            torch.cat([paste(confidence, box) for box in boxes]),
            training.confidence,
        )
        return {
            "loss": (supervised + training.consistency_weight * consistency) / 2,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": confident_share(confidence, training.confidence),
        }

    def _perturbed(self, views: Encoded, count: int, step: int) -> Tensor:
        """Logits (2 B, C, H, W) of both views of `count` = B images, from dropped features."""
        # From the seed and the step alone: a resumed run must drop the same channels.
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, step, 0xC0D2))
        features = views.features
        maps = (features.vision, *features.details)
        drawn = complementary_masks([part.shape[1] for part in maps], count, generator)
        mine = share(VIEWS * count)  # of several processes, each has encoded its rows alone
        logits = self.student.decode(
            features.scale_channels([mask[mine] for mask in drawn]), views.language
        )
        return gather(logits)


def complementary_masks(
    channels: list[int], count: int, generator: torch.Generator
) -> list[Tensor]:
    """What two views of `count` = B images multiply their features by, for each of several maps.

    Args:
        channels: of each map.
        generator: on the CPU, so that the same channels are dropped on every device.

    Returns:
        (2 B, C) for each map, the rows of the first view before those of the second: M and 2 - M. For
        floor(B / 2) images, the same ones in all maps, M is 1.
    """
    whole = torch.randperm(count, generator=generator) < count // 2
    masks = []
    for dim in channels:
        drawn = 2.0 * (torch.rand(count, dim, generator=generator) < 0.5)
        mask = torch.where(whole[:, None], 1.0, drawn)
        masks.append(torch.cat([mask, 2 - mask]))
    return masks
