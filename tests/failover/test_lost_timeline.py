"""What was handed out on the old primary and did not reach the new one is worth nothing there."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from failover.cluster import Node, Pair, wait_until
from failover.drill import Ledger, Worker
from proxy import Proxy
from sql.support import (
    call,
    claim,
    claim_one,
    complete,
    enqueue,
    fingerprint,
    finish,
    one,
    refused,
    register,
    rows,
    run,
    state,
    sweep,
    tick,
)
from tasklib import Config, _calls
from tasklib._migrate import migrate
from tasklib.worker.link import Link, is_infrastructure

Open = Callable[[Node], Connection[Any]]


@pytest.fixture
def pair() -> Generator[Pair]:
    """A primary with the schema, and a standby that has it, too."""
    with Pair() as pair:
        migrate(pair.primary.conninfo())
        pair.primary.replicate(pair.standby, synchronous=False)
        pair.primary.catch_up(pair.standby)
        yield pair


@pytest.fixture
def session() -> Generator[Open]:
    """Open sessions that are closed when the test ends."""
    opened: list[Connection[Any]] = []

    def connect(node: Node) -> Connection[Any]:
        opened.append(psycopg.connect(node.conninfo(), autocommit=True))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


def all_refuse(conn: Connection[Any], worker: UUID, held: Any, code: str) -> None:
    """Try every call that a lease is for; none may be accepted, or change anything."""
    before = fingerprint(conn)
    lease = {"id": held.id, "worker_id": worker, "attempt": held.attempt}
    for name, more in {
        "complete": {},
        "fail": {"error": "late"},
        "snooze": {"delay": "1 second"},
        "set_progress": {"fraction": 0.5},
    }.items():
        with refused(code, case=name):
            call(conn, name, **lease, **more)
    batch = {"worker_id": worker, "ids": [held.id], "attempts": [held.attempt]}
    for name in ("finish", "release"):
        if code == "TL004":
            assert rows(conn, name, **batch) == [("stale",)], name
        else:
            with refused(code, case=name):
                rows(conn, name, **batch)
    assert fingerprint(conn) == before


def test_no_lease_of_the_lost_timeline_is_accepted(pair: Pair, session: Open) -> None:
    old, new = session(pair.primary), pair.standby
    known = register(old)
    ids = [enqueue(old) for _ in range(6)]
    finished = claim_one(old, known)
    pair.primary.catch_up(new)
    new.part()
    complete(old, known, finished)
    lost = claim(old, known, 3)
    run(old, "select tasklib.release(%s, %s, %s)", known, [lost[2].id], [lost[2].attempt])
    later = claim_one(old, known)  # the first of those that were never claimed before
    late = register(old)
    of_late = claim_one(old, late)
    only_there = enqueue(old)
    pair.primary.kill()
    pair.promote()
    conn = session(new)

    # It says where it stood at the cut: one task is running, the others were never handed out.
    assert [row.id for row in run(conn, "select id from tasklib.tasks order by id")] == ids
    assert state(conn, finished.id) == "running"
    for held in (*lost[:2], later):
        all_refuse(conn, known, held, "TL004")
    all_refuse(conn, late, of_late, "TL007")
    with refused("TL007"):
        rows(conn, "heartbeat", worker_id=late)

    # The same tasks, the same attempts, another worker.
    third = register(conn)
    again = {held.id: held for held in claim(conn, third, 10)}
    assert set(again) == set(ids) - {finished.id}
    for held in (*lost[:2], later):
        assert again[held.id].attempt == held.attempt
        all_refuse(conn, known, held, "TL004")
    all_refuse(conn, late, of_late, "TL007")

    # What had been handed out before the cut is its worker's as before.
    rows(conn, "heartbeat", worker_id=known)
    complete(conn, known, finished)
    assert finish(conn, third, list(again.values())) == ["ok"] * 5
    assert only_there not in {enqueue(conn) for _ in range(100)}
    tick(conn)
    assert sweep(conn) == 0


def test_a_worker_of_the_old_primary_gets_no_lease_that_it_may_hold_already(
    pair: Pair, session: Open
) -> None:
    old, new = session(pair.primary), pair.standby
    worker = register(old)
    before, after = enqueue(old), enqueue(old)
    kept = claim_one(old, worker)
    pair.primary.catch_up(new)
    new.part()
    lost = claim_one(old, worker)
    pair.primary.kill()
    pair.promote()
    conn = session(new)
    assert (kept.id, lost.id) == (before, after)

    # The same worker, the same task, the same attempt: nothing could tell the two leases apart.
    with refused("TL007", "registered"):
        claim(conn, worker)
    all_refuse(conn, worker, lost, "TL004")
    rows(conn, "heartbeat", worker_id=worker)
    fresh = register(conn)
    again = claim_one(conn, fresh)
    assert (again.id, again.attempt) == (lost.id, lost.attempt)
    all_refuse(conn, worker, lost, "TL004")
    complete(conn, fresh, again)
    complete(conn, worker, kept)


def test_positions_and_marks_go_on_where_they_were(pair: Pair, session: Open) -> None:
    old, new = session(pair.primary), pair.standby
    worker = register(old)
    # Enough for notes of a lane, so that there is a mark which has moved.
    run(old, "select tasklib.enqueue('t') from generate_series(1, 1000)")
    for _ in range(8):
        finish(old, worker, claim(old, worker, 100))
        time.sleep(0.3)
        tick(old)
    assert one(old, "select max(low_pos) from tasklib.mark") > 0
    pair.primary.catch_up(new)
    new.part()
    run(old, "select tasklib.enqueue('t') from generate_series(1, 100)")
    pair.primary.kill()
    pair.promote()
    conn = session(new)

    assert one(
        conn,
        "select (select last_value from tasklib.position) >= max(pos) from tasklib.ready",
    )
    made = [enqueue(conn) for _ in range(50)]
    tick(conn)
    assert sweep(conn) == 0
    worker = register(conn)
    taken = [task.id for _ in range(25) for task in claim(conn, worker, 10)]
    assert taken[-50:] == made
    assert len(taken) == 250
    assert sweep(conn) == 0


async def test_a_session_that_met_a_standby_listens_after_its_promotion(pair: Pair) -> None:
    config = Config(database_url=pair.standby.conninfo())
    link = Link(config, "test link", lambda _payload: None)
    for call_on_standby in (link.listen, lambda: link.run(_calls.backend_pid())):
        with pytest.raises(Exception, match="during recovery") as caught:
            await call_on_standby()
        assert is_infrastructure(caught.value)
    pair.primary.kill()
    pair.promote()

    await link.run(_calls.backend_pid())
    assert link.is_listening
    link.drop()


@pytest.fixture
def proxied(pair: Pair, tmp_path: Path) -> Generator[tuple[Proxy, Ledger, Worker]]:
    """A real worker that comes through a proxy, and polls so rarely that it has to listen."""
    ledger = Ledger(tmp_path / "ledger.txt")
    with Proxy(pair.primary.socket) as proxy:
        url = f"postgresql://tasklib@127.0.0.1:{proxy.port}/tasklib"
        worker = Worker(
            *(url, ledger, tmp_path / "worker.log"), "-c", "2", "--poll-interval", "600"
        )
        worker.says("takes tasks of")
        yield proxy, ledger, worker
        worker.stop()


def test_an_idle_worker_makes_good_what_was_lost(
    pair: Pair, session: Open, proxied: tuple[Proxy, Ledger, Worker], tmp_path: Path
) -> None:
    proxy, ledger, worker = proxied
    old, new = session(pair.primary), pair.standby
    goes, stays = tmp_path / "goes", tmp_path / "stays"

    # One begins before the cut and ends after it; the other begins after it, and runs on and on.
    ends = enqueue(old, "drill.hold", kwargs={"path": str(goes)})
    waits = enqueue(old, "drill.hold", kwargs={"path": str(stays)}, delay="1 hour")
    wait_until(lambda: state(old, ends) == "running", "the first task runs")
    pair.primary.catch_up(new)
    new.part()
    goes.touch()
    wait_until(lambda: state(old, ends) == "completed", "the first task ends")
    run(old, "select tasklib.reschedule(%s, scheduled_at => clock_timestamp())", waits)
    wait_until(lambda: bool(ledger.of(waits)), "the second task runs")
    (of_old,) = ledger.of(waits)
    time.sleep(1.5)  # no call is under way when the primary dies

    proxy.repoint(new.socket)
    pair.primary.kill()
    proxy.cut()
    worker.says("read-only", 2)
    promoted_at = time.time()
    pair.promote()
    conn = session(new)
    assert state(conn, ends) == "running"
    assert state(conn, waits) == "pending"

    # A notification reaches the worker: it does not look for ten minutes.
    run(conn, "select tasklib.reschedule(%s, scheduled_at => clock_timestamp())", waits)
    wait_until(lambda: len(ledger.of(waits)) == 2, "the second task runs again", 15)
    stays.touch()
    wait_until(lambda: state(conn, waits) == "completed", "the second task ends")
    run_of_new = next(run.run for run in ledger.of(waits) if run.at > promoted_at)
    assert (
        one(conn, "select result ->> 'value' from tasklib.tasks where id = %s", waits) == run_of_new
    )
    assert run_of_new != of_old.run
    assert "came too late: stale" in worker.log

    # Its completion was lost with the old primary. When nothing else runs under the old
    # registration, that one is ended, and the task is run again.
    wait_until(lambda: state(conn, ends) == "completed", "the first task ends again")
    assert len(ledger.of(ends)) == 2
    tick(conn)
    assert sweep(conn) == 0
