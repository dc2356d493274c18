"""Where two methods confuse classes differently."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import select
from analysis.drawn import Drawn
from analysis.runs import AnalysisError, Tracked
from semidavil.benchmarks import BENCHMARKS

GRID, WANTED, OURS = "methods", 100, "semidavil"
# The first that was run.
RIVALS = ("semivl", "unimatch", "unimatch_v2", "sdepth", "supervised", "target_only")


def draw(tracked: Tracked) -> Drawn:
    """Row-normalised confusion of SemiDAViL minus that of a rival, mean over seeds.

    Raises:
        AnalysisError: no benchmark has evaluations of both.
    """
    chosen = select(tracked, GRID, "method").at_one_budget(WANTED)
    found: dict[str, tuple[str, np.ndarray]] = {}
    for benchmark in chosen.benchmarks:
        here = chosen.of(benchmark)
        ours = shares(tracked, here[here["method"] == OURS])
        for rival in RIVALS:
            theirs = shares(tracked, here[here["method"] == rival])
            if ours is not None and theirs is not None:
                found[benchmark] = (rival, ours - theirs)
                break
    if not found:
        raise AnalysisError(f"no evaluations of {OURS} and another method on one benchmark")
    limit = max(float(np.nanmax(np.abs(matrix))) for _, matrix in found.values()) or 1.0
    height = 3.6 if len(found) > 1 else 4.2
    figure, axes = plt.subplots(
        1, len(found), squeeze=False, figsize=(style.PAGE, height), layout="constrained"
    )
    rows, told = [], []
    for column, (ax, (benchmark, (rival, matrix))) in enumerate(
        zip(axes[0], found.items(), strict=True)
    ):
        classes = BENCHMARKS[benchmark].classes
        image = ax.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
        ax.set_xticks(range(len(classes)), classes, rotation=90, fontsize=5.5)
        ax.set_yticks(range(len(classes)), classes, fontsize=5.5)
        ax.grid(False)
        ax.set_xlabel("predicted")
        ax.set_ylabel("truth" if column == 0 else "")
        ax.set_title(
            f"{chosen.heading(benchmark)}\nSemiDAViL minus {style.label(rival)}", loc="left"
        )
        gain = np.nanmean(np.diag(matrix))
        told.append(f"{style.benchmark_name(benchmark)}: mean recall {gain:+.1f} points")
        rows += [
            {"benchmark": benchmark, "ours": OURS, "theirs": rival, "truth": truth,
             "predicted": predicted, "difference": matrix[i, j]}
            for i, truth in enumerate(classes)
            for j, predicted in enumerate(classes)
        ]  # fmt: skip
    figure.colorbar(image, ax=axes[0, :], shrink=0.75, label="share of a class's pixels (points)")
    both = chosen.runs[chosen.runs["method"].isin({OURS, *(rival for rival, _ in found.values())})]
    return Drawn(
        figure=figure,
        title="Confusion of classes, difference of two methods",
        caption="Row-normalised confusion matrices (per cent of a class's pixels), SemiDAViL minus the "
        "other method, mean over seeds: a gain is positive on the diagonal and negative elsewhere. "
        f"{'; '.join(told)}. {chosen.note()}",
        alt=f"Heat maps of confusion differences. {'; '.join(told)}.",
        numbers=pd.DataFrame(rows),
        run_ids=tuple(sorted(both["run_id"])),
        grid=GRID,
    )


def shares(tracked: Tracked, runs: pd.DataFrame) -> np.ndarray | None:
    """(C, C) per cent of a true class's pixels by prediction, mean over runs; rows without pixels NaN."""
    found = [tracked.evaluation(run_id) for run_id in runs["run_id"]]
    counts = [one.confusion.astype(float) for one in found if one is not None]
    if not counts:
        return None
    rows = [c.sum(1, keepdims=True) for c in counts]
    each = [
        100 * np.divide(c, r, out=np.full_like(c, np.nan), where=r > 0)
        for c, r in zip(counts, rows, strict=True)
    ]
    return np.mean(each, axis=0)
