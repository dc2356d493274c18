"""Methods without unlabelled images: the reference points of every comparison."""

from semidavil.methods.base import Method


class Supervised(Method):
    """Labelled source and labelled target images; no teacher, no unlabelled image."""

    same_each_step = True


class SourceOnly(Supervised):
    """Labelled source images alone: what the domain gap costs."""


class TargetOnly(Supervised):
    """The labelled target images alone: what the labels give by themselves."""
