"""What a worker and its child processes say to each other: JSON with its length before it.

Each message is a kind and a body. To the child:

    setup      once: what it has to know of the worker, see `tasklib.worker.locate.Setup`
    run        one attempt: the fields of `Claimed`, the worker's id, the place of the function
    stop       a reason: ``current_task().cancelled`` is true from now on
    terminate  a reason: a SIGTERM is sent as well, and is meant; the child leaves after the task

From the child:

    begun      the function is about to be called
    progress   a fraction and a text
    log        the attributes of a log record
    end        ``outcome``: the fields of `Outcome`; ``leaves``: whether the child leaves after it
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("!I")


def encode(kind: str, body: object = None) -> bytes:
    """Return a message as it travels; what JSON does not know becomes text."""
    data = json.dumps([kind, body], default=str).encode()
    return _LENGTH.pack(len(data)) + data


class Decoder:
    """Puts messages together from the pieces that arrive."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[str, Any]]:
        """Take a piece, and yield the kind and the body of what is complete.

        Raises:
            ValueError: This is no message.
        """
        self._data += data
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            text = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            kind, body = json.loads(text)
            yield kind, body
