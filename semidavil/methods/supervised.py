"""Methods without unlabelled images: the reference points of every comparison."""

from semidavil.methods.base import Batch, Losses, Method


class Supervised(Method):
    """Labelled source and labelled target images; no teacher, no unlabelled image."""

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, _ = self.see(batch)
        loss = self.supervised(labelled)
        return {"loss": loss, "loss_sup": loss}


class SourceOnly(Supervised):
    """Labelled source images alone: what the domain gap costs."""


class TargetOnly(Supervised):
    """The labelled target images alone: what the labels give by themselves."""
