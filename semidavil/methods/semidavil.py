"""SemiDAViL (Basak and Yin, CVPR 2025): supervised loss plus confident teacher labels."""

from semidavil.losses import consistency_loss
from semidavil.methods.base import Batch, Losses, confident_share, paste
from semidavil.methods.mean_teacher import MeanTeacher


class SemiDAViL(MeanTeacher):
    """L = L_sup + lambda L_CT with an EMA teacher (eq. 4 and 6).

    The teacher labels the weak view of an unlabelled target image, the student learns the confident
    labels on the strong view. CutMix (as in UniMatch, CVPR 2023; the paper does not name its
    augmentations) pastes a box of the batch's next image into the strong view together with its
    pseudo-labels. The teacher is reported.
    """

    def losses(self, batch: Batch, step: int) -> Losses:
        training, unlabelled = self.config.training, batch["unlabelled"]
        confidence, labels = self.pseudo_labels(unlabelled["image"], unlabelled["caption"])

        box = unlabelled["cutmix"][0]  # (B, H, W)
        strong, valid = paste(unlabelled["strong"][0], box), paste(unlabelled["valid"], box)
        confidence, labels = paste(confidence, box), paste(labels, box)

        supervised, (student,) = self.supervised(batch, extra=[(strong, unlabelled["caption"])])
        consistency = consistency_loss(
            student.logits, labels, confidence, training.confidence, valid
        )
        return {
            "loss": supervised + training.consistency_weight * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": confident_share(confidence, training.confidence, valid),
        }
