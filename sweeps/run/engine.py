"""Ray Tune: resources, workers that are used again, events. This, `connection` and `cluster` alone know Ray.

A trial is one task. Tasks are handed over one by one, as slots become free, and trials share worker
processes: importing PyTorch and CLIP takes longer than a toy cell, so each worker does it once. A trial's
outcome is the last event of its worker; Tune only learns that it has ended. Tune retries nothing: the death
of a worker is one `Lost`, and the listener decides.
"""

import logging
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.run.connection import ClusterError, first_line, joined_cluster, local_ray
from sweeps.run.events import Event, Lost, Progress, Task, event_from_json, event_to_json
from sweeps.run.resources import Resources
from sweeps.run.signals import StopSignals, stopping_signals
from sweeps.run.stop_board import StopBoard
from sweeps.run.worker import run_task
from sweeps.stopping import TIME_IS_OVER, Stopped
from sweeps.track.credentials import redact

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least: nothing but paths and numbers travels
POLL_SECONDS = 0.1  # between two questions for a task while none runs
GRACE_SECONDS = 30.0  # for checkpoints after a signal; batch systems give about as much
ANNOUNCED_SECONDS = 120.0  # after one that announces the end of the time some minutes before it
ANSWER_SECONDS = 5.0  # for the stop board to answer; a worker that hears nothing trains on
# Ray's words for what its memory monitor has killed. It names the kernel's "OOM killer" for any death.
OUT_OF_MEMORY = ("running low on memory", "NODE_OUT_OF_MEMORY")
# Where the kernel counts the processes that it has killed for want of memory: all, and a container's.
KILL_COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
# Keys of a trial's config, and of its results.
TASK, BOARD, RESOURCES, EVENT = "task", "board", "resources", "event"


class Listener(Protocol):
    """What a sweep does about its tasks. No method may wait, for a store least of all: Tune waits for it."""

    def next_task(self) -> Task | None:
        """A task; None when there is none now."""

    def on_start(self, task: Task) -> None:
        """A worker has begun the task."""

    def on_event(self, task: Task, event: Event) -> bool:
        """The task has got on, or ended: nothing more comes of it after any event but `Progress`.

        Returns whether it is to end now; its worker answers with `Halted`, unless it ends by itself before.
        """
        ...

    def on_step(self) -> None:
        """Called about every `POLL_SECONDS`."""

    def halts(self) -> bool:
        """Whether the tasks that run are to end now, with a checkpoint, and no other begins."""
        ...

    def finished(self) -> bool:
        """Whether there will be no task any more, also none that has to be repeated."""
        ...


