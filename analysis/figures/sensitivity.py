"""mIoU as one setting moves and the others stay at their default."""

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis import style
from analysis.cells import seeds_of, select
from analysis.drawn import Drawn
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import over_seeds
from sweeps.plan.grids import SENSITIVITY

GRID, WANTED = "sensitivity", 100  # label budget
NAMES = {
    "loss.hard_fraction": "hard fraction h",
    "loss.omega": "weight ω",
    "training.confidence": "threshold Th",
    "training.ema": "EMA decay",
    "training.consistency_weight": "weight λ",
    "training.consistency_over": "L_CT over pixels",
    "training.supervised": "mined streams",
    "training.source_share": "share of the source",
}
ACROSS = 4  # panels in a row


def draw(tracked: Tracked) -> Drawn:
    """A panel per setting; the default is the ringed marker.

    Raises:
        AnalysisError: no setting has two values.
    """
    chosen = select(tracked, GRID, list(SENSITIVITY)).at_one_budget(WANTED)
    benchmark = chosen.benchmarks[0]
    runs = chosen.of(benchmark)
    numbers = pd.DataFrame(curves(runs))
    if numbers.empty:
        raise AnalysisError(f"no setting has two values yet; make them: {command(GRID)}")
    shown = [name for name in SENSITIVITY if name in set(numbers["setting"])]
    down, across = math.ceil(len(shown) / ACROSS), min(len(shown), ACROSS)
    figure, axes = plt.subplots(
        down, across, squeeze=False, sharey=True, figsize=(style.PAGE, 1.9 * down),
        gridspec_kw={"wspace": 0.12, "hspace": 0.75},
    )  # fmt: skip
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, shown, strict=False):
        here = numbers[numbers["setting"] == name].reset_index(drop=True)
        ax.errorbar(
            range(len(here)), here["mean"], yerr=here["std"] if (here["n"] > 1).any() else None,
            color=style.BLUE, marker="o", capsize=2, elinewidth=0.8,
            linestyle="" if _is_text(name) else "-",  # nothing lies between two names
        )  # fmt: skip
        ring = here[here["default"]]
        ax.plot(ring.index, ring["mean"], "o", markersize=10, markerfacecolor="none",
                markeredgecolor=style.VERMILION, markeredgewidth=1.2)  # fmt: skip
        values = [v if _is_text(name) else f"{v:g}" for v in here["value"]]
        ax.set_xticks(range(len(here)), values, fontsize=6, rotation=45)
        ax.set_xlabel(NAMES.get(name, name))
        ax.margins(x=0.15)
    for row in axes:
        row[0].set_ylabel("mIoU (%)")
    axes[0, 0].set_title(
        f"{chosen.heading(benchmark)}, {seeds_of([int(n) for n in numbers['n']])}", loc="left"
    )
    spans = ", ".join(
        f"{NAMES.get(str(name), str(name))} {here['mean'].max() - here['mean'].min():.1f}"
        for name, here in numbers.groupby("setting", sort=False)
    )
    return Drawn(
        figure=figure,
        title="Sensitivity to the method's settings",
        caption="mIoU as one setting moves and the others stay at the preset's value (ringed); mean and "
        f"standard deviation over seeds. Largest minus smallest mean, points: {spans}. {chosen.note()}",
        alt=f"Line charts of mIoU against {len(shown)} settings. Largest minus smallest mean: {spans}.",
        numbers=numbers,
        run_ids=tuple(sorted(runs["run_id"])),
        grid=GRID,
    )


def _is_text(setting: str) -> bool:
    return isinstance(SENSITIVITY[setting][0], str)


def curves(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows `setting`, `value`, `mean`, `std`, `n`, `default`: runs that leave the default in one only.

    The default of a setting is the value that most runs have.
    """
    usual = {name: runs[name].mode().iloc[0] for name in SENSITIVITY}
    rows: list[dict[str, Any]] = []
    for name in SENSITIVITY:
        others = [other for other in SENSITIVITY if other != name]
        mine = runs[(runs[others] == pd.Series(usual)[others]).all(axis=1)]
        table = over_seeds(mine, [name])
        if len(table) < 2:
            continue
        rows += [
            {"setting": name, "value": row[name], "mean": row["mean"], "std": row["std"],
             "n": int(row["n"]), "default": row[name] == usual[name]}
            for _, row in table.iterrows()
        ]  # fmt: skip
    return rows
