"""Log lines of the commands that go on for long: text for people, JSON for collectors.

Without click and its like, as the supervisor of worker processes logs, too.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from ._terminal import colours_wanted_on

LEVELS = ["debug", "info", "warning", "error"]
FORMATS = ["text", "json"]

_COLOURS = {logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 31}
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
# What tells where a line belongs, and is short enough for people: `tasklib show ID` has the rest.
_SHOWN = ("task_id", "attempt", "queue")


class TextFormatter(logging.Formatter):
    """``2026-11-22 10:48:28 INFO    tasklib.worker: …`` in UTC, as the database's times are.

    Args:
        process: Which of several worker processes writes; stands before the message.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = "" if process is None else f"[{process}] "

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        said = f"{self._process}{record.getMessage()}"
        line = f"{when} {record.levelname:<7} {record.name}: {said}"
        fields = vars(record)
        if shown := [f"{name}={fields[name]}" for name in _SHOWN if name in fields]:
            line = f"{line} ({', '.join(shown)})"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        if record.levelno in _COLOURS and colours_wanted_on(sys.stderr):
            return f"\x1b[{_COLOURS[record.levelno]}m{line}\x1b[0m"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a record carries in ``extra`` becomes fields of its own.

    Args:
        process: Which of several worker processes writes; a field of each line.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class _ToStandardError(logging.Handler):
    """Writes to what standard error is now: a progress line lets others write above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def set_up_logging(*, level: str, style: str, verbose: int = 0, process: int | None = None) -> None:
    """Send the log to standard error.

    Args:
        level: The least level of the queue's own lines.
        style: ``text`` or ``json``.
        verbose: 1 shows the queue's debug lines, 2 and more everybody's.
        process: Which of several worker processes this is.
    """
    handler = _ToStandardError()
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose > 1 else level.upper())
    if verbose == 1:
        logging.getLogger("tasklib").setLevel(logging.DEBUG)