@contextmanager
def started_ray(resources: Resources, train: str) -> Iterator[None]:
    """Ray, local with just the resources that the trials take, or the cluster at `resources.address`.

    The code of `train`, given as `module:function`, goes to the cluster with ours.

    Raises:
        ClusterError: Ray does not start, or the cluster does not let this process in.
        Stopped, KeyboardInterrupt: a signal came while it started.
    """
    if resources.address:
        connection = joined_cluster(resources.address, train)
    else:
        connection = local_ray(
            num_cpus=resources.all_cpus,
            num_gpus=resources.all_gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    with connection:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it says is told as `Lost`
        yield


def run_tasks(listener: Listener, resources: Resources) -> None:
    """Runs tasks until the listener has finished. Ray must be up.

    After a signal no task begins, and each one that runs is told to stop. Those that have not answered
    after `GRACE_SECONDS` (`ANNOUNCED_SECONDS`), or at a second signal, are left to end with Ray.

    Raises:
        Stopped, KeyboardInterrupt: a signal has come.
        ClusterError: Ray itself has failed.
    """
    scratch = tempfile.mkdtemp(prefix="semidavil-tune-")
    try:
        with stopping_signals() as signals:
            trials = _Trials(listener, signals)
            trainable = tune.with_resources(
                _train, lambda config: tune.PlacementGroupFactory([config[RESOURCES]])
            )
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_Tasks(trials, resources),
                    num_samples=-1,
                    max_concurrent_trials=resources.concurrency,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[trials]),
            ).fit()
            trials.lose_all()
            signals.raise_first()
            if not trials.exhausted:  # Tune itself took a signal, before `StopSignals` took it back
                raise Stopped(signal.SIGUSR1)
    except _ListenerError as failed:
        raise failed.error from None
    except (TuneError, RayError, ConnectionError) as error:
        raise ClusterError(f"Ray has failed: {first_line(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train(config: dict[str, Any]) -> None:
    """What a worker does with a trial."""
    trial_id = tune.get_context().get_trial_id()
    board = ray.get_actor(config[BOARD])

    def tell(event: Event) -> bool:
        tune.report({EVENT: event_to_json(event)})
        if not isinstance(event, Progress):
            return False
        try:
            return ray.get(board.is_stopped.remote(trial_id), timeout=ANSWER_SECONDS)
        except RayError:
            return False

    run_task(Task.from_json(config[TASK]), tell)


class _DriverOnly:
    """Tune saves its parts for a restore, which here is the same command again: nothing to save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Trials(_DriverOnly, tune.Callback):
    """The tasks that Tune has been given and that have not ended, by Tune's ids; hears from Tune of them."""

    def __init__(self, listener: Listener, signals: StopSignals) -> None:
        self.listener, self.signals = listener, signals
        self.open: dict[str, Task] = {}
        self.kills: dict[str, int] = {}  # what `kernel_kills` was when the trial began
        self.board_name = f"semidavil-stop-board-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0)(StopBoard)
        self.board = board.options(name=self.board_name, scheduling_strategy=here).remote()
        self.halted: set[str] = set()  # trials that were told to end
        self.began = self.exhausted = False

    def add(self, trial_id: str, task: Task) -> None:
        self.open[trial_id], self.kills[trial_id] = task, kernel_kills()

    def on_step_begin(self, **info: Any) -> None:
        if not self.began:
            self.began = True
            self.signals.install()  # Tune has set a handler of its own

    def on_trial_start(self, trial: Trial, **info: Any) -> None:
        if trial.trial_id in self.open:
            self.listener.on_start(self.open[trial.trial_id])

    def on_trial_result(self, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self.hear(trial.trial_id, event_from_json(result[EVENT]))

    def on_trial_complete(self, trial: Trial, **info: Any) -> None:
        self.lose(trial.trial_id)  # unless it has said how it ended

    def on_trial_error(self, trial: Trial, **info: Any) -> None:
        error = Path(trial.error_file).read_text() if trial.error_file else ""
        self.lose(trial.trial_id, error)

    def on_step_end(self, **info: Any) -> None:
        self.step()

    def hear(self, trial_id: str, event: Event) -> None:
        """Passes an event on, unless the task has ended before."""
        task = self.open.get(trial_id)
        if task is None:
            return
        if not isinstance(event, Progress):
            del self.open[trial_id]
        try:
            end = self.listener.on_event(task, event)
        except Exception as error:
            raise _ListenerError(error) from error
        if end and trial_id in self.open:
            self.board.stop.remote(trial_id)

    def lose(self, trial_id: str, error: str = "") -> None:
        killed = kernel_kills() > self.kills[trial_id]
        self.hear(trial_id, cause_of_death(error, killed))

    def lose_all(self) -> None:
        for trial_id in list(self.open):
            self.lose(trial_id)

    def step(self) -> None:
        """Honours signals, then gives the listener its turn."""
        signals = self.signals
        grace = ANNOUNCED_SECONDS if signals.first in TIME_IS_OVER else GRACE_SECONDS
        if signals.repeated or time.monotonic() > signals.since + grace:
            signals.raise_first()  # if there was one
        if signals.first is not None or self.listener.halts():
            for trial_id in self.open.keys() - self.halted:
                self.halted.add(trial_id)
                self.board.stop.remote(trial_id)
        self.listener.on_step()


class _ListenerError(BaseException):
    """Carries a listener's error past Tune, which would turn it into an error of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Tasks(_DriverOnly, Searcher):
    """Gives Tune the next task whenever it has a slot free."""

    def __init__(self, trials: _Trials, resources: Resources) -> None:
        super().__init__()
        self.trials, self.resources = trials, resources

    def suggest(self, trial_id: str) -> Any:
        listener = self.trials.listener
        while self.trials.signals.first is None and not listener.finished():
            if (task := listener.next_task()) is not None:
                self.trials.add(trial_id, task)
                cpus, gpus = self.resources.of(task)
                return {
                    TASK: task.to_json(),
                    BOARD: self.trials.board_name,
                    RESOURCES: {"CPU": cpus, "GPU": gpus},
                }
            if self.trials.open:
                return None  # Tune asks again within `POLL_SECONDS`
            # With no trial running, Tune would ask only once a second and give nobody else a turn.
            self.trials.step()
            time.sleep(POLL_SECONDS)
        self.trials.exhausted = True
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, **info: Any) -> None: ...
    def save(self, checkpoint_path: str) -> None: ...


def cause_of_death(error: str, killed: bool) -> Lost:
    """Why a worker died: it matters whether memory was short, since a cell by itself has more.

    Judged by Ray's text, and by whether the kernel of this machine has killed for want of memory meanwhile.
    """
    if killed or any(words in error for words in OUT_OF_MEMORY):
        return Lost("its worker process was killed: the machine was out of memory", True)
    if "node has died" in error:
        return Lost("its worker process died with its machine", False)
    if not error or "actor died" in error:
        return Lost("its worker process died", False)
    return Lost(f"its worker failed: {redact(error.strip()).splitlines()[-1]}", False)


def kernel_kills() -> int:
    """How many processes the kernel of this machine has killed for want of memory."""
    kills = 0
    for path in KILL_COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        kills += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return kills
