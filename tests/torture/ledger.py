"""What happened, written outside of the database by everybody whom it happened to.

Each process appends JSON lines to a file of its own. A line is one write, which the death of the
process does not undo: what is written stays written, whoever is killed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Ledger:
    """The file of one process."""

    def __init__(self, folder: str | Path, role: str) -> None:
        path = Path(folder) / f"{role}-{os.getpid()}-{time.time_ns()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, what: str, **words: Any) -> None:
        """Append a line: what happened, when, and what belongs to it."""
        line = json.dumps({"what": what, "at": time.time(), **words}, default=str)
        os.write(self._file, line.encode() + b"\n")


class Reader:
    """All files of a run; each look brings what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def news(self) -> list[Event]:
        """Return the lines that were written since the last look."""
        events: list[Event] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            events += [{**json.loads(line), "file": path.name} for line in whole.splitlines()]
        return events
