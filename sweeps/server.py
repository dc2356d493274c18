"""A tracking server that is slow, away, or wants a password: what every process does about it.

Used by sweeps and analysis alike; imports neither Ray nor torch.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from semidavil.disk import is_full
from sweeps.credentials import redact

PATIENCE = "SEMIDAVIL_PATIENCE"  # seconds that a process waits for a store that is away
PATIENCE_SECONDS = 300.0
PROBE_SECONDS = 5  # for a server to answer the first question
LONGEST_PAUSE = 15.0  # seconds between two attempts
LOCKED = "database is locked"

T = TypeVar("T")
log = logging.getLogger(__name__)
_patience: list[float] = []  # of the `patience_of` around, the innermost last
_given_up = False  # after a wait in vain: the next calls do not wait, until one has an answer


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the message says what to do."""


class StoreAway(TrackingError):  # noqa: N818 - a state that passes, unlike its base
    """The tracking store does not answer at present."""


def check_server(uri: str) -> None:
    """Asks a server one question, briefly; other stores pass.

    Raises:
        StoreAway: it does not answer, or is not an MLflow server.
        TrackingError: it wants other credentials.
    """
    if not uri.startswith(("http://", "https://")):
        return
    remedy = (
        f"the tracking server {redact(uri)} (MLFLOW_TRACKING_URI) cannot be used: %s. Check that it "
        "runs, that the address and port are right, and that this machine reaches it "
        f"(curl {redact(uri).rstrip('/')}/health says OK); deploy/README.md starts one"
    )
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=PROBE_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise StoreAway(remedy % reason(error)) from None  # its text has the address in full
    if answer.status_code in (401, 403):
        raise TrackingError(
            f"the tracking server {redact(uri)} refuses these credentials "
            f"({answer.status_code} {answer.reason}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here and on every machine that "
            "trains"
        )
    try:
        known = answer.ok and isinstance(answer.json(), dict)
    except requests.exceptions.JSONDecodeError:
        known = False
    if not known:
        why = "as if its database were away" if answer.status_code == 503 else "not as MLflow"
        raise StoreAway(remedy % f"it answers {answer.status_code} {answer.reason}, {why}")


def is_away(error: BaseException | None) -> bool:
    """Whether a call failed for want of an answer, so that the same call may succeed later."""
    if isinstance(error, TrackingError):  # somebody has waited already, or need not
        return False
    if is_full(error):  # until somebody makes room
        return True
    while error is not None:
        if isinstance(
            error,
            requests.exceptions.ConnectionError
            | requests.exceptions.Timeout
            | requests.exceptions.RetryError  # of a status such as 503, from a proxy or the server
            | requests.exceptions.ChunkedEncodingError,
        ):
            return True
        if getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE":
            return "sqlite3" not in str(error)  # a database server; a file's errors do not pass
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException) -> str:
    """Why there was no answer, in a line without passwords."""
    text = redact(str(error))
    if is_full(error):
        return "its disk is full; free some space"
    for pattern in (r"\[Errno -?\d+\] [\w ]+", r"too many \d+ error responses", r"timed out"):
        if found := re.search(pattern, text):
            return found[0]
    return text.splitlines()[0][:300] if text else type(error).__name__


def patience() -> float:
    """Seconds to wait for a store that is away.

    Raises:
        TrackingError: SEMIDAVIL_PATIENCE is not a number.
    """
    if _given_up:
        return 0.0
    if _patience:
        return _patience[-1]
    text = os.environ.get(PATIENCE, "")
    try:
        return max(0.0, float(text)) if text else PATIENCE_SECONDS
    except ValueError:
        raise TrackingError(f"{PATIENCE}={text} is not a number of seconds") from None


@contextmanager
def patience_of(seconds: float) -> Iterator[None]:
    """Another patience for the calls within."""
    _patience.append(seconds)
    try:
        yield
    finally:
        _patience.pop()


def patiently(call: Callable[[], T], attempts: int = 8, pause: float = 0.25) -> T:
    """Repeats a call that found the database locked, or the store away.

    A locked database is tried `attempts` times, with pauses that grow to half a minute; a store that
    is away for as long as `patience` says. Calls must bear repetition: it may have been the answer
    that was lost, not the question.

    Raises:
        StoreAway: patience has run out.
    """
    global _given_up
    since, locked, away = time.monotonic(), 0, 0
    while True:
        try:
            answer = call()
        except Exception as error:
            if isinstance(error, MlflowException) and LOCKED in str(error):
                locked += 1
                if locked >= attempts:
                    raise
                wait = pause * 2 ** (locked - 1)
            elif is_away(error):
                away += 1
                waited = time.monotonic() - since
                left = patience() - waited
                if left <= 0:
                    _given_up = not _patience
                    after = f" for {waited:.0f} s" if waited >= 1 else ""
                    text = f"the tracking store does not answer{after}: {reason(error)}"
                    raise StoreAway(text) from None  # the cause has the address in full
                wait = min(pause * 2 ** min(away - 1, 10), LONGEST_PAUSE, left)
                if away == 2:  # once is an idle connection that was closed
                    text = "the tracking store does not answer (%s): waiting up to %.0f s for it"
                    log.warning(text, reason(error), left)
            else:
                raise
            time.sleep(wait * random.uniform(0.5, 1.5))
        else:
            _given_up = False
            if away >= 2:
                log.warning("the tracking store answers again")
            return answer
