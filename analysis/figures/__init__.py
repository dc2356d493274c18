"""Every figure: a function from the tracked runs, and a line in `FIGURES`."""

from functools import partial

from analysis.captioners import add_lengths, baseline_captions, captioners_table
from analysis.drawn import DrawFigure
from analysis.figures import (
    budget_curves,
    class_gains,
    components,
    confusion,
    cost,
    dots,
    encoders,
    over_time,
    pseudo_label_classes,
    qualitative,
    ranks,
    search,
    sensitivity,
    synapse,
)
from semidavil.names import ORACLE

FIGURES: dict[str, DrawFigure] = {
    "attention": partial(budget_curves.draw, name="attention"),
    "synapse": synapse.draw,
    "class_gains": class_gains.draw,
    "losses": partial(budget_curves.draw, name="losses"),
    "semivl": partial(budget_curves.draw, name="semivl"),
    "baselines": partial(budget_curves.draw, name="baselines"),
    "methods": partial(
        dots.draw, grid="methods", field="method", baseline=lambda _: "semidavil", title="Methods"
    ),
    "components": components.draw,
    "captions": partial(
        dots.draw, grid="captions", field="captions", baseline=baseline_captions,
        title="What the caption says", details=add_lengths, told=captioners_table,
        is_bound=lambda name: name.startswith(ORACLE),
    ),
    "encoders": encoders.draw,
    "sensitivity": sensitivity.draw,
    "qualitative": qualitative.draw,
    "confusion": confusion.draw,
    "ranks": ranks.draw,
    "profiles": ranks.profiles,
    "learning_curves": partial(
        over_time.draw, metrics={"val/miou": "mIoU (%)"}, title="Learning curves",
        about="mIoU on the validation images",
    ),
    "pseudo_labels": partial(
        over_time.draw, title="Reliability of pseudo-labels", only=over_time.TEACHERS,
        metrics={"val/pseudo/coverage": "confident pixels (%)", "val/pseudo/accuracy": "of these right (%)"},
        about="Share of the validation pixels that reach the confidence threshold, and how many are right",
    ),
    "pseudo_label_classes": pseudo_label_classes.draw,
    "cost": cost.draw,
    "search_history": search.history,
    "search_importances": search.importances,
    "search_pareto": search.pareto,
}  # fmt: skip
