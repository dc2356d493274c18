"""Accuracy against what an encoder costs, milliseconds for an image and parameters, with the Pareto front."""

import itertools
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from analysis.cells import seeds_of, select
from analysis.drawn import Drawn
from analysis.figures.cost import against_cost, devices, draw_points, places
from analysis.panels import SMALL, legend
from analysis.runs import Tracked
from analysis.style import BLUE, GREY, Look
from analysis.tables.entries import LATENCY
from analysis.verdicts import verdicts
from sweeps.plan.encoders import SETTINGS, encoder_name
from sweeps.plan.grids import GRIDS

GRID, WANTED = "encoders", 100  # label budget
COSTS = {"latency_ms": "ms for one image", "millions": "million parameters"}
FUSIONS = {"dlg": Look("with DLG", BLUE, "o", ""), "none": Look("without language", GREY, "X", "")}


def draw(tracked: Tracked) -> Drawn:
    """mIoU of each encoder with and without DLG; a line joins the two.

    Raises:
        AnalysisError: no run of the grid, or none with a cost.
    """
    chosen = select(tracked, GRID, list(GRIDS[GRID].baseline)).at_one_budget(WANTED)
    known = [*chosen.runs, "latency_ms", "parameters"]
    runs = chosen.runs.reindex(columns=list(dict.fromkeys(known)))
    runs["encoder"] = [
        encoder_name(dict(zip(SETTINGS, map(str, row), strict=True)))
        for row in runs[list(SETTINGS)].values
    ]
    runs["variant"] = runs["encoder"] + "+" + runs["fusion"]
    runs["millions"] = runs["parameters"] / 1e6
    frame, numbers = against_cost(chosen, runs, COSTS)
    numbers[["encoder", "fusion"]] = numbers["variant"].str.rsplit("+", n=1, expand=True).values
    for ax, table in places(frame, numbers):
        draw_points(ax, table, [(look, table["fusion"] == f) for f, look in FUSIONS.items()])
    legend(frame.figure)
    frame.figure.draw_without_rendering()  # before it, no text knows its place
    for ax, table in places(frame, numbers):
        _name_encoders(ax, table)
    told = "; ".join(
        f"by {COSTS[str(cost)]}: {', '.join(dict.fromkeys(group['variant']))}"
        for cost, group in numbers[numbers["pareto"]].groupby("of", sort=False)
    )
    verdict, tests = verdicts(replace(chosen, runs=runs))
    return Drawn(
        figure=frame.figure,
        title="Encoders",
        caption="mIoU of each encoder, with DLG and without language, against what it "
        f"costs to run: mean and standard deviation over {seeds_of(numbers['n'])}, at the same steps, "
        "batches and crops; grey line: the Pareto front of the means. Milliseconds: "
        f"{LATENCY}. Parameters are those of the whole network. {_starts(runs)} {devices(numbers)} "
        f"On the front {told}. {chosen.note()}",
        alt=f"Scatter plots of mIoU against cost for {runs['encoder'].nunique()} encoders. On the Pareto "
        f"front {told}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
        verdicts=verdict,
        tests=tests,
    )


def _name_encoders(ax: Axes, table: pd.DataFrame) -> None:
    """Names beside the points with DLG, in the first corner where each stands on no other and is not cut."""
    taken: list[Bbox] = []
    for encoder, pair in table.sort_values("cost").groupby("encoder", sort=False):
        by_fusion = pair.drop_duplicates("fusion").set_index("fusion")
        named = by_fusion.loc["dlg" if "dlg" in by_fusion.index else by_fusion.index[0]]
        text = ax.annotate(
            str(encoder), (named["cost"], named["mean"]), xytext=(0, 0), textcoords="offset points",
            fontsize=SMALL,
            path_effects=[withStroke(linewidth=2, foreground="white")],  # over bars it stays readable
        )  # fmt: skip
        for left, height in itertools.product((False, True), (4, -9, 14, -19)):
            text.xyann = (-4 if left else 4, height)
            text.set_horizontalalignment("right" if left else "left")
            box = text.get_window_extent()
            inside = ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if len(pair) == 2:
            ax.plot(pair["cost"], pair["mean"], color="#d0d0d0", linewidth=0.7, zorder=0)


def _starts(runs: pd.DataFrame) -> str:
    """Which encoders start at random: what they score says nothing of pre-training."""
    names = [name for name in runs["encoder"].unique() if name.endswith("(random)")]
    every = runs["encoder"].nunique()
    return f"Random: not pre-trained ({len(names)} of {every})." if names else ""
