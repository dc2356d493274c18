"""What people ask of running sweeps, from any machine that reaches the tracking store.

A wish is a tag of a grid's overview. A sweep reads its overview every few seconds; while the store is away,
it just goes on. `stop` and `retry` are events, told apart by a token: a sweep does what is asked after it has
begun. `pause` is a state, which lasts until `resume`.
"""

import getpass
import json
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

STOP, PAUSED, RETRY = "wish_stop", "wish_paused", "wish_retry"  # tags of an overview
ASKED = "asked"  # the tag `retry` of a run that has failed and is to be tried again
REMEMBERED = 50  # of the last retries: a tag's value has a limit


@dataclass(frozen=True)
class Wishes:
    """What is asked of the sweeps of one overview now."""

    stop: str = ""  # the last one: a token, and who has asked for it
    paused: str = ""  # who has paused them; empty: nobody
    retries: tuple[str, ...] = ()  # tokens: the key of a cell, a dot, and what tells it apart

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> "Wishes":
        """From an overview's tags, which people can edit."""
        try:
            retries = tuple(map(str, json.loads(tags.get(RETRY) or "[]")))
        except (ValueError, TypeError):
            retries = ()
        return cls(tags.get(STOP, ""), tags.get(PAUSED, ""), retries)

    def since(self, earlier: "Wishes") -> "Wishes":
        """Without the events that there were already `earlier`."""
        new = tuple(one for one in self.retries if one not in earlier.retries)
        return replace(self, stop="" if self.stop == earlier.stop else self.stop, retries=new)

    @property
    def stopped_by(self) -> str:
        return self.stop.partition(" ")[2]

    @property
    def keys(self) -> list[str]:
        """Of the cells that are to be tried again."""
        return [token.partition(".")[0] for token in self.retries]


NOTHING = Wishes()


def asker() -> str:
    """`ada@host`: who asks."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user without a name
        return socket.gethostname()


def _token() -> str:
    return uuid.uuid4().hex[:8]


def ask_to_stop(store: Store, overview: TrackedRun) -> None:
    store.log(overview.run_id, tags={STOP: f"{_token()} {asker()}"})


def ask_to_pause(store: Store, overview: TrackedRun, paused: bool) -> None:
    """Pauses, or resumes."""
    store.log(overview.run_id, tags={PAUSED: asker() if paused else ""})


def ask_to_retry(store: Store, overviews: Sequence[TrackedRun], run: TrackedRun) -> None:
    """Also without a running sweep: the next one finds the run's tag."""
    store.log(run.run_id, tags={"retry": ASKED})
    # The same in each: a sweep of several grids that share the run tries it once.
    wish = f"{run.key}.{_token()}"
    for overview in overviews:
        before = Wishes.of(store.run(overview.run_id).tags).retries
        wished = [*before, wish][-REMEMBERED:]
        store.log(overview.run_id, tags={RETRY: json.dumps(wished)})
