"""Every method by its name; what the harness must know of one without loading it is in `names.METHODS`."""

from typing import Any

from semidavil.methods.sdepth import SDepth
from semidavil.methods.semidavil import SemiDAViL
from semidavil.methods.semidavil_released import SemiDAViLReleased
from semidavil.methods.semivl import SemiVL
from semidavil.methods.supervised import SourceOnly, Supervised, TargetOnly
from semidavil.methods.uamt import UAMT
from semidavil.methods.unimatch import UniMatch
from semidavil.methods.unimatch_v2 import UniMatchV2
from semidavil.methods.urpc import URPC
from semidavil.plugins import Table

_METHODS: dict[str, Any] = {  # Method of images, VolumeMethod of volumes
    "source_only": SourceOnly,
    "target_only": TargetOnly,
    "supervised": Supervised,
    "semidavil": SemiDAViL,
    "semidavil_released": SemiDAViLReleased,
    "unimatch": UniMatch,
    "unimatch_v2": UniMatchV2,
    "semivl": SemiVL,
    "sdepth": SDepth,
    "uamt": UAMT,
    "urpc": URPC,
}
METHODS = Table("METHODS", _METHODS)
