"""A tracking store that is away, refuses, or has lost a run: what every process does about it.

Every call to MLflow goes through a `Patience`, which repeats it while the store does not answer and turns
every error of MLflow into one of three: `StoreAway`, `RunGone`, `StoreRefused`. Used by sweeps and analysis
alike; imports neither Ray nor torch.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from semidavil.full_disk import is_full
from sweeps.track.credentials import redact

PATIENCE = "SEMIDAVIL_PATIENCE"  # seconds that a process waits for a store that is away
PATIENCE_SECONDS = 300.0
LONGEST_PAUSE_SECONDS = 15.0  # between two attempts
LOCKED = "database is locked"
BUSY = (
    "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"
)  # fmt: skip
UNAUTHORISED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
NO_RUN = re.compile(r"\brun\b.*must be in(?: the)? 'active' state", re.IGNORECASE | re.DOTALL)
NO_ANSWER = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.RetryError,  # of a status such as 503, from a proxy or the server
    requests.exceptions.ChunkedEncodingError,
)
STORE_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException, OSError)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the message says what to do."""


class StoreAway(TrackingError):  # noqa: N818 - a state that passes, unlike its base
    """The tracking store does not answer at present."""


class RunGone(TrackingError):  # noqa: N818
    """The run does not exist any more: somebody has deleted it."""


class StoreRefused(TrackingError):  # noqa: N818
    """The tracking store answers, and does not do what it is asked: credentials, sizes, versions."""


class Patience:
    """How long calls wait for a store that is away.

    After one wait in vain, later calls do not wait either, until one has an answer: a command that makes
    ten calls does not wait ten times.

    Without `seconds`, it is SEMIDAVIL_PATIENCE (TrackingError if that is no number), or else five minutes.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = _seconds_of_environment() if seconds is None else seconds
        self._exhausted = False
        self.has_waited = False  # since somebody last looked

    def call(
        self, function: Callable[[], T], errors: tuple[type[Exception], ...] = STORE_ERRORS
    ) -> T:
        """Repeats `function` while the store is away.

        `function` must bear repetition: it may have been the answer that was lost, not the question. Only
        `errors` are translated; other exceptions are faults of this program.

        Raises:
            StoreAway: the patience has run out.
            RunGone: the run was deleted.
            StoreRefused: any other error of the store.
        """
        since, attempts = time.monotonic(), 0
        while True:
            try:
                answer = function()
            except TrackingError:
                raise
            except errors as error:
                if not is_away(error):
                    raise _refusal(error) from None  # its text may hold the address in full
                attempts += 1
                self._pause(error, attempts, time.monotonic() - since)
            else:
                self._exhausted = False
                self.has_waited = self.has_waited or attempts > 0
                if attempts >= 2:
                    logger.warning("the tracking store answers again")
                return answer

    def _pause(self, error: Exception, attempts: int, waited: float) -> None:
        left = (0.0 if self._exhausted else self.seconds) - waited
        if left <= 0:
            self._exhausted = True
            after = f" for {waited:.0f} s" if waited >= 1 else ""
            text = f"the tracking store does not answer{after}: {reason(error)}"
            raise StoreAway(text) from None
        if attempts == 2:  # the first failure is often just an idle connection that was closed
            text = "the tracking store does not answer (%s): waiting up to %.0f s for it"
            logger.warning(text, reason(error), left)
        pause = min(0.25 * 2 ** min(attempts - 1, 10), LONGEST_PAUSE_SECONDS, left)
        time.sleep(pause * random.uniform(0.5, 1.5))


def _seconds_of_environment() -> float:
    text = os.environ.get(PATIENCE, "")
    try:
        return max(0.0, float(text)) if text else PATIENCE_SECONDS
    except ValueError:
        raise TrackingError(f"{PATIENCE}={text} is not a number of seconds") from None


def is_away(error: BaseException | None) -> bool:
    """Whether a call failed for want of an answer, so that the same call may succeed later."""
    if is_full(error):  # until somebody makes room
        return True
    while error is not None:
        if LOCKED in str(error):
            return True
        if isinstance(error, NO_ANSWER):
            return True
        if getattr(error, "error_code", "") in BUSY:
            return "sqlite3" not in str(error)  # a file's errors, unlike a server's, do not pass
        error = error.__cause__ or error.__context__
    return False


def _refusal(error: Exception) -> TrackingError:
    code, text = getattr(error, "error_code", ""), redact(str(error))
    if code == "RESOURCE_DOES_NOT_EXIST" or NO_RUN.search(text):
        return RunGone(f"the run is gone: {reason(error)}")
    if code in UNAUTHORISED:
        return StoreRefused(
            f"the tracking server refuses these credentials ({reason(error)}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here and on "
            "every machine that trains; where a proxy stands before it, ask who runs it"
        )
    return StoreRefused(f"the tracking store refuses: {reason(error)}")


def reason(error: BaseException) -> str:
    """Why there was no answer, in a line without passwords."""
    text = redact(str(error))
    if is_full(error):
        return "its disk is full; free some space"
    if LOCKED in text:
        return "another program holds its database locked"
    for pattern in (r"\[Errno -?\d+\] [\w ]+", r"too many \d+ error responses", r"timed out"):
        if found := re.search(pattern, text):
            return found[0]
    return text.splitlines()[0][:300] if text else type(error).__name__


def check_server(uri: str) -> None:
    """Asks a server one question without patience; other stores pass.

    Raises StoreAway if it does not answer, or not as MLflow; StoreRefused if it wants other credentials.
    """
    if not uri.startswith(("http://", "https://")):
        return
    address = redact(uri)
    remedy = (
        f"the tracking server {address} (MLFLOW_TRACKING_URI) cannot be used: %s. Check that it runs, that "
        "the address and port are right, and that this machine reaches it "
        f"(curl {address.rstrip('/')}/health says OK); deploy/README.md starts one"
    )
    try:
        Patience(0).call(lambda: MlflowClient(uri).search_experiments(max_results=1))
    except StoreAway as error:
        why = str(error).partition(": ")[2]
        if "503" in why:
            why += ", as if its database were away"
        raise StoreAway(remedy % why) from None
    except StoreRefused as error:
        if "credentials" in str(error):
            raise StoreRefused(f"{address}: {error}") from None
        raise StoreAway(remedy % f"it answers, not as MLflow ({error})") from None
