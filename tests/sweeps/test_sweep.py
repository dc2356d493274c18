"""A sweep from its start to its end, with Ray's part played by the test."""

import io
import threading
import time
from collections.abc import Callable, Set
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from servers import raising
from slow_cases import also_slow

from semidavil.config import Config, preset
from sweeps.plan.needs import Lack
from sweeps.plan.spec import Job, Selection, Spec
from sweeps.run import driver as driver_module
from sweeps.run import listening
from sweeps.run import sweep as module
from sweeps.run.context import SweepOptions
from sweeps.run.driver import Driver
from sweeps.run.events import Done, Failed, Failure, Task
from sweeps.run.preparation import described
from sweeps.run.resources import Resources
from sweeps.run.sweep import Sweep, tidy
from sweeps.stopping import AskedToStop
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.store import Store
from sweeps.track.wishes import Wishes, ask_to_retry, ask_to_stop

DONE = Done(score=50.0, latency_ms=1.0, seconds=2.0, delivered=True, summary="mIoU 50.00")


class DataError(RuntimeError):
    """Of that name, by which a sweep knows it."""


class Play:
    """Runs what the driver hands out, and remembers it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.trained: list[str] = []
        self.failing: set[str] = set()  # keys of cells that fail
        self.after: Callable[[Task], object] = lambda task: None

    def __call__(self, driver: Driver, resources: Any) -> None:
        self.driver = driver
        deadline = time.monotonic() + 60
        while not driver.finished():
            assert time.monotonic() < deadline
            driver.on_step()
            if task := driver.next_task():
                driver.on_start(task)
                self.trained.append(task.name)
                if self.store.run(task.run_id).key in self.failing:
                    self.store.close(task.run_id, "FAILED", "no such file", task.epoch)
                    driver.on_event(task, Failed("no such file", Failure.INPUT, True))
                else:
                    self.store.end(task.run_id, "FINISHED")
                    driver.on_event(task, DONE)
                self.after(task)
            time.sleep(0.005)

    def look_twice(self) -> None:
        """Waits until the driver has looked at what people ask, from the beginning to the end."""
        heard, hear = list[object](), self.driver._on_wishes

        def heed(found: Wishes | Exception) -> None:
            heard.append(found)
            hear(found)

        self.driver._on_wishes = heed  # type: ignore[method-assign]
        deadline = time.monotonic() + 60
        while len(heard) < 2:
            assert time.monotonic() < deadline
            self.driver.on_step()
            time.sleep(0.005)


@pytest.fixture
def play(store: Store, monkeypatch: pytest.MonkeyPatch) -> Play:
    play = Play(store)
    monkeypatch.setattr(module, "run_tasks", play)
    monkeypatch.setattr(module, "started_ray", lambda *_: nullcontext())
    monkeypatch.setattr(module, "preparations", lambda configs, train: {})
    monkeypatch.setattr(module, "preparation_of", lambda config: config.model.fusion)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    return play


def job_of(grid: str) -> Job:
    spec = Spec(grid, "toy", selections=(Selection(budgets=(100,)),))
    base = spec.base()
    return Job(spec, spec.around(base), spec.cells(base))


@pytest.fixture
def job() -> Job:
    return job_of("attention")


def sweep_of(store: Store, wait: bool = False) -> Sweep:
    options = SweepOptions({"commit": "c0ffee"}, "fake_training:train", wait=wait)
    console = Console(file=io.StringIO(), width=200)
    return Sweep(store, Resources(concurrency=2, cpus=1, gpus=0), console, options)


def text_of(sweep: Sweep) -> str:
    assert isinstance(sweep.console.file, io.StringIO)
    return sweep.console.file.getvalue()


def open_run(store: Store, config: Config, **tags: str) -> str:
    mine = {"key": config.key(), "epoch": "1", **owner_tags(), **tags}
    return store.create_run(store.experiment_id("attention"), "cell", config, mine)


def test_what_waits_is_run_once_and_then_nothing_starts(
    store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sweep_of(store).run_jobs([job])
    assert len(play.trained) == 4
    assert (result.failed, result.undelivered, result.elsewhere) == ([], 0, 0)
    assert len(store.overviews()) == 1
    monkeypatch.setattr(module, "started_ray", raising(AssertionError))
    assert sweep_of(store).run_jobs([job]).plans["attention"].waiting == []


def test_what_cannot_be_prepared_costs_its_own_cells(
    store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that was missing used to end the command, and all grids after it."""

    broken = raising(lambda: DataError("no images in /data"))
    monkeypatch.setattr(module, "preparations", lambda *_: {"vlga": broken})
    sweep = sweep_of(store)
    result = sweep.run_jobs([job])
    assert len(play.trained) == 3
    assert [one.reason for one in result.failed] == ["no images in /data"]
    assert "left out: no images in /data" in text_of(sweep)


