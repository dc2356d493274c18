"""One module per figure; each draws from the tidy table and returns its numbers as well."""

from analysis.figures import attention, baselines
from analysis.figures.budget_curves import Draw, Drawn

FIGURES: dict[str, Draw] = {
    "attention": attention.draw,
    "baselines": baselines.draw,
}

__all__ = ["FIGURES", "Draw", "Drawn"]
