"""Where a task's function is: told by the worker, looked up by a child process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasklib import _default
from tasklib._functions import origin
from tasklib.config import Config, resolve
from tasklib.registry import TaskFunction, registries


@dataclass(frozen=True, slots=True)
class Setup:
    """What a child has to know of its worker.

    Attributes:
        argv: The worker's ``sys.argv``, which modules may look at when they are imported.
        main: How to import the program that was started; empty when there is no file to import.
        modules: What is imported before the module of a task.
        database: The settings of the database that `tasklib.submit_task` and its like use.
        levels: The levels of loggers, by their names.
    """

    argv: list[str]
    main: dict[str, str]
    modules: list[str]
    database: dict[str, Any]
    levels: dict[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """The module that a child imports for a function, and what the function is known by there."""

    module: str
    origin: tuple[str, str]

    @classmethod
    def of(cls, task: TaskFunction[..., Any]) -> Place:
        """Return the place of a task's function."""
        return cls(task.func.__module__, origin(task.func))

    def __str__(self) -> str:
        return ".".join(self.origin)


def setup(modules: Sequence[str], levels: dict[str, int]) -> dict[str, object]:
    """Describe this process to a child of it, for `wire`."""
    # As multiprocessing does it, so that scripts behave in the way that people know; imported here
    # because it is 2 MB that most workers do not need.
    from multiprocessing import spawn

    data = spawn.get_preparation_data("tasklib")
    main = {key: value for key, value in data.items() if key.startswith("init_main_from_")}
    return asdict(Setup(list(sys.argv), main, list(modules), _database(), levels))


class Modules:
    """What a child process has imported."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._imported: set[str] = set()

    def load(self, place: Place) -> None:
        """Import what a task needs; raises whatever the modules raise.

        Raises:
            ImportError: The function is in a program that is no file.
        """
        for module in (*self._setup.modules, place.module):
            if module not in self._imported:
                self._load(module)
                self._imported.add(module)

    def find(self, name: str, place: Place) -> TaskFunction[..., Any] | None:
        """Return a task that the imported modules have defined; None when they did not."""
        for registry in registries():
            task = registry.tasks.get(name)
            if task is not None and origin(task.func) == place.origin:
                return task
        return None

    def _load(self, module: str) -> None:
        if module != "__main__":
            importlib.import_module(module)
        elif self._setup.main:
            from multiprocessing import spawn

            spawn.prepare(self._setup.main)
        else:
            raise ImportError("the program that the task is defined in is no file")
        # What the module chose at import may have been chosen otherwise since, by --database-url.
        _default.init(Config(**self._setup.database))


def _database() -> dict[str, Any]:
    config = _default.database().config
    if config.is_memory:  # this process's own server, which a child cannot find by its name
        config = config.model_copy(update={"database_url": resolve(config).conninfo})
    return config.model_dump(mode="json")
