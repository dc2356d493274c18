"""What each part of SemiDAViL adds, alone and with the others: combinations over a dot matrix."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import points, whiskers
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import ALPHA, factorial, over_seeds
from analysis.verdicts import p_text
from sweeps.plan.grids import PARTS, RELEASED

GRID, WANTED = "components", 100  # label budget
DOT = style.Look("", style.BLUE, "o", "none")


def draw(tracked: Tracked) -> Drawn:
    """mIoU of every combination of parts, worst first, and each part's and pair's effect.

    What the released code would do is a line across, and in no effect. Of several benchmarks the first is
    drawn; the numbers have all.

    Raises:
        AnalysisError: no run of a combination.
    """
    settings = [setting for setting, _ in PARTS.values()]
    chosen = select(tracked, GRID, ["method", *settings]).at_one_budget(WANTED)
    parts, tables = list(PARTS), []
    for benchmark in chosen.benchmarks[::-1]:  # the first is drawn, and so comes last
        everything = with_parts(chosen.of(benchmark))
        is_released = everything["method"] == RELEASED
        released, runs = everything[is_released], everything[~is_released]
        if runs.empty:
            raise AnalysisError(f"no combination of parts has run yet: {command(GRID)}")
        table = over_seeds(runs, parts).sort_values("mean", ignore_index=True)
        effects = factorial(runs, parts)
        tables.append(_numbers(table, effects, released, benchmark))
    figure = plt.figure(figsize=(style.PAGE, 3.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[2, 1], width_ratios=[2.6, 1])
    top, bars = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    matrix = figure.add_subplot(grid[1, 0], sharex=top)
    places = np.arange(len(table))
    points(top, places, table["mean"], DOT, yerr=table["std"] if (table["n"] > 1).any() else None)
    if len(released):
        mean = released["miou"].mean()
        top.axhline(mean, color=style.GREY, linestyle="--", label="released code")
        top.legend(loc="lower right")
    top.set_ylabel("mIoU (%)")
    top.tick_params(labelbottom=False)
    top.set_title(f"{chosen.heading(benchmark)}, {seeds_of(table['n'])}", loc="left")
    for row, part in enumerate(parts):
        colours = np.where(table[part], style.BLUE, "#d9d9d9")
        matrix.scatter(places, [row] * len(places), 36, colours, zorder=2)
    for place, chosen_parts in zip(places, table[parts].to_numpy(bool), strict=True):
        rows = np.flatnonzero(chosen_parts)
        if len(rows) > 1:
            matrix.plot([place] * 2, [rows[0], rows[-1]], color=style.BLUE, linewidth=1.2, zorder=3)
    matrix.set_yticks(range(len(parts)), parts)
    matrix.set_ylim(len(parts) - 0.5, -0.5)
    matrix.set_xticks([])
    matrix.grid(False)
    matrix.set_xlabel("combinations of parts, from the lowest to the highest mean")
    for row, effect in enumerate(effects.to_dict("records")):
        ends = whiskers(effect["difference"], effect["low"], effect["high"])
        points(bars, effect["difference"], row, DOT, xerr=ends, marker="s", markersize=4,
               markerfacecolor=style.BLUE if effect["p_holm"] < ALPHA else "white")  # fmt: skip
    bars.set_yticks(range(len(effects)), list(effects["what"]) if len(effects) else [])
    bars.set_ylim(max(len(effects), 1) - 0.5, -0.5)
    bars.axvline(0, color="black", linewidth=0.7)
    bars.set_xlabel("effect (points)")
    bars.set_title("parts and pairs", loc="left")
    told = "; ".join(
        f"{e['what']} {e['difference']:+.1f} [{e['low']:.1f}, {e['high']:.1f}], p = {p_text(e['p_holm'])}"
        for e in effects.to_dict("records")
    )
    told = told or "the runs cannot tell the parts apart yet"
    others = f" Of {len(tables)} benchmarks the first; the CSV has all." * (len(tables) > 1)
    return Drawn(
        figure=figure,
        title="What each part of SemiDAViL adds",
        caption="Left: mIoU of each combination of vision-language initialisation (VL), dense language "
        "guidance (DLG), consistency training (CT) and DyCE; mean and standard deviation over seeds. "
        "Right: what a part adds on average, and what a pair adds beyond the sum of its two (a part's effect "
        "with the other minus that without it), by a linear model of parts, pairs and seeds with 95% "
        f"intervals; filled: p < {ALPHA} after Holm's correction. {told}.{others} "
        f"{_about(released)}{chosen.note()}",
        alt=f"Dot plot of mIoU per combination over a matrix of the parts in it. Effects: {told}.",
        numbers=pd.concat(tables[::-1], ignore_index=True),
        run_ids=chosen.run_ids,
        grid=GRID,
        missing=_missing(table, released),
    )


def with_parts(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column per part: whether it is on."""
    return runs.assign(
        **{part: [str(value) != off for value in runs[name]] for part, (name, off) in PARTS.items()}
    )


def _about(released: pd.DataFrame) -> str:
    """What the caption says of the released code; empty where it has not run."""
    if released.empty:
        return ""
    scores = over_seeds(released, ["method"]).iloc[0]
    spread = f" ± {scores['std']:.1f}" if scores["n"] > 1 else ""
    return (
        f"Dashed: what the released code would do if it ran, {scores['mean']:.1f}{spread} "
        f"({seeds_of([scores['n']])}), with all parts on: its text is one pooled sentence, which says "
        "nothing of places, its encoder is frozen, and it has no strong views. "
    )


def _numbers(
    table: pd.DataFrame, effects: pd.DataFrame, released: pd.DataFrame, benchmark: str
) -> pd.DataFrame:
    frames = [table.assign(what="combination")]
    if len(effects):
        named = effects.assign(what="effect of " + effects["what"])
        frames.append(named.rename(columns={"difference": "mean"}))
    if len(released):
        frames.append(
            over_seeds(released, ["method"]).drop(columns="method").assign(what="released code")
        )
    return pd.concat(frames, ignore_index=True).assign(benchmark=benchmark)


def _missing(table: pd.DataFrame, released: pd.DataFrame) -> str:
    lacking = 2 ** len(PARTS) - len(table)
    told = [f"{lacking} of {2 ** len(PARTS)} combinations"] if lacking else []
    told += ["the released code"] if released.empty else []
    return f"not run yet: {' and '.join(told)}" if told else ""
