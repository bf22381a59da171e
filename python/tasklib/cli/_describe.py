"""A task in words: one line for lists, a page for `show`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from tasklib.models import Task

from ._output import format_cell

Failure = Mapping[str, object]

# Short fields first, then the large ones; errors stand with their attempts.
_DOCUMENTS = ["kwargs", "tags", "headers", "result"]
_FACTS = [name for name in Task.model_fields if name not in [*_DOCUMENTS, "error"]]


def note_on(task: Task) -> str | None:
    """Say in a few words why a task is where it is."""
    if task.is_running and task.cancel_requested_at:
        return "asked to stop"
    if task.is_running and task.progress is not None:
        return f"{task.progress:.0%} {task.progress_message or ''}".strip()
    if task.is_failed and task.next_retry_at:
        return f"tries again at {task.next_retry_at:%H:%M:%S}: {last_line(task.error)}"
    if task.is_pending and task.scheduled_at and task.scheduled_at > datetime.now(UTC):
        return f"not before {format_cell(task.scheduled_at)}"
    return last_line(task.error) if task.error else None


def describe(task: Task, failures: Sequence[Failure] | None) -> str:
    """Write everything that is known about a task; None are failures that may not be read."""
    return "\n".join(_lines(task, failures))


def last_line(error: object) -> str:
    """Return the end of a traceback, which says what was raised."""
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _lines(task: Task, failures: Sequence[Failure] | None) -> Iterator[str]:
    values = task.model_dump()
    for field in _FACTS:
        if values[field] is not None:
            yield f"{field.replace('_', ' '):<20}{format_cell(values[field])}"
    for field in _DOCUMENTS:
        if values[field] is not None:
            yield f"{field:<20}{json.dumps(values[field], ensure_ascii=False)}"
    if failures is None:
        yield f"{'failures':<20}for the role tasklib_admin only"
        if task.error:
            yield from ("", "the last error", *_indented(task.error))
    for failure in failures or ():
        yield ""
        yield (
            f"attempt {failure['attempt']} failed at {format_cell(failure['failed_at'])} "
            f"({failure['cause']})" + _next_attempt(failure["next_retry_at"])
        )
        yield from _indented(failure["error"])


def _indented(error: object) -> list[str]:
    return [f"  {line}" for line in str(error or "").rstrip().splitlines()]


def _next_attempt(instant: object) -> str:
    return f", next attempt at {format_cell(instant)}" if instant else ", for good"
