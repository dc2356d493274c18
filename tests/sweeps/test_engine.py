"""Ray Tune with the smallest trainings there are: events, stops, deaths, signals."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_training import KILLED, STEPS
from sweep_process import forked_workers

from semidavil.config import preset
from sweeps.run.engine import (
    GRACE_SECONDS,
    _Trials,
    run_tasks,
    started_ray,
)
from sweeps.run.events import Done, Event, Halted, Lost, Progress, Task
from sweeps.run.resources import Resources
from sweeps.run.signals import StopSignals
from sweeps.stopping import Stopped
from sweeps.track.store import Store

TWO = Resources(concurrency=2, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of all fake trainings; Ray is up."""
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FAKE_TRAINING", str(folder))
        environment.setenv("FAKE_STEP_SECONDS", "0.3")
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))
        environment.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        environment.setenv("RAY_worker_niceness", "0")  # see `sweep_process`
        with (
            forked_workers(folder, environment),
            started_ray(TWO, "fake_training:train"),
        ):
            yield folder


class Sweep:
    """A listener with a list of tasks."""

    def __init__(self, store: Store, folder: Path, *learning_rates: float) -> None:
        self.folder, self.store = folder, store
        self.queue = deque(self.open_task(store, rate) for rate in learning_rates)
        self.left = len(self.queue)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.answer: Callable[[Task, Event], bool] = lambda task, event: False
        before = folder / "events.txt"
        before.unlink(missing_ok=True)

    def open_task(self, store: Store, rate: float) -> Task:
        config = preset("toy", {"training.lr": rate})
        tags = {"key": config.key(), "epoch": "1"}
        run_id = store.create_run(store.experiment_id("attention"), f"{rate}", config, tags)
        where = store.storage.of(config.key())
        train = "fake_training:train"
        return Task(f"{rate}", config.to_params(), run_id, 1, store.uri, where, train=train)

    def next_task(self) -> Task | None:
        return self.queue.popleft() if self.queue else None

    def on_start(self, task: Task) -> None: ...

    def on_event(self, task: Task, event: Event) -> bool:
        self.events[task.name].append(event)
        self.left -= not isinstance(event, Progress)
        return self.answer(task, event)

    def on_step(self) -> None: ...
    def halts(self) -> bool:
        return False

    def finished(self) -> bool:
        return self.left == 0

    def run(self, resources: Resources = TWO) -> None:
        run_tasks(self, resources)

    def ends(self) -> list[Event]:
        return [events[-1] for events in self.events.values()]

    def happened(self, what: str) -> list[str]:
        return [x for x in (self.folder / "events.txt").read_text().splitlines() if what in x]


@pytest.mark.slow
def test_tasks_run_one_after_the_other_in_workers_that_are_used_again(
    store: Store, folder: Path
) -> None:
    sweep = Sweep(store, folder, 0.01, 0.02, 0.03)
    held_back = sweep.queue.pop()

    def answer(task: Task, event: Event) -> bool:
        if isinstance(event, Done) and held_back not in sweep.queue and sweep.left == 1:
            sweep.queue.append(held_back)  # there was none for a while, and no trial ran
        return False

    sweep.answer = answer
    sweep.run()
    assert [type(end) for end in sweep.ends()] == [Done, Done, Done]
    for events in sweep.events.values():
        steps = [event.step for event in events if isinstance(event, Progress)]
        assert steps == sorted(steps)
    assert [run.status for run in store.runs()] == 3 * ["FINISHED"]
    workers = [line.split()[-1] for line in sweep.happened("train-from-0")]
    assert len(workers) == 3
    assert len(set(workers)) == 2
    gpus = {line.split()[0] for line in sweep.happened("gpu-")}
    assert gpus == {"gpu-"}  # a trial without a GPU sees none, whatever the sweep sees


