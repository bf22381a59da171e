"""Everything that TaskLib raises, and which class an SQLSTATE of the database becomes."""

from __future__ import annotations

import math
from typing import Protocol


class TaskLibError(Exception):
    """The base of all errors of this package.

    Attributes:
        hint: What to do next, when there is something to say.
        sqlstate: The database's code for the error, when it came from there.
    """

    def __init__(
        self, message: str = "", *, hint: str | None = None, sqlstate: str | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        """Return the message, with the hint behind it."""
        message = super().__str__()
        return f"{message}\nHint: {self.hint}" if self.hint else message


class ConfigurationError(TaskLibError):
    """The configuration, a decorator's options or the environment cannot work."""


class NotInstalled(ConfigurationError):
    """The database has no TaskLib, or an older one than this package (42883, 3F000, 42P01)."""


class MigrationError(TaskLibError):
    """The database's tables could not be brought to this package's version."""


class DatabaseUnavailable(TaskLibError):
    """The database could not be reached, or the connection broke (08*, 57P*, 53300)."""


class EventLoopRunning(TaskLibError, RuntimeError):
    """A blocking queue was used inside a running event loop."""


class NotInTask(TaskLibError, RuntimeError):
    """``current_task()`` was called outside a task."""


class NoTransaction(TaskLibError, RuntimeError):
    """The task has no transaction: it is not transactional, or it ended its transaction itself."""


class TaskNotRegistered(TaskLibError, LookupError):
    """The function is not a task of this registry."""


class InvalidArguments(TaskLibError, ValueError):
    """Arguments or options are wrong, or JSON cannot hold them (TL001)."""


class LimitExceeded(InvalidArguments):
    """A stated limit is exceeded: size, depth, length, number (TL002)."""


class InvalidResult(TaskLibError, ValueError):
    """A task returned what cannot be stored."""


class TaskNotFound(TaskLibError, LookupError):
    """There is no task with this id (TL003)."""


class LeaseLost(TaskLibError):
    """The attempt no longer holds the task: somebody else runs it or ended it (TL004)."""


class AlreadyFinished(TaskLibError):
    """This very attempt ended the task before (TL005)."""


class TaskCancelled(LeaseLost):
    """The task was cancelled (TL006)."""


class WorkerNotRegistered(LeaseLost):
    """The worker's registration ended; it has to register again (TL007)."""


class InvalidState(TaskLibError):
    """The task's state does not allow it (TL008)."""


class UniqueKeyHeld(TaskLibError):
    """Another unfinished task holds the unique key (TL009)."""


class WrongIsolation(TaskLibError):
    """The call needs a transaction of another isolation level (TL010)."""


class PermissionDenied(TaskLibError):
    """The database role may not do this (TL011, 42501)."""


class NotAllowed(PermissionDenied):
    """The rules for the role do not allow this queue or this name (TL012)."""


class RoleLimitExceeded(LimitExceeded):
    """The role may not ask for so much (TL013)."""


class BacklogFull(TaskLibError):
    """The role has too many unfinished tasks: enqueue again later (TL014)."""


BY_SQLSTATE: dict[str, type[TaskLibError]] = {
    "TL001": InvalidArguments,
    "TL002": LimitExceeded,
    "TL003": TaskNotFound,
    "TL004": LeaseLost,
    "TL005": AlreadyFinished,
    "TL006": TaskCancelled,
    "TL007": WorkerNotRegistered,
    "TL008": InvalidState,
    "TL009": UniqueKeyHeld,
    "TL010": WrongIsolation,
    "TL011": PermissionDenied,
    "TL012": NotAllowed,
    "TL013": RoleLimitExceeded,
    "TL014": BacklogFull,
    "42501": PermissionDenied,
    # What the server refuses before a function is entered: NUL bytes, broken text and JSON, numbers
    # and times out of range, JSON that is nested too deep for its parser.
    "22003": InvalidArguments,
    "22007": InvalidArguments,
    "22008": InvalidArguments,
    "22015": InvalidArguments,
    "22021": InvalidArguments,
    "2202E": InvalidArguments,
    "22P02": InvalidArguments,
    "22P05": InvalidArguments,
    "23514": InvalidArguments,
    "54001": InvalidArguments,
    # No schema, no function, no table.
    "3F000": NotInstalled,
    "42883": NotInstalled,
    "42P01": NotInstalled,
}

INSTALL_HINT = "Run `tasklib migrate`, or call tasklib.migrate(config), on this database."

# The first two characters of codes that say something about the server, nothing about the call.
UNREACHABLE_CLASSES = ("08", "57P")


class Diagnostic(Protocol):
    """The fields of a database error that are read here."""

    @property
    def message_primary(self) -> str | None:
        """What went wrong."""
        ...

    @property
    def message_detail(self) -> str | None:
        """More about it."""
        ...

    @property
    def message_hint(self) -> str | None:
        """What to do about it."""
        ...


def from_sqlstate(sqlstate: str | None, diag: Diagnostic | None) -> TaskLibError | None:
    """Translate a database error by its code, never by its text.

    Args:
        sqlstate: The error's code; None when the connection broke before there was one.
        diag: The error's fields.

    Returns:
        The error to raise instead, or None for an error that is not TaskLib's to explain.
    """
    message = (diag.message_primary if diag else None) or "the connection to the database broke"
    if sqlstate is None or sqlstate.startswith(UNREACHABLE_CLASSES) or sqlstate == "53300":
        return DatabaseUnavailable(message, sqlstate=sqlstate)
    kind = BY_SQLSTATE.get(sqlstate)
    if kind is None:
        return None
    if diag and diag.message_detail:
        message = f"{message}\n{diag.message_detail}"
    hint = diag.message_hint if diag else None
    if kind is NotInstalled:
        hint = INSTALL_HINT
    return kind(message, hint=hint, sqlstate=sqlstate)


class TaskSignal(TaskLibError):
    """The base of what a task raises to say how its attempt shall end."""


class Retry(TaskSignal):
    """End this attempt as failed and try again, as long as attempts are left.

    Args:
        message: Stored as the attempt's error.
        in_seconds: When the next attempt is due; the task's backoff when left out.
    """

    def __init__(self, message: str = "", *, in_seconds: float | None = None) -> None:
        super().__init__(message or "the task asked to be retried")
        self.in_seconds = None if in_seconds is None else _checked_seconds(in_seconds)


class Cancel(TaskSignal):
    """End the task as cancelled: it is not tried again.

    Args:
        message: Stored as the task's error.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the task cancelled itself")


class Snooze(TaskSignal):
    """Put the task off; the attempt is not charged.

    Args:
        seconds: When it is due again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"put off by {seconds} s")
        self.seconds = _checked_seconds(seconds)


def _checked_seconds(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidArguments(f"{seconds!r} is no number of seconds to wait")
    return float(seconds)
