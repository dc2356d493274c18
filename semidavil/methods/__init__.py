"""Methods: what a training step is.

A method is a module that holds the networks it trains or keeps, names the data streams it draws
from, and turns a batch into a loss. `semidavil.train` owns everything else: the optimiser, the
schedule, evaluation, checkpoints.
"""

from typing import Any

from semidavil.methods.sdepth import SDepth
from semidavil.methods.semidavil import SemiDAViL
from semidavil.methods.semivl import SemiVL
from semidavil.methods.supervised import SourceOnly, Supervised, TargetOnly
from semidavil.methods.unimatch import UniMatch
from semidavil.methods.volumes import UAMT, URPC

METHODS: dict[str, Any] = {  # Method of images, VolumeMethod of volumes
    "source_only": SourceOnly,
    "target_only": TargetOnly,
    "supervised": Supervised,
    "semidavil": SemiDAViL,
    "unimatch": UniMatch,
    "semivl": SemiVL,
    "sdepth": SDepth,
    "uamt": UAMT,
    "urpc": URPC,
}
