"""What DyCE gains over cross-entropy per organ of the Synapse CT scans (Figure 2 of the paper).

The paper has gains in per cent. Where cross-entropy hardly finds an organ, such a number says nothing (of
nothing, it is undefined), so the gain is drawn in points of Dice.
"""

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import SMALL, legend, panels
from analysis.paper import SYNAPSE_DHC, SYNAPSE_WORDS
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import paired
from semidavil.benchmarks import BENCHMARKS

GRID, BENCHMARK = "synapse", "synapse"
WANTED = 4  # labelled scans, a fifth
METHODS = ("uamt", "urpc")
LEAST_DICE = 5.0  # of CE, above which a ratio to it says something
ABBREVIATIONS = dict(
    zip(
        BENCHMARKS[BENCHMARK].classes,
        ("Sp", "RK", "LK", "Ga", "Es", "Li", "St", "Ao", "IVC", "PSV", "PA", "RAG", "LAG"),
        strict=True,
    )
)


def draw(tracked: Tracked) -> Drawn:
    """Organ volumes (where evaluated), gain in Dice, and change in surface distance.

    Raises:
        AnalysisError: no method was run with both losses.
    """
    chosen = select(tracked, GRID, ("method", "loss"), "dice").at_one_budget(WANTED)
    runs = chosen.runs
    numbers = organ_table(tracked, runs)
    if numbers.empty:
        raise AnalysisError(f"no method has finished runs of both losses; {command(GRID)}")
    organs = list(numbers["organ"].unique())
    methods = [m for m in METHODS if m in set(numbers["method"])]
    shown = {
        "volume_share": "share of organ\nvoxels (%)",
        "dice_change": "Dice, DyCE\nminus CE (points)",
        "asd_change": "ASD, DyCE\nminus CE (mm)",
        "asd_voxels_change": "ASD, DyCE minus\nCE (voxels)",
    }
    shown = {column: title for column, title in shown.items() if numbers[column].notna().any()}
    sizes_known = "volume_share" in shown
    frame = panels([BENCHMARK], len(shown), 1.15 * len(shown) + 0.4, wide=True)
    (axes,) = frame.axes
    places, looks = np.arange(len(organs)), style.looks(methods)
    for ax, (column, title) in zip(axes, shown.items(), strict=True):
        if column == "volume_share":
            share = numbers.drop_duplicates("organ").set_index("organ").reindex(organs)[column]
            ax.bar(places, share, color=style.GREY, width=0.7)
            ax.set_yscale("log")
        else:
            for i, method in enumerate(methods):
                here = numbers[numbers["method"] == method].set_index("organ").reindex(organs)
                bars = ax.bar(
                    places + 0.38 * (i - (len(methods) - 1) / 2), here[column], width=0.36,
                    color=looks[method].colour, label=looks[method].label,
                    hatch=("", "////")[i % 2], edgecolor="white", linewidth=0.4,
                    yerr=_interval(here, column), error_kw={"elinewidth": 0.7, "capsize": 1.5},
                )  # fmt: skip
                if column == "dice_change":
                    known = here["dice_ce"].notna()
                    words = [relative_to(ce, change) if there else "" for ce, change, there in
                             zip(here["dice_ce"], here["dice_change"], known, strict=True)]  # fmt: skip
                    ax.bar_label(bars, words, rotation=90, fontsize=SMALL, padding=2)
            if column == "dice_change":
                ax.margins(y=0.45)  # for the labels
            ax.axhline(0, color="black", linewidth=0.7)
        ax.set_ylabel(title, fontsize=SMALL)
        ax.grid(False, axis="x")
    axes[-1].set_xticks(places, [ABBREVIATIONS.get(organ, organ) for organ in organs])
    seeds = seeds_of([int(n) for n in numbers["n"]])
    axes[0].set_title(f"{chosen.heading(BENCHMARK)}, {seeds}", loc="left")
    legend(frame.figure)
    return Drawn(
        figure=frame.figure,
        title="Synapse: DyCE and cross-entropy by organ",
        caption="Organ size (log scale), change in Dice and in average surface distance (ASD; lower is "
        "better) of DyCE over CE on the same seeds, organs "
        + ("from large to small" if sizes_known else "in the data set's order")
        + f". Above the bars, the change in per cent where CE is above a Dice of {LEAST_DICE:g}, else the "
        "Dice that it starts from. ASD in mm is symmetric and has no bar where a network never finds the "
        "organ; in voxels it is GenericSSL's and DHC's: one way, and 128 for an organ that is missed. "
        f"Mean over {seeds} with its 95% t interval, uncorrected; "
        f"{int(runs['budget'].iloc[0])} labelled scans, split "
        f"{' and '.join(sorted(runs['volumes.split'].unique()))}. {SYNAPSE_WORDS} {chosen.note()}",
        alt="Bars per organ of the gain in Dice and the change in surface distance of DyCE over "
        "cross-entropy. Mean gain in Dice, points: "
        + ", ".join(
            f"{looks[m].label} {numbers[numbers['method'] == m]['dice_change'].mean():.1f}"
            for m in methods
        )
        + ".",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )


