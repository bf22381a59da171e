"""A durable task queue that lives inside PostgreSQL.

    import tasklib

    @tasklib.task
    def send_email(to: str, subject: str) -> bool: ...

    send_email.delay("a@b.c", subject="Hi")

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasklib._default import acancel_task as acancel_task
    from tasklib._default import aget_task as aget_task
    from tasklib._default import alist_tasks as alist_tasks
    from tasklib._default import aretry_task as aretry_task
    from tasklib._default import around as around
    from tasklib._default import cancel_task as cancel_task
    from tasklib._default import close as close
    from tasklib._default import get_result as get_result
    from tasklib._default import get_task as get_task
    from tasklib._default import init as init
    from tasklib._default import list_tasks as list_tasks
    from tasklib._default import migrate as migrate
    from tasklib._default import retry_task as retry_task
    from tasklib._default import submit_task as submit_task
    from tasklib._default import task as task
    from tasklib._default import wait_result as wait_result
    from tasklib.client import SyncTaskQueue as SyncTaskQueue
    from tasklib.client import TaskQueue as TaskQueue
    from tasklib.config import Config as Config
    from tasklib.errors import AlreadyFinished as AlreadyFinished
    from tasklib.errors import BacklogFull as BacklogFull
    from tasklib.errors import Cancel as Cancel
    from tasklib.errors import ConfigurationError as ConfigurationError
    from tasklib.errors import DatabaseUnavailable as DatabaseUnavailable
    from tasklib.errors import EventLoopRunning as EventLoopRunning
    from tasklib.errors import InvalidArguments as InvalidArguments
    from tasklib.errors import InvalidResult as InvalidResult
    from tasklib.errors import InvalidState as InvalidState
    from tasklib.errors import LeaseLost as LeaseLost
    from tasklib.errors import LimitExceeded as LimitExceeded
    from tasklib.errors import MigrationError as MigrationError
    from tasklib.errors import NotAllowed as NotAllowed
    from tasklib.errors import NotInstalled as NotInstalled
    from tasklib.errors import NotInTask as NotInTask
    from tasklib.errors import NoTransaction as NoTransaction
    from tasklib.errors import PermissionDenied as PermissionDenied
    from tasklib.errors import Retry as Retry
    from tasklib.errors import RoleLimitExceeded as RoleLimitExceeded
    from tasklib.errors import Snooze as Snooze
    from tasklib.errors import TaskCancelled as TaskCancelled
    from tasklib.errors import TaskLibError as TaskLibError
    from tasklib.errors import TaskNotFound as TaskNotFound
    from tasklib.errors import TaskNotRegistered as TaskNotRegistered
    from tasklib.errors import UniqueKeyHeld as UniqueKeyHeld
    from tasklib.errors import WorkerNotRegistered as WorkerNotRegistered
    from tasklib.errors import WrongIsolation as WrongIsolation
    from tasklib.models import Backoff as Backoff
    from tasklib.models import Task as Task
    from tasklib.models import TaskResult as TaskResult
    from tasklib.registry import TaskFunction as TaskFunction
    from tasklib.worker import CurrentTask as CurrentTask
    from tasklib.worker import TaskWorker as TaskWorker
    from tasklib.worker import current_task as current_task

_MODULES = {
    "_default": (
        "acancel_task aget_task alist_tasks aretry_task around cancel_task close get_result "
        "get_task init list_tasks migrate retry_task submit_task task wait_result"
    ),
    "client": "SyncTaskQueue TaskQueue",
    "config": "Config",
    "errors": (
        "AlreadyFinished BacklogFull Cancel ConfigurationError DatabaseUnavailable "
        "EventLoopRunning InvalidArguments InvalidResult InvalidState LeaseLost LimitExceeded "
        "MigrationError NoTransaction NotAllowed NotInTask NotInstalled PermissionDenied Retry "
        "RoleLimitExceeded Snooze TaskCancelled TaskLibError TaskNotFound TaskNotRegistered "
        "UniqueKeyHeld WorkerNotRegistered WrongIsolation"
    ),
    "models": "Backoff Task TaskResult",
    "registry": "TaskFunction",
    "worker": "CurrentTask TaskWorker current_task",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pg-tasklib")
    if name not in _HOME:
        raise AttributeError(f"module 'tasklib' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tasklib.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
