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
from dataclasses import asdict, dataclass, field

from semidavil.config import Config
from sweeps.track.once import WriteOnce
from sweeps.track.provenance import owner_is_dead, owner_tags
from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

LEASE_SECONDS = 300.0  # without a sign of life, after which a lease of another machine has expired
SIGN_SECONDS = 60.0  # between two signs of life of a run that has nothing to log


def is_held(run: TrackedRun, now: float) -> bool:
    """Whether somebody is at work on a run, `now` in seconds since 1970."""
    return run.is_open and not has_died(run.tags, run.last_seen, now)


def has_died(owner: Mapping[str, str], last_seen: float, now: float) -> bool:
    """Whether the process of `owner_tags` has ended; on another machine, whether it is silent."""
    dead = owner_is_dead(owner)
    return now - last_seen > LEASE_SECONDS if dead is None else dead


@dataclass(frozen=True)
class Claimed:
    """The lease is ours."""

    run_id: str  # the cell's run, open
    epoch: int  # the fencing token
    logged_step: int = 0  # what the store has of earlier attempts
    seconds: float = 0.0  # their training time


@dataclass(frozen=True)
class Held:
    """Another sweep has the cell."""

    reason: str = "another sweep has begun it"


@dataclass
class _Token:
    """What a claim writes: who, when (in seconds since 1970), and which claim."""

    owner: dict[str, str] = field(default_factory=owner_tags)
    at: float = 0.0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def is_of(self, run: TrackedRun) -> bool:
        """Whether this claim has opened the run."""
        return run.tags.get("lease") == self.id


class Leases:
    """The leases of this process, which are kept in `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._once = WriteOnce(store)
        # Of claims that have not come through, by key: the same token may be written again.
        self._tokens: dict[str, _Token] = {}
        self._won: dict[str, int] = {}  # the epochs of those that are ours already

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
        token = self._tokens.setdefault(key, _Token())
        result: Claimed | Held
        while True:
            won = self._win(key, token)
            if isinstance(won, Held):
                result = won
                break
            epoch, unfinished = won
            mine = {"key": key, "lease": token.id, "epoch": str(epoch), **tags, **owner_tags()}
            try:
                if unfinished:
                    result = self._continue(unfinished, config, mine)
                else:
                    new = {"attempts": "1", **mine}
                    run_id = self.store.create_run(experiment_id, name, config, new, parent)
                    result = Claimed(run_id, epoch)
                self.store.attach(result.run_id)
                break
            except RunGone as error:
                if not unfinished:
                    raise StoreRefused(f"no run can be created: {error}") from None
                # Else somebody deletes what was to be continued.
        del self._tokens[key]
        self._won.pop(key, None)
        return result

    def _win(self, key: str, token: _Token) -> tuple[int, list[TrackedRun]] | Held:
        """The epoch that is ours now, and the runs that may be continued under it."""
        fresh = False
        while True:
            runs = self.store.runs(key, deleted=True, fresh=fresh)
            fresh = True
            if held := _holder(runs, token, self._won.get(key, 0)):
                return held
            epoch = self._next_epoch(key, token, runs)
            if isinstance(epoch, Held):
                return epoch
            if epoch:
                # Again under the lease: a run may have been delivered meanwhile, or opened by a later holder.
                runs = self.store.runs(key, fresh=False)
                return _holder(runs, token, epoch) or (epoch, runs)

    def _next_epoch(self, key: str, token: _Token, runs: Sequence[TrackedRun]) -> int | Held:
        """The epoch that is ours now; 0 where the runs must be read again first."""
        ours = [run.epoch for run in runs if token.is_of(run)]
        epoch = ours[0] if ours else 1 + max((run.epoch for run in runs), default=0)
        while True:
            # A claim that waited for the store is not as old as its first try.
            token.at = time.time()
            text = self._once.put(f"{key}.{epoch}", json.dumps(asdict(token)))
            holder = _Token(**json.loads(text))
            if holder.id == token.id:
                self._won[key] = epoch
                return epoch
            if any(run.epoch >= epoch for run in self.store.runs(key, deleted=True)):
                return 0  # the holder has opened its run meanwhile, or even ended it
            # Without a run, there is no other sign of life than the claim itself.
            if not has_died(holder.owner, holder.at, time.time()):
                return Held()
            epoch += 1

    def _continue(
        self, runs: Sequence[TrackedRun], config: Config, tags: Mapping[str, str]
    ) -> Claimed:
        # Of several, which older versions may have left, the one that has got furthest goes on.
        run, *surplus = sorted(runs, key=lambda run: (-run.epoch, -run.progress.step))
        for other in surplus:
            self.store.delete(other.run_id)
        attempts = int(run.tags.get("attempts", "0")) + (run.tags.get("lease") != tags["lease"])
        changed = {
            f"{name}_before": run.tags.get(name, "unknown")
            for name in ("commit", "changes")
            if run.tags.get(name) != tags.get(name)
        }
        ended = {"reason": "", "retry": "", "stopped_early": ""}  # how the attempt before has
        # It may have been silent for longer than others wait.
        alive = str(int(time.time()))
        mine = {"attempts": str(attempts), "alive": alive, "grid": run.made_by}
        self.store.continue_run(run, config, {**ended, **changed, **tags, **mine})
        return Claimed(run.run_id, int(tags["epoch"]), run.progress.step, run.progress.seconds)


def _holder(runs: Sequence[TrackedRun], token: _Token, won: int) -> Held | None:
    """Who else has the cell, by its runs; an open run of a lease before `won` has lost it."""
    now = time.time()
    for run in runs:
        if run.deleted or token.is_of(run):
            continue
        if run.status == "FINISHED":
            return Held("another sweep has finished it")
        if run.epoch >= won and is_held(run, now):
            return Held()
    return None
