"""The releases to upgrade from: the schema of each, and the driver that belonged to it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PROGRAM = HERE / "program.py"


@dataclass(frozen=True)
class Release:
    """One released version.

    Attributes:
        version: Such as 0.1.0.
        script: Its install script.
        wheel: The package as it was released.
    """

    version: str
    script: Path
    wheel: Path

    def unpacked(self, folder: Path) -> Path:
        """Unpack the wheel, and return what goes into PYTHONPATH."""
        target = folder / f"driver-{self.version}"
        if not target.exists():
            with zipfile.ZipFile(self.wheel) as archive:
                archive.extractall(target)
        return target


def releases() -> list[Release]:
    """Return all of them, oldest first. Each needs its wheel: `make release` puts it there."""
    return [
        Release(path.stem, path, HERE / "wheels" / f"pg_tasklib-{path.stem}-py3-none-any.whl")
        for path in sorted((REPOSITORY / "sql" / "releases").glob("*.sql"), key=_number)
    ]


def _number(path: Path) -> list[int]:
    return [int(part) for part in path.stem.split(".")]


def python(driver: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start Python with a driver that comes before the one that is installed."""
    environment = os.environ | {"PYTHONPATH": str(driver), "PYTHONWARNINGS": "default"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, text=True, **options)  # type: ignore[call-overload]
