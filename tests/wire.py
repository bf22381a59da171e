"""A line between clients and the server that breaks when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Wire:
    """Passes everything on, but one connection breaks at a statement.

    Args:
        conninfo: The server, on a Unix socket.
        folder: Where to listen.
    """

    def __init__(self, conninfo: str, folder: Path) -> None:
        parts = conninfo_to_dict(conninfo)
        name = f".s.PGSQL.{parts['port']}"
        self.conninfo = make_conninfo(conninfo, host=str(folder))
        self.was_cut = False
        self._server = str(Path(str(parts["host"])) / name)
        self._statement: bytes | None = None
        self._is_answered = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / name))
        self._listener.listen(50)
        self._open: list[socket.socket] = [self._listener]

    def cut(self, statement: str, *, is_answered: bool) -> None:
        """Break the next connection that sends this statement.

        Args:
            statement: A part of it.
            is_answered: Whether the server gets it, and only its answer is lost.
        """
        self._is_answered = is_answered
        self._statement = statement.encode()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._open += [client, server]
                for one in (self._send, self._answer):
                    threading.Thread(target=one, args=(client, server), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._statement is not None and self._statement in data:
                    self._statement = None
                    if self._is_answered:
                        client.shutdown(socket.SHUT_WR)  # what comes back goes nowhere
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                    else:
                        server.shutdown(socket.SHUT_RDWR)
                    self.was_cut = True
                    break
                server.sendall(data)
        self._close(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        self._close(client, server)

    def _close(self, *both: socket.socket) -> None:
        for each in both:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
