"""How an attempt ended, as the JSON text that ``tasklib.finish`` takes."""

from __future__ import annotations

import json
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tasklib._arguments import MASK
from tasklib.errors import Cancel, InvalidArguments, InvalidResult, Retry, Snooze, TaskLibError
from tasklib.registry import TaskFunction

if TYPE_CHECKING:
    from tasklib.worker.context import Run

MAX_ERROR_BYTES = 64_000
SHORTEST_SECRET = 4
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


_COMPLETED = '{"state": "completed", "result": {"value": %}}'
_RETURNED_NONE = Outcome("completed", _COMPLETED.replace("%", "null"))


def completed(result: str) -> Outcome:
    """It returned; ``result`` is JSON text."""
    if result == "null":
        return _RETURNED_NONE
    return Outcome("completed", _COMPLETED.replace("%", result, 1))


def failed(
    error: str,
    reason: str,
    *,
    retry: bool,
    retry_in: float | None = None,
    cause: Literal["error", "timeout", "crashed"] = "error",
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


def crashed(code: int) -> Outcome:
    """Its process died by itself; ``code`` is the return code as `subprocess` tells it."""
    if code >= 0:
        what = f"ended by itself with exit code {code}"
    else:
        known = {number.value: number.name for number in signal.Signals}
        what = f"was killed by signal {-code} ({known.get(-code, 'unknown')})"
        if -code == signal.SIGKILL:
            what += ", perhaps for want of memory"
    message = f"ChildProcessError: the child process of the attempt {what}"
    return failed(message, "crashed", retry=True, cause="crashed")


def cancelled(error: str | None) -> Outcome:
    """It was cancelled, from outside or by itself."""
    told = {"state": "cancelled"}
    if error is not None:
        told["error"] = storable(error)
    return Outcome("cancelled", json.dumps(told))


def raised(error: BaseException, task: TaskFunction[..., object]) -> Outcome:
    """The function ended with an exception; what it means is said by its class."""
    try:
        return _meant(error, task)
    except Exception:  # an exception whose own methods raise must not take the worker with it
        return failed(_textless(error), type(error).__name__, retry=True)


def _meant(error: BaseException, task: TaskFunction[..., object]) -> Outcome:
    reason = type(error).__name__
    if isinstance(error, Snooze):
        return Outcome("snoozed", json.dumps({"state": "snoozed", "seconds": error.seconds}))
    if isinstance(error, Cancel):
        return cancelled(str(error))
    if isinstance(error, Retry):
        return failed(explained(error), reason, retry=True, retry_in=error.in_seconds)
    return failed(explained(error), reason, retry=task.may_retry(error))


def loaded(task: TaskFunction[..., Any], kwargs: str) -> dict[str, Any] | Outcome:
    """Read the stored arguments; those that cannot be read are the end of the attempt."""
    try:
        return task.arguments.load(kwargs)
    except InvalidArguments as error:
        return impossible(error)
    except Exception as error:  # a validator of the user's own types
        return raised(error, task)


def of(task: TaskFunction[..., Any], call: Callable[[], object]) -> Outcome:
    """Call a function, and say how that ended."""
    return judged(task, lambda: completed(task.arguments.dump_result(call())))


def judged(task: TaskFunction[..., Any], call: Callable[[], Outcome]) -> Outcome:
    """Return the outcome that a call returns, or that of what it raises."""
    try:
        return call()
    except InvalidResult as error:
        return impossible(error)
    except BaseException as error:  # SystemExit in a task ends the task, not the worker
        return raised(error, task)


def interrupted(run: Run) -> Outcome | None:
    """Return the outcome of a run that the worker interrupted; None when it did not."""
    if run.stop_reason in ("lost", "shutdown"):
        return RELEASED
    if run.stop_reason == "cancel":
        return cancelled(None)
    if run.stop_reason == "timeout":
        return timed_out(run.claimed.timeout_seconds)
    return None


def impossible(error: TaskLibError) -> Outcome:
    """What was stored does not fit, or the result cannot be stored: another try changes nothing."""
    name = type(error).__name__
    return failed(f"{name}: {error}", name, retry=False)


def masked(outcome: Outcome, task: TaskFunction[..., Any], kwargs: str) -> Outcome:
    """Take the texts of a task's sensitive arguments out of what is stored of an error."""
    if outcome.state not in ("failed", "cancelled"):
        return outcome
    told = json.loads(outcome.text)
    if not told.get("error"):
        return outcome
    given = json.loads(kwargs)
    texts = {text for name in task.sensitive or () for text in _texts(given.get(name))}
    # The longest first: one may be a part of another.
    for text in sorted(texts, key=len, reverse=True):
        for written in {text, repr(text)[1:-1], json.dumps(text)[1:-1]}:
            told["error"] = told["error"].replace(written, MASK)
    return replace(outcome, text=json.dumps(told))


def _texts(value: Any) -> Iterator[str]:
    """Yield what is in a value; what is too short to be a secret would mask half of a traceback."""
    if isinstance(value, dict):
        for below in cast("dict[str, Any]", value).values():
            yield from _texts(below)
    elif isinstance(value, list):
        for below in cast("list[Any]", value):
            yield from _texts(below)
    elif value is not None and len(str(value)) >= SHORTEST_SECRET:
        yield str(value)


def explained(error: BaseException) -> str:
    """Return the traceback, from the task's own code on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception:
        return _textless(error)


def _textless(error: BaseException) -> str:
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
