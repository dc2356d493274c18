"""What stands beside a comparison to say what it is worth: controls of the attentions and of the losses."""

from typing import Any

import pandas as pd

from analysis import style
from analysis.cells import Cells, by_seed, in_order, select
from analysis.drawn import Block, Entry, Row, Table
from analysis.runs import Tracked
from analysis.stats import paired
from analysis.tables.entries import SIZES, measured, size_entries, sizes_of
from analysis.verdicts import difference, verdicts
from semidavil.names import FUSIONS, LOSSES
from sweeps.plan.grids import GRIDS, WAYS, way_of

WANTED = 100  # label budget
WAY_NAMES = {"paper": "one λ", "matched": "matched λ", "alone": "no consistency"}


def attention_controls(tracked: Tracked) -> Table:
    """Every attention beside the readout with nothing to read, with its size and its time.

    Raises:
        AnalysisError: no run of the grid.
    """
    chosen = select(tracked, "attention_controls", "fusion").at_one_budget(WANTED)
    blocks, numbers = [], []
    for benchmark in chosen.benchmarks:
        runs, lines = chosen.of(benchmark), list[Row]()
        for name in in_order(runs["variant"], FUSIONS):
            mine = runs[runs["variant"] == name]
            row, entries = _against(mine, runs[runs["variant"] == "blank"])
            lines.append((style.label(name), (*entries, *size_entries(mine))))
            numbers.append({"benchmark": benchmark, "variant": name, **row, **sizes_of(mine)})
        blocks.append(_block(chosen, benchmark, ["mIoU", "over blank", *SIZES], lines))
    about = (
        "What an attention is worth beyond the layer that reads it. Blank: that layer with nothing to read; "
        "none: the features of the image alone."
    )
    told = verdicts(chosen)
    title = "Controls of the attentions"
    return _table("attention_controls", title, "Attention", about, blocks, numbers, chosen, *told)


def loss_controls(tracked: Tracked) -> Table:
    """Every loss with one lambda, with a matched one, and without consistency.

    Raises:
        AnalysisError: no run of the grid.
    """
    varied = list(GRIDS["loss_controls"].baseline)
    chosen = select(tracked, "loss_controls", varied).at_one_budget(WANTED)
    blocks, numbers = [], []
    for benchmark in chosen.benchmarks:
        runs, lines = chosen.of(benchmark), list[Row]()
        settings = [dict(zip(varied, map(str, row), strict=True)) for row in runs[varied].values]
        runs = runs.assign(way=[way_of(one) for one in settings])
        there = in_order(runs["way"].unique(), WAYS)
        for loss in in_order(runs["loss"], LOSSES):
            cells: tuple[Entry, ...] = ()
            for way in there:
                here = runs[runs["way"] == way]
                row, entries = _against(here[here["loss"] == loss], here[here["loss"] == "ce"])
                numbers.append({"benchmark": benchmark, "variant": loss, "way": way, **row})
                cells += entries
            lines.append((style.label(loss), cells))
        columns = [name for way in there for name in (WAY_NAMES[way], "over CE")]
        blocks.append(_block(chosen, benchmark, columns, lines))
    about = (
        "Is it the loss, or what it does to the weight of the consistency term? One λ, as in the paper; "
        "matched, λ scaled at each step so that the supervised and the consistency gradient have the ratio "
        "that they have under cross-entropy; and without consistency."
    )
    title = "Controls of the losses"
    return _table("loss_controls", title, "Loss", about, blocks, numbers, chosen)


def _against(
    ours: pd.DataFrame, reference: pd.DataFrame
) -> tuple[dict[str, Any], tuple[Entry, Entry]]:
    """Mean, spread, seeds and paired difference of a variant: `34.2 ± 0.5 (3)`, `+1.2 [0.4, 2.0]`."""
    scores = by_seed(ours)
    same = set(ours["run_id"]) == set(reference["run_id"])
    test = paired(scores, by_seed(reference.iloc[:0] if same else reference))
    row = {
        "mean": scores.mean(), "std": scores.std(), "n": len(scores), "difference": test.difference,
        "low": test.low, "high": test.high, "p": test.p,
    }  # fmt: skip
    return row, (measured(row), Entry(difference(test) if test.n else ""))


def _block(chosen: Cells, benchmark: str, columns: list[str], rows: list[Row]) -> Block:
    budgets = ", ".join(f"{b:,}" for b in sorted(set(chosen.of(benchmark)["budget"])))
    return Block(f"{chosen.heading(benchmark)}, {budgets} labels", tuple(columns), tuple(rows))


def _table(
    name: str, title: str, stub: str, about: str, blocks: list[Block], numbers: list[dict[str, Any]],
    chosen: Cells, told: tuple[str, ...] = (), tests: pd.DataFrame | None = None,
) -> Table:  # fmt: skip
    spread = (
        "Mean IoU (%); differences are paired by seed, with 95% t intervals where there are two seeds or "
        "more, uncorrected."
    )
    return Table(
        name=name,
        title=title,
        about=f"{title}: mean IoU (%), and paired differences with 95% t intervals, uncorrected.",
        caption=f"{about} {spread} {chosen.note()}",
        stub=stub,
        blocks=tuple(blocks),
        numbers=pd.DataFrame(numbers),
        run_ids=chosen.run_ids,
        grid=name,
        verdicts=told,
        tests=pd.DataFrame() if tests is None else tests,
    )
