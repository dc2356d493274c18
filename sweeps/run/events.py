"""What travels between a sweep and its workers: a `Task` out, typed events back, both as JSON.

A worker sends `Progress` while it trains and ends with one of `Done`, `Failed`, `Taken` and `Halted`.
`Lost` is the engine's, for a worker that can no longer send anything. Nothing else comes back.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

TRAIN = "semidavil.train:train"
STARTING, TRAINING, SAVING = "starting", "training", "saving"  # phases of a worker


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to train one cell.

    Attributes:
        name: the cell's readable name.
        params: the Config, flat; see `Config.to_params`.
        run_id: the MLflow run to log into; the driver has created it.
        epoch: the fencing token of the lease under which the run is trained; see `sweeps.track.lease`.
        tracking_uri: of the store that has the run.
        workspace: address of the run's folder or of its copy; see `sweeps.keep.storage`.
        logged_step: the last step that an earlier attempt has logged.
        seconds: the training time of earlier attempts.
        train: `module:function` with the signature and the behaviour of `semidavil.train.train`:
            (config, report, checkpoint_dir) -> Result, continuing from `checkpoint_dir`.
        exclusive: the cell ran out of memory beside others, and gets a whole GPU or machine.
        gpus: how many the trial gets, or its share of one; 0 on a CPU.
    """

    name: str
    params: dict[str, str]
    run_id: str
    epoch: int
    tracking_uri: str
    workspace: str
    logged_step: int = 0
    seconds: float = 0.0
    train: str = TRAIN
    exclusive: bool = False
    gpus: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return cls(**json.loads(text))


class Failure(StrEnum):
    """Why a training has failed, as far as it matters for trying it again."""

    DIVERGED = "diverged"  # the loss is not finite: it would be so again, in any sweep
    INPUT = "input"  # a file is missing or broken: no use before somebody has mended it
    MEMORY = "memory"  # too little of it beside the others
    OTHER = "other"


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Attributes:
        step: steps done; 0 before the first one.
        total: steps in all; 0 while that is not known.
        phase: `starting` (folder, imports, data), `training` or `saving` (results, to the store).
        score: the benchmark's metric on the validation set, at steps that measure it.
        loss: the training loss, where the step has reported one.
    """

    step: int
    total: int
    phase: str = ""
    score: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Done:
    """The training has ended well.

    Attributes:
        score: the benchmark's metric.
        latency_ms: milliseconds per image; NaN where nobody measured them.
        seconds: training time, earlier attempts included.
        delivered: the tracking store has all of it; else the outbox keeps it for `sweeps.track.deliver`.
        summary: the score with its name, for people.
    """

    score: float
    latency_ms: float
    seconds: float
    delivered: bool
    summary: str


@dataclass(frozen=True)
class Failed:
    """The training has ended with an error; its run is FAILED in the store if `delivered`."""

    reason: str
    failure: Failure
    delivered: bool


@dataclass(frozen=True)
class Taken:
    """The run is not this sweep's any more.

    Attributes:
        gone: a person deleted it (`RunGone`), so that its cell is not begun again; else another sweep holds
            its lease.
    """

    reason: str
    gone: bool = False


@dataclass(frozen=True)
class Halted:
    """The training has stopped because it was asked to; its run is still RUNNING in the store.

    The worker is out of the run's folder, and its checkpoint is of the last step that it has trained.

    Attributes:
        step: that step; 0 if it has trained none.
    """

    step: int


@dataclass(frozen=True)
class Lost:
    """The worker's process or its machine died; its run is still RUNNING in the store.

    Attributes:
        out_of_memory: Ray's memory monitor or the kernel killed a process for want of memory.
    """

    reason: str
    out_of_memory: bool


Event = Progress | Done | Failed | Taken | Halted | Lost
KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind for kind in (Progress, Done, Failed, Taken, Halted, Lost)
}


def event_to_json(event: Event) -> str:
    return json.dumps({"event": type(event).__name__.lower(), **asdict(event)})


def event_from_json(text: str) -> Event:
    fields = json.loads(text)
    if "failure" in fields:
        fields["failure"] = Failure(fields["failure"])
    return KINDS[fields.pop("event")](**fields)
