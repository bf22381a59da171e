"""Log lines of the commands that go on for long: text for people, JSON for collectors."""

import json
import logging
import sys
from datetime import UTC, datetime

import click

from ._output import colours_wanted_on

LEVELS = ["debug", "info", "warning", "error"]
FORMATS = ["text", "json"]

_COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """``2026-11-22 10:48:28 INFO tasklib.worker: …`` in UTC, as the database's times are."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{when} {record.levelname:<7} {record.name}: {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        if record.levelno in _COLOURS and colours_wanted_on(sys.stderr):
            return click.style(line, fg=_COLOURS[record.levelno])
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a record carries in ``extra`` becomes fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


def set_up_logging(*, level: str, style: str, verbose: int = 0) -> None:
    """Send the log to standard error.

    Args:
        level: The least level of the queue's own lines.
        style: ``text`` or ``json``.
        verbose: 1 shows the queue's debug lines, 2 and more everybody's.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose > 1 else level.upper())
    if verbose == 1:
        logging.getLogger("tasklib").setLevel(logging.DEBUG)
