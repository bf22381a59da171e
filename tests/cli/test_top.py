"""`tasklib top`: what runs where, how fast, and that it fits the screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from tasklib.cli._looks import Look, Watcher
from tasklib.cli._session import Settings
from tasklib.cli.top import draw

from .conftest import Cli, Worker

Read = Callable[..., Any]


def progress(worker: Worker, fraction: float, text: str) -> None:
    task_id, attempt = worker.claim()
    worker.conn.execute(
        "select tasklib.set_progress(%s, %s, %s, %s, %s)",
        (task_id, worker.id, attempt, fraction, text),
    )


def row_of(text: str, word: str) -> str:
    (row,) = [line for line in text.splitlines() if word in line]
    return row


def test_each_worker_shows_what_it_does_now(cli: Cli, worker: Worker) -> None:
    cli("enqueue", "app.report")
    progress(worker, 0.25, "page 1 of 4")

    row = row_of(cli("top", "--once", "--every", "0.1s").stdout, "app.report")

    assert row.split()[:3] == ["by-hand", "alive", "1"]
    assert row.endswith("25% page 1 of 4")


def test_json_has_the_tasks_of_each_worker(read: Read, cli: Cli, worker: Worker) -> None:
    cli("enqueue", "app.report")
    progress(worker, 0.25, "page 1 of 4")

    seen = read("top", "--every", "0.1s")

    assert set(seen) == {"rates", "queues", "workers", "names"}
    (task,) = seen["workers"][0]["tasks"]
    assert task["name"] == "app.report"
    assert task["progress"] == 0.25
    assert task["progress_message"] == "page 1 of 4"
    assert task["seconds"] >= 0
    assert seen["queues"][0]["running"] == 1


def test_of_many_tasks_the_oldest_are_shown(cli: Cli, worker: Worker) -> None:
    for n in range(8):
        cli("enqueue", f"app.task{n}")
        worker.claim()

    text = cli("top", "--every", "0.1s").stdout

    assert "app.task0" in text
    assert "app.task5" not in text
    assert "… 3 more" in text


def test_an_observer_sees_how_far_tasks_are_and_not_what_they_say(
    cli: Cli, read: Read, worker: Worker, database: str
) -> None:
    cli("enqueue", "app.report")
    progress(worker, 0.25, "mail to ada@example.org")
    url = make_conninfo(database, options="-c role=tasklib_observer")

    text = cli("--database-url", url, "top", "--every", "0.1s").stdout

    assert row_of(text, "app.report").endswith("25%")
    assert "ada@" not in text


def test_rates_are_seen_between_looks(
    cli: Cli, worker: Worker, database: str, make_conn: Callable[..., Connection[Any]]
) -> None:
    with Settings(database).session() as session:
        watcher = Watcher(session)
        assert set(watcher.look().rates.values()) == {None}, "nothing to compare with"

        def eventually(name: str) -> bool:
            deadline = time.monotonic() + 60
            while not (watcher.look().rates[name] or 0) > 0:
                assert time.monotonic() < deadline, watcher.look().rates
                time.sleep(0.2)
            return True

        cli("enqueue", "app.report")
        assert eventually("enqueued")
        worker.fail("ValueError")
        worker.conn.close()  # sessions report what they did at their end at the latest
        assert eventually("finished")
        assert eventually("failed_attempts")


def test_counters_that_went_back_give_no_rate(database: str, conn: Connection[Any]) -> None:
    with Settings(database).session() as session:
        watcher = Watcher(session)
        watcher.look()
        watcher._counted[0]["enqueued"] = 10**9

        assert watcher.look().rates["enqueued"] is None


def test_rates_are_those_of_the_last_seconds(database: str) -> None:
    with Settings(database).session() as session:
        watcher = Watcher(session)
        for _ in range(4):
            watcher.look()
        # As if these were long ago: an hour, a minute, and eleven seconds.
        for counted, ago in zip(watcher._counted, (3600, 60, 11), strict=False):
            counted["clock"] -= ago
        watcher.look()

        assert len(watcher._counted) == 3
        assert watcher._counted[0]["clock"] > watcher._counted[-1]["clock"] - 12


def test_durations_are_not_read_at_every_look(database: str, worker: Worker, cli: Cli) -> None:
    with Settings(database).session() as session:
        watcher = Watcher(session)
        assert watcher.look().names == []
        cli("enqueue", "app.report")
        worker.complete()

        assert watcher.look().names == []
        watcher._names_due = 0
        assert [row["name"] for row in watcher.look().names] == ["app.report"]


@pytest.mark.parametrize("lines", [24, 40])
def test_it_fits_the_screen(lines: int) -> None:
    task = {"name": "app.report", "seconds": 1.0, "progress": None, "progress_message": None}
    many = Look(
        rates={"enqueued": 1234.5, "finished": None, "failed_attempts": 0.0},
        queues=[
            dict.fromkeys(
                [
                    "paused",
                    "ready",
                    "running",
                    "scheduled",
                    "retrying",
                    "waiting",
                    "parked",
                    "failed",
                ],
                0,
            )
            | {"queue": f"q{n}", "oldest_ready_seconds": None}
            for n in range(50)
        ],
        workers=[
            {"name": f"w{n}", "status": "alive", "running": 9, "seconds_since_heartbeat": -0.1}
            | {"tasks": [task] * 9}
            for n in range(50)
        ],
        names=[
            dict.fromkeys(["completed", "failed", "cancelled", "retried"], 0)
            | {"name": f"n{n}", "p50_seconds": 0.1, "p95_seconds": None}
            for n in range(50)
        ],
    )

    text = draw(many, "here", lines)

    assert len(text.splitlines()) <= lines
    assert text.count("more lines") == 3
    assert "enqueued 1,234.5/s   finished -   failed attempts 0.0/s" in text
    assert "w0" in text
    assert len(draw(many, "here", 10**6).splitlines()) > 50 + 50 * 6 + 50
