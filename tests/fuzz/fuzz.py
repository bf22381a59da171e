"""Call every function of the catalog with hostile arguments, and watch what must never happen.

Allowed are results, and errors that docs/errors.md lists: those of the queue only where the
comment of the function names them, those of the server only before the function was entered. After
errors no row has changed. Most calls that succeed are rolled back; some are not, so that the world
moves on.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.pq import DiagnosticField, ExecStatus

from fuzz.values import NULL, POOLS, Value, bend, hostile, written
from model import database

ROLES = ("tasklib_producer", "tasklib_worker", "tasklib_observer", "tasklib_admin")
ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"


@dataclass(frozen=True)
class Argument:
    """One argument of a function."""

    name: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Function:
    """A public function, as the catalog has it."""

    name: str
    arguments: tuple[Argument, ...]
    errors: frozenset[str]


def functions(conn: Connection[Any]) -> list[Function]:
    """Read the catalog: a new function, or argument, is fuzzed from its first day."""
    rows = database.run(
        conn,
        "select proname, coalesce(proargnames[:pronargs], '{}'),"
        " array(select format_type(t, null) from unnest(proargtypes) with ordinality as a (t, n)"
        "  order by n), pronargdefaults, obj_description(oid, 'pg_proc')"
        " from pg_proc where pronamespace = 'tasklib'::regnamespace and proname not like '\\_%'"
        " order by proname",
    )
    return [
        Function(
            name,
            tuple(
                Argument(argument, kind, n >= len(kinds) - defaults)
                for n, (argument, kind) in enumerate(zip(names, kinds, strict=True))
            ),
            named(comment or ""),
        )
        for name, names, kinds, defaults, comment in rows
    ]


def named(comment: str) -> frozenset[str]:
    """Return the codes that a comment names, as "TL001" or "TL003 to TL007"."""
    codes = set(re.findall(r"TL\d{3}", comment))
    for first, last in re.findall(r"TL(\d{3}) to TL(\d{3})", comment):
        codes |= {f"TL{n:03}" for n in range(int(first), int(last) + 1)}
    return frozenset(codes)


def documented() -> frozenset[str]:
    """Return the codes of docs/errors.md that come from the server and not from the queue."""
    return frozenset(re.findall(r"`([0-9][0-9A-Z]{4})`", ERRORS.read_text()))


class Fault(AssertionError):
    """Something that must never happen."""


class Fuzz:
    """One stream of calls, repeated by its seed."""

    def __init__(self, conn: Connection[Any], watcher: Connection[Any], seed: int) -> None:
        self.conn, self.watcher = conn, watcher
        self.dice = random.Random(seed)
        self.functions = functions(watcher)
        self.from_server = documented()
        self.tables = [
            name
            for (name,) in database.run(
                watcher,
                "select relname from pg_class where relnamespace = 'tasklib'::regnamespace"
                " and relkind = 'r'",
            )
        ]
        self.calls = 0
        self.seen: Counter[str] = Counter()
        self.recent: list[str] = []

    # -- the world

    def populate(self, *, as_owner: bool = False) -> None:
        """Make some tasks in every place, and leases that are held, were lost, and never were."""
        database.empty(self.watcher)
        # the owner twice as often: for the roles, many calls end at the door
        self.role = "" if as_owner else self.dice.choice(["", "", *ROLES])
        self.become("tasklib_producer" if self.role else "")
        self.tasks = [
            row[0]
            for row in database.call(
                self.conn,
                "enqueue_many",
                tasks=[
                    *[{"name": "t"}] * 8,
                    *({"name": "t", "concurrency_key": "k"} for _ in range(3)),
                    {"name": "t", "unique_key": "u", "tags": {"a": 1}},
                    {"name": "t", "unique_key": "v", "unique_until": "started"},
                    {"name": "unknown"},
                    {"name": "t", "delay": 3600},
                    {"name": "t", "queue": "mail", "priority": 5},
                ],
            )
        ]
        self.become("tasklib_worker" if self.role else "")
        self.workers = [
            database.call(self.conn, "register_worker", task_types=["t"])[0][0] for _ in range(2)
        ]
        self.leases = [
            (row[0], worker, row[1])
            for worker in self.workers
            for row in database.call(self.conn, "claim", worker_id=worker, max_tasks=5)
        ]
        ended = [{"state": "completed"}, {"state": "failed", "retry": False}, {"state": "released"}]
        three = [lease for lease in self.leases if lease[1] == self.workers[0]][:3]
        database.call(
            self.conn,
            "finish",
            worker_id=self.workers[0],
            ids=[lease[0] for lease in three],
            attempts=[lease[2] for lease in three],
            outcomes=ended[: len(three)],
        )
        self.become(self.role)

    def become(self, role: str) -> None:
        database.run(self.conn, f"set role {role}" if role else "reset role")

    def fingerprint(self) -> list[Any]:
        """Return what changes when any row of any table does."""
        return database.run(
            self.watcher,
            " union all ".join(
                f"select '{table}', count(*), sum(hashtextextended(t::text, 0))"
                f" from tasklib.{table} as t"
                for table in self.tables
            ),
        )

    # -- calls

    def arguments(self, function: Function) -> dict[str, Value]:
        """Choose arguments: mostly right ones, so that the inner code is reached, and some not."""
        dice = self.dice
        share = dice.choice([0.0, 0.15, 0.15, 0.4, 1.0])
        valid = self.valid()
        chosen: dict[str, Value] = {}
        for argument in function.arguments:
            # a caller that somebody gives is refused at the door
            if argument.optional and dice.random() < (0.98 if argument.name == "caller" else 0.4):
                continue
            right = valid.get(argument.name)
            if right is None or dice.random() < share:
                chosen[argument.name] = hostile(dice, argument.kind)
            elif isinstance(right, Value):
                chosen[argument.name] = right
            else:
                bent = bend(dice, right) if dice.random() < 0.5 else right
                chosen[argument.name] = written(bent)
        return chosen

    def valid(self) -> dict[str, Any]:
        """Return a fitting value for each name of an argument; JSON as it is, to be bent."""
        dice = self.dice
        task, worker, attempt = dice.choice(self.leases or [(self.tasks[0], self.workers[0], 1)])
        if dice.random() < 0.3:
            task = dice.choice(self.tasks)
        batch = [lease for lease in self.leases if lease[1] == worker]
        dice.shuffle(batch)
        batch = batch[: dice.randrange(4)]
        text = {
            "id": task,
            "worker_id": worker,
            "attempt": attempt,
            "before": task,
            "ids": "{" + ",".join(str(lease[0]) for lease in batch) + "}",
            "attempts": "{" + ",".join(str(lease[2]) for lease in batch) + "}",
            "name": "t",
            "queue": "default",
            "queues": "{default,mail}",
            "max_tasks": "3",
            "max_rows": "10",
            "lease": "60 seconds",
            "delay": "1 minute",
            "retry_in": "1 second",
            "scheduled_at": "2027-01-01",
            "max_wait": "1 second",
            "older_than": "1 day",
            "retention": "1 day",
            "cause": "error",
            "state": dice.choice(["completed", "failed", "cancelled"]),
            "unique_until": "finished",
            "unique_key": "u",
            "concurrency_key": "k",
            "fraction": "0.5",
            "timeout_seconds": "10",
            "max_retries": "2",
            "priority": "5",
            "max_crashes": "2",
            "role": "tasklib_producer",
            "action": dice.choice(["enqueue", "claim"]),
            "strict": "f",
            "max_bytes": "1000",
            "max_backlog": "100",
        }
        outcomes = [
            {"state": "completed", "result": {"value": [1, "x"]}},
            {"state": "failed", "error": "e", "retry": True, "retry_in": 1.5, "cause": "timeout"},
            {"state": "released"},
            {"state": "snoozed", "seconds": 5},
            {"state": "cancelled", "error": "e"},
            None,
        ]
        backoff = {"base_seconds": 1, "multiplier": 2, "cap_seconds": 60, "jitter": 0.5}
        options = {"queue": "mail", "priority": 1, "max_retries": 1, "timeout_seconds": 5.5}
        spec = {"name": "t", "kwargs": {"a": [1]}, **options, "delay": 60, "tags": {"a": 1}}
        spec |= {"unique_key": "w", "concurrency_key": "k", "headers": {}, "backoff": backoff}
        return {
            **{name: Value(str(value).encode()) for name, value in text.items()},
            "kwargs": {"to": "a@b.c", "n": [1, 2.5, None]},
            "tags": {"a": 1},
            "headers": {"trace": "x"},
            "result": {"value": 1},
            "info": {"host": "h"},
            "backoff": backoff,
            "outcomes": [dice.choice(outcomes) for _ in batch],
            "tasks": [spec, {"name": "t"}],
            "task_types": ["t", {"name": "n", **options, "backoff": backoff, "max_crashes": 2}],
        }

    def call(self, function: Function, arguments: dict[str, Value]) -> str | None:
        """Make a call; return the code of its error."""
        self.calls += 1
        shown = f"{self.role or 'owner'}: {function.name}({arguments})"
        self.recent.append(shown)
        named = ", ".join(f"{name} => ${n}" for n, name in enumerate(arguments, 1))
        result = self.conn.pgconn.exec_params(
            f"select * from tasklib.{function.name}({named})".encode(),
            [value.data for value in arguments.values()],
            param_types=[value.oid for value in arguments.values()],
            param_formats=[value.format for value in arguments.values()],
        )
        if result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            self.seen["ok"] += 1
            return None
        field = result.error_field
        code = (field(DiagnosticField.SQLSTATE) or b"-----").decode()
        context = (field(DiagnosticField.CONTEXT) or b"").decode(errors="replace")
        message = (field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        self.seen[code] += 1
        allowed = function.errors | {"TL011"} if code.startswith("TL") else self.from_server
        if code not in allowed:
            raise Fault(f"{code} is not documented: {message}\n{context[:2000]}\n{shown}")
        if not code.startswith("TL") and "tasklib." in context:
            raise Fault(f"{code} from within: {message}\n{context[:2000]}\n{shown}")
        return code

    def command(self, text: LiteralString) -> None:
        self.conn.pgconn.exec_(text.encode())

    def without_trace(self, function: Function, arguments: dict[str, Value]) -> None:
        self.command("begin")
        self.call(function, arguments)
        self.command("rollback")

    def unchanged(self, before: list[Any]) -> None:
        after = self.fingerprint()
        if after != before:
            changed = sorted(set(map(str, before)) ^ set(map(str, after)))
            raise Fault(f"rows have changed: {changed}\nby one of\n" + "\n".join(self.recent))

    def round(self, most: int) -> None:
        """Make some calls that leave no trace, look, and let one leave what it may."""
        before = self.fingerprint()
        self.recent.clear()
        for _ in range(most):
            function = self.dice.choice(self.functions)
            self.without_trace(function, self.arguments(function))
        self.unchanged(before)
        function = self.dice.choice(self.functions)
        if self.call(function, self.arguments(function)) is not None:
            self.unchanged(before)

    def run(self, calls: int) -> None:
        """Make at least so many calls."""
        while self.calls < calls:
            self.populate()
            for _ in range(8):
                self.round(20)

    def matrix(self) -> None:
        """Give each argument of each function each value of its type, the others being right."""
        self.populate(as_owner=True)
        for function in self.functions:
            for argument in function.arguments:
                before = self.fingerprint()
                self.recent.clear()
                for value in [NULL, *POOLS.get(argument.kind, POOLS["text"])]:
                    valid = self.valid()
                    arguments = {
                        other.name: _wire(valid.get(other.name, NULL))
                        for other in function.arguments
                        if not other.optional
                    }
                    self.without_trace(function, arguments | {argument.name: value})
                self.unchanged(before)


def _wire(value: Any) -> Value:
    return value if isinstance(value, Value) else written(value)


@contextmanager
def stream(url: str, seed: int) -> Generator[Fuzz]:
    """Open the sessions of a stream, and look for crashes of the server at its end.

    An endless loop would end in 57014 and a wait in 55P03, which are not documented.
    """
    options = "-c statement_timeout=20s -c lock_timeout=1s -c log_min_messages=fatal"
    with (
        psycopg.connect(url, autocommit=True, options=options) as conn,
        psycopg.connect(url, autocommit=True) as watcher,
    ):
        ((folder,),) = database.run(watcher, "show data_directory")
        log = Path(folder).parent / "server.log"
        before = len(log.read_bytes()) if log.exists() else 0
        yield Fuzz(conn, watcher, seed)
        told = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        crashed = [
            line for line in told.splitlines() if "PANIC" in line or "server process" in line
        ]
        if crashed:
            raise Fault("\n".join(crashed))
