"""What a worker tells the database about itself and its task types."""

from __future__ import annotations

import os
import platform
import socket

from tasklib._database import configured
from tasklib._options import merged
from tasklib.config import Config
from tasklib.registry import Registry, TaskFunction


def task_types(registry: Registry, config: Config) -> list[dict[str, object]]:
    """Return every registered name with the options that become its defaults in the database."""
    return [_task_type(task, config) for task in registry.tasks.values()]


def worker_info(queues: list[str], concurrency: int) -> dict[str, object]:
    """Return what people may want to know about this process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "queues": queues,
        "concurrency": concurrency,
    }


def _task_type(task: TaskFunction[..., object], config: Config) -> dict[str, object]:
    options = merged(configured(config), task.defaults)
    told: dict[str, object] = {
        "name": task.name,
        "queue": options.queue,
        "priority": options.priority,
        "max_retries": options.max_retries,
        "timeout_seconds": options.timeout_seconds,
        "backoff": options.backoff and options.backoff.model_dump(),
        "max_crashes": task.max_crashes,
        "sensitive": task.sensitive,
    }
    return {key: value for key, value in told.items() if value is not None}
