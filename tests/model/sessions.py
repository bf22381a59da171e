"""Several sessions whose transactions overlap, at every isolation level, and what each must see.

One thread steps them. So a call that has to wait would wait for ever: a short lock_timeout ends it,
and where it may happen is part of the prediction. Tasks with concurrency keys have a queue of their
own, where not each answer is predicted but what must never happen: two of them running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from psycopg import Connection

from model import database
from model.database import call, run
from model.model import LOST, Lease, Refused

SESSIONS = 3
WORKERS = 2
QUEUES = ["default", "mail"]
KEYED = "keyed"
CHANNEL = "a_channel_that_nobody_looks_at__"
HOUR = 3600.0
READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE = (
    "read committed",
    "repeatable read",
    "serializable",
)
WAITS, CONFLICTS = "55P03", "40001"

sessions = st.integers(0, SESSIONS - 1)
workers = st.integers(0, WORKERS - 1)
which = st.integers(0, 30)
specs = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]), "queue": st.sampled_from(["default", *QUEUES])},
    optional={
        "priority": st.integers(0, 1),
        "unique_key": st.sampled_from(["u1", "u2"]),
        "unique_until": st.sampled_from(["finished", "started"]),
    },
)
plain_specs = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]), "queue": st.sampled_from(["default", *QUEUES])},
    optional={"priority": st.integers(0, 1)},
)
endings = st.sampled_from(["completed", "completed", "failed", "lost", "released", "snoozed"])


@dataclass(frozen=True)
class Row:
    """A version of a task."""

    queue: str
    priority: int
    turn: int
    spec: dict[str, Any]
    place: str = "ready"
    attempt: int = 0
    worker: UUID | None = None
    failed: tuple[tuple[int, UUID], ...] = ()


@dataclass(eq=False)
class Transaction:
    """What one session has written, and what it sees."""

    level: str = READ_COMMITTED
    snapshot: int | None = None
    writes: dict[Any, Any] = field(default_factory=dict[Any, Any])
    locks: set[Any] = field(default_factory=set[Any])
    keyed: bool = False
    note: tuple[UUID, Row] | None = None  # what the commit is to hand over
    is_alone: bool = True  # in this transaction


class Store:
    """Rows in versions: what each transaction sees, whom it waits for, when it conflicts."""

    def __init__(self) -> None:
        self.commits = 0
        self.versions: dict[Any, list[tuple[int, Any]]] = {}
        self.open: list[Transaction] = []

    def statement(self, tx: Transaction) -> None:
        if tx.level == READ_COMMITTED or tx.snapshot is None:
            tx.snapshot = self.commits

    def committed(self, what: Any) -> Any:
        return self.versions.get(what, [(0, None)])[-1][1]

    def read(self, tx: Transaction, what: Any) -> Any:
        if what in tx.writes:
            return tx.writes[what]
        assert tx.snapshot is not None
        seen = [v for at, v in self.versions.get(what, []) if at <= tx.snapshot]
        return seen[-1] if seen else None

    def changed(self, tx: Transaction, what: Any) -> bool:
        """Somebody has committed another version than the one that is seen."""
        assert tx.snapshot is not None
        return what not in tx.writes and self.versions.get(what, [(0, None)])[-1][0] > tx.snapshot

    def locked(self, tx: Transaction, what: Any) -> bool:
        return any(
            what in other.writes or what in other.locks for other in self.open if other is not tx
        )

    def lock(self, tx: Transaction, what: Any) -> None:
        if self.locked(tx, what):
            raise Refused(WAITS)
        if self.changed(tx, what):
            raise Refused(CONFLICTS)
        tx.locks.add(what)

    def write(self, tx: Transaction, what: Any, value: Any) -> None:
        self.lock(tx, what)
        tx.writes[what] = value

    def claim_key(self, tx: Transaction, what: Any, value: Any) -> Any:
        """Insert where there can be one only; return who is there."""
        if any(what in other.writes for other in self.open if other is not tx):
            raise Refused(WAITS)
        if what not in tx.writes and self.committed(what) is not None and self.changed(tx, what):
            raise Refused(CONFLICTS)
        there = self.read(tx, what)
        if what not in tx.writes and self.committed(what) is None:
            there = None
        if there is None:
            tx.writes[what] = there = value
        return there

    def commit(self, tx: Transaction) -> None:
        self.commits += 1
        for what, value in tx.writes.items():
            self.versions.setdefault(what, []).append((self.commits, value))

    def tasks(self, tx: Transaction) -> dict[UUID, Row]:
        seen = {what: self.read(tx, what) for what in {*self.versions, *tx.writes}}
        return {what: row for what, row in seen.items() if isinstance(row, Row)}


class SessionsMachine(RuleBasedStateMachine):
    """Three sessions and one that looks."""

    conn: ClassVar[Connection[Any]]
    conns: ClassVar[list[Connection[Any]]]
    steps: ClassVar[int] = 0
    examples: ClassVar[int] = 0
    handed_over: ClassVar[int] = 0

    @classmethod
    def connect(cls, conn: Connection[Any]) -> None:
        """Use a session to look at what is committed."""
        cls.conn = conn

    @initialize()
    def begin_example(self) -> None:
        for conn in self.conns:
            conn.rollback() if conn.info.transaction_status else None
        database.empty(self.conn)
        type(self).examples += 1
        if self.examples % 20 == 0:
            database.vacuum(self.conn)
        self.store = Store()
        self.open: list[Transaction | None] = [None] * SESSIONS
        self.turns = count(1)
        self.leases: list[Lease] = []
        self.task_ids: list[UUID] = []
        self.workers = [
            call(self.conn, "register_worker", task_types=["a", "b"], lease=HOUR)[0][0]
            for _ in range(WORKERS)
        ]
        for worker_id in self.workers:
            # from now on an offer writes nothing but its flag
            call(self.conn, "idle", worker_id=worker_id, max_wait=HOUR)
            self.make_offer(worker_id)

    def make_offer(self, worker_id: UUID) -> None:
        call(self.conn, "offer", worker_id=worker_id, queues=QUEUES, channel=CHANNEL)

    def offered(self) -> UUID | None:
        """Return which worker takes the next lone task: a flag that no transaction takes back."""
        ((number,),) = run(self.conn, "select last_value >> 20 from tasklib.offer")
        return {worker_id.int >> 88: worker_id for worker_id in self.workers}.get(number)

    # -- both sides

    def step(
        self,
        session: int,
        ask: Callable[[Connection[Any]], Any],
        answer: Callable[[Transaction], Any],
        tolerated: Sequence[str] = (),
    ) -> Any:
        """Do something in a session, in its transaction or in one of its own."""
        type(self).steps += 1
        conn, tx = self.conns[session], self.open[session] or Transaction()
        self.store.statement(tx)
        offered = self.offered()
        try:
            found = ask(conn)
        except psycopg.Error as error:
            found = Refused(error.sqlstate)
        if isinstance(found, Refused) and str(found) in tolerated:
            expected = found
        else:
            try:
                expected = answer(tx)
            except Refused as refused:
                expected = refused
        if (
            str(found) == CONFLICTS
            and tx.level == SERIALIZABLE
            and not isinstance(expected, Refused)
        ):
            # it may conflict with what others only read
            expected = found
        assert repr(found) == repr(expected), f"the queue: {found!r}, the model: {expected!r}"
        if isinstance(found, Refused):
            self.end_transaction(session, commit=False)
            return None
        if self.open[session] is None:
            self.hand_over(tx, offered)
            self.store.commit(tx)
        return found

    def hand_over(self, tx: Transaction, offered: UUID | None) -> None:
        """Let the worker that offered to take a task have what is noted, unless it was changed."""
        if tx.note is None or not tx.is_alone or offered is None or tx.level != READ_COMMITTED:
            return
        task_id, row = tx.note
        if tx.writes.get(task_id) is row:
            tx.writes[task_id] = replace(row, place="running", worker=offered, attempt=1)
            self.leases.append(Lease(task_id, offered, 1))
            assert self.offered() is None
            SessionsMachine.handed_over += 1

    def end_transaction(self, session: int, *, commit: bool) -> None:
        tx, conn = self.open[session], self.conns[session]
        if tx is None:
            return
        self.open[session] = None
        self.store.open.remove(tx)
        offered = self.offered()
        try:
            run(conn, "commit" if commit else "rollback")
        except psycopg.Error as error:
            if (error.sqlstate, tx.level) != (CONFLICTS, SERIALIZABLE):
                raise
            commit = False
        if commit:
            self.hand_over(tx, offered)
            self.store.commit(tx)

    @invariant()
    def same(self) -> None:
        """What is committed is what the model says."""
        if not hasattr(self, "store"):
            return
        found = {
            row[0]: ("ready" if row[1] in ("ready", "waiting") else row[1], row[2], row[5])
            for row in run(self.conn, database.PLACES)
        }
        expected = {
            what: (row.place, row.attempt, row.worker if row.place in _HELD else None)
            for what, row in self.store.tasks(self.now()).items()
        }
        assert found == expected

    def now(self) -> Transaction:
        return Transaction(snapshot=self.store.commits)

    def worker(self, session: int) -> UUID:
        return self.workers[session]

    def task_id(self, index: int) -> UUID:
        return self.task_ids[-1 - index % len(self.task_ids)] if self.task_ids else uuid4()

    def lease(self, index: int) -> Lease:
        if not self.leases:
            return Lease(self.task_id(index), self.workers[0], 1)
        return self.leases[-1 - index % len(self.leases)]

    # -- transactions

    @rule(
        session=sessions,
        level=st.sampled_from([READ_COMMITTED, READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE]),
    )
    def begin(self, session: int, level: str) -> None:
        if self.open[session] is None:
            run(self.conns[session], f"begin isolation level {level}")
            self.open[session] = tx = Transaction(level)
            self.store.open.append(tx)

    @rule(session=sessions)
    def commit(self, session: int) -> None:
        type(self).steps += 1
        self.end_transaction(session, commit=True)

    @rule(session=sessions)
    def rollback(self, session: int) -> None:
        type(self).steps += 1
        self.end_transaction(session, commit=False)

    # -- producers

    @rule(session=sessions, batch=st.lists(specs, min_size=1, max_size=4))
    def enqueue(self, session: int, batch: list[dict[str, Any]]) -> None:
        made: list[tuple[UUID, bool]] = []

        def ask(conn: Connection[Any]) -> list[tuple[UUID, bool]]:
            tasks = [{**spec, "max_retries": 1000} for spec in batch]
            made.extend(call(conn, "enqueue_many", tasks=tasks))
            return made

        def answer(tx: Transaction) -> list[tuple[UUID, bool]]:
            tx.is_alone = False
            ids = [i if new else uuid4() for i, new in made] or [uuid4() for _ in batch]
            twins: dict[int, UUID] = {}
            keyed = [n for n, spec in enumerate(batch) if "unique_key" in spec]
            for n in sorted(keyed, key=lambda n: (_unique(batch[n]), n)):
                holder = self.store.claim_key(tx, _unique(batch[n]), ids[n])
                if holder != ids[n] or holder in [ids[m] for m in keyed if m < n]:
                    twins[n] = holder
            for n, spec in enumerate(batch):
                if n not in twins:
                    row = Row(spec["queue"], spec.get("priority", 0), next(self.turns), spec)
                    tx.writes[ids[n]] = row
                    self.task_ids.append(ids[n])
            return [(twins.get(n, ids[n]), n not in twins) for n in range(len(batch))]

        self.step(session, ask, answer)

    @rule(session=sessions, worker=workers, spec=plain_specs, offers=st.sampled_from([1, 1, 0]))
    def enqueue_alone(self, session: int, worker: int, spec: dict[str, Any], offers: int) -> None:
        """Enqueue what the commit hands over, if a worker has offered to take it."""
        if offers:
            self.make_offer(self.workers[worker])
        made: list[UUID] = []
        offered = self.offered()

        def answer(tx: Transaction) -> UUID:
            row = Row(spec["queue"], spec.get("priority", 0), next(self.turns), spec)
            tx.writes[made[0]] = row
            self.task_ids.append(made[0])
            if offered is not None:
                if tx.note is None:
                    tx.note = made[0], row
                else:
                    tx.is_alone = False
            return made[0]

        def ask(conn: Connection[Any]) -> UUID:
            made.append(call(conn, "enqueue", **spec, max_retries=1000)[0][0])
            return made[0]

        self.step(session, ask, answer)

    @rule(worker=workers)
    def offer(self, worker: int) -> None:
        type(self).steps += 1
        self.make_offer(self.workers[worker])

    @rule(session=sessions, key=st.sampled_from(["k1", "k2"]), priority=st.integers(0, 1))
    def enqueue_keyed(self, session: int, key: str, priority: int) -> None:
        spec = {"name": "a", "queue": KEYED, "priority": priority, "concurrency_key": key}
        made: list[UUID] = []

        offered = self.offered()

        def answer(tx: Transaction) -> UUID:
            tx.is_alone = tx.is_alone and offered is None
            tx.writes[made[0]] = Row(KEYED, priority, next(self.turns), spec)
            self.task_ids.append(made[0])
            return made[0]

        def ask(conn: Connection[Any]) -> UUID:
            made.append(call(conn, "enqueue", **spec, max_retries=1000)[0][0])
            return made[0]

        self.step(session, ask, answer)

    @rule(session=sessions, index=which)
    def cancel(self, session: int, index: int) -> None:
        task_id = self.task_id(index)

        def answer(tx: Transaction) -> str:
            row = self.row(tx, task_id)
            if row.place in ("completed", "failed", "cancelled"):
                return "finished"
            self.store.lock(tx, task_id)
            if row.place == "running":
                self.store.claim_key(tx, ("asked", task_id), True)
                return "requested"
            self.close(tx, task_id, replace(row, place="cancelled", worker=None))
            return "cancelled"

        self.step(
            session,
            lambda conn: call(conn, "cancel", id=task_id)[0][0],
            answer,
            self.tolerated(session, task_id),
        )

    @rule(session=sessions, index=which)
    def retry(self, session: int, index: int) -> None:
        task_id = self.task_id(index)

        def answer(tx: Transaction) -> str:
            row = self.row(tx, task_id)
            if row.place in ("completed", "failed", "cancelled"):
                self.store.lock(tx, task_id)
            if row.place in ("running", "completed"):
                raise Refused("TL008")
            if row.place in ("failed", "cancelled"):
                key = _unique(row.spec)
                if key and self.store.claim_key(tx, key, task_id) != task_id:
                    raise Refused("TL009")
            elif row.place != "delayed" or row.spec.get("snoozed"):
                return "pending"
            row = replace(row, place="ready", turn=next(self.turns), worker=None)
            self.store.write(tx, task_id, row)
            return "pending"

        self.step(session, lambda conn: call(conn, "retry", id=task_id)[0][0], answer)

    def row(self, tx: Transaction, task_id: UUID) -> Row:
        row = self.store.read(tx, task_id)
        if row is None:
            raise Refused("TL003")
        return row

    def close(self, tx: Transaction, task_id: UUID, row: Row) -> None:
        """End a task, and free what it holds."""
        self.store.write(tx, task_id, row)
        if self.store.read(tx, ("asked", task_id)):
            self.store.write(tx, ("asked", task_id), None)
        self.free(tx, task_id, row)

    def free(self, tx: Transaction, task_id: UUID, row: Row) -> None:
        key = _unique(row.spec)
        if key and self.store.read(tx, key) == task_id:
            self.store.write(tx, key, None)

    # -- workers

    @rule(session=sessions, worker=workers)
    def heartbeat(self, session: int, worker: int) -> None:
        worker_id = self.workers[worker]

        def answer(tx: Transaction) -> list[UUID]:
            if self.store.changed(tx, worker_id):
                raise Refused(CONFLICTS)  # at once, also when yet another session has its row
            self.store.write(tx, worker_id, True)
            rows = self.store.tasks(tx).items()
            held = {what for what, row in rows if (row.place, row.worker) == ("running", worker_id)}
            return sorted(what for what in held if self.store.read(tx, ("asked", what)))

        self.step(
            session,
            lambda conn: sorted(row[0] for row in call(conn, "heartbeat", worker_id=worker_id)),
            answer,
        )

    @rule(session=sessions, worker=workers, asked=st.permutations(QUEUES), most=st.integers(1, 6))
    def claim(self, session: int, worker: int, asked: list[str], most: int) -> None:
        worker_id = self.workers[worker]

        def answer(tx: Transaction) -> list[tuple[UUID, int]]:
            # a heartbeat since the snapshot is no conflict: it leaves the key of the row alone
            rows = [(w, row) for w, row in self.store.tasks(tx).items() if row.place == "ready"]
            rows = [(what, row) for what, row in rows if row.queue in asked]
            rows.sort(
                key=lambda pair: (-pair[1].priority, asked.index(pair[1].queue), pair[1].turn)
            )
            picked: list[tuple[UUID, int]] = []
            for what, row in rows:
                if len(picked) == most:
                    break
                if not self.store.locked(tx, what):
                    self.run(tx, what, row, worker_id)
                    picked.append((what, row.attempt + 1))
            return picked

        self.claimed(session, worker_id, asked, most, answer)

    @rule(session=sessions, worker=workers, most=st.integers(1, 3))
    def claim_keyed(self, session: int, worker: int, most: int) -> None:
        """Whoever gets a task: no other with its key runs, for anybody."""
        worker_id = self.workers[worker]
        rows: list[Any] = []

        def answer(tx: Transaction) -> list[tuple[UUID, int]]:
            tx.keyed = True
            for task_id, attempt in rows:
                row = self.store.read(tx, task_id)
                assert (row.place, attempt) == ("ready", row.attempt + 1)
                for other, key in self.keys():
                    if key == row.spec["concurrency_key"] and other != task_id:
                        assert not self.may_run(tx, other), "two with one key"
                self.run(tx, task_id, row, worker_id)
            return rows

        conflicts = [CONFLICTS] * (self.level(session) != READ_COMMITTED)
        self.claimed(
            session, worker_id, [KEYED], most, answer, [*conflicts, *self.gates(session)], rows
        )

    def claimed(
        self,
        session: int,
        worker_id: UUID,
        asked: list[str],
        most: int,
        answer: Callable[[Transaction], Any],
        tolerated: Sequence[str] = (),
        rows: list[Any] | None = None,
    ) -> None:
        def ask(conn: Connection[Any]) -> list[tuple[UUID, int]]:
            found = call(conn, "claim", worker_id=worker_id, queues=asked, max_tasks=most)
            pairs = [row[:2] for row in found]
            if rows is not None:
                rows.extend(pairs)
            return pairs

        found = self.step(session, ask, answer, tolerated)
        self.leases += [Lease(task_id, worker_id, attempt) for task_id, attempt in found or []]

    def run(self, tx: Transaction, task_id: UUID, row: Row, worker_id: UUID) -> None:
        row = replace(row, place="running", worker=worker_id, attempt=row.attempt + 1)
        self.store.write(tx, task_id, row)
        if row.spec.get("unique_until") == "started":
            self.free(tx, task_id, row)

    def keys(self) -> list[tuple[UUID, str]]:
        rows = {**self.store.tasks(self.now())}
        for tx in self.store.open:
            rows |= {what: row for what, row in tx.writes.items() if isinstance(row, Row)}
        return [(w, row.spec["concurrency_key"]) for w, row in rows.items() if row.queue == KEYED]

    def may_run(self, tx: Transaction, task_id: UUID) -> bool:
        """It runs as somebody sees it."""
        rows = [other.writes.get(task_id) for other in self.store.open]
        if task_id not in tx.writes:
            rows.append(self.store.committed(task_id))
        return any(row is not None and row.place == "running" for row in rows)

    def level(self, session: int) -> str:
        tx = self.open[session]
        return tx.level if tx else READ_COMMITTED

    def gates(self, session: int) -> list[str]:
        """Who makes a gate that another open claim has made waits for it."""
        others = [tx for tx in self.store.open if tx is not self.open[session]]
        return [WAITS] * any(tx.keyed for tx in others)

    def tolerated(self, session: int, *task_ids: UUID) -> list[str]:
        """Handing over a gate may conflict at the higher levels."""
        keyed = {what for what, _ in self.keys()}.intersection(task_ids)
        if not keyed:
            return []
        if self.level(session) != READ_COMMITTED:
            return [CONFLICTS, *self.gates(session)]
        return self.gates(session)

    # -- the ends of attempts

    @rule(session=sessions, index=which, outcome=endings)
    def end(self, session: int, index: int, outcome: str) -> None:
        lease = self.lease(index)
        three = {"id": lease.task, "worker_id": lease.worker, "attempt": lease.attempt}

        def ask(conn: Connection[Any]) -> None:
            match outcome:
                case "completed":
                    call(conn, "complete", **three)
                case "failed":
                    call(conn, "fail", **three, retry_in=HOUR)
                case "lost":
                    call(conn, "fail", **three, retry=False)
                case "snoozed":
                    call(conn, "snooze", **three, delay=HOUR)
                case _:
                    batch = {"ids": [lease.task], "attempts": [lease.attempt]}
                    (status,) = call(conn, "release", worker_id=lease.worker, **batch)[0]
                    if status != "ok":
                        raise psycopg.errors.lookup("P0001")(status)

        def answer(tx: Transaction) -> None:
            named = "failed" if outcome == "lost" else outcome
            status = self.status(tx, lease, named)
            if status != "ok":
                raise Refused("P0001" if outcome == "released" else LOST[status])
            self.end_run(tx, lease, outcome)

        self.step(session, ask, answer, self.tolerated(session, lease.task))

    @rule(session=sessions, indices=st.lists(which, min_size=1, max_size=5))
    def finish(self, session: int, indices: list[int]) -> None:
        """Complete a batch."""
        leases = list(dict.fromkeys(self.lease(index) for index in indices))
        leases = [lease for lease in leases if lease.worker == leases[0].worker]
        leases = list({lease.task: lease for lease in leases}.values())

        def ask(conn: Connection[Any]) -> list[str]:
            ids = {"ids": [lease.task for lease in leases]}
            ids["attempts"] = [lease.attempt for lease in leases]
            return [row[0] for row in call(conn, "finish", worker_id=leases[0].worker, **ids)]

        def answer(tx: Transaction) -> list[str]:
            statuses = [self.status(tx, lease, "completed") for lease in leases]
            held = [ls for ls, status in zip(leases, statuses, strict=True) if status == "ok"]
            for lease in held:
                self.end_run(tx, lease, "completed")
            return ["ok" if ls in held else self.status(tx, ls, "completed") for ls in leases]

        self.step(session, ask, answer, self.tolerated(session, *(ls.task for ls in leases)))

    def status(self, tx: Transaction, lease: Lease, outcome: str) -> str:
        row = self.store.read(tx, lease.task)
        if row is None:
            return "gone"
        is_last = row.attempt == lease.attempt
        mine = is_last and row.worker == lease.worker
        if mine and row.place == "running":
            return "ok"
        failed = (lease.attempt, lease.worker) in row.failed
        if (
            (outcome == "failed" and failed)
            or (mine and outcome == row.place == "completed")
            or (outcome == "released" and is_last and row.place == "ready" and not failed)
            or (outcome == "snoozed" and is_last and _is_snoozed(row))
        ):
            return "already"
        return "cancelled" if row.place == "cancelled" else "stale"

    def end_run(self, tx: Transaction, lease: Lease, outcome: str) -> None:
        row: Row = self.store.read(tx, lease.task)
        self.store.lock(tx, lease.task)
        asked = self.store.read(tx, ("asked", lease.task))
        failed = row.failed
        if outcome in ("failed", "lost"):
            failed = (*failed, (lease.attempt, lease.worker))
        if outcome == "completed" or asked or outcome == "lost":
            place = "completed" if outcome == "completed" else "cancelled" if asked else "failed"
            self.close(tx, lease.task, replace(row, place=place, failed=failed))
            return
        place = "ready" if outcome == "released" else "delayed"
        spec = {**row.spec, "snoozed": outcome == "snoozed"}
        turn = next(self.turns)
        row = replace(row, place=place, turn=turn, spec=spec, failed=failed, worker=None)
        self.store.write(tx, lease.task, row)

    # -- housekeeping

    @rule(session=sessions, busy=st.sampled_from([True, True, False]))
    def tick(self, session: int, busy: bool) -> None:
        """Keep house, with the notes of earlier ticks a second old so that marks move."""

        def ask(conn: Connection[Any]) -> bool:
            if self.level(session) == READ_COMMITTED:
                run(
                    conn,
                    "with free as (select from tasklib.housekeeping for update skip locked)"
                    # not to before the start of the server, which would begin all leases anew
                    " update tasklib.horizon"
                    " set at = greatest(at - interval '1 second', pg_postmaster_start_time())"
                    " where exists (select from free)",
                )
            if busy:
                run(
                    conn,
                    "select tasklib._note_lanes((select array_agg(distinct lane)"
                    " from tasklib.ready)) from tasklib.ready limit 1",
                )
            call(conn, "tick")
            return True

        def answer(tx: Transaction) -> bool:
            if tx.level != READ_COMMITTED:
                raise Refused("TL010")
            tx.keyed = True
            return True

        self.step(session, ask, answer, self.gates(session))

    @rule(session=sessions)
    def overtake(self, session: int) -> None:
        """Enqueue in an open transaction, then elsewhere, and keep house meanwhile."""
        other = (session + 1) % SESSIONS
        self.begin(session=session, level=READ_COMMITTED)
        for each in (session, other):
            self.enqueue(session=each, batch=[{"name": "a", "queue": "default"}])
        self.end_transaction(other, commit=True)
        self.tick(session=other, busy=True)

    def teardown(self) -> None:
        """Everything that was committed is finished in the end, once."""
        if not hasattr(self, "store"):
            return
        for session in range(SESSIONS):
            self.end_transaction(session, commit=session % 2 == 0)
        self.same()
        assert call(self.conn, "sweep") == [(0,)]
        database.advance(self.conn, 2 * HOUR)
        run(self.conn, "update tasklib.worker set lease_until = clock_timestamp() + lease")
        completed: list[UUID] = []
        started = time.monotonic()
        while time.monotonic() - started < 20:
            call(self.conn, "tick")
            for worker_id in self.workers:
                batch = [row[:2] for row in self.all_of(worker_id)]
                completed += [task_id for task_id, _ in batch]
                ids = {"ids": [row[0] for row in batch], "attempts": [row[1] for row in batch]}
                answers = call(self.conn, "finish", worker_id=worker_id, **ids)
                assert [row[0] for row in answers] == ["ok"] * len(batch)
            left = run(self.conn, "select count(*) from tasklib.tasks where completed_at is null")
            if left == [(0,)]:
                break
        rows = self.store.tasks(self.now())
        finished = {
            w for w, row in rows.items() if row.place in ("completed", "failed", "cancelled")
        }
        assert sorted(completed) == sorted(set(rows) - finished)
        assert call(self.conn, "sweep") == [(0,)]

    def all_of(self, worker_id: UUID) -> list[Any]:
        """Return what a worker holds, with what it can get."""
        call(self.conn, "claim", worker_id=worker_id, queues=[*QUEUES, KEYED], max_tasks=100)
        return run(
            self.conn,
            "select task_id, attempt from tasklib.running where worker_id = %(worker)s",
            {"worker": worker_id},
        )


_HELD = ("running", "completed", "failed", "cancelled")


def _unique(spec: dict[str, Any]) -> Any:
    return ("unique", spec["queue"], spec["unique_key"]) if "unique_key" in spec else None


def _is_snoozed(row: Row) -> bool:
    return row.place == "delayed" and bool(row.spec.get("snoozed"))
