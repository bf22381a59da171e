"""From the words behind `tasklib worker` to the tasks that they name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import click

from tasklib._default import database
from tasklib.client import SyncTaskQueue, TaskQueue
from tasklib.config import Config
from tasklib.registry import Registry, TaskFunction, default_registry

Queue = TaskQueue | SyncTaskQueue


def load(targets: Sequence[str]) -> tuple[Registry, Config]:
    """Import what is named, and collect its tasks.

    Args:
        targets: ``module`` for the tasks of ``@tasklib.task``, ``module:attribute`` for those of a
            queue object.

    Returns:
        All tasks, and the configuration that the imported code chose: the first queue's, else the
        one of ``tasklib.init``.
    """
    # As `python -m` does: what lies in the present folder can be imported.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = [_load(target) for target in targets]
    registry = Registry()
    registry.modules = [target.partition(":")[0] for target in targets]
    for owner in found:
        tasks = default_registry.tasks if isinstance(owner, ModuleType) else owner.registry.tasks
        _merge(registry, tasks)
    if not registry.tasks:
        raise click.UsageError(f"{', '.join(targets)}: no task is defined there.{_offer(found)}")
    queues = [owner for owner in found if not isinstance(owner, ModuleType)]
    return registry, queues[0].config if queues else database().config


def _load(target: str) -> ModuleType | Queue:
    name, colon, attribute = target.partition(":")
    module = _import(name)
    if not colon:
        return module
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, TaskQueue | SyncTaskQueue):
        raise click.UsageError(
            f"{target}: {attribute!r} is no TaskQueue or SyncTaskQueue.{_offer([module])}"
        )
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the module wants is an error in there, and keeps its traceback.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise click.UsageError(
            f"there is no module {name!r}; it was looked for in {os.getcwd()} and among the "
            f"installed packages of {sys.executable}."
        ) from error
    except (ValueError, TypeError) as error:
        if name.strip(".") and all(part.isidentifier() for part in name.split(".")):
            raise
        raise click.UsageError(f"{name!r} is no name of a module; write app.tasks.") from error


def _merge(registry: Registry, tasks: dict[str, TaskFunction[..., Any]]) -> None:
    for name, task in tasks.items():
        if registry.tasks.setdefault(name, task) is not task:
            raise click.UsageError(f"two of the named queues have a task {name!r}.")


def _offer(found: Sequence[object]) -> str:
    """Name the queues of modules: who forgot the attribute sees what to write."""
    names = [
        f"{module.__name__}:{name}"
        for module in found
        if isinstance(module, ModuleType)
        for name, value in vars(module).items()
        if isinstance(value, TaskQueue | SyncTaskQueue)
    ]
    return f" Did you mean {' or '.join(names)}?" if names else ""
