"""How far a long command is, where nobody looks at a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection

from tasklib.cli import _progress, tasks

from .conftest import Cli, Worker

# What `migrate` locks first.
MIGRATION_LOCK = "select pg_advisory_lock(hashtextextended('tasklib.migrate', 0))"


def test_a_log_gets_a_line_now_and_then() -> None:
    said: list[str] = []
    with _progress.progress(said.append) as show:
        for n in range(1000):
            show(str(n))
    assert said == [], "it took no time"

    with _progress.progress(said.append, at_once=True) as show:
        for n in range(1000):
            show(str(n))
    assert said == ["0"]


def test_a_log_gets_another_line_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "LINE_SECONDS", 0.0)
    said: list[str] = []
    with _progress.progress(said.append) as show:
        show("a")
        show("b")
    assert said == ["a", "b"]


def test_purge_says_how_far_it_is(
    cli: Cli, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(tasks, "PURGE_ROWS", 2)
    for _ in range(5):
        cli("enqueue", "app.mail")
        worker.complete()

    result = cli("purge", "--older-than", "0")

    assert result.stdout == "5 tasks deleted\n"
    assert result.stderr.splitlines() == [f"{n} tasks deleted so far" for n in (2, 4, 5)]


def test_migrate_says_that_it_waits_for_another_migration(
    cli: Cli, make_conn: Callable[..., Connection[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_conn()
    other.execute(MIGRATION_LOCK)
    said = let_go_when_it_says_so(monkeypatch, other)

    cli("migrate")

    assert said == ["waiting for another migration of this database"]


def test_migrate_says_that_it_waits_for_a_table(
    cli: Cli, make_conn: Callable[..., Connection[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_conn(autocommit=False)
    other.execute("lock table tasklib.worker in access exclusive mode")
    said = let_go_when_it_says_so(monkeypatch, other)

    cli("migrate")

    (line,) = said
    assert line.startswith("waiting for a table that is in use (")


def let_go_when_it_says_so(monkeypatch: pytest.MonkeyPatch, holder: Connection[Any]) -> list[str]:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        holder.close()

    monkeypatch.setattr("tasklib.cli.schema.say_to_stderr", say)
    late = threading.Timer(30, holder.close)
    late.daemon = True
    late.start()
    return said
