"""Grids of users' own: a figure for each with finished runs, its variants by the names that it gives them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.comparisons import not_run_yet
from analysis.drawn import Drawn
from analysis.figures import dots
from analysis.runs import Tracked
from sweeps.plan.grids import GRIDS, SEARCH

PLAN = "plan.csv"  # of a grid's overview: all cells that were asked for, see `sweeps.show.tables.plan_csv`


def own_grids(tracked: Tracked) -> list[str]:
    """The grids of finished runs that are none of the package's."""
    return sorted(set(tracked.table["experiment"]) - {*GRIDS, SEARCH})


def draw(tracked: Tracked, name: str) -> Drawn:
    """The variants of the own grid `name` as dots, compared to that whose run began first.

    Raises:
        AnalysisError: no run of the grid.
    """
    began = tracked.of_grid(name).groupby("named")["began"].min()
    drawn = dots.draw(
        tracked,
        grid=name,
        field="named",
        baseline=lambda there: min(there, key=lambda variant: began[variant]),
        title=f"Own grid: {name}",
    )
    return replace(drawn, missing=not_run_yet(_unfinished(tracked, name, drawn.run_ids)))


def _unfinished(
    tracked: Tracked, grid: str, run_ids: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    """The cells without a finished run of the sweeps that planned these runs; its file may be gone."""
    finished = set(tracked.table["key"])
    drawn = {tracked.rows[run_id]["key"] for run_id in run_ids}
    missing: dict[str, str] = {}
    for overview in tracked.overviews(grid):
        if PLAN in tracked.files(overview):
            plan = tracked.csv(overview, PLAN)
            cells = dict(zip(plan["key"], plan["cell"], strict=True))
            if drawn & cells.keys():
                missing |= {key: cells[key] for key in cells if key not in finished}
    for cell in missing.values():
        benchmark, *variant, budget, _ = cell.split("/")
        yield benchmark, "/".join(variant), int(budget)
