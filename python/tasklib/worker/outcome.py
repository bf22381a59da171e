"""How an attempt ended, as the JSON text that ``tasklib.finish`` takes."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasklib.errors import Cancel, InvalidArguments, InvalidResult, NoTransaction, Retry, Snooze
from tasklib.registry import TaskFunction

MAX_ERROR_BYTES = 64_000
_OURS = str(Path(__file__).parent)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

State = Literal["completed", "failed", "cancelled", "snoozed", "released"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is told to the database, and what is told to the log.

    Attributes:
        state: The kind of end.
        text: The element of ``outcomes``.
        reason: The class of the error, or what happened; never a message, which may quote data.
        answer: The status, when the database has said it already: nothing is sent then.
    """

    state: State
    text: str
    reason: str = ""
    answer: str = ""


RELEASED = Outcome("released", '{"state": "released"}')


def completed(result: str) -> Outcome:
    """It returned; ``result`` is JSON text."""
    return Outcome("completed", f'{{"state": "completed", "result": {{"value": {result}}}}}')


def failed(
    error: str,
    reason: str,
    *,
    retry: bool,
    retry_in: float | None = None,
    cause: Literal["error", "timeout"] = "error",
) -> Outcome:
    """It failed; ``retry`` lets it have its remaining attempts."""
    told: dict[str, object] = {
        "state": "failed",
        "error": storable(error),
        "retry": retry,
        "cause": cause,
    }
    if retry_in is not None:
        told["retry_in"] = retry_in
    return Outcome("failed", json.dumps(told), reason)


def timed_out(seconds: float | None) -> Outcome:
    """It did not end in time."""
    message = f"TimeoutError: the attempt did not end within {seconds:g} s"
    return failed(message, "timeout", retry=True, cause="timeout")


def cancelled(error: str | None) -> Outcome:
    """It was cancelled, from outside or by itself."""
    told = {"state": "cancelled"}
    if error is not None:
        told["error"] = storable(error)
    return Outcome("cancelled", json.dumps(told))


def raised(error: BaseException, task: TaskFunction[..., object]) -> Outcome:
    """The function ended with an exception; what it means is said by its class."""
    reason = type(error).__name__
    if isinstance(error, Snooze):
        return Outcome("snoozed", json.dumps({"state": "snoozed", "seconds": error.seconds}))
    if isinstance(error, Cancel):
        return cancelled(str(error))
    if isinstance(error, Retry):
        return failed(explained(error), reason, retry=True, retry_in=error.in_seconds)
    return failed(explained(error), reason, retry=task.may_retry(error))


def impossible(error: InvalidArguments | InvalidResult | NoTransaction) -> Outcome:
    """Stored arguments do not fit, or the result cannot be stored: another try changes nothing."""
    name = type(error).__name__
    return failed(f"{name}: {error}", name, retry=False)


def explained(error: BaseException) -> str:
    """Return the traceback, from the task's own code on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # an exception whose own methods raise must not take the worker with it
        return f"{type(error).__name__} (its text could not be made)"


def storable(text: str) -> str:
    """Return text that PostgreSQL stores: no NUL, no lone surrogates, not too long."""
    text = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    data = text.encode()
    if len(data) <= MAX_ERROR_BYTES:
        return text
    half = MAX_ERROR_BYTES // 2 - 40
    head, tail = (part.decode(errors="ignore") for part in (data[:half], data[-half:]))
    return f"{head}\n[... {len(data) - 2 * half} bytes left out ...]\n{tail}"
