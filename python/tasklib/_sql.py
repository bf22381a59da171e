"""The SQL files of this package: what changes tables, and what defines behaviour."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Script:
    """One SQL file; its name has neither folder nor ending."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """The fingerprint that a database keeps of what ran in it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def folder() -> Path:
    """Return the folder of the SQL files: in the package, or beside it in a checkout."""
    packaged = _HERE / "sql"
    # An editable install keeps a stale copy elsewhere; edits in the checkout have to count.
    return packaged if packaged.is_dir() else _HERE.parents[1] / "sql"


def migrations(sql: Path) -> list[Script]:
    """Return what changes tables, in the order of application; each runs once in a database."""
    return [_read(path) for path in sorted((sql / "migrations").glob("*.sql"))]


def behaviour(sql: Path) -> list[Script]:
    """Return views, functions and grants, which are replaced at every migration."""
    return [script for part in parts(sql) for script in part]


def parts(sql: Path) -> tuple[list[Script], list[Script], list[Script]]:
    """Return the same by kind."""
    kinds = ("views.sql", "functions/*.sql", "grants.sql")
    views, functions, grants = ([_read(path) for path in sorted(sql.glob(kind))] for kind in kinds)
    return views, functions, grants


def _read(path: Path) -> Script:
    # Text mode: a checkout with other line ends has the same fingerprint.
    return Script(path.stem, path.read_text(encoding="utf-8"))