def organ_table(tracked: Tracked, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method and organ, large organs first where volumes are known."""
    organs = BENCHMARKS[BENCHMARK].classes
    arrays = (tracked.arrays(run_id) for run_id in runs["run_id"])
    voxels = next((one["voxels"].sum(0) for one in arrays if "voxels" in one), None)
    shares = np.full(len(organs), np.nan) if voxels is None else 100 * voxels / voxels.sum()
    rows = []
    for method in METHODS:
        here = runs[runs["method"] == method]
        for organ, share in zip(organs, shares, strict=True):
            if f"dice/{organ}" not in here:
                continue
            both = pd.concat(
                {x: by_seed(here[here["loss"] == x], f"dice/{organ}") for x in ("dyce", "ce")},
                axis=1, join="inner",
            ).dropna()  # fmt: skip
            if both.empty:
                continue
            dyce, ce = both["dyce"].mean(), both["ce"].mean()
            row = {"method": method, "organ": organ, "volume_share": share, "n": len(both),
                   "dice_dyce": dyce, "dice_ce": ce, "dice_change": dyce - ce,
                   "dice_relative": 100 * (dyce / ce - 1) if ce > LEAST_DICE else np.nan,
                   "p_dice": (test := paired(both["dyce"], both["ce"])).p,
                   "dice_change_low": test.low, "dice_change_high": test.high,
                   "dhc_dice_ce": SYNAPSE_DHC[method].dice[organs.index(organ)]}  # fmt: skip
            for unit in ("asd", "asd_voxels"):
                two = [by_seed(here[here["loss"] == x], f"{unit}/{organ}") if f"{unit}/{organ}" in here
                       else pd.Series(dtype=float) for x in ("dyce", "ce")]  # fmt: skip
                test = paired(*two)
                row |= {f"{unit}_change": test.difference, f"{unit}_change_low": test.low,
                        f"{unit}_change_high": test.high}  # fmt: skip
            rows.append(row)
    table = pd.DataFrame(rows)
    if voxels is not None and len(table):
        table = table.sort_values(["volume_share", "method"], ascending=[False, True])
    return table.reset_index(drop=True)


def relative_to(ce: float, change: float) -> str:
    """A change in Dice in per cent of cross-entropy's, or what that is where it is next to nothing."""
    return f"{100 * change / ce:+.0f}%" if ce > LEAST_DICE else f"from {ce:.0f}"


def _interval(here: pd.DataFrame, column: str) -> np.ndarray | None:
    """Below and above the bars; nothing where one seed has none."""
    ends = np.stack([here[column] - here[f"{column}_low"], here[f"{column}_high"] - here[column]])
    return None if np.isnan(ends).all() else np.nan_to_num(ends)
