"""The attention comparison (Figure 1 of the paper): mIoU against label budget per attention."""

import pandas as pd

from analysis.figures.budget_curves import Drawn, budget_curves
from analysis.paper import attention as published
from analysis.runs import AnalysisError

VARIANTS = {
    "dlg": "DLG (ours)",
    "vlga": "VLGA",
    "wpct": "WPCT",
    "cross_attention": "cross-attention",
}


def draw(runs: pd.DataFrame) -> Drawn:
    """Runs of the full method with one of the four attentions, whatever grid they came from."""
    mine = runs[
        (runs["method"] == "semidavil") & (runs["loss"] == "dyce") & runs["fusion"].isin(VARIANTS)
    ]
    if mine.empty:
        raise AnalysisError(
            "no finished run of the attention comparison: python sweeps/run.py --grid attention"
        )
    return budget_curves(mine, "fusion", VARIANTS, published())
