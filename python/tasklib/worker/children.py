"""Child processes for tasks that must really end: which one runs what, and how each is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tasklib.registry import Registry, TaskFunction
from tasklib.worker import locate
from tasklib.worker import outcome as ends
from tasklib.worker.context import Run
from tasklib.worker.outcome import Outcome
from tasklib.worker.process import ChildProcess

# A child that has not even imported its modules by then has failed.
START_SECONDS = 30.0
# What code that looks at `current_task().cancelled` has to end by itself.
TOLD_SECONDS = 1.0
IDLE_SECONDS = 60.0
CLOSE_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class _Child:
    """A child process, and what it does at the moment.

    Attributes:
        process: The process.
        run: What it runs; None while it is idle.
        job: What was sent to it for the run.
        has_run: Whether it has ended a run before this one.
        has_begun: Whether the function of the run was called.
        is_leaving: Whether it ends after this run, by itself or by a signal.
        outcome: How the run ended, while the process is still there.
        timer: What happens to it next if nothing else does.
    """

    process: ChildProcess
    run: Run | None = None
    job: object = None
    has_run: bool = False
    has_begun: bool = False
    is_leaving: bool = False
    outcome: Outcome | None = None
    timer: asyncio.TimerHandle | None = None


class ChildPool:
    """As many child processes as there is work at a time, each kept a while for the next.

    Args:
        registry: Whose tasks are run.
        end: Called once for each run, on the loop, when it has ended and nothing of it runs.
        grace: Seconds between SIGTERM and SIGKILL.
        on_spawn: Called with the process group of each child that was started.
        on_exit: Called with the same when nothing of the group is left.
    """

    def __init__(
        self,
        registry: Registry,
        end: Callable[[Run, Outcome], None],
        grace: float,
        on_spawn: Callable[[int], None] = lambda _: None,
        on_exit: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._end = end
        self._grace = grace
        self._on_spawn = on_spawn
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._running: dict[Run, _Child] = {}
        self._all_gone = asyncio.Event()

    def __contains__(self, run: object) -> bool:
        """Whether a child runs it."""
        return run in self._running

    def start(self, run: Run, task: TaskFunction[..., Any]) -> None:
        """Run this in a child; its outcome comes by ``end``, also when there can be no child."""
        place = locate.Place.of(task)
        job = {
            "claimed": run.claimed._asdict(),
            "worker_id": run.worker_id,
            "place": asdict(place),
        }
        self._begin(run, job)

    def stop(self, run: Run) -> None:
        """End a run: a cancelled one is told first, what nobody waits for any more is not."""
        child = self._running.get(run)
        if child is None or child.is_leaving:
            return
        if run.stop_reason == "cancel":
            child.process.send("stop", run.stop_reason)
            self._next(child, TOLD_SECONDS, self._terminate)
        else:
            self._terminate(child)

    async def close(self) -> None:
        """End all children at once; returns when none is left."""
        for child in list(self._children):
            if child.run is None and not child.is_leaving:
                self._dismiss(child, CLOSE_SECONDS)
            elif child.run is not None:
                child.is_leaving = True
                self._kill(child)
        if self._children:
            self._all_gone.clear()
            # Longer only where not even SIGKILL ends a process, such as on a dead network drive.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS + self._grace):
                    await self._all_gone.wait()

    # ---- from idle to running and back -----------------------------------------------------------

    def _begin(self, run: Run, job: object) -> None:
        try:
            child = self._idle.pop() if self._idle else self._spawned()
        except (OSError, RuntimeError) as error:
            message = f"{type(error).__name__}: no child process could be started: {error}"
            outcome = ends.failed(message, type(error).__name__, retry=True)
            self._loop.call_soon(self._end, run, outcome)
            return
        child.run, child.job = run, job
        self._running[run] = child
        self._next(child, START_SECONDS, self._give_up_start)
        child.process.send("run", job)

    def _spawned(self) -> _Child:
        setup = locate.setup(self._registry.modules, _levels())
        child = _Child(
            ChildProcess(
                received=lambda kind, body: self._receive(child, kind, body),
                died=lambda code: self._bury(child, code),
            )
        )
        self._children.add(child)
        self._on_spawn(child.process.pid)
        child.process.send("setup", setup)
        return child

    def _receive(self, child: _Child, kind: str, body: Any) -> None:
        run = child.run
        if kind == "log":
            _log(body, run)
        elif run is None:
            return
        elif kind == "begun":
            child.has_begun = True
            self._limit(child, run)
        elif kind == "progress":
            run.progress = (body[0], body[1])
        elif kind == "end":
            child.outcome = child.outcome or Outcome(**body["outcome"])
            if body["leaves"] and not child.is_leaving:
                child.is_leaving = True
                self._next(child, self._grace, self._kill)
            elif not child.is_leaving:
                self._finish(child, run, child.outcome)

    def _finish(self, child: _Child, run: Run, outcome: Outcome) -> None:
        """Report a run that ended, and keep the child for the next."""
        del self._running[run]
        child.run = child.job = child.outcome = None
        child.has_run, child.has_begun = True, False
        self._idle.append(child)
        self._next(child, IDLE_SECONDS, lambda child: self._dismiss(child, self._grace))
        self._end(run, outcome)

    def _bury(self, child: _Child, code: int) -> None:
        """Report what a dead child has run."""
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        if child.timer is not None:
            child.timer.cancel()
        if not self._children:
            self._all_gone.set()
        self._on_exit(child.process.pid)
        run = child.run
        if run is None:
            return
        del self._running[run]
        if child.has_run and not child.has_begun and not child.is_leaving:
            self._begin(run, child.job)  # it died while it was idle, and nobody knew yet
        else:
            self._end(run, _judged(child, run, code))

    # ---- ends ------------------------------------------------------------------------------------

    def _limit(self, child: _Child, run: Run) -> None:
        """Let the timeout begin: a child's own start is not the function's time."""
        if child.is_leaving or run.stop_reason is not None:
            return
        if run.claimed.timeout_seconds is not None:
            self._next(child, run.claimed.timeout_seconds, self._time_out)
        elif child.timer is not None:
            child.timer.cancel()

    def _time_out(self, child: _Child) -> None:
        if child.run is not None:
            child.run.stop_reason = child.run.stop_reason or "timeout"
        self._terminate(child)

    def _give_up_start(self, child: _Child) -> None:
        message = f"TimeoutError: the child process was not ready within {START_SECONDS:g} s"
        child.outcome = ends.failed(message, "not ready", retry=True)
        self._terminate(child)

    def _terminate(self, child: _Child) -> None:
        child.is_leaving = True
        child.process.send("terminate", child.run and child.run.stop_reason)
        child.process.signal(signal.SIGTERM)
        self._next(child, self._grace, self._kill)

    def _dismiss(self, child: _Child, seconds: float) -> None:
        self._idle.remove(child)
        child.is_leaving = True
        child.process.hang_up()
        self._next(child, seconds, self._kill)

    def _kill(self, child: _Child) -> None:
        child.process.signal(signal.SIGKILL)

    def _next(self, child: _Child, seconds: float, what: Callable[[_Child], None]) -> None:
        if child.timer is not None:
            child.timer.cancel()
        child.timer = self._loop.call_later(seconds, what, child)


def _judged(child: _Child, run: Run, code: int) -> Outcome:
    """Return the outcome of a run whose child is no more."""
    interrupted = ends.interrupted(run) if child.is_leaving else None
    if interrupted and (child.outcome is None or child.outcome.state == "failed"):
        return interrupted  # its error, if any, is that of code that was told to end
    return child.outcome or ends.crashed(code)


def _levels() -> dict[str, int]:
    """Return the levels of the loggers that have one."""
    known = logging.root.manager.loggerDict
    loggers = [logger for logger in known.values() if isinstance(logger, logging.Logger)]
    return {logger.name: logger.level for logger in (logging.root, *loggers) if logger.level}


def _log(fields: dict[str, Any], run: Run | None) -> None:
    """Handle a record of a child as one of this process."""
    record = logging.makeLogRecord(fields | (run.log if run is not None else {}))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
