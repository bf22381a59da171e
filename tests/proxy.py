"""A TCP proxy between clients and a server, in a process of its own, that fails on demand.

The process that starts it steers it: cuts connections, lets nothing through for a while (as a
network does that drops packets: what was sent arrives later), points to another server, refuses to
listen. It ends with whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK = 65_536


class Proxy:
    """The caller's side: starts the process, and gives it orders. Its methods are thread-safe."""

    def __init__(
        self, target: int | str | Path, *, host: str = "127.0.0.1", seed: int | None = None
    ) -> None:
        """Start listening on a free port of 127.0.0.1.

        Args:
            target: Where connections go: a TCP port, or the path of a Unix socket.
            host: The host of a port.
            seed: What decides which connections a cut of some meets.
        """
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(_address(target, host)), json.dumps(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._read())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process of the proxy."""
        return self._process.pid

    def cut(self, share: float = 1.0) -> int:
        """Reset a random share of the connections, on both sides; return how many."""
        return self._order("cut", share=share)

    def blackhole(self, seconds: float | None = None) -> None:
        """Pass nothing in either direction, not even an end, for so long or until ``restore``.

        New connections are accepted, as a load balancer does, and hear nothing.
        """
        self._order("blackhole", seconds=seconds)

    def refuse(self) -> None:
        """Stop listening: new connections are refused. Those that are open stay."""
        self._order("refuse")

    def restore(self) -> None:
        """End a black hole, and listen again."""
        self._order("restore")

    def repoint(self, target: int | str | Path, *, host: str = "127.0.0.1") -> None:
        """Send new connections somewhere else. Those that are open stay where they are."""
        self._order("repoint", target=_address(target, host))

    def connections(self) -> int:
        """Return how many connections are open."""
        return self._order("count")

    def close(self) -> None:
        """End the process, and with it all connections."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _order(self, verb: str, **words: Any) -> int:
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps({"verb": verb, **words}) + "\n")
            self._process.stdin.flush()
            return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return line
        raise RuntimeError(f"the proxy has ended with {self._process.wait()}")


def _address(target: int | str | Path, host: str) -> list[Any]:
    return [host, target] if isinstance(target, int) else [str(target)]


class Relay:
    """The proxy's own side."""

    def __init__(self, target: list[Any], seed: int | None) -> None:
        self.target = target
        self.random = random.Random(seed)
        self.port = 0
        self.passes = asyncio.Event()
        self.passes.set()
        self.pairs: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self.server: asyncio.Server | None = None
        self.timer: asyncio.TimerHandle | None = None

    async def listen(self) -> None:
        """Begin to accept, at the same port as before."""
        if self.server is None:
            self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self.server.sockets[0].getsockname()[1]

    async def obey(self, verb: str, words: dict[str, Any]) -> int:
        """Do what an order says."""
        match verb:
            case "cut":
                return self._cut(words["share"])
            case "blackhole":
                self._blackhole(words["seconds"])
            case "refuse":
                if self.server:
                    self.server.close()
                    self.server = None
            case "restore":
                self._pass()
                await self.listen()
            case "repoint":
                self.target = words["target"]
            case _:
                return len(self.pairs)
        return 0

    def _cut(self, share: float) -> int:
        met = self.random.sample(list(self.pairs), round(share * len(self.pairs)))
        for pair in met:
            for writer in self.pairs[pair]:
                _reset(writer)
            pair.cancel()
        return len(met)

    def _blackhole(self, seconds: float | None) -> None:
        if self.timer:
            self.timer.cancel()
        self.passes.clear()
        if seconds is not None:
            self.timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.passes.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = asyncio.current_task()
        assert pair
        ends = self.pairs[pair] = [writer]
        try:
            await self.passes.wait()
            there, back = await self._dial()
            ends.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, back))
                both.create_task(self._pump(there, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # whichever side broke, the other learns it below
        finally:
            del self.pairs[pair]
            for end in ends:
                end.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if len(self.target) == 1:
            return await asyncio.open_unix_connection(self.target[0])
        return await asyncio.open_connection(*self.target)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(CHUNK)
            await self.passes.wait()
            if not data:
                # Sessions of PostgreSQL know no half-closed connections.
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a dead machine or a firewall does."""
    held = writer.get_extra_info("socket")
    if held is not None and held.family == socket.AF_INET:
        with contextlib.suppress(OSError):  # it is closed already
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def _main(target: list[Any], seed: int | None) -> None:
    relay = Relay(target, seed)
    await relay.listen()
    print(relay.port, flush=True)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        words = json.loads(line)
        print(await relay.obey(words.pop("verb"), words), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1]), json.loads(sys.argv[2])))
