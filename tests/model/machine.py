"""A machine that does the same to the queue and to its model, and compares them after each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from json import dumps, loads
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from psycopg import Connection

from model import database
from model.database import call
from model.model import DAY, Lease, Model, Refused, Task

QUEUES = ["default", "mail", "bulk"]
OFFERED = """
select name from tasklib.offer, unnest(%(names)s::text[]) as name
where tasklib._names(offer.last_value, name)
"""
CHANNEL = "a_channel_that_the_machine_hears"
NAMES = ["a", "b", "c", "d"]
MINUTE = 60.0

# All times are minutes apart or a few retries' 5 s, and an example takes less than one second: time
# that really passes decides nothing.
queues = st.sampled_from(QUEUES)
names = st.sampled_from(NAMES)
which = st.integers(0, 30)  # one of those there are, the newest first
minutes = st.sampled_from([0.0, 1 * MINUTE, 2 * MINUTE, 10 * MINUTE])
priorities = st.integers(-2, 2)
max_retries = st.sampled_from([0, 1, 3])
timeouts = st.sampled_from([0.5 * MINUTE, 3 * MINUTE])
backoffs = st.sampled_from(
    [
        {"base_seconds": 60},
        {"base_seconds": 0},
        {"base_seconds": 30, "multiplier": 3, "cap_seconds": 100},
    ]
)
unique_keys = st.sampled_from(["u1", "u2", "u3", "u4"])
concurrency_keys = st.sampled_from(["k1", "k2", "k3"])
wrong = st.sampled_from(["", "", "", "", "", "", "worker", "worker", "attempt", "task"])
errors = st.sampled_from([None, "boom", "x" * 100])


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of enqueue: a name, and some of the options."""
    spec: dict[str, Any] = {"name": draw(names)}
    chosen = draw(st.integers(0, 2**10 - 1))
    for bit, (option, values) in enumerate(_OPTIONS.items()):
        # keys half of the time, others a quarter: two bits of ten
        if chosen >> bit & 1 and (option.endswith("key") or chosen >> (bit + 3) % 10 & 1):
            spec[option] = draw(values)
    if "unique_key" in spec and draw(st.booleans()):
        spec["unique_until"] = "started"
    if "delay" in spec and draw(st.booleans()):
        spec["scheduled_at"] = spec.pop("delay") - MINUTE
    return spec


