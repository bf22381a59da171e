"""SIGTERM and SIGINT: the first asks the worker to finish, the second makes it leave."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled(on_signal: Callable[[int], None], *, wanted: bool) -> Generator[None]:
    """Call ``on_signal`` on the loop for the time of the block, where that is possible."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
    except NotImplementedError:  # event loops of Windows
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
