"""What travels between a sweep and its workers: a `Task` out, typed events back, both as JSON.

A worker sends `Progress` while it trains and ends with one of `Done`, `Failed`, `Taken` and `Halted`.
`Lost` is the engine's, for a worker that can no longer send anything. Nothing else comes back.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import get_args

TRAIN = "semidavil.train:train"
# Phases of a worker.
STARTING, TRAINING, EVALUATION, SAVING = "starting", "training", "evaluation", "saving"


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to train one cell."""

    name: str  # the cell's, for people
    params: dict[str, str]  # the Config, flat; see `Config.to_params`
    run_id: str  # the MLflow run to log into; the driver has created it
    epoch: int  # the fencing token of the lease under which it is trained; see `sweeps.track.lease`
    tracking_uri: str  # of the store that has the run
    workspace: str  # address of the run's folder or of its copy; see `sweeps.keep.storage`
    logged_step: int = 0  # the last step that an earlier attempt has logged
    seconds: float = 0.0  # the training time of earlier attempts
    # `module:function` with the signature and the behaviour of `semidavil.train.train`:
    # (config, report, checkpoint_dir) -> Result, continuing from `checkpoint_dir`.
    train: str = TRAIN
    exclusive: bool = False  # it ran out of memory beside others, and gets a whole GPU or machine
    gpus: float = 0.0  # how many the trial gets, or its share of one; 0 on a CPU
    # The plugins that the Config uses, as the sweep has read them: files by name, texts by path.
    plugins: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return cls(**json.loads(text))


class Failure(StrEnum):
    """Why a training has failed, as far as it matters for trying it again."""

    # The loss is not finite, or the score is undefined: it would be so again, in any sweep.
    DIVERGED = "diverged"
    MISTAKE = "mistake"  # the code of a plugin is wrong, and would fail in the same way
    INPUT = "input"  # a file is missing or broken: no use before somebody has mended it
    OTHER_DATA = "other data"  # its checkpoint was trained on other data than are here now
    MEMORY = "memory"  # too little of it beside the others
    OTHER = "other"

    @property
    def is_final(self) -> bool:
        """It is tried again only if somebody asks for it."""
        return self in (Failure.DIVERGED, Failure.MISTAKE)


@dataclass(frozen=True)
class Progress:
    """Where a training is."""

    step: int  # steps done; 0 before the first one
    total: int  # steps in all; 0 while that is not known
    # starting (folder, imports, data), training, evaluation, or saving (results, to the store)
    phase: str = ""
    score: float | None = None  # on the validation set, at steps that measure it
    loss: float | None = None  # of the training, where the step has reported one


@dataclass(frozen=True)
class Done:
    """The training has ended well."""

    score: float  # the benchmark's metric
    latency_ms: float  # milliseconds per image; NaN where nobody measured them
    seconds: float  # training time, earlier attempts included
    delivered: bool  # the tracking store has all of it; else the outbox keeps it
    summary: str  # the score with its name, for people


@dataclass(frozen=True)
class Failed:
    """The training has ended with an error; its run is FAILED in the store if `delivered`."""

    reason: str
    failure: Failure
    delivered: bool


@dataclass(frozen=True)
class Taken:
    """The run is not this sweep's any more: another sweep holds its lease, or it is `gone`."""

    reason: str
    gone: bool = False  # a person has deleted it, so that its cell is not begun again


@dataclass(frozen=True)
class Halted:
    """The training has stopped because it was asked to; its run is still RUNNING in the store.

    The worker is out of the run's folder, and its checkpoint is of the last step that it has trained.
    """

    step: int  # that step; 0 if it has trained none


@dataclass(frozen=True)
class Lost:
    """The worker's process or its machine died; its run is still RUNNING in the store."""

    reason: str
    out_of_memory: bool  # a process was killed for want of memory, by Ray's monitor or the kernel


Event = Progress | Done | Failed | Taken | Halted | Lost
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def event_to_json(event: Event) -> str:
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def event_from_json(text: str) -> Event:
    fields = json.loads(text)
    if "failure" in fields:
        fields["failure"] = Failure(fields["failure"])
    return KINDS[fields.pop("event")](**fields)
