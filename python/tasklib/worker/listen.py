"""Hear of new tasks without asking, where the way to the server allows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tasklib import _calls, _connections, _worker_calls
from tasklib._connections import AsyncConnection
from tasklib.config import Config
from tasklib.worker.link import is_infrastructure, pause_after

log = logging.getLogger("tasklib.worker")

CHECK_SECONDS = 30.0


class Listener:
    """A connection that waits for notifications. Polling stays the correct path without it.

    Attributes:
        is_listening: Whether a notification would be heard.
    """

    def __init__(self, config: Config, wake: Callable[[], None]) -> None:
        self.is_listening = False
        self._config = config
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen in the background."""
        if self._config.listen:
            self._task = asyncio.create_task(self._listen(), name="tasklib-listener")

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                connection = await _connections.aconnect(self._config, "tasklib listener")
                try:
                    if not await _is_direct(connection):
                        log.info("a pooler is in between: polling instead of listening")
                        return
                    failures = 0
                    await self._hear(connection)
                finally:
                    self.is_listening = False
                    connection.pgconn.finish()
            except Exception as error:
                if not is_infrastructure(error):
                    log.warning("cannot listen (%s): polling", type(error).__name__)
                    return
                await asyncio.sleep(pause_after(failures))
                failures += 1

    async def _hear(self, connection: AsyncConnection) -> None:
        await connection.execute(_worker_calls.LISTEN)
        self.is_listening = True
        self._wake()  # what came while nobody listened
        while True:
            async for _ in connection.notifies(timeout=CHECK_SECONDS, stop_after=1):
                self._wake()
            async with asyncio.timeout(CHECK_SECONDS):
                # A session that is gone at the other end never says so by itself.
                await _connections.arun(connection, _calls.backend_pid())


async def _is_direct(connection: AsyncConnection) -> bool:
    """Tell whether the session is ours alone: a pooler announces a process id that it made up."""
    return await _connections.arun(connection, _calls.backend_pid()) == connection.info.backend_pid
