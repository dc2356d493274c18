"""Every figure: a function from the tracked runs, and a line in `FIGURES`."""

from functools import partial

from analysis.drawn import DrawFigure
from analysis.figures import budget_curves

FIGURES: dict[str, DrawFigure] = {
    "attention": partial(budget_curves.draw, name="attention"),
    "losses": partial(budget_curves.draw, name="losses"),
    "semivl": partial(budget_curves.draw, name="semivl"),
    "baselines": partial(budget_curves.draw, name="baselines"),
}
