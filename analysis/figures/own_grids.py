"""Grids of users' own: a figure for each with finished runs, its variants by the names that it gives them."""

from analysis.drawn import Drawn
from analysis.figures import dots
from analysis.runs import Tracked
from sweeps.plan.grids import GRIDS, SEARCH


def own_grids(tracked: Tracked) -> list[str]:
    """The grids of finished runs that are none of the package's."""
    return sorted(set(tracked.table["experiment"]) - {*GRIDS, SEARCH})


def draw(tracked: Tracked, name: str) -> Drawn:
    """The variants of the own grid `name` as dots, compared to that whose run began first.

    Raises:
        AnalysisError: no run of the grid.
    """
    began = tracked.of_grid(name).groupby("named")["began"].min()
    return dots.draw(
        tracked,
        grid=name,
        field="named",
        baseline=lambda there: min(there, key=lambda variant: began[variant]),
        title=f"Own grid: {name}",
    )
