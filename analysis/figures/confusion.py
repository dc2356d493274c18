"""Where two methods confuse classes differently."""

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import heat_map, panels
from analysis.runs import AnalysisError, Tracked

GRID, WANTED, OURS = "methods", 100, "semidavil"
# The first that was run.
RIVALS = ("semivl", "unimatch", "unimatch_v2", "sdepth", "supervised", "target_only")


def draw(tracked: Tracked) -> Drawn:
    """How much better SemiDAViL's row-normalised confusion is than a rival's, mean over common seeds.

    Raises:
        AnalysisError: no benchmark has evaluations of both.
    """
    chosen = select(tracked, GRID, "method").at_one_budget(WANTED)
    found: dict[str, tuple[str, np.ndarray, int]] = {}
    used: list[str] = []
    for benchmark in chosen.benchmarks:
        here = chosen.of(benchmark)
        for rival in dict.fromkeys((*RIVALS, *here["method"].drop_duplicates())):
            two = here[here["method"].isin((OURS, rival))]
            common = two[two.groupby("seed")["method"].transform("nunique") == 2]
            ours, theirs = (shares(tracked, common[common["method"] == m]) for m in (OURS, rival))
            if rival in (OURS, "source_only") or ours is None or theirs is None:
                continue
            if ours.shape == theirs.shape:
                found[benchmark] = (rival, ours - theirs, common["seed"].nunique())
                used += list(common["run_id"])
                break
    if not found:
        raise AnalysisError(f"no evaluations of {OURS} and another method on one benchmark")
    frame = panels(list(found), 1, 3.9, share=False)
    rows, told = [], []
    # Almost all: one class that is hardly there would else make the others pale.
    values = np.concatenate([np.abs(matrix).ravel() for _, matrix, _ in found.values()])
    limit = float(np.nanpercentile(values, 99)) or 1.0
    for benchmark, (ax,) in frame:
        rival, matrix, count = found[benchmark]
        classes = chosen.classes(benchmark)
        if len(classes) != len(matrix):
            classes = [str(i) for i in range(len(matrix))]
        better = np.where(np.eye(len(matrix), dtype=bool), matrix, -matrix)
        image = heat_map(ax, better, classes, classes, cmap="PuOr", vmin=-limit, vmax=limit)
        ax.set_xlabel("predicted")
        ax.set_ylabel("truth")
        ax.set_title(
            f"{chosen.heading(benchmark)}, {seeds_of([count])}\nSemiDAViL and {style.label(rival)}",
            loc="left",
        )
        gain = np.nanmean(np.diag(matrix))
        told.append(f"{style.benchmark_name(benchmark)}: mean recall {gain:+.1f} points")
        rows += [
            {"benchmark": benchmark, "ours": OURS, "theirs": rival, "truth": truth,
             "predicted": predicted, "difference": matrix[i, j], "n": count}
            for i, truth in enumerate(classes)
            for j, predicted in enumerate(classes)
        ]  # fmt: skip
    frame.figure.colorbar(image, ax=frame.figure.axes, location="bottom", shrink=0.6, aspect=40,
                          extend="both", label="better (purple) or worse, points")  # fmt: skip
    return Drawn(
        figure=frame.figure,
        title="Confusion of classes, difference of two methods",
        caption="Row-normalised confusion matrices (per cent of a class's pixels), SemiDAViL against the "
        "other method, mean over common seeds. Purple is better everywhere: more of a class found on the "
        "diagonal, less taken for another off it. No test is made; the scale holds 99% of the values. "
        f"{'; '.join(told)}. {chosen.note()}",
        alt=f"Heat maps of confusion differences. {'; '.join(told)}.",
        numbers=pd.DataFrame(rows),
        run_ids=tuple(sorted(used)),
        grid=GRID,
    )


def shares(tracked: Tracked, runs: pd.DataFrame) -> np.ndarray | None:
    """(C, C) per cent of a true class's pixels by prediction, mean over runs that have it; NaN for none."""
    found = [tracked.evaluation(run_id) for run_id in runs["run_id"]]
    counts = [one.confusion.astype(float) for one in found if one is not None]
    if not counts:
        return None
    with np.errstate(invalid="ignore"):  # 0 / 0: a class that a run has not
        each = np.ma.masked_invalid([100 * c / c.sum(1, keepdims=True) for c in counts])
    return np.ma.filled(each.mean(axis=0), np.nan)
