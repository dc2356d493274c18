"""How rare each class is, and what DyCE gains on it over cross-entropy (Figure 3 of the paper)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import Cells, by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import legend, panels, points, whiskers
from analysis.paper import CLASS_GAINS, CLASS_GAINS_SOURCE, CLASS_GAINS_WORDS
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import ALPHA, holm, paired, rank_correlation
from analysis.style import Look
from analysis.verdicts import p_text
from semidavil.benchmarks import BENCHMARKS

PALE = "#9ec5e3"  # a difference that may be chance
GRID, WANTED = "losses", 500  # label budget of the paper's figure
ROWS = {
    "share": "pixels (%)",
    "published": "paper (%)",
    "gain": "DyCE minus CE\n(points of IoU)",
}
PAPERS = Look("published (in words)", style.VERMILION, "D", "none")


def draw(tracked: Tracked) -> Drawn:
    """Pixel shares above, gains of class IoU below, classes sorted by frequency.

    Raises:
        AnalysisError: no budget at which both losses were run and evaluated per image.
    """
    chosen = select(tracked, GRID, "loss").only(("ce", "dyce")).at_one_budget(WANTED)
    parts, notes = [], []
    for benchmark in chosen.benchmarks:
        here = chosen.of(benchmark)
        part = gains(tracked, here, benchmark) if here["variant"].nunique() == 2 else None
        if part is None:
            continue
        budget = int(here["budget"].iloc[0])
        rho, p = rank_correlation(list(-part["share"]), list(part["gain"]))
        parts.append(part.assign(budget=budget, rho=rho, rho_p=p))
        related = (
            f", Spearman's rho of rarity and gain {rho:.2f} (p = {p_text(p)})" if rho == rho else ""
        )
        notes.append(
            f"{style.benchmark_name(benchmark)}: {budget} labels"
            f"{f' ({WANTED} is not run)' * (budget != WANTED)}, {seeds_of(part['n'])}{related}."
        )
    if not parts:
        raise AnalysisError(
            "no budget has finished runs of both ce and dyce with an evaluation; make them: "
            + command(GRID)
        )
    numbers = pd.concat(parts, ignore_index=True)
    names = list(numbers["benchmark"].unique())
    is_known = bool(numbers["published_low"].notna().any())
    rows = [row for row in ROWS if row != "published" or is_known]
    frame = panels(names, len(rows), 1.15 * len(rows) + 0.6, wide=True)
    for name, axes in frame:
        _panel(dict(zip(rows, axes, strict=True)), numbers[numbers["benchmark"] == name], chosen)
    frame.name_rows([ROWS[row] for row in rows])
    legend(frame.figure)
    used = chosen.runs[chosen.runs["benchmark"].isin(names)]
    return Drawn(
        figure=frame.figure,
        title="Class frequency and what DyCE gains over cross-entropy",
        caption="Share of the validation pixels (log scale) and gain in class IoU of DyCE over CE on "
        "the same seeds, classes from frequent to rare. Bars: mean; whiskers: 95% t interval of the "
        f"paired difference, uncorrected; dark: paired t-test p < {ALPHA} after Holm's correction over the "
        f"benchmark's classes. {f'{CLASS_GAINS_WORDS} ' * is_known}p of rho: by permutation of the classes. "
        f"{' '.join(notes)} {chosen.note()}",
        alt="Two rows of bars per benchmark: pixel share by class, and DyCE's gain by class. "
        + " ".join(notes),
        numbers=numbers,
        run_ids=tuple(sorted(used["run_id"])),
        grid=GRID,
    )


def gains(tracked: Tracked, runs: pd.DataFrame, benchmark: str) -> pd.DataFrame | None:
    """One row per class that occurs, frequent first; None without an evaluation or a common seed."""
    classes = BENCHMARKS[benchmark].classes if benchmark in BENCHMARKS else ()
    found = (tracked.evaluation(run_id) for run_id in runs["run_id"])
    evaluation = next((one for one in found if one is not None), None)
    if evaluation is None or len(classes) != len(evaluation.confusion):
        return None
    pixels = evaluation.confusion.sum(1)
    rows: list[dict[str, Any]] = []
    for name, count in zip(classes, pixels, strict=True):
        metric = f"iou/{name}"
        if count == 0 or metric not in runs:
            continue
        ours, theirs = (by_seed(runs[runs["loss"] == loss], metric) for loss in ("dyce", "ce"))
        test = paired(ours, theirs)
        common = theirs[theirs.index.isin(ours.index)].mean()
        low, high = CLASS_GAINS.get(benchmark, {}).get(name, (np.nan, np.nan))
        rows.append(
            {"benchmark": benchmark, "class": name, "share": 100 * count / pixels.sum(),
             "gain": test.difference, "low": test.low, "high": test.high, "p": test.p, "n": test.n,
             "gain_relative": 100 * test.difference / common if common > 0 else np.nan,
             "published_low": low, "published_high": high,
             "source": CLASS_GAINS_SOURCE if low == low else ""}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    if table.empty or table["gain"].isna().all():
        return None
    table = table.dropna(subset=["gain"])
    table["p_holm"] = holm(list(table["p"]))
    return table.sort_values("share", ascending=False, ignore_index=True)


def _panel(rows: dict[str, Axes], here: pd.DataFrame, chosen: Cells) -> None:
    places, below = np.arange(len(here)), rows["gain"]
    rows["share"].bar(places, here["share"], color=style.GREY, width=0.7)
    rows["share"].set_yscale("log")
    heading = chosen.heading(str(here["benchmark"].iloc[0]))
    budget = int(here["budget"].iloc[0])
    rows["share"].set_title(f"{heading}, {budget:,} labels, {seeds_of(here['n'])}", loc="left")
    sure = here["p_holm"] < ALPHA
    for those, colour, text in (
        (sure, style.BLUE, f"measured, p < {ALPHA}"),
        (~sure, PALE, f"measured, p ≥ {ALPHA} or no test"),
    ):
        if those.any():
            below.bar(places[those], here["gain"][those], color=colour, width=0.7, label=text)
    ends = whiskers(here["gain"], here["low"], here["high"])
    below.errorbar(
        places, here["gain"], yerr=ends, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5
    )
    known = here["published_low"].notna()
    if "published" in rows and known.any():
        low, high = here["published_low"][known], here["published_high"][known]
        middle = (low + high) / 2
        points(rows["published"], places[known], middle, PAPERS, yerr=whiskers(middle, low, high),
               markerfacecolor="white", markersize=4, label=PAPERS.label)  # fmt: skip
        rows["published"].set_ylim(bottom=0)
    below.axhline(0, color="black", linewidth=0.7)
    below.set_xticks(places, here["class"], rotation=90)
    for axes in rows.values():
        axes.grid(False, axis="x")
        axes.set_xlim(-0.6, len(here) - 0.4)
