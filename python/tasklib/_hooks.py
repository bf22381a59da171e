"""What may be put around tasks: functions that make a context manager for an attempt."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasklib.errors import ConfigurationError

if TYPE_CHECKING:
    from tasklib.worker.context import CurrentTask

Around = Callable[
    ["CurrentTask"],
    AbstractContextManager[Any]
    | AbstractAsyncContextManager[Any]
    | Generator[Any]
    | AsyncGenerator[Any],
]


@dataclass(frozen=True, slots=True)
class Hook:
    """One function of `tasklib.around`.

    Attributes:
        make: Makes the context manager of an attempt.
        is_async: Whether it is only for async tasks.
        label: Its name, for messages.
    """

    make: Callable[[CurrentTask], object]
    is_async: bool
    label: str


def as_hook(func: Around) -> Hook:
    """Read what was given to `tasklib.around`; a generator function becomes a context manager.

    Raises:
        ConfigurationError: It cannot make a context manager.
    """
    label = getattr(func, "__qualname__", None) or repr(func)
    # What contextlib decorated says what it was.
    written: Any = inspect.unwrap(func) if callable(func) else func
    if not callable(func) or inspect.iscoroutinefunction(written):
        raise ConfigurationError(
            f"{label} makes no context manager",
            hint="Write a generator function with one yield, or return a context manager.",
        )
    if inspect.isgeneratorfunction(func):
        return Hook(contextmanager(func), False, label)
    if inspect.isasyncgenfunction(func):
        return Hook(asynccontextmanager(func), True, label)
    is_async_class = (
        isinstance(func, type) and hasattr(func, "__aenter__") and not hasattr(func, "__enter__")
    )
    return Hook(func, is_async_class or inspect.isasyncgenfunction(written), label)
