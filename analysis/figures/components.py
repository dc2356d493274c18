"""What each part of SemiDAViL adds, alone and with the others: combinations over a dot matrix."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import seeds_of, select
from analysis.drawn import Drawn
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import Paired, holm, over_seeds, paired
from sweeps.plan.grids import PARTS, RELEASED

GRID, WANTED = "components", 100  # label budget


def draw(tracked: Tracked) -> Drawn:
    """mIoU of every combination of parts, worst first, and each part's average effect.

    What the released code would do is a line across, and in no effect.

    Raises:
        AnalysisError: no run of a combination.
    """
    settings = [setting for setting, _ in PARTS.values()]
    chosen = select(tracked, GRID, ["method", *settings]).at_one_budget(WANTED)
    benchmark = chosen.benchmarks[0]
    everything = with_parts(chosen.of(benchmark))
    is_released = everything["method"] == RELEASED
    released, runs = everything[is_released], everything[~is_released]
    if runs.empty:
        raise AnalysisError(f"no combination of parts has run yet: {command(GRID)}")
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
    if len(released):
        top.axhline(
            released["miou"].mean(), color=style.GREY, linestyle="--", label="released code"
        )
        top.legend(loc="lower right")
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
        f"seeds; paired t-tests, p after Holm's correction: {told}. {_about(released)}{chosen.note()}",
        alt=f"Dot plot of mIoU per combination over a matrix of the parts in it. Effects: {told}.",
        numbers=_numbers(table, effects, adjusted, released, benchmark),
        run_ids=tuple(sorted(everything["run_id"])),
        grid=GRID,
        missing=_missing(table, released),
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


def _about(released: pd.DataFrame) -> str:
    """What the caption says of the released code; empty where it has not run."""
    if released.empty:
        return ""
    scores = over_seeds(released, ["method"]).iloc[0]
    spread = f" ± {scores['std']:.1f}" if scores["n"] > 1 else ""
    return (
        f"Dashed: what the released code would do if it ran, {scores['mean']:.1f}{spread} "
        f"({seeds_of([int(scores['n'])])}), with all parts on: its text is one pooled sentence, which says "
        "nothing of places, its encoder is frozen, and it has no strong views. "
    )


def _numbers(
    table: pd.DataFrame,
    effects: dict[str, Paired],
    adjusted: dict[str, float],
    released: pd.DataFrame,
    benchmark: str,
) -> pd.DataFrame:
    rows = [
        {"what": f"effect of {part}", "mean": found.difference, "low": found.low, "high": found.high,
         "n": found.n, "p": found.p, "p_holm": adjusted[part]}
        for part, found in effects.items()
    ]  # fmt: skip
    frames = [table.assign(what="combination"), pd.DataFrame(rows)]
    if len(released):
        alone = over_seeds(released, ["method"]).drop(columns="method")
        frames.append(alone.assign(what="released code"))
    all_rows = pd.concat(frames, ignore_index=True)
    all_rows.insert(0, "benchmark", benchmark)
    return all_rows


def _missing(table: pd.DataFrame, released: pd.DataFrame) -> str:
    lacking = 2 ** len(PARTS) - len(table)
    told = [f"{lacking} of {2 ** len(PARTS)} combinations"] if lacking else []
    told += ["the released code"] if released.empty else []
    return f"not run yet: {' and '.join(told)}" if told else ""
