"""What the commands print: aligned tables, one JSON document, short times.

Plain text by default, so that a log or a pipe gets what a terminal gets, without the colour.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import click
from pydantic_core import to_jsonable_python

from ._terminal import colours_wanted, on_terminal

Row = Mapping[str, object]

STATE_COLOURS = {
    "pending": "cyan",
    "running": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
}


def rich_installed() -> bool:
    """Tell whether the extra that draws live tables is there."""
    try:
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


def print_json(document: object) -> None:
    """Print one JSON document; times as ISO text, ids and intervals as text."""
    plain = to_jsonable_python(document, timedelta_mode="float", fallback=str)
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Row], *, empty: str) -> None:
    """Print a table; its columns are the keys of the rows."""
    if rows:
        columns = list(rows[0])
        click.echo(format_table(columns, [[row[name] for name in columns] for row in rows]))
    else:
        click.echo(empty, err=True)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align cells under their headings: numbers to the right, text to the left.

    On a terminal the last column is cut to the width; in a pipe nothing is lost.
    """
    cells = [[format_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [_all_numbers(column) for column in zip(*rows, strict=True)] or [False] * len(columns)

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return _cut("  ".join(aligned).rstrip())

    heading = line([name.replace("_", " ") for name in columns])
    body = [_coloured(line(texts), texts) for texts in cells]
    return "\n".join([click.style(heading, bold=True) if colours_wanted() else heading, *body])


def format_cell(value: object) -> str:
    """Give one value as people read it in a table."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case timedelta():
            return format_duration(value.total_seconds())
        case dict() | list():
            return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)
        case str() | int() | UUID():
            return " ".join(str(value).split())
        case _:
            return str(value)


def format_duration(seconds: float) -> str:
    """Give a length of time in its two largest units, such as ``3 h 5 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    for size, unit, rest in ((24 * 60, "d", 60), (60, "h", 1)):
        if minutes >= size:
            below = "h" if unit == "d" else "min"
            return f"{minutes // size} {unit} {minutes % size // rest} {below}"
    return f"{minutes} min {int(seconds % 60)} s"


def _all_numbers(column: Sequence[object]) -> bool:
    return all(
        value in (None, "") or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in column
    )


def _cut(line: str) -> str:
    if not on_terminal():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


def _coloured(line: str, texts: Sequence[str]) -> str:
    if not colours_wanted():
        return line
    for text in texts:
        if text in STATE_COLOURS:
            return line.replace(text, click.style(text, fg=STATE_COLOURS[text]), 1)
    return line


def as_called() -> str:
    """Return what to type for this program: who runs `make` has no environment activated."""
    program = Path(sys.argv[0])
    if shutil.which("tasklib"):
        return "tasklib"
    if program.name == "tasklib":
        return os.path.relpath(program)
    return f"{sys.executable} -m tasklib.cli"
