"""Commands about queues, workers, and the live view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import Connection

from .conftest import Cli, Worker

Read = Callable[..., Any]


def test_queues_counts_tasks_by_what_they_wait_for(cli: Cli, read: Read, worker: Worker) -> None:
    for words in (["a"], ["b"], ["c", "--delay", "1h"]):
        cli("enqueue", *words)
    worker.claim()

    (queue,) = read("queues")

    assert (queue["ready"], queue["running"], queue["scheduled"]) == (1, 1, 1)
    assert cli("queues").stdout.splitlines()[1].startswith("default")


def test_pause_and_resume(cli: Cli, read: Read) -> None:
    cli("queues", "pause", "mail")
    assert [queue["paused"] for queue in read("queues")] == [True]

    cli("queues", "resume", "mail")
    assert [queue["paused"] for queue in read("queues")] == [False]


def test_set_makes_the_settings_exactly_these(cli: Cli, conn: Connection[Any]) -> None:
    settings = "select retention::text, max_crashes, notify from tasklib.queue"

    cli("queues", "set", "mail", "--retention", "30d", "--max-crashes", 5, "--no-notify")
    assert conn.execute(settings).fetchall() == [("720:00:00", 5, False)]

    cli("queues", "set", "mail")
    assert conn.execute(settings).fetchall() == [(None, None, True)]


def test_set_refuses_what_the_database_refuses(cli: Cli) -> None:
    assert "max_crashes" in cli("queues", "set", "mail", "--max-crashes", 0, code=1).stderr


def test_workers_lists_the_living_and_with_all_the_ended(
    cli: Cli, read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    assert [row["name"] for row in read("workers")] == ["by-hand"]
    assert "by-hand" in cli("workers").stdout

    conn.execute("select tasklib.deregister_worker(%s)", (worker.id,))

    assert read("workers") == []
    assert [row["status"] for row in read("workers", "--all")] == ["ended"]


def test_workers_tells_the_lost_from_those_that_ended_in_order(
    cli: Cli, read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    conn.execute("select tasklib.tick()")
    conn.execute("update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")
    assert [row["status"] for row in read("workers")] == ["silent"]

    conn.execute("select tasklib.tick()")

    assert read("workers") == []
    assert "by-hand" not in cli("top", "--every", "0.1s").stdout
    assert [row["status"] for row in read("workers", "--all")] == ["lost"]


def test_top_without_a_terminal_is_one_snapshot(cli: Cli, worker: Worker) -> None:
    cli("enqueue", "app.mail")
    worker.complete()
    cli("enqueue", "app.mail")

    text = cli("top", "--every", "0.1s").stdout

    assert "default" in text
    assert "by-hand" in text
    assert "app.mail" in text


def test_top_of_an_empty_database_says_so(cli: Cli) -> None:
    assert "no worker" in cli("top", "--every", "0.1s").stdout
