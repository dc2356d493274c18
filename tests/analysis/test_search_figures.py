"""Figures of searches, from what they left in the store."""

import pytest
from made_up_runs import Writer, add_search, settings

from analysis.figures import FIGURES
from analysis.runs import AnalysisError, load_runs


def test_searches_are_drawn_from_what_they_left_in_the_store(store: Writer) -> None:
    run_id = add_search(store)
    tracked = load_runs(store.uri)
    drawn = FIGURES["search_history"](tracked)
    best = drawn.numbers.set_index("trial")["best_so_far"].dropna()
    assert best.to_dict() == {2: 28, 3: 33, 4: 33}
    assert "best 33.0, preset 30.0" in drawn.caption
    assert drawn.run_ids == (run_id,)
    shares = FIGURES["search_importances"](tracked).numbers.set_index("setting")["importance"]
    assert shares.to_dict() == {"training.lr": 0.25, "loss.omega": 0.75}
    front = FIGURES["search_pareto"](tracked).numbers
    assert front["pareto"].tolist() == [True, False, False, True]


def test_a_search_is_scored_as_its_benchmark_is(store: Writer) -> None:
    add_search(store, "synapse", "dice")
    tracked = load_runs(store.uri)
    for name in ("search_history", "search_pareto"):
        drawn = FIGURES[name](tracked)
        assert drawn.figure.axes[0].get_ylabel() == "Dice (%)"
        assert "Dice" in drawn.alt
    axes = FIGURES["search_importances"](tracked).figure.axes[0]
    assert "variance of Dice" in axes.get_xlabel()


def test_searches_of_other_runs_than_those_asked_for_are_left_out(store: Writer) -> None:
    add_search(store)
    cell = settings("gta5-cityscapes", 100, 0, training__method="semidavil")
    store.run("methods", cell, {"miou": 50.0})
    tracked = load_runs(store.uri, ["methods"])
    for name in ("search_history", "search_importances", "search_pareto"):
        with pytest.raises(AnalysisError, match="--grid search"):
            FIGURES[name](tracked)


def test_without_a_search_its_figures_say_what_to_run(store: Writer) -> None:
    cell = settings("gta5-cityscapes", 100, 0, training__method="semidavil")
    store.run("methods", cell, {"miou": 5.0})
    for name, how in (("search_pareto", "--objective miou-latency"), ("search_importances", "")):
        with pytest.raises(AnalysisError, match=f"--grid search {how}".strip()):
            FIGURES[name](load_runs(store.uri))
