"""What DyCE gains over cross-entropy per organ of the Synapse CT scans (Figure 2 of the paper).

The paper has gains in per cent. Where cross-entropy hardly finds an organ, such a number says nothing (of
nothing, it is undefined), so the gain is drawn in points of Dice, below the Dice that it starts from: as
published on these scans by others, and as measured.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from analysis import style
from analysis.cells import by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import SMALL, legend, panels, whiskers
from analysis.paper import SYNAPSE_DHC, SYNAPSE_GAINS, SYNAPSE_WORDS
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import paired
from analysis.style import Look
from semidavil.benchmarks import BENCHMARKS

GRID, BENCHMARK = "synapse", "synapse"
WANTED = 4  # labelled scans, a fifth
METHODS = ("uamt", "urpc")
LEAST_DICE = 5.0  # of CE, above which a ratio to it says something
SHORT = ("Sp", "RK", "LK", "Ga", "Es", "Li", "St", "Ao", "IVC", "PSV", "PA", "RAG", "LAG")
ABBREVIATIONS = dict(zip(BENCHMARKS[BENCHMARK].classes, SHORT, strict=True))
# Columns of the numbers, each a row of bars.
ROWS = {
    "volume_share": "share of organ\nvoxels (%)",
    "dhc_dice_ce": "published (DHC):\nDice with CE (%)",
    "dice_ce": "measured:\nDice with CE (%)",
    "dice_change": "measured: DyCE\nminus CE (points)",
    "asd_change": "ASD, DyCE\nminus CE (mm)",
    "asd_voxels_change": "ASD, DyCE minus\nCE (voxels)",
}


def draw(tracked: Tracked) -> Drawn:
    """Organ volumes (where evaluated), Dice with CE, its gain by DyCE, and change in surface distance.

    Raises:
        AnalysisError: no method was run with both losses.
    """
    chosen = select(tracked, GRID, ("method", "loss"), "dice").at_one_budget(WANTED)
    runs = chosen.runs
    numbers = organ_table(tracked, runs)
    if numbers.empty:
        raise AnalysisError(f"no method has finished runs of both losses; {command(GRID)}")
    organs = list(numbers["organ"].unique())
    looks = style.looks([m for m in METHODS if m in set(numbers["method"])])
    shown = [column for column in ROWS if numbers[column].notna().any()]
    frame = panels([BENCHMARK], len(shown), 1.05 * len(shown) + 0.4, wide=True)
    (axes,) = frame.axes
    for ax, column in zip(axes, shown, strict=True):
        if column == "volume_share":
            share = numbers.drop_duplicates("organ").set_index("organ").reindex(organs)[column]
            ax.bar(np.arange(len(organs)), share, color=style.GREY, width=0.7)
            ax.set_yscale("log")
        else:
            _bars(ax, numbers, column, organs, looks)
        ax.set_ylabel(ROWS[column], fontsize=SMALL)
        ax.grid(False, axis="x")
    axes[-1].set_xticks(range(len(organs)), [ABBREVIATIONS.get(organ, organ) for organ in organs])
    seeds = seeds_of(numbers["n"])
    axes[0].set_title(f"{chosen.heading(BENCHMARK)}, {seeds}", loc="left")
    legend(frame.figure)
    gains = [f"{look.label} {numbers[numbers['method'] == m]['dice_change'].mean():.1f}"
             for m, look in looks.items()]  # fmt: skip
    words = ", ".join(f"{ABBREVIATIONS[o]} {o}" for o in organs if o in ABBREVIATIONS)
    order = "from large to small" if "volume_share" in shown else "in the data set's order"
    return Drawn(
        figure=frame.figure,
        title="Synapse: DyCE and cross-entropy by organ",
        caption="Dice with CE, published for these scans by DHC (hollow; above it, what the paper's Figure 2 "
        "says of DyCE's gain in per cent) and measured; change in Dice and in average surface distance "
        f"(ASD; lower is better) of DyCE over CE on the same seeds; organs {order}, their size on a log "
        "scale where it is known. Above the bars of the change, per cent where CE is above a Dice of "
        f"{LEAST_DICE:g}, else the Dice that it starts from. ASD in mm is symmetric and has no bar where a "
        "network never finds the organ; in voxels it is GenericSSL's and DHC's: one way, and 128 for an "
        f"organ that is missed. Mean over {seeds}, of changes with the 95% t interval, uncorrected; "
        f"{int(runs['budget'].iloc[0])} labelled scans, split "
        f"{' and '.join(sorted(runs['volumes.split'].unique()))}. {words}. {SYNAPSE_WORDS} {chosen.note()}",
        alt="Bars per organ of the Dice with cross-entropy, published and measured, of its gain by DyCE and "
        f"of the change in surface distance. Mean gain in Dice, points: {', '.join(gains)}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )


def _bars(
    ax: Axes, numbers: pd.DataFrame, column: str, organs: list[str], looks: dict[str, Look]
) -> None:
    """A bar of each method for each organ; what others have published is hollow."""
    bars: list[tuple[BarContainer, pd.DataFrame]] = []
    for i, (method, look) in enumerate(looks.items()):
        here = numbers[numbers["method"] == method].set_index("organ").reindex(organs)
        published = column == "dhc_dice_ce"
        how: dict[str, Any] = {"color": "white", "edgecolor": look.colour, "linewidth": 1.0}
        if not published:
            how = {"color": look.colour, "edgecolor": "white", "linewidth": 0.4}
            how["label"] = look.label if column == "dice_change" else None
        if f"{column}_low" in here:
            how["yerr"] = whiskers(here[column], here[f"{column}_low"], here[f"{column}_high"])
        places = np.arange(len(organs)) + 0.38 * (i - (len(looks) - 1) / 2)
        made = ax.bar(places, here[column], width=0.34 if published else 0.36, hatch=("", "////")[i % 2],
                      error_kw={"elinewidth": 0.7, "capsize": 1.5}, **how)  # fmt: skip
        bars.append((made, here))
    if column == "dice_change":
        for made, here in bars:
            words = [relative_to(ce, change) if ce == ce else "" for ce, change in
                     zip(here["dice_ce"], here["dice_change"], strict=True)]  # fmt: skip
            ax.bar_label(made, words, rotation=90, fontsize=SMALL, padding=2)
        ax.margins(y=0.45)  # for the labels
    if column == "dhc_dice_ce":
        ax.set_ylim(0, 1.35 * float(numbers[column].max()))
        for place, organ in enumerate(organs):
            text = SYNAPSE_GAINS.get(ABBREVIATIONS.get(organ, organ), "")
            ax.text(place, 0.97, text, transform=ax.get_xaxis_transform(), ha="center", va="top",
                    fontsize=SMALL)  # fmt: skip
    ax.axhline(0, color="black", linewidth=0.7)


def organ_table(tracked: Tracked, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method and organ, large organs first where volumes are known."""
    organs = BENCHMARKS[BENCHMARK].classes
    arrays = (tracked.arrays(run_id) for run_id in runs["run_id"])
    voxels = next((one["voxels"].sum(0) for one in arrays if "voxels" in one), None)
    shares = np.full(len(organs), np.nan) if voxels is None else 100 * voxels / voxels.sum()
    rows = []
    for method in METHODS:
        here = runs[runs["method"] == method]

        def scores(metric: str, here: pd.DataFrame = here) -> pd.DataFrame:
            """By seed, of both losses; empty where no run has it."""
            by = {
                x: by_seed(here[here["loss"] == x], metric)
                for x in ("dyce", "ce")
                if metric in here
            }
            return pd.concat(by, axis=1, join="inner").dropna() if by else pd.DataFrame()

        for i, (organ, share) in enumerate(zip(organs, shares, strict=True)):
            if (both := scores(f"dice/{organ}")).empty:
                continue
            dyce, ce = both["dyce"].mean(), both["ce"].mean()
            row = {"method": method, "organ": organ, "volume_share": share, "n": len(both),
                   "dice_dyce": dyce, "dice_ce": ce, "dice_change": dyce - ce,
                   "dice_relative": 100 * (dyce / ce - 1) if ce > LEAST_DICE else np.nan,
                   "p_dice": (test := paired(both["dyce"], both["ce"])).p,
                   "dice_change_low": test.low, "dice_change_high": test.high,
                   "dhc_dice_ce": SYNAPSE_DHC[method].dice[i]}  # fmt: skip
            for unit in ("asd", "asd_voxels"):
                two = scores(f"{unit}/{organ}").reindex(columns=["dyce", "ce"])
                test = paired(two["dyce"], two["ce"])
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
