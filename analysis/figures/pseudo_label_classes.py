"""Reliability of pseudo-labels class by class over training."""

import numpy as np
import pandas as pd

from analysis.cells import classes_of, seeds_of
from analysis.drawn import Drawn
from analysis.figures.over_time import evaluated_on_the_way
from analysis.panels import SMALL, heat_map, panels
from analysis.runs import Tracked

OURS = "semidavil"
METRICS = {"coverage": "confident pixels (%)", "accuracy": "of these right (%)"}
MOST_NUMBERS = 8  # evaluations, above which cells are too small to write in


def draw(tracked: Tracked) -> Drawn:
    """Of the pixels predicted as a class: how many are confident, and how many of those are right.

    Raises:
        AnalysisError: no run was evaluated more than once.
    """
    classes = classes_of(tracked.table)
    metrics = [f"val/pseudo/{metric}/{name}" for metric in METRICS for name in classes]
    grid, chosen, numbers = evaluated_on_the_way(tracked, metrics, (OURS,))
    split = numbers["metric"].str.extract(r"^val/pseudo/(?P<what>[^/]+)/(?P<class>.+)$")
    numbers = pd.concat([numbers.drop(columns=["metric", "variant"]), split], axis=1)
    frame = panels([f"{b}/{m}" for b in chosen.benchmarks for m in METRICS], 1, 3.3, share=False)
    for name, (ax,) in frame:
        benchmark, _, what = name.rpartition("/")
        here = numbers[(numbers["benchmark"] == benchmark) & (numbers["what"] == what)]
        names = chosen.classes(benchmark)
        table = here.pivot_table(index="class", columns="step", values="mean").reindex(names)
        steps = [f"{step:,}" for step in table.columns]
        named = names if what == "coverage" else [""] * len(names)
        image = heat_map(ax, table, steps, named, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        if len(table.columns) <= MOST_NUMBERS:
            for (i, j), value in np.ndenumerate(table.to_numpy()):
                if np.isfinite(value):
                    ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=SMALL,
                            color="black" if value > 60 else "white")  # fmt: skip
        ax.set_xlabel("training steps")
        seeds = seeds_of(here["n"]) if len(here) else "no run"
        ax.set_title(f"{chosen.heading(benchmark)}, {seeds}\n{METRICS[what]}", loc="left")
    frame.figure.colorbar(image, ax=frame.figure.axes, shrink=0.6, label="%")
    last = numbers[numbers["step"] == numbers.groupby("benchmark")["step"].transform("max")]
    right = last[last["what"] == "accuracy"]
    lowest = right.sort_values("mean").iloc[0]
    told = f"least right at the end: {lowest['class']}, {lowest['mean']:.0f}%"
    return Drawn(
        figure=frame.figure,
        title="Reliability of pseudo-labels by class",
        caption="SemiDAViL: of the validation pixels predicted as a class, the share that reaches the "
        "confidence threshold, and the share of those that are right; mean over seeds. Empty: never "
        f"predicted, or never with confidence; {told}. {chosen.note()}",
        alt=f"Heat maps of classes against training steps; {told}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=grid,
    )
