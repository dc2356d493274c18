"""Whose a cell is: exactly one sweep holds its lease.

A lease is a param `KEY.EPOCH` that MLflow lets only one process write (`WriteOnce`). The epoch is the
lease's fencing token: the run, its worker, its outbox and its folder's copies carry it, and whoever finds
a higher epoch on the run has lost the cell. A holder that has died is followed by the next epoch. It has
died if its process is gone or, on another machine, if its run has given no sign of life for `LEASE_SECONDS`.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from semidavil.config import Config
from sweeps.track.once import WriteOnce
from sweeps.track.provenance import owner_is_dead, owner_tags
from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

LEASE_SECONDS = 300.0  # without a sign of life, after which a lease of another machine has expired
SIGN_SECONDS = 60.0  # between two signs of life of a run that has nothing to log


class LeaseState(StrEnum):
    HELD = "held"
    EXPIRED = "expired"  # the run is open, but its holder has died
    ENDED = "ended"


def lease_state(run: TrackedRun, now: float) -> LeaseState:
    """Whether somebody is at work on a run, `now` in seconds since 1970."""
    if not run.is_open:
        return LeaseState.ENDED
    return LeaseState.EXPIRED if has_died(run.tags, run.last_seen, now) else LeaseState.HELD


def has_died(owner: Mapping[str, str], last_seen: float, now: float) -> bool:
    """Whether the process of `owner_tags` has ended; on another machine, whether it is silent."""
    dead = owner_is_dead(owner)
    return now - last_seen > LEASE_SECONDS if dead is None else dead


@dataclass(frozen=True)
class Claimed:
    """The lease is ours.

    Attributes:
        run_id: the cell's run, open.
        epoch: the fencing token.
        logged_step, seconds: what the store has of earlier attempts, and their training time.
    """

    run_id: str
    epoch: int
    logged_step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Held:
    """Another sweep has the cell.

    Attributes:
        run: that tells it; None while its holder has not opened one.
        finished: the cell is done.
    """

    run: TrackedRun | None = None
    finished: bool = False
    reason: str = "another sweep has begun it"


@dataclass(frozen=True)
class _Token:
    """What a claim writes: who, when (in seconds since 1970), and which claim."""

    owner: dict[str, str]
    at: float
    id: str

    @classmethod
    def new(cls) -> "_Token":
        return cls(owner_tags(), time.time(), uuid.uuid4().hex)

    @classmethod
    def parse(cls, text: str) -> "_Token":
        return cls(**json.loads(text))

    def text(self) -> str:
        """As it is written now: a claim that waited for the store is not as old as its first try."""
        return json.dumps(asdict(replace(self, at=time.time())))

    def is_of(self, run: TrackedRun) -> bool:
        """Whether this claim has opened the run."""
        return run.tags.get("lease") == self.id


@dataclass
class Leases:
    """The leases of this process.

    Attributes:
        store: where the leases are kept.
    """

    store: Store
    # Of claims that have not come through, by key: the same token may be written again.
    _tokens: dict[str, _Token] = field(default_factory=dict)
    _won: dict[str, int] = field(default_factory=dict)  # the epochs of those that are ours already

    def __post_init__(self) -> None:
        self._once = WriteOnce(self.store)

    def claim(
        self,
        experiment_id: str,
        name: str,
        config: Config,
        tags: Mapping[str, str],
        parent: str = "",
    ) -> Claimed | Held:
        """The lease of a cell with an open run, which continues an unfinished one where there is one.

        Args:
            name: of a new run; `parent` is the run that it is shown below.
            tags: of the run, besides key, lease, epoch and owner.

        Raises:
            StoreAway: the same claim may be made again.
            StoreRefused: as of every call.
        """
        key = config.key()
        token = self._tokens.setdefault(key, _Token.new())
        result = self._claim(key, token, experiment_id, name, config, tags, parent)
        del self._tokens[key]
        self._won.pop(key, None)
        return result

    def _claim(
        self,
        key: str,
        token: _Token,
        experiment_id: str,
        name: str,
        config: Config,
        tags: Mapping[str, str],
        parent: str,
    ) -> Claimed | Held:
        fresh = False
        while True:
            runs = self.store.runs(key, deleted=True, fresh=fresh)
            others = [run for run in runs if not (run.deleted or token.is_of(run))]
            if held := _holder(others, self._won.get(key, 0)):
                return held
            epoch = self._next_epoch(key, token, runs)
            if isinstance(epoch, Held):
                return epoch
            fresh = True
            if not epoch:
                continue
            # Again under the lease: a run may have been delivered, or opened by a later holder, meanwhile.
            runs = [run for run in self.store.runs(key, fresh=False)]
            others = [run for run in runs if not token.is_of(run)]
            if held := _holder(others, epoch):
                return held
            mine = {"key": key, "lease": token.id, "epoch": str(epoch), **tags, **owner_tags()}
            try:
                return self._open(runs, mine, experiment_id, name, config, parent)
            except RunGone as error:
                if not runs:
                    raise StoreRefused(f"no run can be created: {error}") from None
                # Else somebody deletes what was to be continued.

    def _next_epoch(self, key: str, token: _Token, runs: Sequence[TrackedRun]) -> int | Held:
        """The epoch that is ours now; 0 where the runs must be read again first."""
        ours = [run.epoch for run in runs if token.is_of(run)]
        epoch = ours[0] if ours else 1 + max((run.epoch for run in runs), default=0)
        while True:
            holder = _Token.parse(self._once.put(f"{key}.{epoch}", token.text()))
            if holder.id == token.id:
                self._won[key] = epoch
                return epoch
            if any(run.epoch >= epoch for run in self.store.runs(key, deleted=True)):
                return 0  # the holder has opened its run meanwhile, or even ended it
            # Without a run, there is no other sign of life than the claim itself.
            if not has_died(holder.owner, holder.at, time.time()):
                return Held()
            epoch += 1

    def _open(
        self,
        runs: Sequence[TrackedRun],
        tags: Mapping[str, str],
        experiment_id: str,
        name: str,
        config: Config,
        parent: str,
    ) -> Claimed:
        epoch = int(tags["epoch"])
        # Of several, which older versions may have left, the one that has got furthest goes on.
        unfinished = sorted(runs, key=lambda run: (-run.epoch, -run.progress.step))
        for surplus in unfinished[1:]:
            self.store.delete(surplus.run_id)
        if unfinished:
            run = unfinished[0]
            step, seconds = run.progress.step, run.progress.seconds
            continued = {**_continued(run, tags), "grid": run.tags.get("grid") or run.experiment}
            run_id = self.store.continue_run(run, config, continued)
        else:
            step, seconds = 0, 0.0
            new = {"attempts": "1", **tags}
            run_id = self.store.create_run(experiment_id, name, config, new, parent)
        self.store.attach(run_id)
        return Claimed(run_id, epoch, step, seconds)


def _continued(run: TrackedRun, tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run's next attempt."""
    attempts = int(run.tags.get("attempts", "0")) + (run.tags.get("lease") != tags["lease"])
    changed = {
        f"{name}_before": run.tags.get(name, "unknown")
        for name in ("commit", "changes")
        if run.tags.get(name) != tags.get(name)
    }
    # It may have been silent for longer than others wait.
    alive = str(int(time.time()))
    ended = {"reason": "", "retry": "", "stopped_early": ""}  # how the attempt before has
    return {**ended, **changed, **tags, "attempts": str(attempts), "alive": alive}


def _holder(runs: Sequence[TrackedRun], won: int) -> Held | None:
    """Who has the cell already, by its runs; an open run of a lease before `won` has lost it."""
    now = time.time()
    for run in runs:
        if run.status == "FINISHED":
            return Held(run, finished=True, reason="another sweep has finished it")
        if run.epoch >= won and lease_state(run, now) is LeaseState.HELD:
            return Held(run)
    return None
