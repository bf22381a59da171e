"""How the command line reads lengths of time, key=value pairs, lists and JSON."""

import json
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import cast
from uuid import UUID

import click

_UNITS = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b?)", re.IGNORECASE)


def duration(value: str | timedelta) -> timedelta:
    """Read a length of time such as ``90``, ``90s``, ``1h30m`` or ``30d``."""
    if isinstance(value, timedelta):
        return value
    text = value.strip().lower()
    try:
        if _NUMBER.fullmatch(text):
            return timedelta(seconds=float(text))
        parts = cast("list[tuple[str, str]]", _PART.findall(text))
        if parts and not _PART.sub("", text).strip():
            return timedelta(seconds=sum(float(count) * _UNITS[unit] for count, unit in parts))
    except OverflowError as error:
        raise click.BadParameter(f"{value!r} is longer than a clock can tell.") from error
    raise click.BadParameter(f"{value!r} is not a length of time; write 90s, 15m, 2h30m or 30d.")


def age(value: str | timedelta) -> timedelta:
    """Read a length of time that decides what is deleted: a number alone might mean days."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) and float(value):
        raise click.BadParameter(
            f"{value!r} has no unit; write {value}d for days, {value}h, {value}m."
        )
    return duration(value)


def seconds(value: str | float) -> float:
    """Read a length of time as seconds."""
    return value if isinstance(value, int | float) else duration(value).total_seconds()


def size(value: str | int) -> int:
    """Read a number of bytes such as ``500MiB``, ``500M`` (the same) or ``1.5GB`` (decimal)."""
    if isinstance(value, int):
        return value
    found = _SIZE.fullmatch(value.strip())
    bytes_ = 0
    if found is not None:
        base = 1000 if found[3].lower() == "b" else 1024
        bytes_ = int(float(found[1]) * base ** " kmgt".index(found[2].lower() or " "))
    if bytes_ < 1:
        raise click.BadParameter(f"{value!r} is not a size; write 500MiB or 2GiB.")
    return bytes_


def parse_id(value: str | UUID) -> UUID:
    """Read the id of a task."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no id of a task; `tasklib ls` shows ids.") from None


def names(value: str | list[str]) -> list[str]:
    """Read names with commas between them, such as ``default,mail``."""
    if isinstance(value, list):
        return value
    found = [name.strip() for name in value.split(",")]
    if not all(found):
        raise click.BadParameter(f"{value!r} holds an empty name; write default,mail.")
    return list(dict.fromkeys(found))


def parse_pairs(pairs: Iterable[str], *, what: str) -> dict[str, object]:
    """Read ``key=value`` words; a value that is JSON counts as JSON, any other as text."""
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{what} {pair!r} is not key=value.")
        if key in found:
            raise click.UsageError(f"{what} {key!r} is given twice.")
        found[key] = parse_value(value)
    return found


def parse_value(text: str) -> object:
    """Read JSON when the text is JSON that a database can hold, else keep the text."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def parse_object(text: str, *, option: str) -> dict[str, object]:
    """Read a JSON object given to an option."""
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option}: {text[:80]!r} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} wants a JSON object, not {text[:80]!r}.")
    return cast("dict[str, object]", value)


def _refuse_constant(name: str) -> object:
    """Refuse NaN and Infinity: Python reads them as JSON, PostgreSQL does not."""
    raise ValueError(f"{name} is not JSON")
