"""Which source files have changed; standard library only, see `supervisor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

# What is never a project's own code, beside folders whose names begin with a dot.
SKIPPED = {"__pycache__", "node_modules", "site-packages"}


class Sources:
    """The ``.py`` files below a folder, and others that were named, with their times.

    Args:
        root: The folder.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._others: set[str] = set()
        self._seen = dict(self._look())

    def add(self, path: str) -> None:
        """Look at this file, too, wherever it is."""
        if path not in self._seen:
            self._others.add(path)
            self._seen.update(_dated(path))

    def changed(self) -> list[str]:
        """Return the files that are new, other or gone since the last call."""
        now = dict(self._look())
        changed = {path for path, _ in self._seen.items() ^ now.items()}
        self._seen = now
        return sorted(changed)

    def _look(self) -> Iterator[tuple[str, int]]:
        yield from _below(self._root)
        for path in self._others:
            yield from _dated(path)


def _below(folder: str) -> Iterator[tuple[str, int]]:
    # A folder may be deleted, or closed to us, while we look.
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                if not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    yield from _below(entry.path)
            elif entry.name.endswith(".py"):
                with suppress(OSError):
                    yield entry.path, entry.stat().st_mtime_ns


def _dated(path: str) -> Iterator[tuple[str, int]]:
    with suppress(OSError):
        yield path, os.stat(path).st_mtime_ns
