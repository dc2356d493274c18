"""One thread that asks the tracking store, so that Ray Tune's loop never waits for it."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from sweeps.track.retry import RunGone, StoreAway, StoreRefused

Then = Callable[[Any], None] | None  # what gets a call's result
AGAIN_SECONDS = 5.0  # before a store that is away is asked again


class StoreThread:
    """Makes calls one after the other, in order, each until the store has answered it.

    `poll` tells `on_away` once when the store goes away.
    """

    def __init__(self, on_away: Callable[[StoreAway], None]) -> None:
        self.away: StoreAway | None = None
        self._on_away = on_away
        self._away_since = 0.0
        self._calls: queue.Queue[tuple[Callable[[], Any], Then] | None] = queue.Queue()
        self._results: queue.SimpleQueue[tuple[Then, Any]] = queue.SimpleQueue()
        self._pending = 0  # submitted, and their results not yet taken by `poll`
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any], then: Then = None) -> None:
        """Queues a call that bears repetition.

        `then` gets its result, or the `StoreRefused` or `RunGone` that it raised, in `poll`.
        """
        self._pending += 1
        self._calls.put((function, then))

    def poll(self) -> None:
        """Hands results over, in the caller's thread; raises what a call raised and no store explains."""
        while True:
            try:
                then, result = self._results.get_nowait()
            except queue.Empty:
                return
            if isinstance(result, StoreAway):  # its call is made again
                self._on_away(result)
                continue
            self._pending -= 1
            if isinstance(result, Exception) and not isinstance(result, StoreRefused | RunGone):
                raise result
            if then is not None:
                then(result)

    def is_idle(self) -> bool:
        """Every call has come back."""
        return self._pending == 0

    def away_for(self) -> float:
        """Seconds since the store was last heard of; 0 while it answers."""
        return time.monotonic() - self._away_since if self.away else 0.0

    def close(self, seconds: float) -> StoreAway | None:
        """Makes the queued calls within `seconds` and ends the thread; returns why some were not made."""
        self._ending.set()
        self._calls.put(None)
        self._thread.join(seconds)
        self.poll()
        return self.away if self._pending else None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, then = call
            self._results.put((then, self._answer(function)))

    def _answer(self, function: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = function()
            except StoreAway as error:
                if self.away is None:
                    self._away_since = time.monotonic()
                    self._results.put((None, error))
                self.away = error
                time.sleep(0.25 if self._ending.is_set() else AGAIN_SECONDS)
            except Exception as error:  # `poll` raises it, unless the store explains it
                self.away = None
                return error
            else:
                self.away = None
                return answer
