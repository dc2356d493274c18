"""What people ask of a sweep while its data and captions are prepared, which may take hours.

The preparation has the main thread. Another one looks at what is asked, and interrupts the first as a Ctrl-C
would: what is prepared already is kept, and the next try goes on from there.
"""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self, TypeVar

from rich.markup import escape

from sweeps.show.overview import Overview
from sweeps.stopping import AskedToStop
from sweeps.track.lease import SIGN_SECONDS
from sweeps.track.retry import RunGone, TrackingError
from sweeps.track.store import Store
from sweeps.track.wishes import Wishes

LOOK_SECONDS = 5.0  # between two looks
INTERRUPT = signal.SIGUSR2  # of this process to itself; nobody else's means anything here

T = TypeVar("T")


class _Interrupted(KeyboardInterrupt):
    """Somebody asks for something meanwhile."""


class Listening:
    """Looks at what is asked of the sweeps of `overviews`, and gives signs of life for them.

    One of them that is told to stop ends the command; all that are paused keep it waiting. Outside of the
    main thread nothing is interrupted, and people are heard between two pieces of work.
    """

    def __init__(
        self, store: Store, overviews: Sequence[Overview], say: Callable[[str], None]
    ) -> None:
        self._store, self._overviews, self._say = store.within(0), overviews, say
        self._asked = [one.wishes.since(one.wishes) for one in overviews]
        self._at_work = self._interrupted = False
        self._looked, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="listening", daemon=True)
        self._main = threading.main_thread()
        self._in_main = threading.current_thread() is self._main

    def __enter__(self) -> Self:
        if self._in_main:
            self._before = signal.signal(INTERRUPT, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._in_main:  # no signal of the thread is under way any more
            signal.signal(INTERRUPT, self._before)

    def during(self, work: Callable[[], T]) -> T:
        """What `work` returns. After a pause it is done once more, from its beginning.

        Raises AskedToStop if somebody tells the sweep to stop.
        """
        while True:
            self._wait_while_paused()
            self._interrupted, self._at_work = False, True
            try:
                return work()
            except BaseException as error:
                # An import that is interrupted may raise an error of its own.
                by_others = isinstance(error, KeyboardInterrupt) and type(error) is not _Interrupted
                if by_others or not self._interrupted:
                    raise
            finally:
                self._at_work = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._at_work and not self._interrupted:
            self._interrupted = True
            raise _Interrupted

    def _wait_while_paused(self) -> None:
        waited = False
        while True:
            self._looked.clear()
            for asked in self._asked:
                if asked.stop:
                    raise AskedToStop(asked.stopped_by)
            if not self._paused():
                break
            if not waited:
                self._say(
                    f"[yellow]paused by {escape(self._asked[0].paused)}:[/] the preparation goes on after "
                    "python -m sweeps resume"
                )
            waited = True
            self._looked.wait()
        if waited:
            self._say("resumed")

    def _paused(self) -> bool:
        return bool(self._asked) and all(asked.paused for asked in self._asked)

    def _watch(self) -> None:
        next_sign = 0.0
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._asked = [self._read(one) for one in self._overviews]
                if time.monotonic() >= next_sign:
                    next_sign = time.monotonic() + SIGN_SECONDS
                    self._store.keep_alive([one.run_id for one in self._overviews])
            except TrackingError:  # it is prepared meanwhile
                continue
            finally:
                self._looked.set()
            wanted = self._paused() or any(asked.stop for asked in self._asked)
            if wanted and self._at_work and self._in_main and self._main.ident:
                signal.pthread_kill(self._main.ident, INTERRUPT)

    def _read(self, one: Overview) -> Wishes:
        try:
            return Wishes.of(self._store.run(one.run_id).tags).since(one.wishes)
        except RunGone:  # somebody has deleted the overview
            return Wishes()
