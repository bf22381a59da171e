"""Which functions can be tasks, and by what names workers find them."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from tasklib.errors import ConfigurationError

MAX_NAME_BYTES = 128


def check_function(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function.

    Raises:
        ConfigurationError: A worker could not call it by the names of its arguments alone.
    """
    if not inspect.isfunction(func):
        raise ConfigurationError(
            f"{func!r} is not a function",
            hint="Decorate a function that is written with def; @staticmethod goes above @task.",
        )
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise ConfigurationError(f"{func.__qualname__} is a generator: a task returns one value")
    if _is_method(func):
        raise ConfigurationError(
            f"{func.__qualname__} is a method: a worker has no object to call it on",
            hint="Write a function outside the class, or @staticmethod above @task.",
        )
    return func


def task_name(func: Callable[..., Any], given: str | None) -> str:
    """Return the name of a task: the one given, else module and qualified name.

    Raises:
        ConfigurationError: There is none, or it is too long for the database.
    """
    name = given or _default_name(func)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigurationError(
            f"the task name {name!r} is longer than {MAX_NAME_BYTES} bytes",
            hint="Give it a shorter one: @task(name=...).",
        )
    return name


def origin(func: Callable[..., Any]) -> tuple[str, str]:
    """Return where a function is defined: module and qualified name."""
    return _module_name(func.__module__), func.__qualname__


def _is_method(func: Callable[..., Any]) -> bool:
    """Tell by how it is written; while its class is being made, nothing else is known."""
    owner = func.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(func).parameters), None)
    return bool(owner) and not owner.endswith("<locals>") and first in ("self", "cls")


def _default_name(func: Callable[..., Any]) -> str:
    qualname = getattr(func, "__qualname__", "<lambda>").replace(".<locals>", "")
    if "<lambda>" in qualname:
        raise ConfigurationError(
            "this function has no name of its own", hint="Use @task(name=...)."
        )
    return f"{_module_name(func.__module__)}.{qualname}"


def _module_name(module: str) -> str:
    """Name a script as importing it would, so that workers find what the script enqueued."""
    # A child process, of multiprocessing or of a worker, imports the script under the other name.
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules[module]
    if spec := getattr(main, "__spec__", None):
        return spec.name.removesuffix(".__main__")
    path = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(path))[0] if path else module
