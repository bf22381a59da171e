"""Write docs/sql-reference.md from what the database says about itself: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from snippets import ROOT

from tasklib._migrate import migrate
from tasklib.embedded import temporary

PAGE = ROOT / "docs/sql-reference.md"

HEAD = """\
# SQL reference

Made by `make docs` from the COMMENTs in [sql/](../sql); change it there.

Everything is in the schema `tasklib`. Arguments can be given by position or by name
(`delay => interval '10 minutes'`), and every one of them as text, so that any driver will do.
An argument with a default may be left out. Functions that begin with an underscore are internal.
What the options of a task mean, and their limits, is told in [Enqueue](enqueue.md#options),
[Keys](keys.md) and [Retries](retries.md).

A function runs as the owner of the queue, so that callers need no right on any table. *Granted to*
names the roles that may call it; the owner and superusers may call all of them. How roles are
given to users is told in [Running in production](production.md#roles), what each may and may not
do in [Security](security.md). What the error codes mean is told in [Errors](errors.md).

Functions for which it matters who calls have one more argument at their end, not shown below:
`caller tasklib.caller = current_user`. Leave it out; another value is refused (`23514`).
"""

GROUPS = {
    "Put tasks in": ["enqueue", "enqueue_many"],
    "Look at tasks and steer them": ["get", "list", "cancel", "retry", "reschedule"],
    "Work": [
        "register_worker",
        "claim",
        "complete",
        "fail",
        "finish",
        "release",
        "snooze",
        "heartbeat",
        "cancel_requests",
        "set_progress",
        "idle",
        "deregister_worker",
    ],
    "Keep house": ["tick", "sweep", "purge", "set_queue", "pause", "resume"],
    "Rules and limits": ["set_rule", "drop_rule", "set_limit", "drop_limit", "set_strict"],
}
REST = "Other functions"

VIEWS = [
    *("tasks", "failures", "queue_stats", "task_stats", "worker_health", "stuck_tasks"),
    *("tick_health", "rules", "limits"),
]
# Filled in by itself, and the same everywhere.
HIDDEN = "tasklib.caller"

SHORT = {
    "integer": "int",
    "double precision": "float8",
    "timestamp with time zone": "timestamptz",
    "integer[]": "int[]",
}

FUNCTIONS = """
select p.proname as name,
  obj_description(p.oid, 'pg_proc') as comment,
  p.proargnames[1:p.pronargs] as names,
  array(select format_type(kind, null)
    from unnest(p.proargtypes) with ordinality as given (kind, n) order by n) as types,
  array(select pg_get_function_arg_default(p.oid, n)
    from generate_series(1, p.pronargs) as n order by n) as defaults,
  p.proretset as is_set,
  format_type(p.prorettype, null) as returns,
  (select c.relkind = 'c' from pg_class as c join pg_type as t on t.typrelid = c.oid
    where t.oid = p.prorettype) as is_row,
  array(select a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    from pg_attribute as a join pg_type as t on t.typrelid = a.attrelid
    where t.oid = p.prorettype and a.attnum > 0 and not a.attisdropped
    order by a.attnum) as fields,
  array(select grantee::regrole::text from aclexplode(p.proacl)
    where grantee::regrole::text like 'tasklib\\_%' order by 1) as roles
from pg_proc as p
where p.pronamespace = 'tasklib'::regnamespace and p.proname not like '\\_%'
order by p.proname
"""

COLUMNS = """
select c.relname as view, obj_description(c.oid, 'pg_class') as comment,
  array_agg(a.attname order by a.attnum) as names,
  array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum) as types
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
where c.relnamespace = 'tasklib'::regnamespace and c.relkind = 'v'
group by c.oid, c.relname
"""


def reference(conninfo: str) -> str:
    """Return the page for the schema of a database."""
    with psycopg.connect(conninfo) as connection:
        cursor: psycopg.Cursor[Any] = connection.cursor(row_factory=namedtuple_row)
        functions = {row.name: row for row in cursor.execute(FUNCTIONS).fetchall()}
        views = {row.view: row for row in cursor.execute(COLUMNS).fetchall()}
    parts = [HEAD]
    grouped = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {REST: sorted(functions.keys() - grouped)}
    for title, names in groups.items():
        parts.append(f"\n## {title}\n")
        parts += [_function(functions[name]) for name in names]
    parts.append("\n## Views\n")
    parts += [_view(views[name]) for name in [*VIEWS, *sorted(views.keys() - set(VIEWS))]]
    return "".join(parts)


def _function(row: Any) -> str:
    prose, _, errors = (row.comment or "").partition(" Errors: ")
    lines = [f"\n### {row.name}\n", "```text", _signature(row), "```\n", _wrapped(prose)]
    if row.is_row:
        lines.append("\n" + _wrapped(f"{_returns(row)}: {_fields(row)}"))
    if errors:
        lines.append("\n" + _wrapped(f"Errors: {errors}"))
    roles = ", ".join(f"`{role}`" for role in row.roles)
    lines.append(f"\nGranted to: {roles or 'nobody'}.\n")
    return "\n".join(lines)


def _signature(row: Any) -> str:
    arguments = [
        f"{name} {_short(kind)}{'' if default is None else f' = {_value(default)}'}"
        for name, kind, default in zip(row.names or [], row.types, row.defaults, strict=True)
        if kind not in (HIDDEN, HIDDEN.partition(".")[2])
    ]
    returns = f"{'setof ' if row.is_set else ''}{_short(row.returns)}"
    line = f"tasklib.{row.name}({', '.join(arguments)}) → {returns}"
    if len(line) <= 88:
        return line
    return f"tasklib.{row.name}(\n  " + ",\n  ".join(arguments) + f"\n) → {returns}"


def _returns(row: Any) -> str:
    return f"Each row (`{row.returns}`)" if row.is_set else f"The answer (`{row.returns}`)"


def _fields(row: Any) -> str:
    named = (field.partition(" ") for field in row.fields)
    return ", ".join(f"`{name}` {_short(kind)}" for name, _, kind in named) + "."


def _view(row: Any) -> str:
    table = "\n".join(
        f"| `{name}` | {_short(kind)} |" for name, kind in zip(row.names, row.types, strict=True)
    )
    return f"\n### {row.view}\n\n{_wrapped(row.comment)}\n\n| column | type |\n|---|---|\n{table}\n"


def _short(kind: str) -> str:
    return SHORT.get(kind, kind)


def _value(default: str) -> str:
    return re.sub(r"::[\w. ]+(\[\])?$", "", default).replace("NULL", "null")


def _wrapped(text: str) -> str:
    return "\n".join(_lines(text.replace("<", "&lt;").replace("*", "\\*")))


def _lines(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > 100:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


if __name__ == "__main__":
    with temporary() as url:
        migrate(url)
        PAGE.write_text(reference(url))
    print(f"wrote {PAGE.relative_to(ROOT)}")
