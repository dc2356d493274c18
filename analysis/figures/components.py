"""What each part of SemiDAViL adds, alone and with the others: combinations over a dot matrix."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells, seeds_of, select
from analysis.drawn import Drawn
from analysis.runs import Tracked
from analysis.stats import Paired, holm, over_seeds, paired
from sweeps.plan.grids import PARTS

GRID, WANTED = "components", 100  # label budget


def draw(tracked: Tracked) -> Drawn:
    """mIoU of every combination of parts, worst first, and each part's average effect.

    Raises:
        AnalysisError: no run of the grid.
    """
    settings = [setting for setting, _ in PARTS.values()]
    chosen = select(tracked, GRID, settings).at_one_budget(WANTED)
    benchmark = chosen.benchmarks[0]
    runs = with_parts(chosen.of(benchmark))
    parts = list(PARTS)
    table = over_seeds(runs, parts).sort_values("mean", ignore_index=True)
    effects = {part: effect(runs, part) for part in parts}
    adjusted = dict(zip(parts, holm([e.p for e in effects.values()]), strict=True))
    figure, axes = plt.subplots(
        2, 2, figsize=(style.PAGE, 3.2), sharex="col", sharey="row",
        gridspec_kw={"height_ratios": [2, 1], "width_ratios": [3.2, 1], "hspace": 0.08, "wspace": 0.06},
    )  # fmt: skip
    top, matrix, corner, bars = axes[0, 0], axes[1, 0], axes[0, 1], axes[1, 1]
    places = np.arange(len(table))
    top.errorbar(
        places, table["mean"], yerr=table["std"] if (table["n"] > 1).any() else None, fmt="o",
        color=style.BLUE, capsize=2, elinewidth=0.8,
    )  # fmt: skip
    top.set_ylabel("mIoU (%)")
    top.set_title(f"{chosen.heading(benchmark)}, {seeds_of(list(table['n']))}", loc="left")
    corner.set_axis_off()
    for row, part in enumerate(parts):
        on = table[part].to_numpy(bool)
        matrix.plot(places, [row] * len(places), "o", color="#d9d9d9", markersize=6)
        matrix.plot(places[on], [row] * int(on.sum()), "o", color=style.BLUE, markersize=6)
        found = effects[part]
        whisker = [[found.difference - found.low], [found.high - found.difference]]
        bars.errorbar(
            found.difference, row, xerr=whisker if found.low == found.low else None, fmt="s",
            color=style.BLUE, capsize=2, elinewidth=0.8,
        )  # fmt: skip
    for place, chosen_parts in zip(places, table[parts].to_numpy(bool), strict=True):
        rows = np.flatnonzero(chosen_parts)
        if len(rows) > 1:
            matrix.plot([place] * 2, [rows[0], rows[-1]], color=style.BLUE, linewidth=1.2)
    matrix.set_yticks(range(len(parts)), parts)
    matrix.set_ylim(len(parts) - 0.5, -0.5)
    matrix.set_xticks([])
    matrix.grid(False)
    matrix.set_xlabel("combinations of parts, from the lowest to the highest mean")
    bars.axvline(0, color="black", linewidth=0.7)
    bars.set_xlabel("average effect (points)")
    told = ", ".join(
        f"{part} {found.difference:+.1f} [{found.low:.1f}, {found.high:.1f}], p = {adjusted[part]:.3f}"
        for part, found in effects.items()
    )
    return Drawn(
        figure=figure,
        title="What each part of SemiDAViL adds",
        caption="Above: mIoU of each combination of vision-language initialisation (VL), dense language "
        "guidance (DLG), consistency training (CT) and DyCE; mean and standard deviation over seeds. "
        "Right: average effect of a part over the combinations of the others, with 95% t interval over "
        f"seeds; paired t-tests, p after Holm's correction: {told}. {chosen.note()}",
        alt=f"Dot plot of mIoU per combination over a matrix of the parts in it. Effects: {told}.",
        numbers=_numbers(table, effects, adjusted, benchmark),
        run_ids=tuple(sorted(runs["run_id"])),
        grid=GRID,
        missing=_missing(table, chosen),
    )


def with_parts(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column per part: whether it is on."""
    return runs.assign(
        **{part: [str(value) != off for value in runs[name]] for part, (name, off) in PARTS.items()}
    )


def effect(runs: pd.DataFrame, part: str) -> Paired:
    """A part on against off over the combinations that have both, averaged, paired by seed."""
    others = [other for other in PARTS if other != part]
    by = runs.groupby([*others, part, "seed"])["miou"].mean().unstack(part)
    if True not in by or False not in by:
        return paired(pd.Series(dtype=float), pd.Series(dtype=float))
    both = by.dropna()
    means = both.groupby("seed").mean()
    return paired(means[True], means[False])


def _numbers(
    table: pd.DataFrame, effects: dict[str, Paired], adjusted: dict[str, float], benchmark: str
) -> pd.DataFrame:
    rows = [
        {"what": f"effect of {part}", "mean": found.difference, "low": found.low, "high": found.high,
         "n": found.n, "p": found.p, "p_holm": adjusted[part]}
        for part, found in effects.items()
    ]  # fmt: skip
    all_rows = pd.concat([table.assign(what="combination"), pd.DataFrame(rows)], ignore_index=True)
    all_rows.insert(0, "benchmark", benchmark)
    return all_rows


def _missing(table: pd.DataFrame, chosen: Cells) -> str:
    lacking = 2 ** len(PARTS) - len(table)
    return f"not run yet: {lacking} of {2 ** len(PARTS)} combinations" if lacking else ""
