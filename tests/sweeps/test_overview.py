import csv
from pathlib import Path

import pytest
from mlflow.artifacts import load_text

from semidavil.config import Config, preset
from sweeps.grids import GRIDS
from sweeps.overview import write_overview
from sweeps.plan import make_plan
from sweeps.tracking import PARENT, Store


def configs() -> list[Config]:
    return GRIDS["attention"].cells(preset("toy"), budgets=[100])


def write(store: Store) -> str:
    grid = GRIDS["attention"].around(preset("toy"))
    return write_overview(store, make_plan("attention", grid, configs(), store.runs()), 2)


def finish(store: Store, config: Config, miou: float) -> str:
    run_id = store.open_run(store.experiment_id("attention"), "cell", config, {})
    store.client.log_metric(run_id, "final/miou", miou)
    store.client.set_terminated(run_id, "FINISHED")
    return run_id


def artifact(store: Store, run_id: str, name: str) -> str:
    return load_text(f"{store.client.get_run(run_id).info.artifact_uri}/{name}")


def test_a_grid_has_one_overview_that_follows_its_plan(store: Store) -> None:
    overview = write(store)
    run = store.client.get_run(overview)
    assert run.info.status == "SCHEDULED"
    assert run.data.metrics == {"cells/total": 4, "cells/done": 0, "cells/failed": 0}
    assert run.data.tags["mlflow.note.content"] == GRIDS["attention"].about

    children = [finish(store, config, 30 + i) for i, config in enumerate(configs())]
    assert write(store) == overview
    run = store.client.get_run(overview)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cells/done"] == 4
    lines = list(csv.DictReader(artifact(store, overview, "plan.csv").splitlines()))
    assert [line["run_id"] for line in lines] == children
    assert [float(line["score"]) for line in lines] == [30, 31, 32, 33]
    assert [line["key"] for line in lines] == [config.key() for config in configs()]
    assert "33.00" in artifact(store, overview, "results.txt")


def test_runs_opened_after_their_overview_are_its_children(store: Store) -> None:
    before = finish(store, configs()[0], 30)
    overview = write(store)
    after = finish(store, configs()[1], 31)
    assert PARENT not in store.client.get_run(before).data.tags
    assert store.client.get_run(after).data.tags[PARENT] == overview
    assert len(store.runs()) == 2, "the overview is no cell's run"


def test_failed_cells_show_in_the_overview(store: Store) -> None:
    run_id = store.open_run(store.experiment_id("attention"), "cell", configs()[0], {})
    store.close(run_id, "FAILED", "ValueError: a broken image")
    overview = write(store)
    assert store.client.get_run(overview).info.status == "FAILED"
    assert "a broken image" in artifact(store, overview, "plan.csv")


def test_of_two_overviews_made_at_once_both_sweeps_take_the_older(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(tmp_path)
    experiment = store.experiment_id("attention")
    find = Store._find_overviews
    first = True

    def find_late(self: Store, experiment_id: str) -> list[str]:
        nonlocal first
        if first:  # the other sweep is as far as this one
            first = False
            other.overview(experiment_id, "attention", "")
            return []
        return find(self, experiment_id)

    monkeypatch.setattr(Store, "_find_overviews", find_late)
    mine = store.overview(experiment, "attention", "")
    assert mine == other.overview(experiment, "attention", "")
    assert len(find(store, experiment)) == 2
