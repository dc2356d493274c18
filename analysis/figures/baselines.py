"""What each stream of data adds: mIoU against label budget per method."""

import pandas as pd

from analysis.figures.budget_curves import Drawn, budget_curves
from analysis.runs import AnalysisError

VARIANTS = {
    "semidavil": "SemiDAViL",
    "supervised": "source + labelled target",
    "target_only": "labelled target",
    "source_only": "source",
}


def draw(runs: pd.DataFrame) -> Drawn:
    """Runs of the four methods with DLG and DyCE; needs one besides SemiDAViL."""
    mine = runs[
        runs["method"].isin(VARIANTS) & (runs["fusion"] == "dlg") & (runs["loss"] == "dyce")
    ]
    if set(mine["method"]) <= {"semidavil"}:
        raise AnalysisError(
            "no finished run of the baselines: python sweeps/run.py --grid baselines"
        )
    return budget_curves(mine, "method", VARIANTS, constant=("source_only",))