@pytest.mark.slow
def test_a_task_that_is_ended_leaves_its_checkpoint_before_that_is_said(
    store: Store, folder: Path
) -> None:
    sweep = Sweep(store, folder, 0.01, 0.02)

    def answer(task: Task, event: Event) -> bool:
        if isinstance(event, Halted):
            assert (Path(task.workspace) / "last.pt").read_text() == str(event.step)
        return task.name == "0.01" and isinstance(event, Progress) and event.step >= 2

    sweep.answer = answer
    sweep.run()
    halted = sweep.events["0.01"][-1]
    assert isinstance(halted, Halted)
    assert 2 <= halted.step < STEPS
    assert isinstance(sweep.events["0.02"][-1], Done)

    sweep.queue, sweep.left = deque([sweep.open_task(store, 0.01)]), 1
    sweep.answer = lambda task, event: False
    sweep.run()
    assert len(sweep.happened(f"train-from-{halted.step}")) == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_is_lost_once_and_the_others_go_on(
    store: Store, folder: Path
) -> None:
    sweep = Sweep(store, folder, KILLED, 0.02, 0.03)
    sweep.run()
    assert sweep.events[str(KILLED)][-1] == Lost("its worker process died", False)
    assert [type(sweep.events[name][-1]) for name in ("0.02", "0.03")] == [Done, Done]
    assert len(sweep.happened("train-from")) == 3  # whether it is tried again is the listener's


@pytest.mark.slow
def test_a_listeners_error_ends_the_sweep_as_it_is(store: Store, folder: Path) -> None:
    sweep = Sweep(store, folder, 0.01)

    def answer(task: Task, event: Event) -> bool:
        raise LookupError("a fault of ours")

    sweep.answer = answer
    with pytest.raises(LookupError, match="a fault of ours"):
        sweep.run()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_every_training_with_a_checkpoint(
    store: Store, folder: Path, number: signal.Signals
) -> None:
    sweep = Sweep(store, folder, 0.01, 0.02, 0.03)
    sent: list[str] = []

    def answer(task: Task, event: Event) -> bool:
        if isinstance(event, Progress) and event.step == 1 and not sent:
            sent.append(task.name)
            os.kill(os.getpid(), number)
        return False

    sweep.answer = answer
    handler = signal.signal(number, signal.default_int_handler)  # tests may run with it ignored
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            sweep.run()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, handler)
    assert isinstance(stop.value, Stopped) == (number != signal.SIGINT)
    assert [type(end) for end in sweep.ends()] == [Halted, Halted]  # the third was not begun
    assert len(sweep.happened("stopped-at")) in (1, 2)  # one may not have begun to train
    assert not sweep.happened("trained")


@pytest.mark.slow
def test_a_worker_that_does_not_answer_a_stop_is_not_waited_for_long(
    store: Store, folder: Path
) -> None:
    signals = StopSignals()
    trials = _Trials(Sweep(store, folder), signals)
    signals.first, signals.since = signal.SIGTERM, time.monotonic()
    trials.step()
    signals.repeated = True  # somebody is in a hurry
    with pytest.raises(Stopped):
        trials.step()
    signals.repeated, signals.since = False, time.monotonic() - GRACE_SECONDS - 1
    with pytest.raises(Stopped):
        trials.step()


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
import test_engine
from sweeps.run.engine import started_ray
from sweeps.stopping import exit_code
from sweeps.track.store import Store
from pathlib import Path

folder = Path({folder!r})
sweep = test_engine.Sweep(Store(folder), folder, 0.01, 0.02)
try:
    with started_ray(test_engine.TWO, "fake_training:train"):
        sweep.run()
except KeyboardInterrupt as stop:
    print([type(end).__name__ for end in sweep.ends()])
    sys.exit(exit_code(stop))
"""


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += family(int(child))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_signal_to_all_processes_of_a_job_costs_no_step_and_the_folder_it_runs_in_no_code(
    store: Store, tmp_path: Path
) -> None:
    """As batch systems send it; started in a checkout whose code must not run."""
    here = Path(__file__).parent
    for package in ("semidavil", "sweeps"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('the other checkout')")
    script = tmp_path / "scripts" / "sweep.py"
    script.parent.mkdir()
    folders = [str(here.parents[1]), str(here)]
    script.write_text(SCRIPT.format(folders=folders, folder=str(tmp_path)))
    environment = os.environ | {
        "FAKE_TRAINING": str(tmp_path), "FAKE_STEP_SECONDS": "1", "PYTHONPATH": str(here),
        "RAY_worker_niceness": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    events = tmp_path / "events.txt"
    try:
        deadline = time.monotonic() + 300
        while not events.exists() or events.read_text().count("step-3") < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for pid in family(process.pid):
            os.kill(pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "['Halted', 'Halted']" in output
    assert len([line for line in events.read_text().splitlines() if "stopped-at" in line]) == 2
