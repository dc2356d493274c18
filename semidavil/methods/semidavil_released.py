"""What SemiDAViL's released code would do if it ran: a variant of the comparison of components."""

from typing import Any

import torch
from torch import Tensor

from semidavil.distributed import gather, share
from semidavil.flops import TRAINED
from semidavil.methods.base import Batch, Losses, Rates, confident_share
from semidavil.methods.ema import ema_update
from semidavil.methods.mean_teacher import MeanTeacher
from semidavil.models.segmenter import Segmenter
from semidavil.models.text import Language


class SemiDAViLReleased(MeanTeacher):
    """SemiDAViL as hritam-98/SemiDAViL (commit a8ee1bc) has it, instead of as the paper reads.

    That code cannot run: two imports lack their files, CLIP's pooled output is indexed as tokens. What it
    means to do, and the paper's text does not say, is here:

    - **Trivial language.** The text is one pooled sentence, so that a softmax over its tokens is 1
      everywhere: DLG adds the same to every pixel, and language says nothing of places.
    - L_sup is one call on source and labelled target together, which are mined as one.
    - L_CT compares the student with the teacher on the same view: no strong view, no CutMix. It is
      KL(p^T || p^S) to the soft teacher, over confident pixels and divided by their number (the comment
      beside it quotes eq. 4, cross-entropy with the label).
    - The vision encoder is frozen: the optimiser holds fusion and decoder.
    - EMA with the plain decay from the first step on; the student is what is kept, and so is reported.

    Not taken over: its fusion has no residual to the image's features and its decoder reads nothing else, so
    that it would predict the same at every pixel. Fusion and decoder are those of all variants here, as are
    captions (there of the augmented crop, by BLIP-2), augmentations (there flip and colour jitter),
    normalisation and the schedule (there a constant rate: `training.poly_power=0`).
    """

    same_each_step = True
    # The teacher's and the student's, whose encoder has no gradients.
    unlabelled_passes = (2, 1 + TRAINED)
    labelled_pass = 1

    def networks(self) -> dict[str, Segmenter]:
        return {"student": self.student, "teacher": self.teacher}

    def rates(self) -> Rates:
        training = self.config.training
        return Rates(training.lr, 0.0, training.weight_decay)

    def language(self, stream: dict[str, Any]) -> Language:
        """The sentence's feature alone: its last real token's, where CLIP reads it out."""
        said: Language = stream["language"]
        last = (said.mask.sum(1) - 1)[:, None, None].expand(-1, 1, said.tokens.shape[2])
        return Language(said.tokens.gather(1, last), said.mask[:, :1], (1,) * len(said))

    def losses(self, batch: Batch, step: int) -> Losses:
        training, unlabelled = self.config.training, batch["unlabelled"]
        images, language = unlabelled["image"], self.language(unlabelled)
        with torch.no_grad():
            mine = share(len(images))
            taught = gather(self.teacher(images[mine], language[mine]))
        seen = self.see(batch, views=[(images, language)])
        supervised = self.supervised_loss(
            torch.cat([part.logits for part in seen.labelled]),
            torch.cat([part.labels for part in seen.labelled]),
        )
        consistency, confidence = soft_consistency(seen.views[0], taught, training.confidence)
        return {
            "loss": supervised + training.consistency_weight * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": confident_share(confidence, training.confidence),
        }

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.ema(), None)


def soft_consistency(logits: Tensor, taught: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """KL(p^T || p^S), the mean over pixels where the teacher is confident; and its confidence (B, H, W).

    Args:
        logits, taught: the student's and the teacher's (B, C, H, W).
    """
    ours, theirs = logits.float().log_softmax(1), taught.float().log_softmax(1)
    confidence = theirs.amax(1).exp()
    divergence = (theirs.exp() * (theirs - ours)).sum(1)
    learn_from = confidence >= threshold
    return (divergence * learn_from).sum() / learn_from.sum().clamp(min=1), confidence
