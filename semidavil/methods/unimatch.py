"""UniMatch (Yang et al., CVPR 2023), the "DusPerb" of SemiDAViL's comparison."""

import torch
from torch import Tensor

from semidavil.flops import TRAINED
from semidavil.losses import consistency_loss, pseudo_label
from semidavil.methods.base import Batch, Encoded, Losses, Method, confident_share, paste
from semidavil.seeds import seed_of

IMAGE_WEIGHT, FEATURE_WEIGHT = 0.25, 0.5  # of each strong view's loss, and of the features'


class UniMatch(Method):
    """Weak-to-strong consistency with dual strong views and a feature perturbation; no teacher.

        L = (L_x + 0.25 L_s1 + 0.25 L_s2 + 0.5 L_fp) / 2

    All unsupervised terms learn the student's own labels of the weak view, where its confidence
    reaches the threshold, divided by the number of pixels, as in the official code. L_s1 and
    L_s2: two strong views, each with a CutMix of its own. L_fp: the weak view, decoded from encoder
    features of which whole channels are dropped (`rivals.unimatch_dropout`); what the decoder reads
    from the image itself is perturbed with them. L_x on source and labelled target.
    """

    # The weak view is decoded twice.
    unlabelled_passes = (3 * TRAINED, 1 + 3 * TRAINED)

    def losses(self, batch: Batch, step: int) -> Losses:
        training, unlabelled = self.config.training, batch["unlabelled"]
        language, boxes = self.language(unlabelled), unlabelled["cutmix"]
        strong = [paste(view, box) for view, box in zip(unlabelled["strong"], boxes, strict=True)]
        views = [(view, language) for view in strong]
        seen = self.see(batch, views, encoded=[(unlabelled["image"], language)])
        supervised = self.supervised(seen.labelled)
        (weak,) = seen.encoded
        with torch.no_grad():  # it teaches, and learns nothing
            logits = self.student.decode(weak.features, weak.language)
            confidence, labels = pseudo_label(logits, training.temperature)

        terms = [
            (IMAGE_WEIGHT, logits, [paste(x, box) for x in (labels, confidence)])
            for logits, box in zip(seen.views, boxes, strict=True)
        ]
        terms.append((FEATURE_WEIGHT, self._perturbed(weak, step), [labels, confidence]))
        values = [
            weight * consistency_loss(logits, target, sure, training.confidence)
            for weight, logits, (target, sure) in terms
        ]
        unsupervised = torch.stack(values).sum()
        losses = {
            "loss": (supervised + training.consistency_weight * unsupervised) / 2,
            "loss_sup": supervised,
            "loss_con": unsupervised,
            "confident": confident_share(confidence, training.confidence),
        }
        return self.refine(losses, batch, step, [(w, x) for w, x, _ in terms])

    def refine(
        self, losses: Losses, batch: Batch, step: int, terms: list[tuple[float, Tensor]]
    ) -> Losses:
        """For methods that add to UniMatch: `terms` are weight and logits of s1, s2 and fp."""
        return losses

    def _perturbed(self, weak: Encoded, step: int) -> Tensor:
        # From the seed and the step alone: a resumed run must drop the same channels.
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, step, 0xFEA7))
        share = self.config.rivals.unimatch_dropout
        return self.student.decode(weak.features.drop_channels(share, generator), weak.language)
