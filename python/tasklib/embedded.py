"""A private PostgreSQL server in the project's folder, shared by every process that asks for it.

It is the default store when no database is configured, for development, tests and work on a
single machine. Its life is counted by file locks: whoever uses it holds a shared lock, the last
one to leave stops it, and a watcher does so when the last one was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

from psycopg.pq import PGconn, Ping

from tasklib import _account, _cluster, _postmaster
from tasklib._cluster import Cluster, EmbeddedError
from tasklib._postmaster import StoreGone
from tasklib.errors import ConfigurationError

__all__ = ["Embedded", "EmbeddedError", "project_root", "temporary"]

# For a root whose project folder is closed to the account that the server runs under.
SYSTEM_STORES = Path("/var/lib/tasklib")

ATTEMPTS = 5

# What a store may leave out that is thrown away anyway.
FAST: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def project_root(start: Path | None = None) -> Path:
    """Return the nearest folder upwards with ``pyproject.toml`` or ``.git``, else the start."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return start


def is_refused() -> bool:
    """Tell whether the environment refuses the embedded server.

    Raises:
        ConfigurationError: It says something else, perhaps with a slip in it.
    """
    word = os.environ.get("TASKLIB_EMBEDDED", "")
    if word.lower() not in ("", "never"):
        raise ConfigurationError(
            f"TASKLIB_EMBEDDED={word!r} says nothing known",
            hint="Set it to never, which refuses the embedded server, or leave it out.",
        )
    return bool(word)


def temporary(*, settings: Mapping[str, str] | None = None) -> Embedded:
    """Return a server of its own that disappears with its data when it is stopped."""
    root = Path(tempfile.gettempdir()) / f"tasklib-{os.getpid()}-{secrets.token_hex(4)}"
    return Embedded(root, settings={**FAST, **(settings or {})}, throw_away=True)


class Embedded:
    """One process's share in the server of a folder; a context manager that gives its URL."""

    def __init__(
        self,
        root: Path,
        *,
        settings: Mapping[str, str] | None = None,
        announce: bool = False,
        throw_away: bool = False,
    ) -> None:
        """Describe the server; nothing happens before ``start``.

        Args:
            root: The folder that owns the store; the data goes to ``.tasklib`` in it.
            settings: Server settings over the built-in ones, in force when this call starts it.
            announce: Write one line to stderr when the server is really started.
            throw_away: Delete root when the last user is gone.
        """
        self.root = root.absolute()
        self.settings = dict(settings or {})
        self._announce = announce
        self._throw_away = throw_away
        self._held: list[int] = []

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @cached_property
    def home(self) -> Path:
        """The folder of the store: data, locks, log and password."""
        local = self.root / ".tasklib"
        if os.geteuid() != 0:
            return local
        # Chosen once: the permissions of the folders above may change later.
        name = f"{self.root.name}-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]}"
        system = SYSTEM_STORES / name
        if (system / "pg").exists():
            return system
        return local if _account.for_data(local).reaches(self.root) else system

    def start(self) -> str:
        """Use the server, and make and start it when that is needed, again if it was killed.

        Returns:
            Its URL, through a socket that only this user (and root) can open.

        Raises:
            ConfigurationError: ``TASKLIB_EMBEDDED=never``, or no server programs to be found.
            EmbeddedError: The folder cannot be used, or the server does not start.
        """
        if not self._throw_away and is_refused():
            raise ConfigurationError(
                "TASKLIB_EMBEDDED=never forbids the embedded server",
                hint="Set TASKLIB_DATABASE_URL or DATABASE_URL to postgresql://user@host/database.",
            )
        for _ in range(ATTEMPTS):
            if self._held and (url := self.url()):
                return url
            self._make_home()
            with contextlib.suppress(StoreGone):  # deleted by its last user just now
                self._join()
        raise EmbeddedError(
            f"the embedded server in {str(self.home)!r} starts, but does not stay",
            hint=f"Its log says why: {self.home / 'server.log'}",
        )

    def stop(self) -> None:
        """Leave the server; the last one to leave stops it. Harmless when not started."""
        if not self._held:
            return
        locks = _postmaster.Locks(self.home)
        with contextlib.suppress(StoreGone), _postmaster.locked(locks.gate):
            # Closed first: a forked child may hold a copy, and then it is still in use.
            self._let_go()
            if _postmaster.is_unused(self.home) and not locks.keep.exists():
                _postmaster.stop(self.home / "pg")
                _postmaster.discard(self._to_remove)
        self._let_go()

    def url(self) -> str | None:
        """Return the URL if the server is running, without starting or holding it."""
        found = _postmaster.read(self.home / "pg")
        if found is None or PGconn.ping(_cluster.url(found).encode()) != Ping.OK:
            return None
        return _cluster.url(found)

    def keep(self) -> None:
        """Let the started server outlive its users, until ``shutdown``."""
        _postmaster.Locks(self.home).keep.touch(0o600)

    def shutdown(self) -> bool:
        """Stop the server now, whoever uses it; tell whether it was running."""
        locks = _postmaster.Locks(self.home)
        with contextlib.suppress(StoreGone), _postmaster.locked(locks.gate):
            locks.keep.unlink(missing_ok=True)
            return _postmaster.stop(self.home / "pg")
        return False

    def _join(self) -> None:
        """Take a share of the users' locks, with the server running."""
        locks = _postmaster.Locks(self.home)
        with _postmaster.locked(locks.gate):
            self._let_go()
            try:
                for path in (locks.users, locks.alive):
                    self._held.append(_postmaster.open_descriptor(path))
                    fcntl.flock(self._held[-1], fcntl.LOCK_SH)
                started = Cluster(self.home, self.settings).ensure()
            except BaseException:
                self._let_go()
                raise
            self._start_watcher()
        if started and self._announce:
            sys.stderr.write(
                f"tasklib: started embedded PostgreSQL {started.version} in {self.home} "
                "(set TASKLIB_DATABASE_URL to use your own server)\n"
            )

    @property
    def _to_remove(self) -> list[Path]:
        return [self.home, self.root] if self._throw_away else []

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _make_home(self) -> None:
        try:
            if self._throw_away:
                self.root.mkdir(exist_ok=True)
                self.root.chmod(0o755)
            if self.home.parent == SYSTEM_STORES:
                SYSTEM_STORES.mkdir(exist_ok=True)
                SYSTEM_STORES.chmod(0o755)  # whatever root's umask is, the account must get through
            if not self.home.exists():
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.home / ".gitignore").write_text("*\n")
            owner = self.home.stat().st_uid
        except OSError as error:
            raise EmbeddedError(
                f"cannot keep the embedded database in {str(self.root)!r}: {error.strerror}",
                hint="Start from a folder that you may write to, or set TASKLIB_DATABASE_URL.",
            ) from error
        if os.geteuid() not in (0, owner):
            raise EmbeddedError(
                f"the embedded database in {str(self.home)!r} belongs to another account",
                hint="Start as that user, or set TASKLIB_DATABASE_URL.",
            )
        with contextlib.suppress(FileNotFoundError):  # as in start: then it is made again
            _account.for_data(self.home).own(self.home)
            _postmaster.Locks(self.home).create()

    def _start_watcher(self) -> None:
        """Have somebody who stops the server when all its users were killed."""
        if not sys.executable:  # Python inside another program: that one has to end in order
            return
        folders = [str(folder) for folder in (self.home, *self._to_remove)]
        command = [sys.executable, "-I", "-S", _postmaster.__file__, *folders]
        subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
