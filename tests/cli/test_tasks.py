"""Commands about single tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from tasklib.cli import main

from .conftest import Cli, Worker

Read = Callable[..., Any]


def enqueue(cli: Cli, *words: object) -> UUID:
    return UUID(cli("enqueue", *words).stdout.strip())


def test_enqueue_reads_values_as_json_and_everything_else_as_text(cli: Cli, read: Read) -> None:
    words = [
        "to=a@b.c",
        "n=3",
        'quoted="3"',
        "yes=true",
        "none=null",
        "list=[1, 2]",
        "empty=",
        "x=a=b",
    ]
    task_id = enqueue(cli, "app.mail", *words, "nan=NaN")

    assert read("show", task_id)["kwargs"] == {
        "to": "a@b.c",
        "n": 3,
        "quoted": "3",
        "yes": True,
        "none": None,
        "list": [1, 2],
        "empty": "",
        "x": "a=b",
        "nan": "NaN",
    }


def test_enqueue_passes_every_option_on(cli: Cli, read: Read) -> None:
    options = ["-q", "mail", "-p", 7, "--max-retries", 1, "--timeout", "1m30s", "--tag", "batch=w1"]
    keys = ["--unique-key", "u", "--concurrency-key", "c", "--json-kwargs", '{"a": 1}']
    task = read("show", enqueue(cli, "app.mail", *options, *keys))

    expected: dict[str, object] = {
        "queue": "mail",
        "priority": 7,
        "max_retries": 1,
        "timeout_seconds": 90.0,
        "tags": {"batch": "w1"},
        "unique_key": "u",
        "concurrency_key": "c",
        "kwargs": {"a": 1},
    }
    assert {key: task[key] for key in expected} == expected


def test_enqueue_with_a_delay_or_an_instant_waits(cli: Cli, read: Read) -> None:
    delayed = read("show", enqueue(cli, "app.mail", "--delay", "1h"))
    tomorrow = datetime.now(timezone(timedelta(hours=5))).replace(microsecond=0) + timedelta(days=1)
    at = read("show", enqueue(cli, "app.mail", "--at", tomorrow.isoformat()))

    due = datetime.fromisoformat(delayed["scheduled_at"])
    assert timedelta(minutes=59) < due - datetime.now(UTC) < timedelta(minutes=61)
    assert datetime.fromisoformat(at["scheduled_at"]) == tomorrow


def test_enqueue_gives_the_holders_id_when_the_unique_key_is_taken(cli: Cli) -> None:
    first = cli("enqueue", "app.mail", "--unique-key", "u")
    second = cli("enqueue", "app.mail", "--unique-key", "u")

    assert second.stdout == first.stdout
    assert first.stderr == ""
    assert second.stderr.startswith(f"note: task {first.stdout.strip()} holds unique_key")


@pytest.mark.parametrize(
    "words",
    [
        ["to"],
        ["=a"],
        ["a=1", "a=2"],
        ["a=1", "--json-kwargs", "{}"],
        ["--json-kwargs", "[1]"],
        ["--json-kwargs", '{"a": NaN}'],
        ["--delay", "soon"],
        ["--at", "tomorrow"],
        ["--tag", "x"],
    ],
)
def test_enqueue_refuses_what_it_cannot_read(cli: Cli, read: Read, words: list[str]) -> None:
    cli("enqueue", "app.mail", *words, code=2)

    assert read("ls") == []


def test_what_the_database_refuses_ends_with_its_message_and_hint(cli: Cli, read: Read) -> None:
    result = cli("enqueue", "app.mail", "--priority", 5000, code=1)

    assert "5000" in result.stderr
    assert "hint:" in result.stderr
    assert read("ls") == []


def test_ls_filters_and_pages(cli: Cli, read: Read) -> None:
    ids = [
        str(enqueue(cli, f"app.{n}", "--tag", f"n={n % 2}", "-q", f"q{n % 2}")) for n in range(4)
    ]

    assert [task["id"] for task in read("ls")] == ids[::-1]
    assert [task["id"] for task in read("ls", "--name", "app.1")] == [ids[1]]
    assert [task["id"] for task in read("ls", "--tag", "n=1")] == [ids[3], ids[1]]
    assert [task["id"] for task in read("ls", "--queue", "q0")] == [ids[2], ids[0]]
    assert [task["id"] for task in read("ls", "--limit", 1, "--before", ids[2])] == [ids[1]]
    assert read("ls", "--state", "failed") == []


def test_ls_prints_a_table_with_one_line_a_task(cli: Cli, worker: Worker) -> None:
    enqueue(cli, "app.mail")
    worker.fail("Traceback (most recent call last):\n  ...\nValueError: no such address")

    heading, line = cli("ls").stdout.splitlines()

    assert heading.split()[:3] == ["id", "name", "queue"]
    assert line.endswith("ValueError: no such address")
    assert " failed " in line


def test_ls_of_nothing_leaves_standard_output_empty(cli: Cli) -> None:
    result = cli("ls")

    assert result.stdout == ""
    assert result.stderr == "no such tasks\n"


def test_show_tells_every_failed_attempt_with_its_traceback(cli: Cli, worker: Worker) -> None:
    enqueue(cli, "app.mail", "to=a@b.c")
    task_id = worker.fail("Traceback:\nValueError: once", retry=True)
    cli("retry", task_id)
    worker.fail("Traceback:\nValueError: twice")

    text = cli("show", task_id).stdout

    assert '{"to": "a@b.c"}' in text
    assert text.index("ValueError: once") < text.index("ValueError: twice")
    assert text.count("attempt 1 failed") == text.count("attempt 2 failed") == 1
    assert "for good" in text


def test_show_json_holds_the_failures(cli: Cli, read: Read, worker: Worker) -> None:
    enqueue(cli, "app.mail")
    task = read("show", worker.fail("no"))

    assert task["state"] == "failed"
    assert [failure["cause"] for failure in task["failures"]] == ["error"]


def test_show_of_an_unknown_task_fails(cli: Cli) -> None:
    assert "there is no task" in cli("show", uuid4(), code=1).stderr


@pytest.mark.parametrize("words", ["show nonsense", "retry nonsense", "ls --before nonsense"])
def test_what_is_no_id_is_quoted_back(cli: Cli, words: str) -> None:
    result = cli(*words.split(), code=2)

    assert "'nonsense' is no id of a task; `tasklib ls` shows ids." in result.stderr


def test_retry_makes_a_failed_task_pending(cli: Cli, read: Read, worker: Worker) -> None:
    enqueue(cli, "app.mail")
    task_id = worker.fail("no")

    assert cli("retry", task_id).stdout == f"{task_id} pending\n"
    assert read("show", task_id)["state"] == "pending"


def test_one_task_that_refuses_does_not_keep_the_others_back(
    cli: Cli, read: Read, worker: Worker
) -> None:
    enqueue(cli, "app.mail")
    completed = worker.complete()
    enqueue(cli, "app.mail")
    failed = worker.fail("no")

    result = cli("retry", completed, uuid4(), failed, code=1)

    assert result.stdout == f"{failed} pending\n"
    assert result.stderr.count("error:") == 2


def test_cancel_says_what_happened(cli: Cli, worker: Worker) -> None:
    pending = enqueue(cli, "app.later", "--delay", "1h")
    enqueue(cli, "app.mail")
    running, _ = worker.claim()

    result = cli("cancel", pending, running, pending)

    assert result.stdout.splitlines() == [
        f"{pending} cancelled",
        f"{running} requested",
        f"{pending} finished",
    ]


def test_purge_deletes_old_finished_tasks_only(
    cli: Cli, read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    for _ in range(3):
        enqueue(cli, "app.mail")
    worker.complete()
    worker.fail("no")

    assert "0 tasks deleted" in cli("purge", "--older-than", "1h").stdout
    conn.execute("select pg_sleep(0.01)")
    assert "1 tasks deleted" in cli("purge", "--older-than", "0", "--state", "failed").stdout
    assert "1 tasks deleted" in cli("purge", "--older-than", "0").stdout
    assert [task["state"] for task in read("ls")] == ["pending"]


@pytest.mark.parametrize("limit", [0, 1001])
def test_ls_refuses_more_than_the_database_lists_at_a_time(cli: Cli, limit: int) -> None:
    assert "'--limit'" in cli("ls", "--limit", limit, code=2).stderr


@pytest.mark.parametrize(
    "words", ["purge --older-than 1", "purge --older-than 0.5", "queues set mail --retention 30"]
)
def test_a_number_without_a_unit_deletes_nothing(
    cli: Cli, read: Read, worker: Worker, words: str
) -> None:
    enqueue(cli, "app.mail")
    worker.complete()

    assert "has no unit; write" in cli(*words.split(), code=2).stderr
    assert len(read("ls")) == 1


def test_ls_tells_when_a_task_is_due_only_before_it_is(cli: Cli, conn: Connection[Any]) -> None:
    enqueue(cli, "app.due", "--delay", "10ms")
    enqueue(cli, "app.later", "--delay", "1h")
    conn.execute("select pg_sleep(0.02)")

    assert cli("ls").stdout.count("not before") == 1


def test_a_producer_is_shown_its_task_without_the_failures(
    database: str, conn: Connection[Any], worker: Worker
) -> None:
    url = make_conninfo(database, options="-c role=tasklib_producer")

    def run(*words: str) -> str:
        result = CliRunner().invoke(main, ["--database-url", url, *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    task_id = run("enqueue", "app.mail", "to=a@b.c").strip()
    worker.fail("Traceback:\n  ...\nValueError: no such address")

    document = json.loads(run("show", task_id, "--json"))
    assert (document["kwargs"], document["failures"]) == ({"to": "a@b.c"}, None)
    page = run("show", task_id)
    assert "failures            for the role tasklib_admin only\n" in page
    assert page.endswith("the last error\n  Traceback:\n    ...\n  ValueError: no such address\n")


PRODUCER_OR_ADMIN = "tasklib_producer or tasklib_admin"
OBSERVER_OR_ADMIN = "tasklib_observer or tasklib_admin"


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("enqueue app.mail", "tasklib_producer"),
        ("ls", PRODUCER_OR_ADMIN),
        ("show ID", PRODUCER_OR_ADMIN),
        ("retry ID", PRODUCER_OR_ADMIN),
        ("cancel ID", PRODUCER_OR_ADMIN),
        ("purge --older-than 1d", "tasklib_admin"),
        ("queues", OBSERVER_OR_ADMIN),
        ("queues pause mail", "tasklib_admin"),
        ("queues resume mail", "tasklib_admin"),
        ("queues set mail", "tasklib_admin"),
        ("workers", OBSERVER_OR_ADMIN),
        ("top --once --every 0.1s", OBSERVER_OR_ADMIN),
    ],
)
def test_a_role_without_the_right_is_told_what_to_ask_for(
    stranger: str, words: str, needed: str
) -> None:
    words = words.replace("ID", str(uuid4()))
    result = CliRunner().invoke(main, ["--database-url", stranger, *words.split()])

    assert result.exit_code == 1
    assert "permission denied" in result.stderr
    assert f"hint: This needs the role {needed}: " in result.stderr


@pytest.fixture
def stranger(database: str, conn: Connection[Any]) -> Generator[str]:
    """A role that may do nothing."""
    name = f"cli_stranger_{uuid4().hex[:8]}"  # roles are the whole server's
    conn.execute(f"create role {name} login")
    yield make_conninfo(database, user=name)
    conn.execute(f"drop role {name}")
