"""Options of tasks: checked where they are given, and laid over one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasklib._arguments import json_object, shown
from tasklib.errors import InvalidArguments
from tasklib.models import NO_OPTIONS, Backoff, Options

_OPTIONS = TypeAdapter(Options)
_NAMES = tuple(asdict(NO_OPTIONS))


def merged(below: Options, above: Options) -> Options:
    """Lay options over others: what is None above shows what is below."""
    if above is NO_OPTIONS:
        return below
    if below is NO_OPTIONS:
        return above
    given = {key: value for key in _NAMES if (value := getattr(above, key)) is not None}
    if not given:
        return below
    if "delay_seconds" in given or "scheduled_at" in given:
        below = replace(below, delay_seconds=None, scheduled_at=None)
    return replace(below, **given)


def checked(label: str, options: Mapping[str, Any]) -> Options:
    """Check options by type and range.

    Raises:
        InvalidArguments: One is unknown or wrong.
    """
    if not options:
        return NO_OPTIONS
    unknown = options.keys() - set(_NAMES)
    if unknown:
        raise InvalidArguments(
            f"{label}: there is no option {', '.join(sorted(unknown))}",
            hint=f"The options are {', '.join(_NAMES)}.",
        )
    for name in ("tags", "headers"):
        if options.get(name) is not None:
            json_object(options[name], f"{label}: {name}")
    values = dict(options)
    try:
        if isinstance(values.get("backoff"), Mapping):
            values["backoff"] = Backoff.model_validate(values["backoff"])
        return _OPTIONS.validate_python(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{fault['loc'][0]}={shown(fault['input'])}: {fault['msg']}" for fault in error.errors()
        )
        raise InvalidArguments(f"{label}: {faults}") from None
