"""Methods at the label budgets of semi-supervised papers, apart from what these report."""

from dataclasses import replace

import pandas as pd

from analysis import style
from analysis.cells import over_budgets, select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Block, Entry, Table
from analysis.paper import ELSEWHERE, ELSEWHERE_SOURCE
from analysis.recipes import recipe_sentence
from analysis.runs import NoRunError, Tracked
from analysis.tables.entries import measured
from semidavil.benchmarks import BENCHMARKS

GRID, BENCHMARK = "methods", "cityscapes-cityscapes"
BUDGETS = BENCHMARKS[BENCHMARK].ssl_budgets


def make(tracked: Tracked) -> Table:
    """A block of measured values and one of values from elsewhere, which are not compared.

    Raises:
        NoRunError: no run at one of the budgets.
    """
    table = tracked.table
    table = table[(table["benchmark"] == BENCHMARK) & table["budget"].isin(BUDGETS)]
    try:
        here = select(replace(tracked, table=table), GRID, "method")
    except NoRunError as error:
        budgets = " ".join(map(str, BUDGETS))
        raise NoRunError(f"{error} --benchmark {BENCHMARK} --budgets {budgets}") from None
    runs = here.runs
    encoder = str(runs["model.encoder"].iloc[0] or runs["model.vlm"].iloc[0])
    numbers = over_budgets(runs).assign(encoder=encoder)
    cells = numbers.set_index(["variant", "budget"]).to_dict("index")
    rows = [
        (style.label(v), (Entry(encoder), *(measured(cells.get((v, b))) for b in BUDGETS)))
        for v in COMPARISONS[GRID].present(runs)
    ]
    others = [(o.name, (Entry(o.encoder), *(Entry(f"{x:.1f}") for x in o.miou))) for o in ELSEWHERE]
    columns = ("encoder", *(f"{budget:,}" for budget in BUDGETS))
    elsewhere = [
        {"variant": one.name, "budget": budget, "encoder": one.encoder, "elsewhere": value,
         "source": ELSEWHERE_SOURCE}
        for one in ELSEWHERE for budget, value in zip(BUDGETS, one.miou, strict=True)
    ]  # fmt: skip
    return Table(
        name="ssl",
        title="Semi-supervised learning on Cityscapes",
        about="Mean IoU (%) by number of labelled images; above: measured, below: published elsewhere, "
        "which is not compared.",
        caption="Mean IoU (%) on the validation images by number of labelled images, 1/16 to 1/2 of the "
        "training set. Above: measured. Below: what "
        f"{ELSEWHERE_SOURCE} reports for methods with encoders, decoders, crops, schedules and labelled "
        "images of their own. The two are not compared: no difference is taken, and nothing is ranked. "
        f"{recipe_sentence(runs)} {here.note()}",
        stub="Method",
        blocks=(
            Block(f"{here.heading(BENCHMARK)}, measured", columns, tuple(rows)),
            Block("Published elsewhere, real images", columns, tuple(others)),
        ),
        numbers=pd.concat([numbers, pd.DataFrame(elsewhere)], ignore_index=True),
        run_ids=here.run_ids,
        grid=GRID,
    )
