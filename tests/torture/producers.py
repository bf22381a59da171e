"""A process that enqueues until the run is over: ``producers.py sql|many|client|slow|calm``.

What it is about to do stands in the ledger before it is done, and the outcome after it: committed,
rolled back, or unknown, when the connection broke at the wrong moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import tortured
from kinds import BAD_ARGUMENTS, Wanted, wanted
from ledger import Ledger

import tasklib
from tasklib.errors import DatabaseUnavailable, TaskLibError

URL = os.environ["TASKLIB_DATABASE_URL"]
RATE = float(os.environ["TORTURE_RATE"])
LONGEST_TRANSACTION = 2.0
PAUSED = tortured.FOLDER / "paused"
NO_MORE = tortured.FOLDER / "no-more"

ENQUEUE = """select tasklib.enqueue(%(name)s, %(kwargs)s::jsonb, queue => %(queue)s,
  priority => %(priority)s, delay => %(delay_seconds)s * interval '1 second',
  tags => %(tags)s::jsonb, concurrency_key => %(concurrency_key)s,
  unique_key => %(unique_key)s, unique_until => coalesce(%(unique_until)s, 'finished'))"""
OPTIONS = (
    "queue",
    "priority",
    "delay_seconds",
    "tags",
    "unique_key",
    "unique_until",
    "concurrency_key",
)


class Doubt(Exception):
    """Whether it was committed is unknown."""


class Producer:
    """What all ways to enqueue have in common."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.name = f"{role}-{os.getpid()}"
        self.dice = random.Random(f"{os.environ['TORTURE_SEED']} {self.name}")
        self.ledger = Ledger(tortured.FOLDER / "ledger", role)
        self.count = 0
        self.owed = 0.0
        self._connection: psycopg.Connection[Any] | None = None

    def run(self, work: Callable[[], int]) -> None:
        """Do something again and again, so that RATE tasks a second come of it."""
        while not NO_MORE.exists():
            while PAUSED.exists() and not NO_MORE.exists():
                time.sleep(0.2)
            before = time.monotonic()
            made = work()
            owed = self.owed + made / RATE - (time.monotonic() - before)
            self.owed = max(-20.0, min(10.0, owed))
            if self.owed > 0:
                slept = self.owed * self.dice.uniform(0, 2)
                time.sleep(slept)
                self.owed -= slept

    def mark(self) -> str:
        """Return a text that no other task bears."""
        self.count += 1
        return f"{self.name}-{self.count}"

    def some(self, count: int, **words: Any) -> list[Wanted]:
        """Choose tasks."""
        return [wanted(self.dice, self.mark(), **words) for _ in range(count)]

    @contextmanager
    def asked(self, tasks: list[Wanted]) -> Generator[dict[str, Any]]:
        """Write what is asked for, and how it ended; the block fills in what it was told."""
        number = f"{self.name}/{self.count}"
        told = [[one.mark, one.name, one.options.get("unique_key")] for one in tasks]
        self.ledger.write("asked", ask=number, tasks=told)
        end: dict[str, Any] = {"how": "committed", "made": {}}
        try:
            yield end
        except Doubt as error:
            end |= {"how": "unknown", "sqlstate": getattr(error.__cause__, "sqlstate", None)}
        except (psycopg.Error, TaskLibError) as error:
            end |= {"how": "rolled back", "sqlstate": error.sqlstate, "error": str(error)[:200]}
            self.drop()
        self.ledger.write("told", ask=number, **end)

    def connection(self) -> psycopg.Connection[Any]:
        """Return an open connection, not in autocommit; wait for a server that is away."""
        while self._connection is None or self._connection.closed:
            try:
                self._connection = psycopg.connect(
                    URL, prepare_threshold=None, connect_timeout=5, application_name=self.name
                )
            except psycopg.Error:
                time.sleep(self.dice.uniform(0.1, 0.5))
        return self._connection

    def drop(self) -> None:
        """Forget the connection: it may be in any state."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def commit(self, connection: psycopg.Connection[Any]) -> None:
        """Commit."""
        try:
            connection.commit()
        except psycopg.Error as error:
            self.drop()
            raise Doubt from error

    def call(self, statement: str, *parameters: Any) -> Any:
        """Run one statement in a transaction of its own; None when the way there broke."""
        connection = self.connection()
        try:
            row = connection.execute(statement.encode(), parameters).fetchone()
            connection.commit()
        except psycopg.Error:
            self.drop()
            return None
        return row and row[0]

    # ---- in plain SQL ----------------------------------------------------------------------------

    def with_sql(self) -> int:
        """Call enqueue, in a transaction of one or several calls."""
        if self.dice.random() < 0.04:
            self.meddle()
        # One unique key a transaction, or two of them could wait for each other.
        tasks = self.some(1) + self.some(self.dice.choice([0, 0, 0, 1, 4]), keys=False)
        keeps = self.dice.random() >= 0.05
        connection = self.connection()
        with self.asked(tasks) as end:
            taken: list[str] = []
            connection.add_notice_handler(lambda said: taken.append(said.message_primary or ""))
            for one in tasks:
                taken.clear()
                row = connection.execute(ENQUEUE, parameters(one, self.dice)).fetchone()
                assert row
                end["made"][one.mark] = [str(row[0]), not taken]
            if self.dice.random() < 0.04:
                time.sleep(self.dice.uniform(0.2, LONGEST_TRANSACTION))
            if keeps:
                self.commit(connection)
            else:
                connection.rollback()
                end["how"] = "rolled back"
        return len(tasks)

    def meddle(self) -> None:
        """Cancel a task, put one off, or have one that failed run again."""
        recent = self.call(
            "select array_agg(id) from ("
            "  select id from tasklib.task order by id desc limit 300) as newest"
        )
        match self.dice.choice(["cancel", "cancel", "retry", "reschedule"]):
            case "cancel" if recent:
                chosen = str(self.dice.choice(recent))
                self.ledger.write("cancel", task=chosen)
                self.call("select tasklib.cancel(%s)", chosen)
            case "retry":
                failed = self.call("select id from tasklib.list(state => 'failed', max_rows => 1)")
                if failed:
                    self.ledger.write("retry", task=str(failed))
                    self.call("select tasklib.retry(%s)", failed)
            case _:
                # Refused for most of them, which is fine.
                self.call(
                    "select tasklib.reschedule(%s, delay => interval '0.3 seconds')",
                    self.dice.choice(recent or [None]),
                )

    # ---- many in one call ------------------------------------------------------------------------

    def with_many(self) -> int:
        """Call enqueue_many; sometimes with so many that marks move."""
        tasks = self.some(self.dice.choice([1, 5, 20, 60]))
        keeps = self.dice.random() >= 0.05
        elements = ",".join(element(one, self.dice) for one in tasks)
        connection = self.connection()
        with self.asked(tasks) as end:
            rows = connection.execute(
                "select id, created from tasklib.enqueue_many(%s::jsonb)", [f"[{elements}]"]
            ).fetchall()
            end["made"] = {
                one.mark: [str(row[0]), row[1]] for one, row in zip(tasks, rows, strict=True)
            }
            if self.dice.random() < 0.1:
                time.sleep(self.dice.uniform(0.2, LONGEST_TRANSACTION))
            if keeps:
                self.commit(connection)
            else:
                connection.rollback()
                end["how"] = "rolled back"
        return len(tasks)

    # ---- the client of Python --------------------------------------------------------------------

    def with_client(self) -> int:
        """Use what applications use: delay, adelay, and either in a transaction of the caller."""
        (one,) = tasks = self.some(1)
        # What does not fit the function is refused here, before it is sent.
        one.kwargs.update({"count": 1} if one.name == "typed" else {})
        if one.name in ("typed", "rare"):
            return 0
        chosen = tasklib.registry.default_registry.tasks[one.name]
        how = self.dice.choice(["delay", "adelay", "transaction"])
        connection = self.connection() if how == "transaction" else None
        with self.asked(tasks) as end:
            made = chosen.options(**one.options, connection=connection)
            try:
                if how == "adelay":
                    task_id = asyncio.run(made.adelay(**one.kwargs))
                else:
                    task_id = made.delay(**one.kwargs)
            except DatabaseUnavailable as error:
                if connection is not None:
                    raise
                raise Doubt from error
            # Whether a unique key was taken it does not say: then it is the holder's id.
            end["made"][one.mark] = [str(task_id), None if "unique_key" in one.options else True]
            if connection is not None:
                if self.dice.random() < 0.05:
                    connection.rollback()
                    end["how"] = "rolled back"
                else:
                    self.commit(connection)
        return 1

    # ---- in transactions that stay open ----------------------------------------------------------

    def slowly(self) -> int:
        """Let others be served while tasks that came before theirs are not committed yet."""
        connection = self.connection()
        tasks = [Wanted(self.mark(), "quick", {}, {}) for _ in range(self.dice.randint(1, 5))]
        with self.asked(tasks) as end:
            for one in tasks:
                one.kwargs["mark"] = one.mark
                one.options.update({"delay_seconds": 0.2} if self.dice.random() < 0.3 else {})
                row = connection.execute(ENQUEUE, parameters(one, self.dice)).fetchone()
                assert row
                end["made"][one.mark] = [str(row[0]), True]
                time.sleep(self.dice.uniform(0, 2))
            self.commit(connection)
        return len(tasks)

    # ---- work for the worker that nobody harms ---------------------------------------------------

    def calmly(self) -> int:
        """Enqueue for the calm queue: most of it outlives a lease."""
        seconds = round(self.dice.choice([0.1, 1.5, 2.0, 2.5]) * tortured.LEASE * 1.6, 1)
        mark = self.mark()
        one = Wanted(mark, "calm", {"mark": mark, "seconds": seconds}, {"queue": "calm"})
        connection = self.connection()
        with self.asked([one]) as end:
            row = connection.execute(ENQUEUE, parameters(one, self.dice)).fetchone()
            assert row
            end["made"][one.mark] = [str(row[0]), True]
            self.commit(connection)
        return 1


def parameters(one: Wanted, dice: random.Random) -> dict[str, Any]:
    """Return what ENQUEUE takes."""
    given = {name: one.options.get(name) for name in OPTIONS}
    given["tags"] = given["tags"] and json.dumps(given["tags"])
    return {"name": one.name, "kwargs": arguments(one, dice), **given}


def arguments(one: Wanted, dice: random.Random) -> str:
    """Return a task's arguments as JSON; those of `typed` are never right."""
    if one.name == "typed":
        return dice.choice(BAD_ARGUMENTS).replace("MARK", one.mark)
    return json.dumps(one.kwargs)


def element(one: Wanted, dice: random.Random) -> str:
    """Return a task as an element of what enqueue_many takes."""
    options = dict(one.options)
    if "delay_seconds" in options:
        options["delay"] = f"{options.pop('delay_seconds')} seconds"
    fields = json.dumps({"name": one.name, **options})
    return f'{fields[:-1]}, "kwargs": {arguments(one, dice)}}}'


def produce(role: str) -> None:
    """Enqueue in one of the ways."""
    producer = Producer(role)
    producer.run(
        {
            "sql": producer.with_sql,
            "many": producer.with_many,
            "client": producer.with_client,
            "slow": producer.slowly,
            "calm": producer.calmly,
        }[role]
    )


if __name__ == "__main__":
    *others, last = sys.argv[1].split(",")
    for role in others:
        threading.Thread(target=produce, args=(role,), daemon=True).start()
    produce(last)
