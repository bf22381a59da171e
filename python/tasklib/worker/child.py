"""The program of a child process: it runs one task after the other, for the worker above it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import faulthandler
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tasklib.errors import TaskNotRegistered
from tasklib.models import Claimed
from tasklib.registry import TaskFunction
from tasklib.worker import context, wire
from tasklib.worker import outcome as ends
from tasklib.worker.context import Run, enter
from tasklib.worker.hooks import body
from tasklib.worker.locate import Modules, Place, Setup
from tasklib.worker.outcome import Outcome

PIECE_BYTES = 65536
PROGRESS_MILLISECONDS = 250
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run tasks until the worker hangs up; ``sys.argv`` is the socket and the worker's id."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    os.set_inheritable(descriptor, False)
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        faulthandler.enable()
    context.is_child = True
    _Child(socket.socket(fileno=descriptor)).work()


class _Terminated(SystemExit):
    """The worker ends the task; what a task does not catch by accident."""


class _Child:
    """The main thread runs tasks, another one listens to the worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.RLock()
        self._sigterm = _Sigterm()
        self._jobs: queue.SimpleQueue[tuple[Run, Place] | None] = queue.SimpleQueue()
        self._run: Run | None = None
        self._modules: Modules | None = None

    def work(self) -> None:
        """Run what comes; returns when there is nothing more to do."""
        threading.Thread(target=self._listen, name="tasklib-listen", daemon=True).start()
        with contextlib.suppress(_Terminated):
            while (job := self._jobs.get()) is not None:
                self._attempt(*job)

    # ---- one task --------------------------------------------------------------------------------

    def _attempt(self, run: Run, place: Place) -> None:
        # Each time: the task before may have changed it.
        signal.signal(signal.SIGTERM, self._sigterm.handle)
        own = contextvars.copy_context()
        own.run(enter, run)
        with self._sigterm.allowed():
            outcome, leaves = own.run(self._ended, run, place)
        with self._lock:
            self._report_progress()
            self._run = None
            self._send("end", {"outcome": asdict(outcome), "leaves": leaves})
        if leaves:
            self._jobs.put(None)

    def _ended(self, run: Run, place: Place) -> tuple[Outcome, bool]:
        """Return how a run ended, and whether this process is of no more use."""
        assert self._modules is not None
        try:
            self._modules.load(place)
        except _Terminated:
            raise
        # Also SystemExit: a script that is nothing but its main part.
        except BaseException as error:
            error.add_note(_cannot_import(place))
            return ends.failed(ends.explained(error), type(error).__name__, retry=True), True
        task = self._modules.find(run.claimed.name, place)
        if task is None:
            return ends.impossible(_no_such_task(run.claimed.name, place)), False
        kwargs = ends.loaded(task, run.claimed.kwargs)
        if isinstance(kwargs, Outcome):
            return kwargs, False
        self._send("begun")
        return ends.of(task, lambda: self._call(task, kwargs)), False

    def _call(self, task: TaskFunction[..., Any], kwargs: dict[str, Any]) -> object:
        if task.is_async:
            return asyncio.run(self._call_async(task, kwargs))
        return body(task)(**kwargs)

    async def _call_async(self, task: TaskFunction[..., Any], kwargs: dict[str, Any]) -> object:
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None
        # Raised in the middle of the loop's own work, it could leave the clean-up without a loop.
        with self._sigterm.going_to(lambda: loop.call_soon_threadsafe(current.cancel)):
            return await body(task)(**kwargs)

    # ---- the worker ------------------------------------------------------------------------------

    def _listen(self) -> None:
        decoder, readable = wire.Decoder(), select.poll()
        readable.register(self._socket, select.POLLIN)
        while True:
            if not readable.poll(None if self._run is None else PROGRESS_MILLISECONDS):
                self._report_progress()
                continue
            try:
                data = self._socket.recv(PIECE_BYTES)
            except OSError:
                data = b""
            if not data:
                self._leave()
                return
            for kind, content in decoder.feed(data):
                self._receive(kind, content)

    def _receive(self, kind: str, content: Any) -> None:
        if kind == "setup":
            setup = Setup(**content)
            sys.argv = setup.argv
            self._forward_logs(setup.levels)
            self._modules = Modules(setup)
        elif kind == "run":
            claimed = Claimed(**content["claimed"])
            place = Place(content["place"]["module"], tuple(content["place"]["origin"]))
            self._run = Run(claimed, content["worker_id"])
            self._jobs.put((self._run, place))
        elif kind in ("stop", "terminate"):
            if self._run is not None:
                self._run.stop_reason = content
            if kind == "terminate":
                self._jobs.put(None)
                self._sigterm.announce()

    def _leave(self) -> None:
        """The worker has hung up, or is dead: then nobody wants the task to go on."""
        if self._run is not None:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        self._jobs.put(None)

    def _forward_logs(self, levels: dict[str, int]) -> None:
        """Let the worker write what is logged here, as it writes its own lines."""
        logging.root.addHandler(_Forward(self._send))
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    def _report_progress(self) -> None:
        with self._lock:
            run = self._run
            if run is not None and run.progress is not None:
                progress, run.progress = run.progress, None
                self._send("progress", progress)

    def _send(self, kind: str, body: object = None) -> None:
        data = wire.encode(kind, body)
        with self._sigterm.put_off(), self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)


