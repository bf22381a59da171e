"""Run claimed tasks: async ones on the loop, sync ones in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

from tasklib.errors import InvalidArguments, InvalidResult
from tasklib.registry import Registry, TaskFunction
from tasklib.worker import outcome as ends
from tasklib.worker.context import Run, enter
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
    """

    def __init__(
        self,
        registry: Registry,
        settle: Callable[[Run, Outcome], None],
        free: Callable[[Run], None],
        transactions: Transactions | None = None,
    ) -> None:
        self._registry = registry
        self._settle = settle
        self._free = free
        self._transactions = transactions
        self._threads = Threads("tasklib-task")
        self._loop = asyncio.get_running_loop()

    def start(self, run: Run) -> None:
        """Start a run; arguments that cannot be read fail this run alone."""
        run.started = self._loop.time()
        task = self._registry.tasks.get(run.claimed.name)
        if task is None:
            self._end_soon(run, Outcome("released", ends.RELEASED.text, "no such task here"))
            return
        try:
            kwargs = task.arguments.load(run.claimed.kwargs)
        except InvalidArguments as error:
            self._end_soon(run, ends.impossible(error))
            return
        except Exception as error:  # a validator of the user's own types
            self._end_soon(run, ends.raised(error, task))
            return
        if run.claimed.timeout_seconds is not None:
            seconds = run.claimed.timeout_seconds
            run.timer = self._loop.call_later(seconds, self._time_out, run, task.is_async)
        context = contextvars.copy_context()
        context.run(enter, run)
        if task.is_async:
            run.handle = self._loop.create_task(
                self._run_async(run, task, kwargs), name=task.name, context=context
            )
            run.handle.add_done_callback(lambda handle: self._end_unbegun(run, handle))
        else:
            self._threads.submit(lambda: context.run(self._run_sync, run, task, kwargs))

    def interrupt(self, run: Run) -> None:
        """Make an async run end; a sync one looks at ``current_task().cancelled``."""
        if run.handle is not None:
            run.handle.cancel()
        elif run.hold is not None and run.stop_reason in ("lost", "shutdown"):
            run.hold.cut()

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()
        if self._transactions is not None:
            self._transactions.close()

    async def _run_async(
        self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]
    ) -> None:
        try:
            if task.is_transactional:
                assert self._transactions is not None
                end = await self._transactions.arun(run, task, kwargs)
            else:
                end = ends.completed(task.arguments.dump_result(await body(task)(**kwargs)))
        except asyncio.CancelledError as error:
            end = _interrupted(run) or ends.raised(error, task)
        except InvalidResult as error:
            end = ends.impossible(error)
        except BaseException as error:  # SystemExit in a task ends the task, not the worker
            end = ends.raised(error, task)
        self._end(run, end)

    def _run_sync(self, run: Run, task: TaskFunction[..., Any], kwargs: dict[str, Any]) -> None:
        try:
            if task.is_transactional:
                assert self._transactions is not None
                end = self._transactions.run(run, task, kwargs)
            else:
                end = ends.completed(task.arguments.dump_result(body(task)(**kwargs)))
        except InvalidResult as error:
            end = ends.impossible(error)
        except BaseException as error:  # SystemExit in a task ends the task, not the worker
            end = ends.raised(error, task)
        # The loop is closed when the worker left before its task.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, run, end)

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

    def _end_unbegun(self, run: Run, handle: asyncio.Task[None]) -> None:
        # Interrupted before its first step, it had no chance to say so itself.
        if handle.cancelled():
            self._end(run, _interrupted(run) or ends.RELEASED)

    def _end_soon(self, run: Run, end: Outcome) -> None:
        # Not at once: a slot that is freed while it is filled would fill it again, and so on.
        self._loop.call_soon(self._end, run, end)

    def _end(self, run: Run, end: Outcome) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if run.stop_reason == "timeout" and not end.answer:
            end = ends.timed_out(run.claimed.timeout_seconds)
        self._settle(run, end)
        self._free(run)


def _interrupted(run: Run) -> Outcome | None:
    """Return the outcome of an async run that the worker interrupted."""
    if run.stop_reason in ("lost", "shutdown"):
        return ends.RELEASED
    if run.stop_reason == "cancel":
        return ends.cancelled(None)
    return None
