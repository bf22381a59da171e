"""Call a task's function with the hooks of its registry around it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, cast

from tasklib._hooks import Hook
from tasklib.errors import ConfigurationError
from tasklib.registry import TaskFunction
from tasklib.worker.context import CurrentTask, current_task


def body(task: TaskFunction[..., Any]) -> Callable[..., Any]:
    """Return what to call for a task, inside of it: its function, with the hooks around it.

    Hooks are entered in the order of their registration, each inside the one before. They see how
    the function ended; what they do not raise themselves changes nothing, so that one which keeps
    an exception to itself does not make a success of a failure.
    """
    hooks = task.registry.hooks
    if not hooks:
        return task.func
    return functools.partial(_acall if task.is_async else _call, hooks, current_task(), task.func)


def _call(
    hooks: Sequence[Hook],
    current: CurrentTask,
    func: Callable[..., Any],
    /,
    **kwargs: Any,
) -> Any:
    if not hooks:
        return func(**kwargs)
    first, *others = hooks
    if first.is_async:
        return _call(others, current, func, **kwargs)
    manager = first.make(current)
    if not hasattr(manager, "__enter__"):
        raise _unfit(first, manager, current)
    raised: BaseException | None = None
    with cast("AbstractContextManager[Any]", manager):
        try:
            return _call(others, current, func, **kwargs)
        except BaseException as error:
            raised = error
            raise
    raise raised


async def _acall(
    hooks: Sequence[Hook],
    current: CurrentTask,
    func: Callable[..., Awaitable[Any]],
    /,
    **kwargs: Any,
) -> Any:
    if not hooks:
        return await func(**kwargs)
    first, *others = hooks
    manager = first.make(current)
    if not hasattr(manager, "__aenter__"):
        if not hasattr(manager, "__enter__"):
            raise _unfit(first, manager, current)
        manager = _Awaited(cast("AbstractContextManager[Any]", manager))
    raised: BaseException | None = None
    async with cast("AbstractAsyncContextManager[Any]", manager):
        try:
            return await _acall(others, current, func, **kwargs)
        except BaseException as error:
            raised = error
            raise
    raise raised


class _Awaited:
    """A context manager where an async one is wanted."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> None:
        self._manager.__enter__()

    async def __aexit__(self, *raised: Any) -> bool | None:
        return self._manager.__exit__(*raised)


def _unfit(hook: Hook, manager: object, current: CurrentTask) -> ConfigurationError:
    return ConfigurationError(
        f"{hook.label} made no context manager for {current.name} but a {type(manager).__name__}",
        hint="A sync task needs a sync one. Written as `async def` with a yield, a hook is left "
        "out for sync tasks.",
    )
