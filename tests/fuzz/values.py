"""What is thrown at the functions: for each type of an argument, values that break programs."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass
from typing import Any

TEXT, BINARY = 0, 1
LONG = "x" * 300_000


@dataclass(frozen=True)
class Value:
    """An argument as it goes over the wire: its bytes, their format and type."""

    data: bytes | None
    format: int = TEXT
    oid: int = 0  # the server finds out

    def __repr__(self) -> str:
        shown = repr(self.data)
        return shown if len(shown) < 200 else f"{shown[:100]}… ({len(self.data or b'')} bytes)"


NULL = Value(None)
_TEXT_OID, _JSONB_OID = 25, 3802


def texts(*values: str) -> list[Value]:
    return [Value(value.encode("utf-8", "surrogatepass")) for value in values]


# What no driver would send, and what some do.
BROKEN = [
    Value(b"\xff\xfe"),
    Value(b"\xc0\x80"),
    Value(b"\xed\xa0\x80"),
    Value(b"\xf4\x90\x80\x80"),
    Value(b"a\x00b", BINARY, _TEXT_OID),
    Value(b"\xff", BINARY, _TEXT_OID),
]
_INTEGERS = ("0", "-0", "1", "-1", "5", "1000", "1001", "10001", "100001")
_EDGES = ("2147483647", "-2147483648", "2147483648", "9223372036854775807", "9223372036854775808")
POOLS: dict[str, list[Value]] = {
    "text": [
        *texts("", " ", "default", "t", "x" * 63, "x" * 64, "x" * 128, "x" * 129, "é" * 65, LONG),
        *texts("a\nb", "\x7f", "\x1b[2J", "\u202e", "\U0001f600", "\u00e9" * 300, "NULL", "null"),
        *texts("'; drop schema tasklib cascade; --", '"', "\\", "$$", "%I %L %s", "%", "{}", "[]"),
        *texts("completed", "failed", "pending", "started", "finished", "lost", "-infinity", "0"),
        *BROKEN,
    ],
    "integer": texts(*_INTEGERS, *_EDGES, "", "1.5", "NaN", "1e3", " 7 ", "x"),
    "double precision": [
        *texts(
            "0", "-0", "0.5", "1", "1.0000001", "NaN", "Infinity", "-Infinity", "1e308", "1e309"
        ),
        *texts("5e-324", "1e-400", "604800", "604801", "0.0009", "", "x", "1e15"),
    ],
    "boolean": texts("t", "f", "true", "off", "yes", "", "maybe", "2"),
    "interval": [
        *texts("0", "-1 second", "1 microsecond", "5 years", "5 years 1 second", "1e15 seconds"),
        *texts("178000000 years", "-178000000 years", "1000000000000 years", "infinity", "NaN"),
        *texts("1 month -30 days", "P1Y2M", "", "x", "60 seconds", "2562047788 hours", "1.5"),
    ],
    "timestamp with time zone": [
        *texts("infinity", "-infinity", "epoch", "now", "294276-12-31", "4713-01-01 BC"),
        *texts("294277-01-01", "2000-02-30", "2030-01-01", "2000-01-01 24:00:01", "allballs", ""),
        *texts("2027-01-01T00:00:00+15:59", "2027-01-01 00:00:60", "tomorrow", "x"),
    ],
    "uuid": texts(
        *("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "", "x"),
        *("01a215e9-36e4-773d-8e50-a3efd3000000", "{01a215e936e4773d8e50a3efd3000000}"),
    ),
    "jsonb": [
        *texts("null", "{}", "[]", "0", '"text"', "true", "", "{", "NaN", "[1,]", "{'a': 1}"),
        *texts(
            '{"a": 1, "a": 2}', '{"": {}}', '{"a": "\\u0000"}', '{"a": "\\ud800"}', '["\\udc00"]'
        ),
        *texts('{"a": 1e400}', '{"a": 1e-400}', '{"a": 1e200000}', '{"a": ' + "9" * 5000 + "}"),
        *texts('{"a":' * 64 + "1" + "}" * 64, '{"a":' * 66 + "1" + "}" * 66),
        *texts("[" * 5000 + "]" * 5000, "[" * 30_000, '{"a":' * 4000 + "1" + "}" * 4000),
        *texts(json.dumps({"a": LONG}), json.dumps({LONG: 1}), json.dumps({"%I": "$1", "'": '"'})),
        *texts(
            json.dumps([{}] * 10_001), json.dumps([None] * 100), json.dumps({"a": [0] * 50_000})
        ),
        Value(b'\x01{"a": "\x00"}', BINARY, _JSONB_OID),
        Value(b'{"a": "\xff"}'),
    ],
    "text[]": texts(
        *(
            "{}",
            "{NULL}",
            "{default,NULL}",
            "{{a,b},{c,d}}",
            "{a,a,a}",
            "[5:6]={a,b}",
            "{",
            "a",
            "",
        ),
        *("{" + ",".join(["q"] * 1001) + "}", "{" + "x" * 300_000 + "}", '{"",""}', "[1:0]={}"),
        "{default}",
    ),
    "integer[]": texts(
        *(
            "{}",
            "{NULL}",
            "{1,NULL}",
            "{{1,2},{3,4}}",
            "{2147483648}",
            "[5:6]={1,1}",
            "{1,1}",
            "{x}",
        ),
        *("{" + ",".join(["1"] * 10_001) + "}", "{1}", "{-1}", "{2147483647}", ""),
    ),
}
_ID = "01a215e9-36e4-773d-8e50-a3efd3000000"
POOLS["uuid[]"] = texts(
    *("{}", "{NULL}", f"{{{_ID}}}", f"{{{_ID},{_ID}}}", f"{{{_ID},NULL}}", f"[5:5]={{{_ID}}}"),
    *(f"{{{{{_ID}}},{{{_ID}}}}}", "{x}", "", "{" + ",".join([_ID] * 10_001) + "}"),
    "{" + ",".join(str(uuid.UUID(int=n)) for n in range(10_000)) + "}",
)


def hostile(dice: random.Random, kind: str) -> Value:
    """Return something that an argument of this type should not be, or hardly."""
    if dice.random() < 0.1:
        return NULL
    pool = POOLS.get(kind, POOLS["text"])
    if dice.random() < 0.03:
        pool = [value for value in POOLS[dice.choice(list(POOLS))] if value.format == TEXT]
    return dice.choice(pool)


# -- JSON that is nearly right

_SCALARS: list[Any] = [
    *(None, True, False, -1, 0, 1.5, 10**400, "", "x" * 130, "a\nb", "NaN", "infinity", "\ud800"),
    *("\x00", "1e15 seconds", "5 years", "2030-01-01", "'; --", {}, [], {"a": 1}, [1], LONG),
    *("@1e400@", "@1e-400@", "@-0@", "@1e15@", "@2147483648@", "@1E+200000@", {"a": {"b": [1]}}),
]


def bend(dice: random.Random, value: Any) -> Any:
    """Replace, remove or add something anywhere inside a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        fate = dice.random()
        if fate < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if fate < 0.2:
            return {**value, dice.choice(["x", "", "name", "queue", "%I", "a" * 200]): value[key]}
        return {**value, key: bend(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.9:
        n = dice.randrange(len(value))
        fate = dice.random()
        if fate < 0.1:
            return value[:n] + value[n + 1 :]
        if fate < 0.2:
            return [*value, value[n]]
        return [*value[:n], bend(dice, value[n]), *value[n + 1 :]]
    return dice.choice(_SCALARS)


def written(value: Any) -> Value:
    """Write JSON, with numbers that Python cannot hold."""
    text = json.dumps(value)
    for raw in _SCALARS:
        if isinstance(raw, str) and raw.startswith("@"):
            text = text.replace(f'"{raw}"', raw[1:-1])
    return Value(text.encode())
