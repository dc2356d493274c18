"""What is read of a tracking store, and which of its runs belong together."""

import time

import pytest
from made_up_runs import CELLS, Writer, settings

from analysis.cells import select
from analysis.runs import AnalysisError, Tracked, default_settings, load_runs


def test_finished_runs_become_one_tidy_table(attention: Tracked) -> None:
    runs = attention.table
    assert len(runs) == len(CELLS)
    assert set(runs["fusion"]) == {"dlg", "wpct"}
    assert runs["toy"].all()
    assert runs["budget"].dtype.kind == "i"
    assert (runs["iou/road"] == 80).all()
    assert load_runs(attention.uri, ["attention"]).table.equals(runs)
    # settings that these runs were not logged with
    assert (runs["rivals.semivl_guidance"] == default_settings()["rivals.semivl_guidance"]).all()


def test_defaults_are_those_of_a_config() -> None:
    from semidavil.config import Config

    # Where it ran changes no result; plugins and own data follow from the names that are chosen.
    unimportant = {"data.store", "data.own", "plugins"}
    logged = {k for k in Config().to_params() if not k.startswith("runtime.")}
    assert set(default_settings()) == logged - unimportant
    assert default_settings()["data.crop"] == (512, 512)


def test_the_newest_of_a_key_counts(store: Writer) -> None:
    for value in (1.0, 2.0):
        store.run("attention", settings("gta5-cityscapes", 0, 0), {"miou": value})
        time.sleep(0.01)
    assert load_runs(store.uri).table["miou"].tolist() == [2.0]


def test_a_run_belongs_to_the_grids_that_reuse_it(store: Writer) -> None:
    tags = {"semidavil.grids": "losses semivl"}
    store.run("attention", settings("gta5-cityscapes", 0, 0), {"miou": 5.0}, tags=tags)
    for grid in ("attention", "losses", "semivl"):
        assert len(load_runs(store.uri, [grid]).of_grid(grid)) == 1
    with pytest.raises(AnalysisError, match="--grid captions"):
        load_runs(store.uri).of_grid("captions")
    with pytest.raises(AnalysisError, match=r"no experiment 'magic': choose from .*losses"):
        load_runs(store.uri, ["magic"])


def test_runs_of_another_setting_do_not_mix(store: Writer) -> None:
    cell = settings("gta5-cityscapes", 0, 0)
    store.run("attention", cell, {"miou": 1.0})
    store.run("attention", cell | {"training.steps": "900"}, {"miou": 3.0})
    chosen = select(load_runs(store.uri), "attention", "fusion")
    assert chosen.runs["miou"].tolist() == [3.0]
    assert "Runs left out: 1 with training.steps=150." in chosen.note()
    store.run("attention", cell | {"data.toy": "false"}, {"miou": 5.0})
    chosen = select(load_runs(store.uri), "attention", "fusion")
    assert chosen.runs["miou"].tolist() == [5.0]
    assert list(chosen.left_out) == ["with data.toy=true, training.steps=900", "with data.toy=true"]


def test_one_longer_run_does_not_replace_a_sweep(store: Writer) -> None:
    """Whoever began a longer sweep saw the finished one vanish from every figure."""
    for seed in range(3):
        store.run("attention", settings("gta5-cityscapes", 0, seed), {"miou": 1.0 + seed})
    longer = settings("gta5-cityscapes", 0, 0) | {"training.steps": "151"}
    store.run("attention", longer, {"miou": 9.0})
    chosen = select(load_runs(store.uri), "attention", "fusion")
    assert chosen.runs["miou"].tolist() == [3.0, 2.0, 1.0]
    assert chosen.left_out == {"with training.steps=151": 1}
