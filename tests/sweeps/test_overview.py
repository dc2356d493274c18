"""The run in MLflow that stands for a grid with its settings."""

import csv

from mlflow.artifacts import load_text
from tracked_runs import finish

from sweeps.plan.grids import GRIDS
from sweeps.plan.spec import Selection, Spec
from sweeps.show.overview import Overview, open_overview, write_overview
from sweeps.track.provenance import owner_tags
from sweeps.track.store import PARENT, Store

SPEC = Spec("attention", "toy", selections=(Selection(budgets=(100,)),))


def opened(store: Store, spec: Spec = SPEC) -> Overview:
    return open_overview(store, spec, GRIDS["attention"].about, 2)


def write(store: Store, spec: Spec = SPEC) -> Overview:
    overview = opened(store, spec)
    write_overview(store, overview, store.runs())
    return overview


def artifact(store: Store, overview: Overview, name: str) -> str:
    return load_text(f"{store.client.get_run(overview.run_id).info.artifact_uri}/{name}")


def test_a_grid_has_one_overview_that_follows_its_cells(store: Store) -> None:
    overview = write(store)
    run = store.client.get_run(overview.run_id)
    assert run.info.status == "SCHEDULED"
    assert run.data.metrics == {"cells/total": 4, "cells/done": 0, "cells/failed": 0}
    assert run.data.tags["mlflow.note.content"] == GRIDS["attention"].about
    tags = store.overviews()[0].tags
    assert Spec.from_json(tags["spec"]) == SPEC
    assert {name: tags[name] for name in owner_tags()} == owner_tags()

    cells = [finish(store, config, 30 + i) for i, config in enumerate(SPEC.cells())]
    assert write(store).run_id == overview.run_id
    run = store.client.get_run(overview.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["cells/done"] == 4
    lines = list(csv.DictReader(artifact(store, overview, "plan.csv").splitlines()))
    assert [line["run_id"] for line in lines] == cells
    assert [float(line["score"]) for line in lines] == [30, 31, 32, 33]
    assert [line["key"] for line in lines] == [config.key() for config in SPEC.cells()]
    assert {line["made_by"] for line in lines} == {"attention"}
    assert "33.00" in artifact(store, overview, "results.txt")
    assert len(store.runs()) == 4, "the overview is no cell's run"


def test_other_settings_have_an_overview_of_their_own(store: Store) -> None:
    for i, config in enumerate(SPEC.cells()):
        finish(store, config, 30 + i)
    overview = write(store)
    results = artifact(store, overview, "results.txt")
    variant = write(store, Spec("attention", "toy", ("training.steps=20",), SPEC.selections))
    assert variant.run_id != overview.run_id
    assert store.client.get_run(variant.run_id).data.metrics["cells/done"] == 0
    assert store.client.get_run(overview.run_id).info.status == "FINISHED"
    assert artifact(store, overview, "results.txt") == results
    assert "33.00" in results


def test_fewer_cells_leave_the_results_as_they_are(store: Store) -> None:
    whole = Spec("attention", "small", (), (Selection(("gta5-cityscapes",), (0, 100)),))
    for config in whole.cells():
        finish(store, config, 41.5)
    overview = write(store, whole)
    results = artifact(store, overview, "results.txt")
    part = Spec("attention", "small", (), (Selection(("gta5-cityscapes",), (100,)),))
    assert write(store, part).run_id == overview.run_id
    assert artifact(store, overview, "results.txt") == results
    assert results.count("41.50") == 8


def test_another_seed_joins_the_results(store: Store) -> None:
    write(store)
    other = Spec("attention", "toy", (), (Selection(budgets=(100,), seeds=(1,)),))
    for config in [*SPEC.cells(), *other.cells()]:
        finish(store, config, 35.0)
    overview = write(store, other)
    assert store.client.get_run(overview.run_id).data.metrics["cells/done"] == 8
    assert "(n=2)" in artifact(store, overview, "results.txt")


def test_failed_cells_show_in_the_overview(store: Store) -> None:
    overview = opened(store)
    config = SPEC.cells()[0]
    run_id = store.create_run(
        store.experiment_id("attention"), "cell", config, {"key": config.key()}, overview.run_id
    )
    store.close(run_id, "FAILED", "ValueError: a broken image")
    write(store)
    assert store.client.get_run(overview.run_id).info.status == "FAILED"
    assert "a broken image" in artifact(store, overview, "plan.csv")
    assert store.client.get_run(run_id).data.tags[PARENT] == overview.run_id
