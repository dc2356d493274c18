"""mIoU as one setting moves and the others stay at their default."""

from typing import Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import panels, points
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import ALPHA, holm, over_seeds, paired
from semidavil.config import PRESETS, preset
from sweeps.plan.grids import SENSITIVITY

GRID, WANTED = "sensitivity", 100  # label budget
NAMES = {
    "loss.hard_fraction": "hard fraction h",
    "loss.omega": "weight ω",
    "training.confidence": "threshold Th",
    "training.ema": "EMA decay",
    "training.consistency_weight": "weight λ",
    "training.consistency_over": "consistency over pixels",
    "training.supervised": "mining of hard pixels",
    "training.source_share": "share of the source",
    "data.sampling": "sampling of the source",
}
ACROSS = 4  # panels in a row


def draw(tracked: Tracked) -> Drawn:
    """A panel per setting and benchmark; the preset's value is the ringed marker.

    Raises:
        AnalysisError: no setting has two values.
    """
    chosen = select(tracked, GRID, list(SENSITIVITY)).at_one_budget(WANTED)
    found = [
        pd.DataFrame(curves(chosen.of(name))).assign(benchmark=name) for name in chosen.benchmarks
    ]
    numbers = pd.concat(found, ignore_index=True)
    if "setting" not in numbers:
        raise AnalysisError(f"no setting has two values yet; make them: {command(GRID)}")
    shown = list(dict.fromkeys(zip(numbers["benchmark"], numbers["setting"], strict=True)))
    frame = panels([f"{b}/{s}" for b, s in shown], 1, 1.75, across=ACROSS, share=False, wide=True)
    for (benchmark, name), (_, (ax,)) in zip(shown, frame, strict=True):
        here = numbers[(numbers["benchmark"] == benchmark) & (numbers["setting"] == name)]
        here = here.reset_index(drop=True)
        points(ax, range(len(here)), here["mean"], style.Look("", style.BLUE, "o", "-"),
               yerr=here["std"] if (here["n"] > 1).any() else None,
               linestyle="none" if _is_text(name) else "-")  # fmt: skip  # nothing between two names
        ring = here[here["default"]]
        ax.plot(ring.index, ring["mean"], "o", markersize=10, markerfacecolor="none",
                markeredgecolor=style.VERMILION, markeredgewidth=1.2)  # fmt: skip
        values = [v if _is_text(name) else f"{v:g}" for v in here["value"]]
        ax.set_xticks(range(len(here)), [text.replace("_", " ") for text in values])
        ax.set_xlabel(NAMES.get(name, name))
        ax.margins(x=0.15)
    frame.name_rows(["mIoU (%)"])
    for benchmark in chosen.benchmarks:  # one scale a benchmark: small effects look small
        own = [ax for (b, _), (_, (ax,)) in zip(shown, frame, strict=True) if b == benchmark]
        for ax in own[1:]:
            ax.sharey(own[0])
        if own:
            own[0].autoscale(axis="y")  # over all that share it
            seeds = seeds_of(numbers[numbers["benchmark"] == benchmark]["n"])
            own[0].set_title(f"{chosen.heading(benchmark)}, {seeds}", loc="left")
    told = _largest(numbers)
    return Drawn(
        figure=frame.figure,
        title="Sensitivity to the method's settings",
        caption="mIoU as one setting moves and the others stay at the preset's value (ringed); mean and "
        "standard deviation over seeds; values not to scale. Paired by seed with the preset's value, "
        f"Holm's correction over all values: {told} {chosen.note()}",
        alt=f"Line charts of mIoU against {len(shown)} settings. {told}",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )


def _largest(numbers: pd.DataFrame) -> str:
    """Which values differ from the preset's, by a test."""
    sure = numbers[np.array(holm(list(numbers["p"]))) < ALPHA]
    told = ", ".join(
        f"{NAMES.get(r['setting'], r['setting'])} = {style.setting_text(r['value'])} "
        f"({r['minus_default']:+.1f})"
        for r in sure.to_dict("records")
    )
    return f"{told} differ." if told else "none is shown to differ."


def _is_text(setting: str) -> bool:
    return isinstance(SENSITIVITY[setting][0], str)


def curves(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of runs that leave the default in one setting only.

    Columns `setting`, `value`, `mean`, `std`, `n`, `default`, and the paired difference to the default,
    `minus_default` with its `p`. The default of a setting is the preset's value where some run has it, else
    the value that most runs have.
    """
    usual = {name: _usual(runs, name) for name in SENSITIVITY}
    rows: list[dict[str, Any]] = []
    for name in SENSITIVITY:
        others = [other for other in SENSITIVITY if other != name]
        mine = runs[(runs[others] == pd.Series(usual)[others]).all(axis=1)]
        table = over_seeds(mine, [name])
        if len(table) < 2:
            continue
        base = by_seed(mine[mine[name] == usual[name]])
        for _, row in table.iterrows():
            is_default = row[name] == usual[name]
            test = paired(
                by_seed(mine[mine[name] == row[name]]), base.iloc[:0] if is_default else base
            )
            rows.append(
                {"setting": name, "value": row[name], "mean": row["mean"], "std": row["std"],
                 "n": int(row["n"]), "default": is_default, "minus_default": test.difference, "p": test.p}
            )  # fmt: skip
    return rows


def _usual(runs: pd.DataFrame, name: str) -> Any:
    named = str(runs["env/preset"].mode().get(0, ""))
    own = dict(preset(named).settings()).get(name) if named in PRESETS else None
    return own if (runs[name] == own).any() else runs[name].mode().iloc[0]
