"""Requests to the tracking store: how long they are waited for, and how often repeated."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line, text_of
from lrrt_stage.settings import hide_passwords
from mlflow_project.tracking.environment import MAX_WAIT

__all__ = [
    "PATIENCE",
    "Patience",
    "StoreUnavailable",
    "ask",
    "is_bad_request",
    "is_temporary",
    "limits",
    "reason_of",
    "uninterrupted",
]

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two attempts: doubled every time."""
SLOW, ANSWER_SECONDS = ("file", "model"), 20.0
"""Kinds of requests after which a server may be busy with storing; the limit for all others."""
ENDING_SECONDS = 5.0
"""How long an interrupted stage waits for the store."""
DELAY_SECONDS = 2.0
"""How long a transaction may delay a signal."""
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500
BAD_REQUEST, TOO_LARGE = 400, 413


SIGNS = {
    "connection refused": "Connection refused",
    "no answer": "(?i)timed? ?out",
    "connection closed without an answer": "Connection (aborted|reset)|RemoteDisconnected",
    r"status \1 in place of an answer": "too many ([0-9]+) error responses",
    "unknown host": "(?i)name resolution|name or service not known",
}
"""Reason -> pattern of the texts of errors that have it."""
LONGEST_REASON = 300


class StoreUnavailable(LRRTError):
    """The tracking store does not answer, and the time to wait for it is used up."""


@dataclass
class _Service:
    """A kind of requests that may fail while others succeed, such as the upload of files."""

    pause: float = 0.0
    next_attempt: float = 0.0
    reason: str = ""
    """Why the last request failed; empty after one that succeeded."""


class Patience:
    """How long this process waits for a store that does not answer, over all of its requests.

    The time of requests that failed counts, and that of pauses before the next attempt; the time of
    requests that succeeded does not, since a large file may take long.
    """

    def __init__(self, seconds: float = MAX_WAIT) -> None:
        self.seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Begin anew, with all of the time."""
        self.spent, self._limit = 0.0, self.seconds
        self._services: defaultdict[str, _Service] = defaultdict(_Service)

    def hurry(self) -> None:
        """Wait for a few seconds more at most: somebody wants the work to end."""
        self._limit = min(self._limit, self.spent + ENDING_SECONDS)

    @property
    def left(self) -> float:
        """Seconds that are left to wait."""
        return max(self._limit - self.spent, 0.0)

    def attempt(self, request: Callable[[], T], kind: str = "") -> T:
        """Return what one request gives; an answer is waited for at most for the seconds left.

        Raises
        ------
        StoreUnavailable
            Without a request, if the last one of this ``kind`` failed a moment ago, or no time is
            left.
        """
        service = self._services[kind]
        if service.reason and (not self.left or time.monotonic() < service.next_attempt):
            raise StoreUnavailable(service.reason)
        started = time.monotonic()
        try:
            with limits(self.left if kind in SLOW else min(self.left, ANSWER_SECONDS)):
                answer = request()
        except Exception as error:
            now = time.monotonic()
            self.spent += now - started
            if is_temporary(error):
                service.pause = min(max(2 * service.pause, FIRST_PAUSE), LONGEST_PAUSE)
                service.next_attempt = now + service.pause
                service.reason = reason_of(error)
            raise
        self._services[kind] = _Service()
        return answer

    def wait(self, kinds: Iterable[str]) -> bool:
        """Sleep until the next attempt of one of these; return False if too little time is left."""
        next_attempt = min(self._services[kind].next_attempt for kind in kinds)
        pause = max(next_attempt - time.monotonic(), 0.0)
        if pause >= self.left:
            return False
        self.spent += pause
        time.sleep(pause)
        return True


PATIENCE = Patience()
"""That of this process: the runs of all stages share it."""


def ask(request: Callable[[], T]) -> T:
    """Return what a request gives that the work cannot go on without.

    Raises
    ------
    StoreUnavailable
        If the store does not answer while there is time left to wait.
    """
    while True:
        try:
            return PATIENCE.attempt(request)
        except Exception as error:
            if not is_temporary(error):
                raise
            if not PATIENCE.wait([""]):
                raise StoreUnavailable(
                    f"tracking store {mlflow.get_tracking_uri()} does not answer "
                    f"({reason_of(error)}): start it, correct tracking_uri, or raise max_wait "
                    f"(now {PATIENCE.seconds:g} s)"
                ) from error


def reason_of(error: BaseException) -> str:
    """Return why a request failed, in one line without passwords.

    MLflow's own says it behind the address, the options and the classes of the request.
    """
    error = _of_driver(error) or error
    text = text_of(error)
    found = ((words, re.search(sign, text)) for words, sign in SIGNS.items())
    known = next((match.expand(words) for words, match in found if match is not None), None)
    return known or hide_passwords(first_line(error))[:LONGEST_REASON]


def is_temporary(error: BaseException) -> bool:
    """Return whether the same request may succeed later: no answer, or an error of the server."""
    if isinstance(found := _of_driver(error), sqlite3.Error):
        return "locked" in str(found)
    status = _status(error)
    if status is None:
        kinds = (requests.RequestException, ConnectionError, TimeoutError, StoreUnavailable)
        return isinstance(error, kinds)
    return status >= SERVER_ERROR or status == TOO_MANY_REQUESTS


def is_bad_request(error: BaseException) -> bool:
    """Return whether the content of the request was refused, of which a part might be taken."""
    return _status(error) in (BAD_REQUEST, TOO_LARGE)


def _status(error: BaseException) -> int | None:
    """Return the status of an answer that is an error; None for other errors."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    return None


def _of_driver(error: BaseException) -> BaseException | None:
    """Return what the driver of a database raised, where that is behind an error of MLflow."""
    cause = error.__cause__
    return cause.orig if isinstance(cause, DBAPIError) else None


_environment = threading.RLock()
"""Held while :func:`limits` has changed the environment, which all threads share."""


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Let MLflow send a request once, and wait for its answer for ``seconds``, but at least one.

    A transaction of a database is not interrupted. The random state of a training that logs stays
    what it was.
    """
    once = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(ceil(seconds), 1)),
    }
    # A server may be left at any time, since it ends its own transactions.
    of_server = mlflow.get_tracking_uri().startswith("http")
    with _environment, nullcontext() if of_server else uninterrupted():
        before, state = {name: os.environ.get(name) for name in once}, random.getstate()
        os.environ.update(once)
        try:
            yield
        finally:
            random.setstate(state)
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block, but for no more than two seconds.

    SQLAlchemy cannot close a transaction that an exception from outside has cut. A long one is cut
    all the same: it uploads a file, or waits for a database that hangs.
    """
    if threading.current_thread() is not threading.main_thread():  # which gets no signals
        yield
        return
    came: list[int] = []
    is_late = False

    def delay(number: int, frame: object) -> None:
        came.append(number)
        if is_late:
            raise KeyboardInterrupt
        if len(came) == 1:
            timer.start()

    def cut() -> None:
        nonlocal is_late
        is_late = True
        signal.pthread_kill(main, signal.SIGINT)  # which also ends its system call

    timer, main = threading.Timer(DELAY_SECONDS, cut), threading.get_ident()
    timer.daemon = True
    handlers = {
        number: signal.signal(number, delay)
        for number in (signal.SIGINT, signal.SIGTERM)
        # None is one that was not installed from Python.
        if signal.getsignal(number) not in (None, signal.SIG_IGN)
    }
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came and not is_late:
            signal.raise_signal(came[0])
