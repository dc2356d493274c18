"""SemiDAViL (Basak and Yin, CVPR 2025): supervised loss plus confident teacher labels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from semidavil.flops import TRAINED
from semidavil.losses import CrossEntropy, consistency_loss, gradient_norm
from semidavil.methods.base import Batch, Labelled, Losses, confident_share, paste
from semidavil.methods.mean_teacher import MeanTeacher


class SemiDAViL(MeanTeacher):
    """L = L_sup + lambda L_CT with an EMA teacher (eq. 4 and 6).

    The teacher labels the weak view of an unlabelled target image, the student learns the confident
    labels on the strong view. CutMix (as in UniMatch, CVPR 2023; the paper does not name its
    augmentations) pastes a box of the batch's next image into the strong view together with its
    pseudo-labels. The teacher is reported.

    The released code has one view instead of two and no CutMix: student and teacher see the same
    flipped and jittered crop. Where lambda is 0 there is no unlabelled stream, and a step is its
    supervised half.
    """

    same_each_step = True
    unlabelled_passes = (1 + TRAINED, 1 + TRAINED)  # the teacher's and the student's

    def losses(self, batch: Batch, step: int) -> Losses:
        if "unlabelled" not in batch:
            return super().losses(batch, step)
        training, unlabelled = self.config.training, batch["unlabelled"]
        language = self.language(unlabelled)
        confidence, labels = self.pseudo_labels(unlabelled["image"], language)

        box = unlabelled["cutmix"][0]  # (B, H, W)
        strong = paste(unlabelled["strong"][0], box)
        confidence, labels = paste(confidence, box), paste(labels, box)

        seen = self.see(batch, views=[(strong, language)])
        supervised = self.supervised(seen.labelled)
        consistency = consistency_loss(
            seen.views[0], labels, confidence, training.confidence, training.consistency_over
        )
        weight = self.consistency_weight(seen.labelled)
        return {
            "loss": supervised + weight * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": confident_share(confidence, training.confidence),
        }

    def consistency_weight(self, labelled: Sequence[Labelled]) -> Tensor | float:
        """lambda; "matched", times |grad L_sup| / |grad CE| at the logits of this step.

        A loss of ten times cross-entropy's gradient also makes consistency ten times weaker beside it.
        Matched, both gradients have the ratio that they would have under cross-entropy, so that losses
        are compared and not weights of the consistency term.
        """
        training = self.config.training
        if training.consistency_scale == "fixed":
            return training.consistency_weight
        reference = CrossEntropy(labelled[0].logits.shape[1])

        def of(loss: torch.nn.Module) -> Tensor:
            def value(logits: Sequence[Tensor]) -> Tensor:
                parts = [replace(y, logits=x) for x, y in zip(logits, labelled, strict=True)]
                return self.supervised(parts, loss)

            return gradient_norm(value, [part.logits for part in labelled])

        ratio = of(self.supervised_loss) / of(reference).clamp(min=1e-12)
        return training.consistency_weight * ratio