def test_what_cannot_run_here_is_left_out_and_the_others_run(
    store: Store, job: Job, play: Play
) -> None:
    absent = job.configs[1].key()
    lacks = {absent: (Lack("the captioner x", "HF_HUB_OFFLINE is set", "x"),)}
    result = sweep_of(store).run_jobs([replace(job, lacking=lacks)])
    assert len(play.trained) == 3
    assert result.failed == []
    assert [cell.config.key() for cell in result.plans["attention"].left_out] == [absent]
    assert sweep_of(store).run_jobs([job]).plans["attention"].left_out == []  # once it is here
    assert len(play.trained) == 4


def test_a_sweep_is_stopped_while_it_prepares_its_data(
    store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody saw it from elsewhere before its first run began, which captions may delay for hours."""

    def prepare() -> str:
        (overview,) = store.overviews()
        assert overview.tags["prepares"] == "data of gta5-cityscapes, captions by positions"
        ask_to_stop(store, overview)
        assert not threading.Event().wait(60), "nobody has interrupted it"
        return ""

    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "preparations", lambda *_: {"dlg": prepare})
    with pytest.raises(AskedToStop):
        sweep_of(store).run_jobs([job])
    assert play.trained == []
    monkeypatch.setattr(module, "preparations", lambda *_: {"dlg": lambda: "captions: 3"})
    sweep = sweep_of(store)
    sweep.run_jobs([job])  # what was asked of the earlier sweep is not asked of this one
    assert len(play.trained) == 4
    assert "captions: 3" in text_of(sweep)
    assert store.overviews()[0].tags["prepares"] == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "data of gta5-cityscapes, captions by positions"),
        ({"model.fusion": "none"}, "data of gta5-cityscapes"),
        ({"data.benchmark": "synapse", "training.method": "uamt"}, "data of synapse"),
    ],
)
def test_captions_are_prepared_for_those_who_read_them(changes: dict[str, str], text: str) -> None:
    assert described(preset("toy", changes)) == text


def test_what_others_are_at_is_waited_for_and_taken_over_if_asked(
    store: Store, job: Job, play: Play
) -> None:
    theirs = open_run(store, job.configs[0], host="another", alive=str(int(time.time())))
    assert sweep_of(store).run_jobs([job]).elsewhere == 1
    assert len(play.trained) == 3
    waiting = sweep_of(store, wait=True)
    waiting._say_once = lambda text: store.end(theirs, "KILLED")  # type: ignore[method-assign]
    assert waiting.run_jobs([job]).elsewhere == 0
    assert len(play.trained) == 4


def test_what_becomes_free_meanwhile_is_run_before_the_end(
    store: Store, job: Job, play: Play
) -> None:
    theirs = open_run(store, job.configs[0], host="another", alive=str(int(time.time())))
    play.after = lambda task: store.close(theirs, "KILLED", "interrupted")
    assert sweep_of(store).run_jobs([job]).elsewhere == 0
    assert len(play.trained) == 4


def test_a_run_that_this_process_has_left_open_is_closed_and_its_cell_run(
    store: Store, job: Job, play: Play
) -> None:
    """Of a claim that was refused half-way: it would look as if another sweep were at it."""
    open_run(store, job.configs[0])
    assert sweep_of(store).run_jobs([job]).elsewhere == 0
    assert len(play.trained) == 4


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("add_to", RunGone("deleted")),
        *also_slow(
            ("add_to", StoreRefused("forbidden")),
            ("update_overview", RunGone("deleted")),
            ("update_overview", StoreRefused("forbidden")),
        ),
    ],
)
def test_bookkeeping_that_fails_costs_no_cell(
    call: str, error: Exception, store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_of(store).run_jobs([job])
    monkeypatch.setattr(store, call, raising(lambda: error))
    sweep = sweep_of(store)
    result = sweep.run_jobs([job_of("losses"), job])
    assert result.failed == []
    assert len(play.trained) == 4 + 5  # DyCE with DLG is there already
    assert str(error) in text_of(sweep)


@pytest.mark.parametrize("preparing", [True, *also_slow(False)])
def test_a_sweep_that_is_stopped_has_said_which_runs_of_others_are_its_own(
    preparing: bool, store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of an interrupted sweep lacked those that it shares with another grid."""
    sweep_of(store).run_jobs([job])
    stop = raising(KeyboardInterrupt)
    if preparing:
        monkeypatch.setattr(module, "preparations", lambda *_: {"dlg": stop})
    else:
        play.after = stop
    with pytest.raises(KeyboardInterrupt):
        sweep_of(store).run_jobs([job_of("losses"), job_of("components")])
    (shared,) = (run for run in store.runs() if run.key == job.configs[0].key())
    assert shared.tags["grids"].split() == ["losses", "components"]


def ask_for(store: Store, keys: Set[str]) -> None:
    """Asks all sweeps to try these runs again."""
    for run in store.runs():
        if run.key in keys:
            ask_to_retry(store, store.overviews(), run)


def test_what_fails_once_more_is_not_retried_a_second_time(
    store: Store, job: Job, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round that honours what was asked has a driver, which read the same wish again."""
    monkeypatch.setattr(driver_module, "LOOK_SECONDS", 0.0)
    names = [job.grid.name(config) for config in job.configs]
    play.failing = {config.key() for config in job.configs[:2]}

    def after(task: Task) -> None:
        if play.trained == names:  # the driver looks no more
            ask_for(store, play.failing)
        elif len(play.trained) == len(names) + 1:
            play.look_twice()

    play.after = after
    result = sweep_of(store).run_jobs([job])
    assert play.trained == [*names, *names[:2]]
    assert [failed.name for failed in result.failed] == names[:2]


@pytest.mark.slow
def test_a_run_that_two_grids_share_is_retried_once(store: Store, job: Job, play: Play) -> None:
    other, shared = job_of("losses"), job.configs[0]
    play.failing = {shared.key()}
    assert play.failing < {config.key() for config in other.configs}

    def after(task: Task) -> None:
        if len(play.trained) == len(job.configs):
            ask_for(store, play.failing)

    play.after = after
    sweep_of(store).run_jobs([job, other])
    assert len(play.trained) == len(job.configs) + 1 + len(other.configs) - 1


def test_tidying_ends_what_is_dead_and_keeps_what_lives(store: Store, job: Job) -> None:
    dead = open_run(store, job.configs[0], pid_started="long ago")
    alive = open_run(store, job.configs[1])
    early = open_run(store, job.configs[2], stopped_early="3")
    store.end(early, "KILLED")
    finished = open_run(store, job.configs[3])
    store.end(finished, "FINISHED")
    surplus = open_run(store, job.configs[3])
    store.end(surplus, "KILLED")
    folders = [store.storage.folder / config.key() for config in job.configs]
    for folder in folders:
        folder.mkdir(parents=True)
    tidy(store, Console(file=io.StringIO()))
    assert {run.run_id: run.status for run in store.runs()} == {
        dead: "KILLED", alive: "RUNNING", early: "KILLED", finished: "FINISHED"
    }  # fmt: skip
    assert [folder.exists() for folder in folders] == [True, True, False, False]


def test_a_dead_run_that_may_not_be_closed_stops_no_sweep(
    store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(store, job.configs[0], pid_started="long ago")
    monkeypatch.setattr(store, "close", raising(lambda: StoreRefused("forbidden")))
    tidy(store, Console(file=io.StringIO()))
