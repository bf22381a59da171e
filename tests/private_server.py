"""A private copy of a server's programs, whose folder of extensions can be written to.

PostgreSQL finds its files relative to its programs, so a copy is a whole server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers import SETTINGS
from tasklib import _binaries
from tasklib.embedded import Embedded


@dataclass(frozen=True)
class PrivateServer:
    """A running server of our own.

    Attributes:
        dsn: Its URL, as the superuser.
        pg_config: The program that says where its files are.
        extensions: The folder of its extensions.
    """

    dsn: str
    pg_config: Path
    extensions: Path


@contextmanager
def private_server() -> Generator[PrivateServer]:
    """Copy the server that the tests use, and start the copy."""
    root = Path(tempfile.mkdtemp(prefix="tasklib-private-"))
    before = os.environ.get("TASKLIB_PG_BINDIR")
    try:
        root.chmod(0o755)
        programs, share = _copied(_binaries.find().folder.resolve(), root / "server")
        os.environ["TASKLIB_PG_BINDIR"] = str(programs)
        with Embedded(root / "data", settings=SETTINGS, throw_away=True) as dsn:
            yield PrivateServer(dsn, programs / "pg_config", share / "extension")
    finally:
        os.environ.pop("TASKLIB_PG_BINDIR")
        if before is not None:
            os.environ["TASKLIB_PG_BINDIR"] = before
        shutil.rmtree(root)


def dump_program(name: str, major: int) -> Path:
    """Find pg_dump or pg_restore that knows the server's version; not every package has them."""
    for folder in (_binaries.find().folder, *_binaries.candidates()):
        found = _binaries.inspect(folder)
        if found and found.major >= major and (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no {name} of PostgreSQL {major} or newer; apt-get install postgresql")


def _copied(programs: Path, target: Path) -> tuple[Path, Path]:
    """Copy a server; return where its programs and its shared files are."""
    install = programs.parent
    if (install / "share").is_dir():  # all in one folder, as wheels and npm have it
        package = install.parent
        shutil.copytree(install, target / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        install = target / package.name / install.name
        share = install / "share/postgresql"
        _make_pg_config(install / "bin", share)
        return install / "bin", share
    # As Debian has it: /usr/lib/postgresql/15/bin and /usr/share/postgresql/15.
    asked = {
        what: Path(
            subprocess.check_output([programs / "pg_config", f"--{what}"], text=True).strip()
        )
        for what in ("bindir", "sharedir", "pkglibdir")
    }
    base = Path(os.path.commonpath(list(asked.values())))
    there = {what: target / folder.relative_to(base) for what, folder in asked.items()}
    shutil.copytree(asked["bindir"], there["bindir"], symlinks=True)
    there["pkglibdir"].symlink_to(asked["pkglibdir"])
    shutil.copytree(asked["sharedir"], there["sharedir"], symlinks=True)
    return there["bindir"], there["sharedir"]


def _make_pg_config(programs: Path, share: Path) -> None:
    """Give a package that has none the little of pg_config that is needed."""
    if not (programs / "pg_config").exists():
        (programs / "pg_config").write_text(f'#!/bin/sh\n[ "$1" = --sharedir ] && echo "{share}"\n')
        (programs / "pg_config").chmod(0o755)
