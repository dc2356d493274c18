"""Curves over training steps, and what figures say where the method in question has no run."""

import pytest
from made_up_runs import Writer, settings

from analysis.figures import FIGURES
from analysis.runs import AnalysisError, NoRunError, load_runs


def test_curves_fall_back_to_baselines_and_keep_to_one_number_of_labels(store: Writer) -> None:
    def add(grid: str, method: str, budget: int, curve: list[tuple[int, float]]) -> None:
        cell = settings("gta5-cityscapes", budget, 0, training__method=method)
        store.run(grid, cell, {"miou": 5.0}, history={"val/miou": curve})

    add("methods", "semidavil", 100, [(150, 5.0)])
    curve = [(75, 3.0), (150, 5.0)]
    for budget in (100, 500):
        add("baselines", "semidavil", budget, [(step, v + budget) for step, v in curve])
    add("baselines", "target_only", 100, curve)
    add("baselines", "source_only", 0, curve)
    drawn = FIGURES["learning_curves"](load_runs(store.uri))
    assert drawn.grid == "baselines"
    assert "100 labels" in drawn.caption
    means = drawn.numbers.set_index(["variant", "step"])["mean"]
    assert means["semidavil"].to_dict() == {75: 103.0, 150: 105.0}
    assert set(means.index.get_level_values(0)) == {"semidavil", "target_only", "source_only"}


def test_curves_need_more_than_the_last_evaluation(store: Writer) -> None:
    cell = settings("gta5-cityscapes", 100, 0, training__method="semidavil")
    store.run("methods", cell, {"miou": 5.0}, history={"val/miou": [(150, 5.0)]})
    told = "--grid methods --seeds 1 --set runtime.eval_every=38$"
    with pytest.raises(AnalysisError, match=told):
        FIGURES["learning_curves"](load_runs(store.uri))
    # What that command makes is drawn, though the first seed was evaluated at the same last step.
    curve = [(38, 1.0), (76, 2.0), (150, 3.0)]
    store.run("methods", {**cell, "seed": 1}, {"miou": 3.0}, history={"val/miou": curve})
    numbers = FIGURES["learning_curves"](load_runs(store.uri)).numbers
    assert list(zip(numbers["step"], numbers["mean"], strict=True)) == curve


def test_figures_without_the_method_in_question_say_so(store: Writer) -> None:
    """Curves asked for more evaluations, of runs evaluated twice; differences had an empty frame."""
    cell = settings("gta5-cityscapes", 100, 0, training__method="supervised")
    store.run("methods", cell, {"miou": 5.0}, history={"val/miou": [(75, 3.0), (150, 5.0)]})
    tracked = load_runs(store.uri)
    assert len(FIGURES["learning_curves"](tracked).numbers) == 2
    scores, gaps = FIGURES["methods"](tracked).figure.axes
    assert scores.get_visible()
    assert not gaps.get_visible()  # there is nothing to subtract
    for name in ("pseudo_labels", "pseudo_label_classes"):
        with pytest.raises(NoRunError, match=r"no finished run of semidavil.*--grid methods"):
            FIGURES[name](tracked)
