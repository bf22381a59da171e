"""`tasklib doctor`: what it finds, what it advises, and how it exits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from psycopg import Connection, sql

from tasklib.cli import _checks, main
from tasklib.cli._session import Session

from .conftest import Cli, Worker

Read = Callable[..., Any]
Connect = Callable[..., Connection[Any]]

# The servers of the tests run without autovacuum, which is a finding of the check of the server.
WITHOUT_SERVER = ",".join(name for name in _checks.CHECKS if name != "server")


def findings(read: Read, check: str, *, code: int) -> list[tuple[str, str]]:
    document = read("doctor", "--only", check, code=code)
    assert document["healthy"] is (code == 0)
    assert {found["check"] for found in document["findings"]} == {check}
    return [(found["level"], found["message"]) for found in document["findings"]]


def test_a_fresh_database_needs_no_action(cli: Cli) -> None:
    lines = cli("doctor", "--only", WITHOUT_SERVER).stdout.splitlines()

    assert not [line for line in lines if line.startswith("act")]
    assert len([line for line in lines if line.startswith("ok")]) >= 6


def test_a_database_that_was_never_worked_on_can_be_examined(
    read: Read, conn: Connection[Any]
) -> None:
    assert conn.execute("select last_tick_at from tasklib.tick_health").fetchall() == [(None,)]

    assert findings(read, "ticks", code=0) == [("note", "no housekeeping yet")]


def test_every_finding_that_is_not_fine_comes_with_advice(cli: Cli, read: Read) -> None:
    cli("enqueue", "app.mail")
    document = read("doctor", code=1)

    assert all(found["advice"] for found in document["findings"] if found["level"] != "ok")
    text = cli("doctor", code=1).stdout
    assert text.count("→") == len([f for f in document["findings"] if f["level"] != "ok"])


def test_an_unknown_check_is_a_usage_error(cli: Cli) -> None:
    assert "there are server, schema" in cli("doctor", "--only", "sever", code=2).stderr


def test_the_server_without_autovacuum_is_reported(read: Read) -> None:
    assert ("act", "autovacuum is off") in findings(read, "server", code=1)


def test_a_database_that_cannot_be_reached_exits_with_3() -> None:
    words = ["--database-url", "postgresql://me:s3cret@127.0.0.1:1/none", "doctor"]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 3
    assert "Connection refused" in result.stderr
    assert "s3cret" not in result.output


def test_a_bad_setting_is_not_blamed_on_the_server() -> None:
    result = CliRunner(env={"TASKLIB_MAX_RETRIES": "abc"}).invoke(main, ["ls"])

    assert result.exit_code == 3
    assert "TASKLIB_MAX_RETRIES='abc'" in result.stderr
    assert "Is the server running?" not in result.stderr


@pytest.mark.parametrize(
    "url", ["postgres//me:s3cret@host/db", "postgresql://me:s3cret@host:port/db", "me:s3cret"]
)
def test_a_malformed_url_is_refused_without_printing_the_password(url: str) -> None:
    result = CliRunner().invoke(main, ["--database-url", url, "ls"])

    assert result.exit_code == 3
    assert "s3cret" not in result.output


def test_a_missing_schema_is_said_once(read: Read, conn: Connection[Any]) -> None:
    conn.execute("drop schema tasklib cascade")

    document = read("doctor", "--only", WITHOUT_SERVER, code=1)

    acts = [found for found in document["findings"] if found["level"] == "act"]
    assert [found["message"] for found in acts] == ["the schema is not installed"]
    assert findings(read, "workers", code=1) == [("act", "the schema is not installed")]


@pytest.mark.parametrize(
    ("version", "advice"), [("0000_start", "tasklib migrate"), ("9999_future", "pg-tasklib")]
)
def test_a_schema_of_another_version_is_reported(
    read: Read, conn: Connection[Any], version: str, advice: str
) -> None:
    conn.execute("delete from tasklib.migration where name <> tasklib.version()")
    conn.execute("update tasklib.migration set name = %s", (version,))

    (found,) = read("doctor", "--only", "schema", code=1)["findings"]

    assert version in found["message"]
    assert advice in found["advice"]


def test_tasks_that_nobody_can_run_need_action(cli: Cli, read: Read) -> None:
    for _ in range(2):
        cli("enqueue", "app.mail")

    assert findings(read, "tasks", code=1) == [
        ("act", "2 x app.mail in queue default: no live worker knows the name")
    ]


def test_a_paused_queue_is_only_worth_knowing(cli: Cli, read: Read, worker: Worker) -> None:
    cli("queues", "pause", "default")
    cli("enqueue", "app.mail")

    ((level, message),) = findings(read, "tasks", code=0)

    assert level == "note"
    assert "paused" in message


def test_ready_tasks_without_a_worker_need_action(
    cli: Cli, read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.mail")
    conn.execute("select tasklib.deregister_worker(%s)", (worker.id,))

    assert ("act", "1 tasks are ready and no worker is alive") in findings(read, "workers", code=1)


def test_a_silent_worker_needs_action_and_a_lost_one_is_worth_knowing(
    cli: Cli, read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    cli("enqueue", "app.mail")
    worker.claim()
    conn.execute("select tasklib.tick()")
    conn.execute("update tasklib.worker set lease_until = clock_timestamp() - interval '1 second'")

    assert findings(read, "workers", code=1) == [
        ("ok", "none is alive, and no task is ready"),
        ("act", f"by-hand ({worker.id}) is silent and holds 1 tasks"),
    ]

    conn.execute("select tasklib.tick()")

    (_, (level, message)) = findings(read, "workers", code=0)
    assert level == "note"
    assert "1 went silent" in message


def test_a_worker_that_died_is_worth_knowing(
    read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    conn.execute("select tasklib.deregister_worker(%s, crashed => true)", (worker.id,))

    assert ("note", "1 died within a day, last by-hand") in findings(read, "workers", code=0)


def test_a_worker_that_left_in_order_is_no_finding(
    read: Read, worker: Worker, conn: Connection[Any]
) -> None:
    conn.execute("select tasklib.deregister_worker(%s)", (worker.id,))

    assert [level for level, _ in findings(read, "workers", code=0)] == ["ok"]


def test_long_transactions_are_told_by_what_they_do(
    read: Read, make_conn: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "LONG_WRITE", timedelta(0))
    monkeypatch.setattr(_checks, "LONG_READ", timedelta(0))
    writer, reader = (make_conn(autocommit=False) for _ in range(2))
    writer.execute("select tasklib.enqueue('app.mail')")
    reader.execute("select 1")

    found = findings(read, "transactions", code=1)
    levels = {message.split(" of ")[0]: level for level, message in found}

    assert levels[f"session {writer.info.backend_pid}"] == "act"
    assert levels[f"session {reader.info.backend_pid}"] == "note"


def test_a_forgotten_prepared_transaction_needs_action(
    read: Read, make_conn: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "LONG_WRITE", timedelta(0))
    other = make_conn(autocommit=False)
    other.execute("create table forgotten ()")
    other.execute("prepare transaction 'forgotten'")
    try:
        found = findings(read, "transactions", code=1)
        assert [message for _, message in found if "prepared transaction 'forgotten'" in message]
    finally:
        other.rollback()
        other.autocommit = True
        other.execute("rollback prepared 'forgotten'")


def test_housekeeping_that_nobody_does_needs_action_when_something_waits_for_it(
    cli: Cli, read: Read, conn: Connection[Any]
) -> None:
    assert findings(read, "ticks", code=0) == [("note", "no housekeeping yet")]
    conn.execute("select tasklib.tick()")
    assert findings(read, "ticks", code=0) == [("ok", "the housekeeping is done")]

    conn.execute("update tasklib.horizon set at = at - interval '1 hour'")
    assert [level for level, _ in findings(read, "ticks", code=0)] == ["note"]

    cli("enqueue", "app.mail", "--delay", "1d")
    ((level, message),) = findings(read, "ticks", code=1)
    assert level == "act"
    assert "1 h 0 min" in message


def test_a_long_backlog_is_worth_knowing(
    cli: Cli, read: Read, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "BACKLOG", timedelta(0))
    cli("enqueue", "app.mail", "-q", "mail")

    ((level, message),) = findings(read, "queues", code=0)

    assert level == "note"
    assert message.startswith("in mail the first of 1 ready tasks has waited")


def test_a_role_that_may_not_look_is_told_what_it_lacks(
    cli: Cli, read: Read, conn: Connection[Any]
) -> None:
    conn.execute("create role nobody_in_particular")
    conn.execute("grant usage on schema tasklib to nobody_in_particular")
    # In this database alone: tests in others go on meanwhile, with the same role.
    here = sql.SQL("alter role current_user in database {} ").format(
        sql.Identifier(conn.info.dbname)
    )
    try:
        conn.execute(here + sql.SQL("set role = 'nobody_in_particular'"))
        document = read("doctor", "--only", "workers,tasks,schema")
    finally:
        conn.execute(here + sql.SQL("reset role"))
        conn.execute("drop owned by nobody_in_particular")
        conn.execute("drop role nobody_in_particular")

    assert {found["level"] for found in document["findings"]} == {"note"}
    assert all("tasklib_observer" in found["advice"] for found in document["findings"])


def pretend(facts: dict[str, object], *, backend_pid: int = 1) -> Session:
    """A session whose server says what the test wants."""
    info = SimpleNamespace(backend_pid=backend_pid)
    session = SimpleNamespace(connection=SimpleNamespace(info=info), run=lambda _call: facts)
    return cast("Session", session)


@pytest.mark.parametrize(("seen", "level"), [(1, "ok"), (2, "note")])
def test_a_pooler_gives_itself_away_by_another_process_id(seen: int, level: str) -> None:
    (found,) = _checks.CHECKS["pooler"](pretend({"backend_pid": seen}))

    assert found.level == level


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, "ok"), (0.9, "ok"), (-5, "note"), (5, "note"), (3600, "act")]
)
def test_a_clock_that_is_off_is_reported(seconds: float, level: str) -> None:
    there = datetime.now(UTC) + timedelta(seconds=seconds)

    (found,) = _checks.CHECKS["clock"](pretend({"clock": there}))

    assert found.level == level
    if level != "ok":
        assert ("ahead of" if seconds > 0 else "behind") in found.message


def test_an_old_server_and_a_replica_need_action() -> None:
    facts: dict[str, object] = {
        "version": "13.5",
        "number": 130005,
        "database": "app",
        "role": "me",
        "is_replica": True,
        "autovacuum": True,
        "connections": 95,
        "max_connections": 100,
    }

    levels = [found.level for found in _checks.CHECKS["server"](pretend(facts))]

    assert levels == ["ok", "act", "act", "act"]


def test_ready_tasks_in_a_queue_that_nobody_takes_from_need_action(
    cli: Cli, read: Read, conn: Connection[Any]
) -> None:
    def register(info: str | None) -> None:
        conn.execute("select tasklib.register_worker('w', info => %s)", (info,))

    register('{"queues": ["default", "sms"]}')
    cli("enqueue", "app.mail", "-q", "mail")
    cli("enqueue", "app.mail", "-q", "sms")

    ((level, message),) = findings(read, "tasks", code=1)
    assert (level, message.split(",")[0]) == ("act", "1 tasks are ready in queue mail")
    (found,) = read("doctor", "--only", "tasks", code=1)["findings"]
    assert "--queues mail" in found["advice"]

    register('{"queues": ["mail"]}')
    assert [level for level, _ in findings(read, "tasks", code=0)] == ["ok"]


@pytest.mark.parametrize("info", [None, "{}", '{"queues": "all"}'])
def test_a_worker_that_does_not_say_its_queues_may_take_from_any(
    cli: Cli, read: Read, conn: Connection[Any], info: str | None
) -> None:
    conn.execute("""select tasklib.register_worker('w', info => '{"queues": ["default"]}')""")
    conn.execute("select tasklib.register_worker('psql', info => %s)", (info,))
    cli("enqueue", "app.mail", "-q", "mail")

    assert [level for level, _ in findings(read, "tasks", code=0)] == ["ok"]


def test_rules_for_a_role_that_is_gone_are_found(read: Read, conn: Connection[Any]) -> None:
    assert findings(read, "roles", code=0) == [("ok", "the four roles are there")]

    conn.execute("create role was_renamed")
    conn.execute("select tasklib.set_rule('was_renamed', 'claim', 'mail')")
    conn.execute("select tasklib.set_limit('was_renamed', max_bytes => 100)")
    conn.execute("drop role was_renamed")

    ((level, message),) = findings(read, "roles", code=1)
    assert (level, message.split(":")[0]) == (
        "act",
        "there are rules or limits for was_renamed, and no such role",
    )


def test_a_role_that_could_not_be_made_is_found(conn: Connection[Any]) -> None:
    session = SimpleNamespace(
        run=lambda call: call.read(conn.execute(call.sql, call.params).fetchall())
    )
    conn.execute("begin")
    try:
        conn.execute("alter role tasklib_observer rename to it_is_not_here")
        (found,) = _checks.examine(cast("Session", session), {"roles"})
    finally:
        conn.execute("rollback")
    assert (found.level, found.check) == ("note", "roles")
    assert "tasklib_observer" in found.message
    assert "create role tasklib_observer nologin;" in (found.advice or "")
