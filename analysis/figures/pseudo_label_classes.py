"""Reliability of pseudo-labels class by class over training."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.drawn import Drawn
from analysis.figures.over_time import evaluated_on_the_way
from analysis.runs import Tracked
from semidavil.benchmarks import BENCHMARKS

OURS = "semidavil"
METRICS = {"coverage": "confident pixels (%)", "accuracy": "of these right (%)"}
MOST_NUMBERS = 8  # evaluations, above which cells are too small to write in


def draw(tracked: Tracked) -> Drawn:
    """Of the pixels predicted as a class: how many are confident, and how many of those are right.

    Raises:
        AnalysisError: no run was evaluated more than once.
    """
    classes = dict.fromkeys(name for known in BENCHMARKS.values() for name in known.classes)
    metrics = [f"val/pseudo/{metric}/{name}" for metric in METRICS for name in classes]
    grid, chosen, numbers = evaluated_on_the_way(tracked, metrics, (OURS,))
    split = numbers["metric"].str.extract(r"^val/pseudo/(?P<what>[^/]+)/(?P<class>.+)$")
    numbers = pd.concat([numbers.drop(columns=["metric", "variant"]), split], axis=1)
    benchmarks = [b for b in chosen.benchmarks if b in set(numbers["benchmark"])]
    figure, axes = plt.subplots(
        1, len(METRICS) * len(benchmarks), squeeze=False, layout="constrained",
        figsize=(style.PAGE, 3.8),
    )  # fmt: skip
    for column, (benchmark, what) in enumerate((b, m) for b in benchmarks for m in METRICS):
        ax, names = axes[0, column], BENCHMARKS[benchmark].classes
        here = numbers[(numbers["benchmark"] == benchmark) & (numbers["what"] == what)]
        table = here.pivot_table(index="class", columns="step", values="mean").reindex(list(names))
        image = ax.imshow(table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        if len(table.columns) <= MOST_NUMBERS:
            for (i, j), value in np.ndenumerate(table.to_numpy()):
                if np.isfinite(value):
                    ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=5,
                            color="black" if value > 60 else "white")  # fmt: skip
        ax.set_xticks(
            range(len(table.columns)), [f"{s:,}" for s in table.columns], rotation=90, fontsize=6
        )
        ax.set_yticks(range(len(names)), names if what == "coverage" else [], fontsize=6)
        ax.grid(False)
        ax.set_xlabel("training steps")
        heading = f"{chosen.heading(benchmark)}\n" if what == "coverage" else "\n"
        ax.set_title(heading + METRICS[what], loc="left", fontsize=7)
    figure.colorbar(image, ax=axes[0, :], shrink=0.6, label="%")
    last = numbers[numbers["step"] == numbers.groupby("benchmark")["step"].transform("max")]
    right = last[last["what"] == "accuracy"]
    lowest = right.sort_values("mean").iloc[0]
    told = f"least right at the end: {lowest['class']}, {lowest['mean']:.0f}%"
    return Drawn(
        figure=figure,
        title="Reliability of pseudo-labels by class",
        caption="SemiDAViL: of the validation pixels predicted as a class, the share that reaches the "
        "confidence threshold, and the share of those that are right; mean over seeds. Empty: never "
        f"predicted, or never with confidence; {told}. {chosen.note()}",
        alt=f"Heat maps of classes against training steps; {told}.",
        numbers=numbers,
        run_ids=tuple(sorted(chosen.runs["run_id"])),
        grid=grid,
    )
