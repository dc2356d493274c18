"""Tells somebody who is elsewhere how a sweep is doing: JSON to an address, or a command.

    --notify https://hooks.slack.com/services/...     # {"event": "failed", "text": "...", ...}
    --notify 'echo "$SEMIDAVIL_TEXT" | mail -s "$SEMIDAVIL_EVENT" me@lab'

Events: `failed` (a run was given up), `stalled` (no progress for long), `stopped` and `finished`. A thread
sends them. What cannot be sent is said once, and never harms the sweep.
"""

import json
import os
import queue
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

SEND_SECONDS = 10.0  # for an address to answer
COMMAND_SECONDS = 60.0  # for a command to end
CLOSING_SECONDS = 15.0  # that the end of the sweep waits for what is not sent yet

Field = str | int | float


class Notify(Protocol):
    def __call__(self, event: str, text: str, **fields: Field) -> None:
        """Queues an event, which `text` says in a sentence; does not wait."""


def quiet(event: str, text: str, **fields: Field) -> None:
    """Of a sweep that notifies nobody."""


class Notifier:
    """Sends events to `target`, an address or a command of the shell; `say` prints what goes wrong."""

    def __init__(self, target: str, about: dict[str, Field], say: Callable[[str], None]) -> None:
        self.target, self.about, self._say = target, about, say
        self._failed = False
        self._events: queue.Queue[dict[str, Field] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._thread.start()

    def __call__(self, event: str, text: str, **fields: Field) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        first: dict[str, Field] = {"event": event, "text": text, "time": now}
        self._events.put({**first, "host": socket.gethostname(), **self.about, **fields})

    def close(self) -> None:
        """Waits a little for what is not sent yet."""
        self._events.put(None)
        self._thread.join(CLOSING_SECONDS)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._send(event)
            except Exception as error:  # whatever it is, the sweep goes on
                if not self._failed:
                    self._failed = True
                    # Addresses of hooks are secrets, and errors of commands hold the command.
                    self._say(f"--notify does not work ({type(error).__name__}: {_why(error)})")

    def _send(self, event: dict[str, Field]) -> None:
        if self.target.startswith(("http://", "https://")):
            request = urllib.request.Request(
                self.target,
                json.dumps(event).encode(),
                {"Content-Type": "application/json", "User-Agent": "semidavil"},
            )
            urllib.request.urlopen(request, timeout=SEND_SECONDS).close()
            return
        variables = {f"SEMIDAVIL_{name.upper()}": str(value) for name, value in event.items()}
        subprocess.run(
            self.target, shell=True, check=True, env=os.environ | variables, timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the sweep's
        )  # fmt: skip


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command did not end within {error.timeout:.0f} s"
    return str(getattr(error, "reason", error))[:200]
