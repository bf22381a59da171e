"""Run claimed tasks: async ones on the loop, sync ones in threads, any in child processes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

from tasklib.errors import InvalidResult
from tasklib.registry import Registry, TaskFunction
from tasklib.worker import outcome as ends
from tasklib.worker.children import ChildPool
from tasklib.worker.context import Run, enter
from tasklib.worker.coroutines import Coroutines
from tasklib.worker.hooks import body
from tasklib.worker.outcome import Outcome
from tasklib.worker.threads import Threads
from tasklib.worker.transactional import Transactions

GRACE_SECONDS = 5.0


class Executor:
    """Starts runs and reports their ends; nothing but ``transactions`` touches the database.

    Args:
        registry: The functions.
        settle: Called once for each run, on the loop, when its outcome is decided.
        free: Called once for each run, on the loop, when nothing of it runs any more.
        transactions: What runs transactional tasks.
        kill_grace: Seconds that a child process gets between SIGTERM and SIGKILL.
        on_spawn: Called with the process group of each child that was started.
        on_exit: Called with the same when nothing of the group is left.
    """

    def __init__(
        self,
        registry: Registry,
        settle: Callable[[Run, Outcome], None],
        free: Callable[[Run], None],
        transactions: Transactions | None = None,
        *,
        kill_grace: float = GRACE_SECONDS,
        on_spawn: Callable[[int], None] = lambda _: None,
        on_exit: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._settle = settle
        self._free = free
        self._transactions = transactions
        self._loop = asyncio.get_running_loop()
        # A run is started where another one ends: it must not see that one's context.
        self._context = contextvars.copy_context()
        self._threads = Threads("tasklib-task", self._loop)
        self._coroutines = Coroutines(self._context, self._end)
        self._children = ChildPool(registry, self._end, kill_grace, on_spawn, on_exit)

    def start(self, run: Run) -> None:
        """Start a run; arguments that cannot be read fail this run alone."""
        run.started = self._loop.time()
        task = self._registry.tasks.get(run.claimed.name)
        if task is None:
            self._end_soon(run, Outcome("released", ends.RELEASED.text, "no such task here"))
            return
        if task.isolation == "process":
            self._children.start(run, task)
            return
        kwargs = ends.loaded(task, run.claimed.kwargs)
        if isinstance(kwargs, Outcome):
            self._end_soon(run, kwargs)
            return
        if run.claimed.timeout_seconds is not None:
            seconds = run.claimed.timeout_seconds
            run.timer = self._loop.call_later(seconds, self._time_out, run, task.is_async)
        if task.is_async:
            self._coroutines.start(run, self._run_async(run, task, kwargs))
        else:
            context = self._context.copy()
            try:
                self._threads.submit(lambda: context.run(self._run_sync, run, task, kwargs))
            except RuntimeError as error:
                message = f"RuntimeError: no thread could be started: {error}"
                self._end_soon(run, ends.failed(message, "RuntimeError", retry=True))

    def interrupt(self, run: Run) -> None:
        """Make a run end; one in a thread looks at ``current_task().cancelled``."""
        if run.handle is not None:
            run.handle.cancel()
        elif run.hold is not None:
            if run.stop_reason in ("lost", "shutdown"):
                run.hold.cut()
        elif self._coroutines.forget(run):
            # Interrupted before its first step, it has no chance to say so itself.
            self._end_soon(run, ends.interrupted(run) or ends.RELEASED)
        else:
            self._children.stop(run)

    def ends_surely(self, run: Run) -> bool:
        """Tell whether a run that was interrupted ends soon, whatever its code does."""
        return run in self._children

    async def close_children(self) -> None:
        """End the child processes, also those that still run something."""
        await self._children.close()

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()
        if self._transactions is not None:
            self._transactions.close()

    async def _run_async(
        self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]
    ) -> Outcome:
        try:
            enter(run)
            if task.is_transactional:
                assert self._transactions is not None
                return await self._transactions.arun(run, task, kwargs)
            return ends.completed(task.arguments.dump_result(await body(task)(**kwargs)))
        except asyncio.CancelledError as error:
            return ends.interrupted(run) or ends.raised(error, task)
        except InvalidResult as error:
            return ends.impossible(error)
        except BaseException as error:  # SystemExit in a task ends the task, not the worker
            return ends.raised(error, task)

    def _run_sync(
        self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]
    ) -> Callable[[], None]:
        enter(run)
        if task.is_transactional:
            assert self._transactions is not None
            transactions = self._transactions
            end = ends.judged(task, lambda: transactions.run(run, task, kwargs))
        else:
            end = ends.of(task, lambda: body(task)(**kwargs))
        return lambda: self._end(run, end)

    def _time_out(self, run: Run, is_async: bool) -> None:
        run.stop_reason = run.stop_reason or "timeout"
        if not is_async:
            # A thread cannot be ended: the attempt has failed, the slot is free when it returns.
            self._give_up(run)
            return
        self.interrupt(run)
        # Its clean-up may take a moment; code that swallows the cancellation gets no more.
        run.timer = self._loop.call_later(GRACE_SECONDS, self._give_up, run)

    def _give_up(self, run: Run) -> None:
        self._settle(run, ends.timed_out(run.claimed.timeout_seconds))
        if run.hold is not None:
            run.hold.cut()

    def _end_soon(self, run: Run, end: Outcome) -> None:
        # Not at once: a slot that is freed while it is filled would fill it again, and so on.
        self._loop.call_soon(self._end, run, end)

    def _end(self, run: Run, end: Outcome) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if run.stop_reason == "timeout" and not end.answer:
            end = ends.timed_out(run.claimed.timeout_seconds)
        task = self._registry.tasks.get(run.claimed.name)
        if task is not None and task.sensitive:
            end = ends.masked(end, task, run.claimed.kwargs)
        self._settle(run, end)
        self._free(run)
