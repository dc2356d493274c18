"""What stands beside a comparison to say what it is worth: controls of the attentions and of the losses."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis import style
from analysis.cells import Cells, by_seed, select
from analysis.drawn import Block, Entry, Table
from analysis.runs import Tracked
from analysis.stats import paired
from analysis.tables.entries import DASH, SIZES, size_entries, sizes_of
from analysis.verdicts import difference, verdicts
from semidavil.names import FUSIONS, LOSSES
from sweeps.plan.grids import GRIDS, WAYS, way_of

WANTED = 100  # label budget
WAY_NAMES = {"paper": "one λ", "matched": "matched λ", "alone": "no consistency"}
Rows = list[dict[str, Any]]


def attention_controls(tracked: Tracked) -> Table:
    """Every attention beside the readout with nothing to read, with its size and its time.

    Raises:
        AnalysisError: no run of the grid.
    """
    chosen = select(tracked, "attention_controls", "fusion").at_one_budget(WANTED)
    blocks, rows = [], []
    for benchmark in chosen.benchmarks:
        runs, lines = chosen.of(benchmark), []
        for name in _in_order(runs["variant"], FUSIONS):
            mine = runs[runs["variant"] == name]
            row = _measured(mine, runs[runs["variant"] == "blank"])
            lines.append((style.label(name), (*_entries(row), *size_entries(mine))))
            rows.append({"benchmark": benchmark, "variant": name, **row, **sizes_of(mine)})
        columns = ("mIoU", "over blank", *SIZES)
        blocks.append(Block(_heading(chosen, benchmark), columns, tuple(lines)))
    about = (
        "What an attention is worth beyond the layer that reads it. Blank: that layer with nothing to read; "
        "none: the features of the image alone. M par.: million parameters of the network; ms: for one image."
    )
    title = "Controls of the attentions"
    return _table("attention_controls", title, "Attention", about, blocks, rows, chosen)


def loss_controls(tracked: Tracked) -> Table:
    """Every loss with one lambda, with a matched one, and without consistency.

    Raises:
        AnalysisError: no run of the grid.
    """
    varied = list(GRIDS["loss_controls"].baseline)
    chosen = select(tracked, "loss_controls", varied).at_one_budget(WANTED)
    blocks, rows = [], []
    for benchmark in chosen.benchmarks:
        runs, lines = chosen.of(benchmark), []
        ways = [
            way_of(dict(zip(varied, map(str, row), strict=True))) for row in runs[varied].values
        ]
        there = [way for way in WAYS if way in ways]
        for loss in _in_order(runs["loss"], LOSSES):
            entries: tuple[Entry, ...] = ()
            for way in there:
                here = runs[[one == way for one in ways]]
                row = _measured(here[here["loss"] == loss], here[here["loss"] == "ce"])
                rows.append({"benchmark": benchmark, "variant": loss, "way": way, **row})
                entries += _entries(row)
            lines.append((style.label(loss), entries))
        columns = tuple(name for way in there for name in (WAY_NAMES[way], "over CE"))
        blocks.append(Block(_heading(chosen, benchmark), columns, tuple(lines)))
    about = (
        "Is it the loss, or what it does to the weight of the consistency term? One λ, as in the paper; "
        "matched, λ scaled at each step so that the supervised and the consistency gradient have the ratio "
        "that they have under cross-entropy; and without consistency."
    )
    return _table("loss_controls", "Controls of the losses", "Loss", about, blocks, rows, chosen)


def _in_order(names: pd.Series, known: Iterable[str]) -> list[str]:
    """Those that are there: ours in our order, then others."""
    there, ours = set(map(str, names)), list(known)
    return [n for n in ours if n in there] + sorted(there - set(ours))


def _measured(ours: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    """Mean, spread and seeds of one variant, and its paired difference to another."""
    scores = by_seed(ours)
    same = set(ours["run_id"]) == set(reference["run_id"])
    test = paired(scores, by_seed(reference.iloc[:0] if same else reference))
    told = difference(test) if test.n else ""
    return {
        "mean": scores.mean(), "std": scores.std(), "n": len(scores), "told": told,
        "difference": test.difference, "low": test.low, "high": test.high, "p": test.p,
    }  # fmt: skip


def _entries(row: dict[str, Any]) -> tuple[Entry, Entry]:
    """`34.2 ± 0.5 (3)` and `+1.2 [0.4, 2.0]`, as far as there are runs."""
    if not row["n"]:
        return Entry(DASH), Entry()
    return Entry(value=row["mean"], std=row["std"], n=row["n"]), Entry(row["told"])


def _heading(chosen: Cells, benchmark: str) -> str:
    budgets = sorted(set(chosen.of(benchmark)["budget"]))
    return f"{chosen.heading(benchmark)}, {', '.join(f'{b:,}' for b in budgets)} labels"


def _table(
    name: str, title: str, stub: str, about: str, blocks: list[Block], rows: Rows, chosen: Cells
) -> Table:
    told, tests = verdicts(chosen) if "way" not in rows[0] else ((), pd.DataFrame())
    spread = (
        "Mean IoU (%); differences are paired by seed, with 95% t intervals where there are two seeds or "
        "more, uncorrected."
    )
    return Table(
        name=name,
        title=title,
        about=f"{title}: mean IoU (%), and paired differences with 95% t intervals, uncorrected.",
        caption=" ".join([*told, about, spread, chosen.note()]),
        stub=stub,
        blocks=tuple(blocks),
        numbers=pd.DataFrame(rows).drop(columns="told"),
        run_ids=chosen.run_ids,
        grid=name,
        verdicts=told,
        tests=tests,
    )
