"""Ray Tune: resources, workers that are used again, retries. This and `cluster` alone know Ray.

A trial is one cell. Cells are handed over one by one, as slots become free, and trials share worker
processes: importing PyTorch and CLIP takes longer than a toy cell, so each worker does it once. The
trials' own outcome (done, failed, why) is in MLflow; Tune only learns that they have ended. Only the
death of a worker is a failure in Tune's sense, and it starts that trial again.
"""

import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from semidavil.config import ConfigError
from semidavil.runtime import available_cpus
from sweeps.cluster import ClusterError, Node, connected, find_nodes, runtime_env
from sweeps.credentials import redact
from sweeps.trial import Later, Task, run_trial

WORKER_DEATHS = 2  # how often a cell is started again after its process was killed
OBJECT_STORE = 80 * 2**20  # bytes; Ray's least: nothing but paths and numbers travels


@dataclass(frozen=True)
class Resources:
    """What each trial gets, and how many run at a time."""

    concurrency: int
    cpus: float
    gpus: float
    address: str | None = None  # of a running Ray cluster; None starts a local one

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def packed(self) -> bool:
        """Trials share a GPU, or, without one, a machine: alone, each would have more memory."""
        return 0 < self.gpus < 1 or (not self.gpus and self.concurrency > 1 and not self.address)

    def of(self, task: Task) -> tune.PlacementGroupFactory:
        """What a task gets: more if it is to run alone."""
        cpus, gpus = self.cpus, self.gpus
        if task.alone and self.packed():
            cpus, gpus = (cpus, 1.0) if gpus else (cpus * self.concurrency, 0.0)
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus}])


class Listener(Protocol):
    """Hears in the driver what becomes of each task; may end one that has told a `value`."""

    def started(self, task: Task) -> None: ...
    def told(self, task: Task, news: dict[str, Any]) -> None: ...
    def stops(self, task: Task, news: dict[str, Any]) -> bool: ...
    def revived(self, task: Task) -> None: ...
    def lost(self, task: Task, reason: str) -> None: ...
    def idle(self) -> None:
        """After every piece of news, when no worker waits for an answer: the time for long work."""


def choose_resources(
    device: str,
    concurrency: int | None,
    cpus: float | None,
    gpus: float | None,
    address: str | None = None,
    world_size: int = 1,
) -> Resources:
    """Fills in what was not asked for: a GPU each where there are some, else a CPU core each.

    Args:
        world_size: processes of one trial, for each of which it gets as much; on one machine.

    Raises:
        ConfigError: not as many GPUs as processes were asked for.
        ClusterError: no machine has room for a single trial.
    """
    if world_size > 1 and gpus and gpus != world_size:
        raise ConfigError(
            f"--gpus-per-trial {gpus:g} with runtime.world_size={world_size}: each process takes one "
            "GPU; leave one of the two out"
        )
    nodes = find_nodes(address) if address else [_this_machine()]
    for_gpus = device.startswith(("auto", "cuda"))
    if gpus is None:
        gpus = float(world_size if for_gpus and any(node.gpus for node in nodes) else 0)
    slots = [node.slots(cpus or (0 if gpus else world_size), gpus) for node in nodes]
    if not any(slots):
        have = "; ".join(f"{x.host} has {x.cpus:g} CPUs, {x.gpus:g} GPUs" for x in nodes)
        raise ClusterError(
            f"no machine has the {cpus or world_size:g} CPUs and {gpus:g} GPUs that each trial takes "
            f"(--cpus-per-trial, --gpus-per-trial): {have}"
        )
    concurrency = concurrency or sum(slots)
    if cpus is None:
        shares = [
            node.cpus // min(room, concurrency)
            for node, room in zip(nodes, slots, strict=True)
            if room
        ]
        cpus = max(world_size, int(min(shares))) if gpus else world_size
    return Resources(concurrency, cpus, gpus, address)


def _this_machine() -> Node:
    import torch

    return Node(socket.gethostname(), available_cpus(), torch.cuda.device_count())


@contextmanager
def started_ray(resources: Resources, train: str) -> Iterator[None]:
    """Ray, local with just the resources that the trials take, or the cluster at `address`.

    Args:
        train: the training function as `module:function`; its code goes to the cluster with ours.
    """
    if resources.address:
        options: dict[str, Any] = {"runtime_env": runtime_env(train)}
    else:
        options = {
            "num_cpus": max(1, round(resources.concurrency * resources.cpus)),
            "num_gpus": -int(-resources.concurrency * resources.gpus // 1),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    with connected(resources.address, **options):
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        yield


def run_tasks(
    next_task: Callable[[], Task | Later | None], listener: Listener, resources: Resources
) -> None:
    """Runs tasks until `next_task` has no more. Ray must be up.

    Args:
        next_task: a task, None when there are no more, or `LATER` while one that is running may
            have to be run again.

    Raises:
        KeyboardInterrupt: Ctrl-C or a SIGTERM; trials may still be running until Ray is shut down.
    """
    scratch = tempfile.mkdtemp(prefix="semidavil-tune-")
    trainable = tune.with_resources(
        _trainable, lambda config: resources.of(Task.from_json(config["task"]))
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Cells(next_task),
                scheduler=_Scheduler(listener),
                num_samples=-1,
                max_concurrent_trials=resources.concurrency,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[_Callback(listener)],
                failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
            ),
        ).fit()
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(scratch, ignore_errors=True)


def _trainable(config: dict[str, Any]) -> None:
    run_trial(Task.from_json(config["task"]), tune.report)


def _trial_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


class _DriverOnly:
    """Tune saves its parts for a restore, which here is the same command again: nothing to save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Cells(_DriverOnly, Searcher):
    """Gives Tune the next task whenever it has a slot free."""

    def __init__(self, next_task: Callable[[], Task | Later | None]) -> None:
        super().__init__()
        self.next_task = next_task

    def suggest(self, trial_id: str) -> Any:
        task = self.next_task()
        if isinstance(task, Later):
            return None
        return Searcher.FINISHED if task is None else {"task": task.to_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("repeat the sweep's command instead of restoring it")


class _Scheduler(_DriverOnly, FIFOScheduler):
    """First come, first served, until the listener ends a task early."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ends = "value" in result and self.listener.stops(_task_of(trial), result)
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE


class _Callback(_DriverOnly, tune.Callback):
    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.started(_task_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "state" in result:
            self.listener.told(_task_of(trial), result)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.listener.idle()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.revived(_task_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error() or "no reason known"
        self.listener.lost(
            _task_of(trial), f"its worker process died: {redact(str(error).strip())}"
        )


def _task_of(trial: Any) -> Task:
    return Task.from_json(trial.config["task"])