class _Sigterm:
    """Lets a SIGTERM end the task's code, when the worker has said that it is meant.

    Others send it, too: systemd to every process of the service when that is to stop, and then the
    worker still lets its tasks end.
    """

    def __init__(self) -> None:
        self._is_announced = False
        self._has_come = False
        self._is_allowed = False
        self._is_done = False
        self._end: Callable[[], object] = _raise

    def handle(self, _number: int, _frame: object) -> None:
        """Take the signal, in the main thread."""
        self._has_come = True
        self._deliver()

    def announce(self) -> None:
        """Say that the signal is meant, from another thread; before or after it has come."""
        self._is_announced = True
        if self._has_come:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    @contextmanager
    def allowed(self) -> Generator[None]:
        """Let the signal end the block."""
        try:
            self._is_allowed = True
            self._deliver()
            yield
        finally:
            self._is_allowed = False

    @contextmanager
    def put_off(self) -> Generator[None]:
        """Let the block go on to its end: half a message would be none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._is_allowed = self._is_allowed, False
        try:
            yield
        finally:
            self._is_allowed = before
            self._deliver()

    @contextmanager
    def going_to(self, end: Callable[[], object]) -> Generator[None]:
        """Call ``end`` where otherwise an exception is raised."""
        self._end = end
        try:
            yield
        finally:
            self._end = _raise

    def _deliver(self) -> None:
        if self._has_come and self._is_announced and self._is_allowed and not self._is_done:
            self._is_done = True
            self._end()


class _Forward(logging.Handler):
    """Sends records to the worker, complete: the text is made here, tracebacks included."""

    def __init__(self, send: Callable[[str, object], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            made = dict.fromkeys(("args", "exc_info", "exc_text", "stack_info"))
            self._send("log", vars(record) | made | {"msg": self.format(record)})
        except Exception:
            self.handleError(record)


def _raise() -> None:
    raise _Terminated(128 + signal.SIGTERM)


def _die_with(parent: int) -> None:
    """Have this process killed when the worker dies, whatever code it is in."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it died before
        os._exit(1)


def _cannot_import(place: Place) -> str:
    return (
        f"A child process of the worker could not import {place.module}, where {place} is "
        "(isolation='process').\n"
        "Hint: It imports what the worker was started with, and then this module, as "
        "multiprocessing does: what the module needs has to be imported or set up by these two, "
        "and what starts the program stands under `if __name__ == '__main__':`."
    )


def _no_such_task(name: str, place: Place) -> TaskNotRegistered:
    return TaskNotRegistered(
        f"a child process of the worker imported {place.module} and found no task {name!r} "
        f"({place}) there",
        hint="A task with isolation='process' is defined where importing its module defines it: "
        "not inside another function, under `if __name__ == '__main__':` or in a __main__.py.",
    )