# What may be handed over: nothing of it makes a task other than plain.
plain_specs = st.fixed_dictionaries(
    {"name": names},
    optional={
        "queue": queues,
        "priority": priorities,
        "max_retries": max_retries,
        "timeout_seconds": timeouts,
        "kwargs": st.just({"to": 'a"\\'}),
    },
)
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "queue": queues,
    "priority": priorities,
    "delay": minutes,
    "max_retries": max_retries,
    "timeout_seconds": timeouts,
    "backoff": backoffs,
    "unique_key": unique_keys,
    "concurrency_key": concurrency_keys,
    "tags": st.just({"batch": "w1"}),
    "kwargs": st.just({"to": "a@b.c"}),
}
task_types = st.one_of(
    st.none(),
    st.lists(
        st.one_of(
            names,
            st.fixed_dictionaries(
                {"name": names},
                optional={
                    "queue": queues,
                    "priority": priorities,
                    "max_retries": max_retries,
                    "timeout_seconds": timeouts,
                    "backoff": backoffs,
                    "max_crashes": st.integers(1, 2),
                },
            ),
        ),
        max_size=4,
        unique_by=lambda item: item if isinstance(item, str) else item["name"],
    ),
)
outcomes = st.one_of(
    st.just({"state": "completed"}),
    st.just({"state": "completed", "result": {"value": 1}}),
    st.just({"state": "released"}),
    st.just({"state": "cancelled", "error": "why"}),
    st.builds(lambda seconds: {"state": "snoozed", "seconds": seconds}, minutes),
    st.fixed_dictionaries(
        {"state": st.just("failed")},
        optional={
            "error": st.just("boom"),
            "retry": st.booleans(),
            "retry_in": minutes,
            "cause": st.sampled_from(["error", "timeout", "crashed", "lost"]),
        },
    ),
)


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule that does nothing any more when time that really passed would begin to count."""

    def decorate(function: Callable[..., None]) -> Any:
        @wraps(function)
        def guarded(self: QueueMachine, **values: Any) -> None:
            if time.monotonic() - self.began < 4:
                function(self, **values)

        as_rule: Any = rule(**arguments)
        return as_rule(guarded)

    return decorate


class QueueMachine(RuleBasedStateMachine):
    """One session."""

    conn: ClassVar[Connection[Any]]
    heard: ClassVar[list[str]] = []
    steps: ClassVar[int] = 0
    examples: ClassVar[int] = 0
    handed_over: ClassVar[int] = 0

    @classmethod
    def connect(cls, conn: Connection[Any]) -> None:
        """Use a session, and hear in it what is handed over."""
        cls.conn, cls.heard = conn, []  # an offer listens
        conn.add_notify_handler(lambda heard: cls.heard.append(heard.payload))

    @initialize(types=task_types, batch=st.lists(specs(), min_size=2, max_size=6), most=which)
    def begin(self, types: list[Any] | None, batch: list[dict[str, Any]], most: int) -> None:
        database.empty(self.conn)
        type(self).examples += 1
        if self.examples % 20 == 0:
            database.vacuum(self.conn)
        self.model = Model()
        self.leases: list[Lease] = []
        self.worker_ids: list[UUID] = []
        self.task_ids: list[UUID] = []
        self.began = self.ticked = time.monotonic()
        self.register(types=["a", "b", "c"], lease=5 * MINUTE)
        self.register(types=types, lease=60 * MINUTE)
        self.enqueue_many(batch=batch)
        self.claim_some(self.worker_ids[0], QUEUES, most % 4 + 1)

    # -- both sides

    def both(
        self, call: Callable[[], Any], answer: Callable[[], Any], read: Callable[[Any], Any]
    ) -> Any:
        """Do a step in the database and in the model; the answers must be the same."""
        type(self).steps += 1
        try:
            found = read(call())
        except psycopg.Error as error:
            found = Refused(error.sqlstate)
        self.model.last_gate = None
        try:
            expected = answer()
        except Refused as refused:
            expected = refused
        if isinstance(found, Refused) or isinstance(expected, Refused):
            assert repr(found) == repr(expected), f"the queue: {found!r}, the model: {expected!r}"
            return None
        assert found == expected, f"the queue: {found!r}, the model: {expected!r}"
        return found

    def ask(
        self,
        function: str,
        answer: Callable[[], Any],
        /,
        read: Callable[[Any], Any] = lambda rows: rows[0][0] if rows else None,
        **arguments: Any,
    ) -> Any:
        """Call a function of the queue, and the model."""
        return self.both(lambda: call(self.conn, function, **arguments), answer, read)

    def lease(self, index: int, wrong: str = "") -> Lease:
        """Return what some claim handed out, now or long ago, or what none did."""
        if not self.leases:
            return Lease(self.task_id(index), self.worker_id(index), 1)
        held = self.model.at("running") if index % 2 else []
        held = [Lease(task.id, task.worker, task.attempt) for task in held if task.worker]
        lease = _nth(held or self.leases, index // 2)
        if wrong == "worker":
            others = [worker.id for worker in self.model.live() if worker.id != lease.worker]
            lease = Lease(lease.task, _nth([uuid4(), *others], index), lease.attempt)
        elif wrong == "attempt":
            lease = Lease(lease.task, lease.worker, lease.attempt + 1)
        elif wrong == "task":
            lease = Lease(self.task_id(index), lease.worker, lease.attempt)
        return lease

    def task_id(self, index: int) -> UUID:
        return _nth(self.task_ids, index) if self.task_ids else uuid4()

    def worker_id(self, index: int) -> UUID:
        """Return a worker; one that lives, mostly."""
        live = [worker.id for worker in self.model.live()] if index % 4 else []
        return _nth(live or self.worker_ids, index // 4)

    def settle(self) -> None:
        """Let the last tick be new, also on a slow machine, and what is finished older than now."""
        if self.model.silence == 0 and time.monotonic() - self.ticked > 1:
            database.ticked_now(self.conn)
            self.ticked = time.monotonic()
        if any(setting.retention is not None for setting in self.model.queues.values()):
            time.sleep(0.002)  # ids are told apart by milliseconds

    @invariant()
    def same(self) -> None:
        """The tables are what the model says."""
        if not hasattr(self, "model"):
            return
        found, expected = database.look(self.conn), database.expected(self.model)
        for part in ("tasks", "line", "rest"):
            one, other = getattr(found, part), getattr(expected, part)
            assert one == other, (
                f"{part}\nthe queue: {less(one, other)}\nthe model: {less(other, one)}"
            )
        passed = time.monotonic() - self.began + 0.01
        assert found.times.keys() == expected.times.keys()
        for what, seconds in found.times.items():
            leap_days = 2 * DAY if seconds > 1000 * DAY else 0.01
            assert expected.times[what] - passed <= seconds <= expected.times[what] + leap_days, (
                what
            )
        for task_id, spot in found.spots.items():
            self.model.tasks[task_id].spot = spot

    # -- producers

    @step(spec=specs())
    def enqueue(self, spec: dict[str, Any]) -> None:
        self.enqueue_alone([spec])

    def enqueue_alone(
        self, batch: list[dict[str, Any]], change: dict[str, Any] | None = None
    ) -> None:
        """Enqueue tasks by themselves in a transaction, change the first, and hear the commit."""
        self.heard.clear()
        with nullcontext() if len(batch) == 1 and change is None else self.conn.transaction():
            found = [call(self.conn, "enqueue", **spec)[0][0] for spec in batch]
            if change is not None:
                function = "reschedule" if change else "cancel"
                call(self.conn, function, id=found[0], **change)

        def answer() -> tuple[list[UUID], list[Any]]:
            model = self.model
            told = [model.enqueue_one(i, spec) for i, spec in zip(found, batch, strict=True)]
            if change:
                model.reschedule(told[0], change)
            elif change is not None:
                model.cancel(told[0])
            self.task_ids += [i for i in told if i not in self.task_ids]
            task = model.commit()
            return told, [] if task is None else [self.sent(task)]

        _, sent = self.both(lambda: (found, [loads(text) for text in self.heard]), answer, tuple)
        self.leases += [Lease(UUID(row[1]), UUID(row[0]), row[2]) for row in sent]
        QueueMachine.handed_over += len(sent)

    def sent(self, task: Task) -> list[Any]:
        """Return what a worker is told of a task that is handed over to it."""
        ((kwargs,),) = database.run(
            self.conn,
            "select %(kwargs)s::jsonb::text",
            {"kwargs": dumps(task.given.get("kwargs", {}))},
        )
        option = self.model.option
        return [
            *(str(task.worker), str(task.id), task.attempt, task.name, task.queue, kwargs),
            *(0, option(task, "max_retries", 3), option(task, "timeout_seconds", None), None, None),
        ]

    @step(
        index=which,
        asked=st.permutations(QUEUES),
        length=st.integers(2, 3),
        max_wait=st.sampled_from([0.0, MINUTE, 2 * MINUTE, 10 * MINUTE, 10 * MINUTE]),
        plain=plain_specs,
        others=st.sampled_from([0, 0, 0, 1]).flatmap(
            lambda most: st.lists(st.one_of(plain_specs, specs()), max_size=most)
        ),
        change=st.sampled_from(
            [
                *[None] * 12,
                {},
                {"delay": 0.0},
                {"delay": MINUTE},
                {"queue": "mail"},
                {"priority": 1},
            ]
        ),
        keeps=st.sampled_from([True, True, False]),
    )
    def hand_over(
        self,
        index: int,
        asked: list[str],
        length: int,
        max_wait: float,
        plain: dict[str, Any],
        others: list[dict[str, Any]],
        change: dict[str, Any] | None,
        keeps: bool,
    ) -> None:
        """Let a worker offer to take a task, and enqueue one: it goes to it, if all is well."""
        self.lie_down(self.worker_id(index), asked[:length], max_wait, keeps)
        self.same()
        if index % 7 == 0:
            self.advance(seconds=[1, 2, 5][index % 3] * MINUTE, silent=False)
        if index % 5 == 0:
            self.roll_back([plain, *others])
        self.enqueue_alone([plain, *others], change)

    @step(index=which, asked=st.permutations(QUEUES), length=st.integers(1, 3), max_wait=minutes)
    def offer(self, index: int, asked: list[str], length: int, max_wait: float) -> None:
        worker_id, is_even = self.worker_id(index), index % 2 == 0
        self.lie_down(worker_id, asked[:length], max_wait, is_even, takes=index % 3 > 0)

    @step(
        plain=plain_specs,
        others=st.lists(st.one_of(plain_specs, specs()), max_size=2),
        is_first=st.booleans(),
    )
    def enqueue_some(
        self, plain: dict[str, Any], others: list[dict[str, Any]], is_first: bool
    ) -> None:
        self.enqueue_alone([plain, *others] if is_first else [*others, plain])

    def roll_back(self, batch: list[dict[str, Any]]) -> None:
        """Enqueue what never was: nothing is left of it, not even a word."""
        self.heard.clear()
        with self.conn.transaction(force_rollback=True):
            for spec in batch:
                call(self.conn, "enqueue", **spec)
        assert self.heard == []
        self.same()

    @step(batch=st.lists(specs(), min_size=1, max_size=6))
    def enqueue_many(self, batch: list[dict[str, Any]]) -> None:
        # times as a batch has them: seconds
        batch = [
            {k: v for k, v in spec.items() if k != "scheduled_at"}
            | ({"delay": max(0, spec["scheduled_at"])} if "scheduled_at" in spec else {})
            for spec in batch
        ]
        # the model uses the ids that it cannot know
        found = call(self.conn, "enqueue_many", tasks=batch)

        def answer() -> list[tuple[UUID, bool]]:
            model = self.model
            told = [model.enqueue(i, spec) for (i, _), spec in zip(found, batch, strict=True)]
            self.task_ids += [task_id for task_id, created in told if created]
            return told

        self.both(lambda: found, answer, list)

    @step(index=which)
    def cancel(self, index: int) -> None:
        task_id = self.task_id(index)
        self.ask("cancel", lambda: self.model.cancel(task_id), id=task_id)

    @step(index=which)
    def retry(self, index: int) -> None:
        task_id = self.task_id(index)
        self.ask("retry", lambda: self.model.retry(task_id), id=task_id)

    @step(
        index=which,
        change=st.fixed_dictionaries(
            {}, optional={"delay": minutes, "priority": priorities, "queue": queues}
        ),
        absolute=st.booleans(),
    )
    def reschedule(self, index: int, change: dict[str, Any], absolute: bool) -> None:
        task_id = self.task_id(index)
        if absolute and "delay" in change:
            change["scheduled_at"] = change.pop("delay") - MINUTE
        self.ask("reschedule", lambda: self.model.reschedule(task_id, change), id=task_id, **change)

    @step(state=st.sampled_from([None, "completed", "failed", "cancelled"]), most=st.integers(1, 4))
    def purge(self, state: str | None, most: int) -> None:
        time.sleep(0.002)
        self.ask(
            "purge",
            lambda: self.model.purge(state, most),
            older_than=0,
            state=state,
            max_rows=most,
        )

    @step(
        state=st.sampled_from([None, "pending", "running", "completed", "failed", "cancelled"]),
        name=st.none() | names,
        queue=st.none() | queues,
    )
    def list_tasks(self, state: str | None, name: str | None, queue: str | None) -> None:
        self.ask(
            "list",
            lambda: self.model.list(state, name, queue),
            read=lambda rows: [row[0] for row in rows],
            state=state,
            name=name,
            queue=queue,
            max_rows=1000,
        )

    @step()
    def see(self) -> None:
        """Look at the view."""
        columns = (
            "id, state, coalesce(left(error, 9), '-'), result, retry_count, max_retries,"
            " timeout_seconds, progress, progress_message, next_retry_at is not null"
        )
        self.both(
            lambda: database.run(self.conn, f"select {columns} from tasklib.tasks order by id"),
            lambda: [self.seen(self.model.tasks[task_id]) for task_id in sorted(self.model.tasks)],
            list,
        )

    def seen(self, task: Task) -> tuple[Any, ...]:
        model, error = self.model, self.model.shown_error(task)
        state = model.state(task)
        return (
            *(task.id, state, "-" if error is None else error[:9]),
            task.result if task.place == "done" else None,
            *(task.retry_count, model.option(task, "max_retries", 3)),
            *(model.option(task, "timeout_seconds", None), *task.progress),
            state == "failed" and task.place == "delayed",
        )

    # -- workers

    @step(types=task_types, lease=st.sampled_from([5 * MINUTE, 60 * MINUTE]))
    def register(self, types: list[Any] | None, lease: float) -> None:
        (worker_id,) = call(self.conn, "register_worker", task_types=types, lease=lease)[0]
        self.worker_ids.append(worker_id)
        self.both(lambda: None, lambda: self.model.register(worker_id, lease, types), list_or_none)

    @step(index=which, asked=st.permutations(QUEUES), length=st.integers(1, 3), most=which)
    def claim(self, index: int, asked: list[str], length: int, most: int) -> None:
        self.claim_some(self.worker_id(index), asked[:length], most % 5 + 1)

    @step(index=which, most=st.integers(1, 20))
    def claim_from_all(self, index: int, most: int) -> None:
        self.claim_some(self.worker_id(index), QUEUES, most)

    def claim_some(self, worker_id: UUID, asked: Sequence[str], most: int) -> None:
        self.settle()

        def answer() -> list[tuple[Any, ...]]:
            option, kept_house = self.model.option, database.ticked_lately(self.conn)
            return [
                (
                    *(task.id, task.attempt, task.name, task.queue, task.given.get("kwargs", {})),
                    *(task.priority, task.retry_count, option(task, "max_retries", 3)),
                    *(option(task, "timeout_seconds", None), task.given.get("tags")),
                )
                for task in self.model.claim(worker_id, asked, most, kept_house=kept_house)
            ]

        rows = self.ask(
            "claim",
            answer,
            read=lambda rows: [row[:10] for row in rows],
            worker_id=worker_id,
            queues=list(asked),
            max_tasks=most,
        )
        self.leases += [Lease(row[0], worker_id, row[1]) for row in rows or []]

    @step(index=which)
    def heartbeat(self, index: int) -> None:
        worker_id = self.worker_id(index)
        self.ask(
            "heartbeat", lambda: self.model.heartbeat(worker_id), read=ids, worker_id=worker_id
        )

    @step(index=which)
    def cancel_requests(self, index: int) -> None:
        worker_id = self.worker_id(index)
        self.ask(
            "cancel_requests",
            lambda: self.model.cancel_requests(worker_id),
            read=ids,
            worker_id=worker_id,
        )

    @step(index=which, crashed=st.booleans(), spots=st.none() | st.sets(st.integers(0, 3)))
    def deregister(self, index: int, crashed: bool, spots: set[int] | None) -> None:
        worker_id = self.worker_id(index)
        begun = None
        if spots is not None:
            held = [task.id for task in self.model.held(worker_id)]
            begun = [held[spot] for spot in spots if spot < len(held)]
        self.ask(
            "deregister_worker",
            lambda: self.model.deregister(worker_id, crashed, begun),
            worker_id=worker_id,
            crashed=crashed,
            begun=begun,
        )

    @step(index=which, max_wait=minutes, for_long=st.booleans())
    def idle(self, index: int, max_wait: float, for_long: bool) -> None:
        self.go_to_sleep(self.worker_id(index), QUEUES[index % 3 :], max_wait, for_long)

    def lie_down(
        self,
        worker_id: UUID,
        asked: Sequence[str],
        max_wait: float,
        for_long: bool,
        *,
        takes: bool = True,
    ) -> None:
        """Go to sleep and offer to take a task."""
        self.go_to_sleep(worker_id, asked, max_wait, for_long)
        self.same()
        self.ask(
            "offer",
            lambda: self.model.make_offer(worker_id, asked, takes=takes),
            read=lambda rows: None,
            worker_id=worker_id,
            queues=list(asked),
            channel=CHANNEL if takes else None,
        )
        if self.model.offer == worker_id:  # two queues may look alike
            seen = {name for (name,) in database.run(self.conn, OFFERED, {"names": QUEUES})}
            assert seen >= self.model.offered
            self.model.offered = seen

    def go_to_sleep(
        self, worker_id: UUID, asked: Sequence[str], max_wait: float, for_long: bool
    ) -> None:
        self.settle()
        found: list[float] = []
        predicted: list[float] = []
        self.ask(
            "idle",
            lambda: predicted.append(self.model.idle(worker_id, asked, max_wait, for_long)),
            read=lambda rows: found.append(rows[0][0]),
            worker_id=worker_id,
            queues=list(asked),
            max_wait=max_wait,
            for_long=for_long,
        )
        passed = time.monotonic() - self.began + 0.01
        for seconds, least in zip(found, predicted, strict=True):
            assert least - passed <= seconds <= least + 0.01

    # -- the ends of attempts

    @step(index=which, wrong=wrong, result=st.sampled_from([None, {"value": 1}]))
    def complete(self, index: int, wrong: str, result: Any) -> None:
        lease = self.lease(index, wrong)
        self.ask(
            "complete",
            lambda: self.model.complete(lease, result),
            read=lambda rows: None,
            **_three(lease),
            result=result,
        )

    @step(
        index=which,
        wrong=wrong,
        error=errors,
        retry=st.sampled_from([True, True, True, False]),
        retry_in=st.sampled_from([None, None, None, 0.0, MINUTE, -MINUTE, 1e9]),
        cause=st.sampled_from(["error", "error", "error", "timeout", "crashed", "lost"]),
    )
    def fail(
        self, index: int, wrong: str, error: str, retry: bool, retry_in: float | None, cause: str
    ) -> None:
        self.fail_one(self.lease(index, wrong), error, retry, retry_in, cause)

    def fail_one(
        self, lease: Lease, error: str | None, retry: bool, retry_in: float | None, cause: str
    ) -> None:
        found: list[tuple[str, bool]] = []
        self.ask(
            "fail",
            lambda: self.model.fail(lease, error, retry, retry_in, cause)[0],
            read=lambda rows: found.append((rows[0][0], rows[0][1] is None)) or rows[0][0],
            **_three(lease),
            error=error,
            retry=retry,
            retry_in=retry_in,
            cause=cause,
        )
        if found:
            assert found[0][1] == (self.model.tasks[lease.task].place == "done")

    @step(
        picks=st.lists(st.tuples(which, wrong, outcomes), min_size=1, max_size=6),
        index=which,
        mine=st.booleans(),
    )
    def finish(self, picks: list[tuple[int, str, dict[str, Any]]], index: int, mine: bool) -> None:
        leases = [self.lease(index, wrong) for index, wrong, _ in picks]
        if mine:
            # distinct ones of one worker, as drivers send them
            worker_id = self.lease(index).worker
            leases = [ls for ls in dict.fromkeys(leases) if ls.worker == worker_id]
        if not leases:
            return
        worker_id = leases[0].worker
        leases = [Lease(lease.task, worker_id, lease.attempt) for lease in leases]
        outcomes = [outcome for *_, outcome in picks][: len(leases)]
        self.ask(
            "finish",
            lambda: self.model.finish(worker_id, leases, outcomes),
            read=lambda rows: [row[0] for row in rows],
            **_batch(leases),
            outcomes=outcomes,
        )

    @step(index=which, wrong=wrong)
    def release(self, index: int, wrong: str) -> None:
        self.release_one(self.lease(index, wrong))

    def release_one(self, lease: Lease) -> None:
        released = [{"state": "released"}]
        self.ask(
            "release",
            lambda: self.model.finish(lease.worker, [lease], released),
            read=lambda rows: [row[0] for row in rows],
            **_batch([lease]),
        )

    @step(
        index=which,
        asked=st.sampled_from([QUEUES, QUEUES, ["default"], ["mail"]]),
        most=st.integers(1, 4),
        outcome=outcomes,
    )
    def work(self, index: int, asked: list[str], most: int, outcome: dict[str, Any]) -> None:
        """Claim, and end the first of what was claimed."""
        worker_id = self.worker_id(index)
        before = len(self.leases)
        self.claim_some(worker_id, asked, most)
        self.same()
        if leases := self.leases[before : before + 1]:
            self.ask(
                "finish",
                lambda: self.model.finish(worker_id, leases, [outcome]),
                read=lambda rows: [row[0] for row in rows],
                **_batch(leases),
                outcomes=[outcome],
            )

    @step(index=which, cause=st.sampled_from(["error", "error", "timeout", "crashed"]))
    def fail_often(self, index: int, cause: str) -> None:
        """Let a task fail until it fails for good, with time for each retry."""
        lease = self.lease(2 * index + 1)
        for _ in range(5):
            task = self.model.tasks.get(lease.task)
            if task is None or task.place != "running":
                break
            lease = Lease(task.id, task.worker, task.attempt)
            self.fail_one(lease, "boom", True, None, cause)
            self.same()
            self.advance(seconds=60 * MINUTE, silent=False)
            self.claim_some(lease.worker, QUEUES, 20)
            self.same()

    @step(index=which)
    def release_often(self, index: int) -> None:
        """Give a task back again and again, until it counts as a failure."""
        lease = self.lease(index)
        for _ in range(11):
            task = self.model.tasks.get(lease.task)
            if task is None or task.place != "running":
                break
            self.release_one(Lease(task.id, task.worker, task.attempt))
            self.same()
            self.claim_some(lease.worker, QUEUES, 20)
            self.same()

    @step(index=which, wrong=wrong, delay=minutes)
    def snooze(self, index: int, wrong: str, delay: float) -> None:
        lease = self.lease(index, wrong)
        self.ask(
            "snooze",
            lambda: self.model.snooze(lease, delay) is not None,
            read=lambda rows: rows[0][0] is not None,
            **_three(lease),
            delay=delay,
        )

    @step(index=which, wrong=wrong, fraction=st.sampled_from([None, 0.5, 2.0]))
    def set_progress(self, index: int, wrong: str, fraction: float | None) -> None:
        lease = self.lease(index, wrong)
        self.ask(
            "set_progress",
            lambda: self.model.set_progress(lease, fraction, "half"),
            read=lambda rows: None,
            **_three(lease),
            fraction=fraction,
            message="half",
        )

    # -- settings, time and housekeeping

    @step(
        name=queues,
        retention=st.sampled_from([None, None, 0.0]),
        max_crashes=st.sampled_from([None, 1, 2]),
    )
    def set_queue(self, name: str, retention: float | None, max_crashes: int | None) -> None:
        self.ask(
            "set_queue",
            lambda: self.model.set_queue(name, retention, max_crashes),
            read=lambda rows: None,
            name=name,
            retention=retention,
            max_crashes=max_crashes,
        )

    @step(name=queues, index=which)
    def pause(self, name: str, index: int) -> None:
        """Pause a queue, and try to get something from it."""
        self.ask("pause", lambda: self.model.pause(name), read=lambda rows: None, queue=name)
        self.same()
        self.claim_some(self.worker_id(index), [name], 3)

    @step(name=queues)
    def resume(self, name: str) -> None:
        self.ask("resume", lambda: self.model.resume(name), read=lambda rows: None, queue=name)

    @step()
    def tick(self) -> None:
        self.settle()
        self.ask(
            "tick", lambda: [*self.model.tick().values(), False], read=lambda rows: list(rows[0])
        )
        self.ticked = time.monotonic()

    @step()
    def sweep(self) -> None:
        """The safety net finds nothing, ever; it hands over gates of which somebody left a note."""
        self.ask("sweep", self.model.sweep)

    @step(
        seconds=st.sampled_from(
            [1 * MINUTE, 2 * MINUTE, 5 * MINUTE, 60 * MINUTE, 25 * 60 * MINUTE]
        ),
        silent=st.sampled_from([False, False, True]),
    )
    def advance(self, seconds: float, silent: bool) -> None:
        """Let time pass; silent: in which nobody ticks."""
        type(self).steps += 1
        database.advance(self.conn, seconds, silent=silent)
        self.model.advance(seconds)
        if silent:
            self.model.silence += seconds

    @step()
    def traffic(self) -> None:
        """Let housekeeping believe that all lanes are busy, so that it keeps their marks."""
        type(self).steps += 1
        database.run(
            self.conn,
            "select tasklib._note_lanes((select array_agg(distinct lane) from tasklib.ready))"
            " from tasklib.ready limit 1",
        )

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.see()
            self.sweep()


def less(one: Any, other: Any) -> Any:
    """Return what one has and the other has not."""
    if isinstance(one, dict):
        return {key: value for key, value in one.items() if other.get(key) != value}
    return one - other if isinstance(one, set) else one


def list_or_none(found: Any) -> Any:
    return found


def ids(rows: list[Any]) -> set[UUID]:
    return {row[0] for row in rows}


def _nth(items: list[Any], index: int) -> Any:
    return items[-1 - index % len(items)]


def _three(lease: Lease) -> dict[str, Any]:
    return {"id": lease.task, "worker_id": lease.worker, "attempt": lease.attempt}


def _batch(leases: list[Lease]) -> dict[str, Any]:
    return {
        "worker_id": leases[0].worker,
        "ids": [lease.task for lease in leases],
        "attempts": [lease.attempt for lease in leases],
    }
