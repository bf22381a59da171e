"""Make and start the data directory of an embedded server."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from psycopg.pq import PGconn, Ping

from tasklib import _account, _binaries, _postmaster
from tasklib._binaries import Binaries
from tasklib.errors import ConfigurationError

USER = DATABASE = "tasklib"
START_SECONDS = 60.0
LOG_BYTES = 10_000_000

# Durable as any server: fsync, full_page_writes and synchronous_commit stay on.
SETTINGS: Mapping[str, str] = {
    "jit": "off",
    "listen_addresses": "",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "logging_collector": "off",
    "max_connections": "200",
    "unix_socket_permissions": "0700",
}


class EmbeddedError(ConfigurationError):
    """The embedded server cannot be made or started."""


class Cluster:
    """The data directory ``pg`` of one store. Callers hold the store's gate lock."""

    def __init__(self, home: Path, settings: Mapping[str, str]) -> None:
        self.home = home
        self.data = home / "pg"
        self.settings = {**SETTINGS, **settings}
        self.account = _account.for_data(home)

    def ensure(self) -> Binaries | None:
        """Make the data directory when there is none, and start the server when it is down.

        Returns:
            What was started; None when the server was running.

        Raises:
            ConfigurationError: There are no programs of the version that the data needs.
            EmbeddedError: The server does not start.
        """
        left_behind = _postmaster.read(self.data) is not None
        if self._is_up():
            return None
        written_by = self.data / "PG_VERSION"
        major = int(written_by.read_text()) if written_by.exists() else None
        binaries = self.account.usable(_binaries.find(major))
        if major is None:
            self._create(binaries)
        # The sessions of a killed server hold its shared memory for a moment.
        self._start(binaries, patience=5.0 if left_behind else 0.0)
        return binaries

    def _is_up(self) -> bool:
        """Tell whether the server answers; wait for one that is recovering or shutting down."""
        end = time.monotonic() + START_SECONDS
        while found := _postmaster.read(self.data):
            if PGconn.ping(url(found).encode()) == Ping.OK:
                return True
            if not _postmaster.is_running(found, self.data):
                # Left behind by a killed server; its number may be a zombie's, or a stranger's by
                # now, and either would keep the next server from starting.
                (self.data / "postmaster.pid").unlink(missing_ok=True)
                return False
            if time.monotonic() > end:
                raise EmbeddedError(
                    f"the embedded server (process {found.pid}) does not answer since "
                    f"{START_SECONDS:.0f} s",
                    hint=f"Its log says why: {self.home / 'server.log'}",
                )
            time.sleep(0.05)
        return False

    def _create(self, binaries: Binaries) -> None:
        """Run initdb under another name: half-made data never carries the final one."""
        for leftover in self.home.glob(".init-*"):
            shutil.rmtree(leftover)
        part = Path(tempfile.mkdtemp(prefix=".init-", dir=self.home))
        self.account.own(part)
        password = self._password()
        # 17 has Unicode rules of its own; before it, every other locale depends on the machine.
        locale = ["--locale=C"]
        if binaries.major >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        sync = ["--no-sync"] if self.settings.get("fsync") == "off" else []
        access = [f"--pwfile={password}", "--auth-local=trust", "--auth-host=scram-sha-256"]
        words = ["initdb", "-D", part, "-U", USER, "-E", "UTF8", "--no-instructions"]
        self._run(binaries, [*words, *access, *locale, *sync])
        with (part / "postgresql.conf").open("a") as config:
            config.write("\n# Written anew at each start; change settings with ALTER SYSTEM.\n")
            config.write("include_if_exists = 'tasklib.conf'\n")
        self._run(
            binaries,
            ["postgres", "--single", "-D", part, "-c", "exit_on_error=on", "postgres"],
            text=f"create database {DATABASE};\n",
        )
        if self.data.exists():
            self.data.rmdir()
        part.rename(self.data)

    def _password(self) -> Path:
        """Make the password that connections through TCP need; the socket needs none."""
        path = self.home / "password"
        if not path.exists():
            path.touch(0o600)
            path.write_text(secrets.token_urlsafe(24))
            self.account.own(path)
        return path

    def _start(self, binaries: Binaries, *, patience: float) -> None:
        self._write_settings()
        log = self.home / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.write_bytes(b"")
        end = time.monotonic() + patience
        # In the home folder and with PGDATA: pg_ctl hands its arguments to a shell unquoted.
        command = ["pg_ctl", "start", "-w", "-t", str(int(START_SECONDS)), "-l", log.name]
        while True:
            code, said = self._call(binaries, command, cwd=self.home, PGDATA=str(self.data))
            if code == 0:
                return
            if time.monotonic() > end:
                tail = log.read_text(errors="replace")[-2000:] if log.exists() else said
                raise EmbeddedError(
                    f"the embedded PostgreSQL {binaries.version} in {str(self.home)!r} does not "
                    f"start; the end of its log:\n{tail.strip()}"
                )
            time.sleep(0.25)

    def _write_settings(self) -> None:
        folder = _postmaster.socket_folder(self.home)
        self.account.own(folder)
        settings = {**self.settings, "unix_socket_directories": str(folder)}
        if port := os.environ.get("TASKLIB_EMBEDDED_PORT"):
            if not port.isdecimal() or not 0 < int(port) < 65536:
                raise ConfigurationError(
                    f"TASKLIB_EMBEDDED_PORT={port!r} is no port",
                    hint="Give a number from 1 to 65535.",
                )
            settings |= {"listen_addresses": "127.0.0.1", "port": port}
        path = self.data / "tasklib.conf"
        lines = (f"{name} = '{_quoted(value)}'\n" for name, value in sorted(settings.items()))
        path.write_text("".join(lines))
        self.account.own(path)

    def _run(self, binaries: Binaries, command: Sequence[str | Path], *, text: str = "") -> None:
        code, said = self._call(binaries, command, text=text)
        if code:
            raise EmbeddedError(
                f"{command[0]} of PostgreSQL {binaries.version} ({binaries.folder}) "
                f"failed with {code}: {said.strip()[-1000:]}"
            )

    def _call(
        self,
        binaries: Binaries,
        command: Sequence[str | Path],
        *,
        cwd: Path = Path("/"),
        text: str = "",
        **env: str,
    ) -> tuple[int, str]:
        program = binaries.folder / command[0]
        try:
            return self.account.run([program, *command[1:]], cwd=cwd, text=text, **env)
        except OSError as error:
            raise EmbeddedError(f"cannot run {str(program)!r}: {error.strerror}") from error


def url(postmaster: _postmaster.Postmaster) -> str:
    """Return the URL of a server through its socket."""
    folder = quote(str(postmaster.socket_folder), safe="")
    return f"postgresql://{USER}@/{DATABASE}?host={folder}&port={postmaster.port}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
