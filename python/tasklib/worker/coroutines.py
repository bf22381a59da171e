"""Run coroutines that often end without waiting, without a turn of the event loop for each."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from tasklib.worker.context import Run
from tasklib.worker.outcome import Outcome

Body = Coroutine[Any, Any, Outcome]

# Coroutines that end at once must not keep the loop from everything else.
AT_ONCE = 50


class Coroutines:
    """Runs each coroutine in a context of its own.

    One asyncio task runs those that wait for nothing one after the other. The first that waits
    keeps it to its end, as its timeouts and cancellations are tied to it, and another one goes on
    with the rest: so no asyncio task is ever shared by coroutines that wait.

    Args:
        context: What every coroutine starts from, in a copy.
        end: Called with each outcome.
    """

    def __init__(self, context: contextvars.Context, end: Callable[[Run, Outcome], None]) -> None:
        self._context = context
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Run, Body]] = deque()
        self._is_going_on = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, body: Body) -> None:
        """Run a coroutine soon; it returns the outcome and does not raise."""
        self._waiting.append((run, body))
        if not self._is_going_on:
            self._go_on()

    def forget(self, run: Run) -> bool:
        """Do not run what has not begun; tell whether that was so."""
        for waiting in self._waiting:
            if waiting[0] is run:
                self._waiting.remove(waiting)
                waiting[1].close()
                return True
        return False

    def _go_on(self) -> None:
        self._is_going_on = True
        task = self._loop.create_task(self._run_waiting(), context=self._context.copy())
        # The loop itself holds its tasks by weak references only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_waiting(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(AT_ONCE):
            if not self._waiting:
                break
            run, body = self._waiting.popleft()
            run.handle = task
            outcome = await self._driven(run, body)
            run.handle = None
            self._end(run, outcome)
            if run.has_waited:
                return
            # It asked for that itself, and the next one must not be hit. Python before 3.13 does
            # deliver what was taken back.
            if task.cancelling() or getattr(task, "_must_cancel", False):
                break
        self._hand_on()

    def _hand_on(self) -> None:
        """Let another asyncio task go on with what waits."""
        self._is_going_on = False
        if self._waiting:
            self._go_on()

    @types.coroutine
    def _driven(self, run: Run, body: Body) -> Generator[Any, Any, Outcome]:
        """Do what ``await body`` does, in a context of its own."""
        context = self._context.copy()
        try:
            waits_for = context.run(body.send, None)
            run.has_waited = True
            self._hand_on()
            while True:
                try:
                    got = yield waits_for
                except BaseException as error:
                    waits_for = context.run(body.throw, error)
                else:
                    waits_for = context.run(body.send, got)
        except StopIteration as stop:
            return stop.value
