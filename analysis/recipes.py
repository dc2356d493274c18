"""What the methods of a comparison share, and what each has of its own, in words.

A rival keeps the hyper-parameters of its paper; everything else is the same for all, and is said once.
"""

import pandas as pd

from analysis import style

# Settings by what readers call them; those that all runs agree in are told.
SHARED = {
    "model.vlm": "encoder",
    "model.encoder": "image encoder",
    "model.decoder_dim": "decoder channels",
    "data.crop": "crop",
    "training.batch_size": "images a stream",
    "training.lr": "learning rate",
    "training.backbone_lr_factor": "of it for the encoder",
    "training.weight_decay": "weight decay",
    "training.confidence": "threshold",
    "training.ema": "EMA",
}
OWN = {
    "semivl": {
        "rivals.semivl_lr": "learning rate",
        "rivals.semivl_backbone_lr_factor": "of it for the encoder",
        "rivals.semivl_head_lr_factor": "times it for the head",
        "rivals.semivl_weight_decay": "weight decay, none on norms",
    },
    "unimatch_v2": {
        "rivals.unimatch_v2_lr": "learning rate",
        "rivals.unimatch_v2_backbone_lr_factor": "of it for the encoder",
        "rivals.unimatch_v2_weight_decay": "weight decay",
        "rivals.unimatch_v2_ema": "EMA",
    },
    "sdepth": {"rivals.sdepth_ema": "EMA"},
}


def recipe_sentence(runs: pd.DataFrame) -> str:
    """`Shared by all: encoder ViT-B-16, ... Their own: SemiVL learning rate 5e-05, ...`.

    Args:
        runs: rows of `load_runs`, of one comparison of methods on images.
    """
    told = f"Shared by all: {_values(runs, SHARED)}."
    own = [
        f"{style.label(method)} {_values(mine, OWN[method])}"
        for method in OWN
        if len(mine := runs[runs["method"] == method])
    ]
    return told + (f" Their own: {'; '.join(own)}." if own else "")


def _values(runs: pd.DataFrame, names: dict[str, str]) -> str:
    known = {what: runs[setting].unique() for setting, what in names.items()}
    return ", ".join(
        f"{what} {style.setting_text(v[0])}"
        for what, v in known.items()
        if len(v) == 1 and v[0] != ""
    )
