"""The proxy of the tests fails as it is told to, and only then."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Generator

import pytest

from proxy import Proxy


@contextlib.contextmanager
def echo(word: bytes) -> Generator[int]:
    """Listen on a free port, and answer everything with the word before it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(1000):
                peer.sendall(word + data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy() -> Generator[Proxy]:
    with echo(b"a") as port, Proxy(port) as running:
        yield running


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def ask(peer: socket.socket, text: bytes = b"x") -> bytes:
    peer.sendall(text)
    return peer.recv(1000)


def test_it_passes_everything_on(proxy: Proxy) -> None:
    with dial(proxy) as peer:
        assert ask(peer, b"hello") == b"ahello"


def test_a_cut_resets_as_many_as_it_shall(proxy: Proxy) -> None:
    peers = [dial(proxy) for _ in range(4)]
    assert [ask(peer) for peer in peers] == [b"ax"] * 4
    assert proxy.cut(0.5) == 2
    reset = 0
    for peer in peers:
        with peer:
            try:
                assert ask(peer) == b"ax"
            except ConnectionError:
                reset += 1
    assert reset == 2


def test_a_black_hole_passes_nothing_and_loses_nothing(proxy: Proxy) -> None:
    with dial(proxy) as peer:
        assert ask(peer) == b"ax"
        proxy.blackhole()
        peer.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(peer, b"y")
        proxy.restore()
        peer.settimeout(10)
        assert peer.recv(1000) == b"ay"


def test_a_black_hole_ends_by_itself(proxy: Proxy) -> None:
    with dial(proxy) as peer:
        assert ask(peer) == b"ax"
        proxy.blackhole(0.1)
        assert ask(peer, b"y") == b"ay"


def test_it_refuses_and_listens_again_at_its_port(proxy: Proxy) -> None:
    with dial(proxy) as peer:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        assert ask(peer) == b"ax"  # those that are open stay
        proxy.restore()
    with dial(proxy) as peer:
        assert ask(peer) == b"ax"


def test_new_connections_go_where_it_points(proxy: Proxy) -> None:
    with echo(b"b") as other, dial(proxy) as before:
        assert ask(before) == b"ax"
        proxy.repoint(other)
        with dial(proxy) as after:
            assert ask(after) == b"bx"
        assert ask(before) == b"ax"


def test_it_hangs_up_when_there_is_no_server(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    proxy.repoint(port)
    with dial(proxy) as peer, contextlib.suppress(ConnectionError):
        assert ask(peer) == b""


def test_it_ends_with_its_caller(proxy: Proxy) -> None:
    proxy.close()
    with pytest.raises(ProcessLookupError):
        os.kill(proxy.pid, 0)
