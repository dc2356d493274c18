"""How networks compute what they compute: compiled, or with less memory, see `settings.Runtime`."""

from collections.abc import Iterable

import torch

from semidavil.models.segmenter import Segmenter
from semidavil.settings import Runtime


def execute_as(settings: Runtime, networks: Iterable[Segmenter]) -> None:
    """Changes in place how the networks run; their parameters and state dicts stay what they are.

    Compiled are the parts whose shapes stay the same from step to step: the blocks of a vision
    transformer, which share one compiled function, and the decoder. What is between them changes its
    shape with the captions.

    Raises:
        ValueError: activations of an encoder that is no vision transformer are to be computed twice.
    """
    if settings.compile:
        # Else a process that has trained other runs has used up the shapes that are compiled, and this one
        # would be rounded as they happen to be run.
        torch.compiler.reset()
    for network in networks:
        if settings.checkpoint_activations:
            network.vision.checkpoint_activations()
        if settings.compile:
            parts = [(part, "forward") for part in (*network.vision.blocks(), network.decoder)]
            for part, name in (*parts, (network.decoder, "details")):
                setattr(part, name, torch.compile(getattr(part, name), dynamic=False))
