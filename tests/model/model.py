"""What the queue does, told a second time: a program without a database.

It says what each function answers and where every task is afterwards. Time stands still between
two steps and is moved by `Model.advance` alone. What it does not know, it is told: ids, which the
database makes, and `Task.spot`, where the row of a running task lies, as that is the order in which
the tasks of a dead worker are given back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

DAY = 86_400.0
FIVE_YEARS = 157_680_000.0
PLACES_OF_PENDING = ("ready", "delayed", "waiting", "parked")


class Refused(Exception):
    """The call is answered with an error of this SQLSTATE, and changes nothing."""


LOST = {"gone": "TL003", "stale": "TL004", "already": "TL005", "cancelled": "TL006"}


@dataclass(frozen=True)
class Lease:
    """What a claim hands out: the right to end one attempt."""

    task: UUID
    worker: UUID
    attempt: int


@dataclass(frozen=True)
class Failure:
    """One attempt that failed."""

    worker: UUID
    cause: str
    error: str | None
    wait: float | None  # until the next attempt; None: it was final


@dataclass(eq=False)
class Task:
    """A task: what was asked for, and where it stands."""

    id: UUID
    name: str
    queue: str
    priority: int
    given: dict[str, Any]
    place: str = "out"
    # the order within ready and waiting, and among those delayed to the same moment
    turn: int = 0
    holds_key: bool = False
    run_at: float = 0.0
    reason: str = ""
    routed: bool = True
    attempt: int = 0
    excused: int = 0
    releases: int = 0
    crashes: int = 0
    worker: UUID | None = None
    deadline: float | None = None
    spot: Any = None
    asked: bool = False
    state: str = ""
    result: Any = None
    error: str | None = None
    progress: tuple[float | None, str | None] = (None, None)
    failures: dict[int, Failure] = field(default_factory=dict[int, Failure])

    @property
    def gate(self) -> tuple[str, str] | None:
        key = self.given.get("concurrency_key")
        return (self.queue, key) if key else None

    @property
    def unique(self) -> tuple[str, str] | None:
        key = self.given.get("unique_key")
        return (self.queue, key) if key else None

    @property
    def retry_count(self) -> int:
        """Attempts that were charged, less one."""
        return max(0, self.attempt - 1 - self.excused)


@dataclass(eq=False)
class Worker:
    """One start of a worker process."""

    id: UUID
    lease: float
    lease_until: float
    names: frozenset[str] | None
    queues: Sequence[str] = ()  # for which it takes what is handed over
    offers: bool = False
    graced: bool = False
    lost: bool = False
    cleared_at: float | None = None

    def knows(self, name: str) -> bool:
        return self.names is None or name in self.names


@dataclass(eq=False)
class Settings:
    """What was set for a queue."""

    paused: bool = False
    retention: float | None = None
    max_crashes: int | None = None
    purge_from: UUID | None = None


class Model:
    """The queue."""

    def __init__(self) -> None:
        self.now = 0.0
        self.silence = 0.0  # since somebody ticked
        self.turns = count(1)
        self.tasks: dict[UUID, Task] = {}
        self.workers: dict[UUID, Worker] = {}
        self.types: dict[str, dict[str, Any]] = {}
        self.queues: dict[str, Settings] = {}
        self.gates: dict[tuple[str, str], Task] = {}
        self.last_gate: int | None = None  # of those that the transaction under way has made
        self.unique: dict[tuple[str, str], Task] = {}
        self.asleep_until = 0.0
        self.offer: UUID | None = None  # of the worker that takes the next lone task
        self.offered: set[str] = set()  # from these queues, and from those that look like them
        self.note: Task | None = None  # what the commit is to hand over
        self.is_alone = True  # in its transaction

    # -- looking

    def at(self, *places: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.place in places]

    def live(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.lost]

    def any_name(self) -> bool:
        return any(worker.names is None for worker in self.live())

    def known(self, name: str) -> bool:
        """Somebody registered it, or there is one who takes any name."""
        return name in self.types or self.any_name()

    def option(self, task: Task, option: str, default: Any) -> Any:
        """Return what was given at enqueue, else what the name says, else the default."""
        for source in (task.given, self.types.get(task.name, {})):
            if source.get(option) is not None:
                return source[option]
        return default

    def state(self, task: Task) -> str:
        """Return the state as people see it."""
        if task.place == "done":
            return task.state
        if task.place == "delayed" and task.reason == "r" and task.run_at > self.now:
            return "failed"
        return "running" if task.place == "running" else "pending"

    def shown_error(self, task: Task) -> str | None:
        """Return its own error, else that of the last failure."""
        if task.place == "done" and (task.error is not None or task.state == "completed"):
            return task.error
        if task.attempt == 0 or not task.failures:
            return None
        return task.failures[max(task.failures)].error

    def max_crashes(self, task: Task) -> int:
        of_name = self.types.get(task.name, {}).get("max_crashes")
        return of_name or self.setting(task.queue).max_crashes or 3

    def setting(self, queue: str) -> Settings:
        return self.queues.get(queue, Settings())

    # -- time

    def advance(self, seconds: float) -> None:
        self.now += seconds

    # -- enqueue

    def enqueue_one(self, task_id: UUID, spec: dict[str, Any]) -> UUID:
        """Take a task by itself: a plain one that stays alone may be handed over."""
        told, _ = self.enqueue(task_id, spec)
        if self.asleep_until <= self.now:
            return told
        sleeper = None if self.offer is None else self.workers.get(self.offer)
        if spec.keys() & _MORE:
            self.is_alone = False
        elif (
            sleeper is not None
            and self.tasks[told].queue in self.offered.intersection(sleeper.queues)
            and sleeper.knows(spec["name"])
        ):
            if self.note is None and self.is_alone and "concurrency_key" not in spec:
                self.note = self.tasks[told]
            else:
                self.is_alone = False
        return told

    def commit(self) -> Task | None:
        """Hand over what is noted, if it still waits and a worker offers to take it; return it."""
        task, is_alone = self.note, self.is_alone
        self.note, self.is_alone = None, True
        if task is None or not is_alone or task.place != "ready" or self.offer is None:
            return None
        worker = self.workers.get(self.offer)
        if (
            worker is None
            or worker.lost
            or worker.lease_until <= self.now + worker.lease / 2
            or not worker.offers
            or task.queue not in worker.queues
            or not worker.knows(task.name)
            or self.setting(task.queue).paused
        ):
            return None
        self.offer = None
        self.start(task, worker.id)
        return task

    def enqueue(self, task_id: UUID, spec: dict[str, Any]) -> tuple[UUID, bool]:
        """Take one task; return whose id the caller gets, and whether it is new."""
        defaults = self.types.get(spec["name"], {})
        queue = spec.get("queue") or defaults.get("queue") or "default"
        priority = spec.get("priority")
        if priority is None:
            priority = defaults.get("priority") or 0
        task = Task(task_id, spec["name"], queue, priority, spec)
        if task.unique in self.unique:
            return self.unique[task.unique].id, False
        if task.unique:
            self.unique[task.unique] = task
        self.tasks[task_id] = task

        later = spec.get("scheduled_at", spec.get("delay"))
        if later is not None and later > 0:
            self.delay(task, self.now + later, "d")
        else:
            self.place(task)
        return task_id, True

    def place(self, task: Task) -> None:
        """Put a task where it belongs when it is due."""
        if self.known(task.name):
            self.make_ready(task)
        else:
            task.place = "parked"

    def make_ready(self, task: Task, *, holds_key: bool = False) -> None:
        task.place, task.turn, task.holds_key = "ready", next(self.turns), holds_key

    def delay(self, task: Task, run_at: float, reason: str) -> None:
        task.place, task.run_at, task.reason = "delayed", run_at, reason
        task.turn, task.routed = next(self.turns), reason in "rs" or self.known(task.name)

    # -- workers

    def register(self, worker_id: UUID, lease: float, types: Sequence[Any] | None) -> None:
        names = None
        for item in types or []:
            if isinstance(item, str):
                self.types.setdefault(item, {})
            else:
                self.types[item["name"]] = {k: v for k, v in item.items() if k != "name"}
        if types is not None:
            names = frozenset(item if isinstance(item, str) else item["name"] for item in types)
        self.workers[worker_id] = Worker(worker_id, lease, self.now + lease, names)
        self.unpark(names)

    def registration(self, worker_id: UUID) -> Worker:
        worker = self.workers.get(worker_id)
        if worker is None or worker.lost:
            raise Refused("TL007")
        return worker

    def cancel_requests(self, worker_id: UUID) -> set[UUID]:
        held = self.at("running")
        return {task.id for task in held if task.worker == worker_id and task.asked}

    def heartbeat(self, worker_id: UUID) -> set[UUID]:
        worker = self.registration(worker_id)
        worker.lease_until, worker.graced = self.now + worker.lease, False
        return self.cancel_requests(worker_id)

    def renew_late(self, worker: Worker) -> None:
        """Who claims or goes to sleep lives, however late it is."""
        if worker.lease_until < self.now + worker.lease / 10:
            worker.lease_until, worker.graced = self.now + worker.lease, False

    def deregister(self, worker_id: UUID, crashed: bool, begun: Collection[UUID] | None) -> int:
        worker = self.registration(worker_id)
        worker.lost, worker.cleared_at = True, self.now
        held = self.held(worker_id)
        for task in held:
            if crashed and (begun is None or task.id in begun):
                self.fail_run(task, "the worker process died", cause="crashed")
            else:
                self.release_run(task, counted=not crashed or not begun)
        return len(held)

    def held(self, worker_id: UUID) -> list[Task]:
        return sorted(
            (task for task in self.at("running") if task.worker == worker_id),
            key=lambda task: task.spot,
        )

    def idle(
        self, worker_id: UUID, queues: Sequence[str], max_wait: float, for_long: bool
    ) -> float:
        worker = self.registration(worker_id)
        self.renew_late(worker)
        self.keep_house(look_again=False)
        if for_long:
            worker.lease_until, worker.graced = self.now + worker.lease, False
            worker.queues = queues
        self.asleep_until = max(self.asleep_until, self.now + max_wait)
        times = [self.now + max_wait, *(task.run_at for task in self.at("delayed"))]
        times += [other.lease_until for other in self.live()]
        return max(0.0, min(times) - self.now)

    def make_offer(self, worker_id: UUID, queues: Sequence[str], *, takes: bool) -> None:
        """Offer to take the next lone task, or take that back."""
        worker = self.registration(worker_id)
        worker.queues, worker.offers = queues, takes
        opened = {name for name in queues if not self.setting(name).paused}
        if takes and opened:
            self.offer, self.offered = worker_id, opened
        elif self.offer == worker_id:
            self.offer = None

    # -- claim

    def claim(
        self, worker_id: UUID, queues: Sequence[str], most: int, *, kept_house: bool
    ) -> list[Task]:
        """Hand out the best tasks, and keep house when there are none, or (by chance) too few."""
        worker = self.registration(worker_id)
        self.renew_late(worker)
        picked = self.pick(worker, queues, most)
        if not picked and self.keep_house(look_again=True):
            picked = self.pick(worker, queues, most)
        if picked and self.offer == worker_id:
            self.offer = None
        if len(picked) == most and worker.offers and self.live() == [worker]:
            self.asleep_until = min(self.asleep_until, self.now)
        for task in picked:
            self.start(task, worker_id)
            if task.given.get("unique_until") == "started":
                self.free_unique(task)
        if picked and len(picked) < most and kept_house:
            self.keep_house(look_again=False)
        return picked

    def start(self, task: Task, worker_id: UUID) -> None:
        timeout = self.option(task, "timeout_seconds", None)
        task.place, task.worker, task.attempt = "running", worker_id, task.attempt + 1
        task.holds_key = False
        task.deadline = None if timeout is None else self.now + timeout

    def pick(self, worker: Worker, queues: Sequence[str], most: int) -> list[Task]:
        """Go by priority, then the order of the queues asked for, then turn."""
        open_queues = [name for name in queues if not self.setting(name).paused]
        line = sorted(
            (t for t in self.at("ready") if t.queue in open_queues and worker.knows(t.name)),
            key=lambda task: (-task.priority, open_queues.index(task.queue), task.turn),
        )
        picked: list[Task] = []
        while asked := most - len(picked):
            last = self.last_gate
            fit = [
                t for t in line if last is None or not t.gate or t.holds_key or _hash(t.gate) > last
            ]
            batch = fit[:asked]
            line = [task for task in line if task not in batch]
            self.open_gates([task for task in batch if task.gate and not task.holds_key])
            picked += [task for task in batch if task.place == "ready"]
            if len(batch) < asked:
                break
        return picked

    # -- concurrency keys

    def open_gates(self, tasks: Sequence[Task]) -> None:
        """Let those pass whose gate is free, with nobody of the key before them."""
        for task in sorted(tasks, key=lambda task: (_hash(task.gate), task.turn)):
            assert task.gate
            before = (t for t in self.at("ready", "waiting") if t.gate == task.gate)
            if task.gate in self.gates or any(other.turn < task.turn for other in before):
                task.place = "waiting"
            else:
                self.gates[task.gate] = task
                self.last_gate = _hash(task.gate)

    def leave_gates(self, gates: Iterable[tuple[str, str] | None]) -> None:
        for gate in sorted({gate for gate in gates if gate}, key=_hash):
            self.hand_over(gate)

    def hand_over(self, gate: tuple[str, str]) -> bool:
        """Give a gate to the first that waits, unless one that is ready is before it."""
        line = [task for task in self.at("ready", "waiting") if task.gate == gate]
        first = min(line, key=lambda task: task.turn, default=None)
        if first is None or first.place == "ready":
            self.gates.pop(gate, None)
            return False
        self.gates[gate] = first
        self.make_ready(first, holds_key=True)
        return True

    def check_gates(self) -> int:
        """Hand over every gate that nobody has any more. (No note of one is ever forgotten.)"""
        handed_over = 0
        keys = {task.gate for task in self.at("waiting")} | set(self.gates)
        last = self.last_gate
        for gate in sorted((gate for gate in keys if gate), key=_hash):
            holder = self.gates.get(gate)
            if holder is None:
                if (last is None or _hash(gate) > last) and self.hand_over(gate):
                    handed_over += 1
                    self.last_gate = _hash(gate)
            elif holder.place != "running" and not (holder.place == "ready" and holder.holds_key):
                handed_over += self.hand_over(gate)
        return handed_over

    def sweep(self) -> int:
        self.check_gates()
        return 0

    # -- unique keys

    def free_unique(self, task: Task) -> None:
        if task.unique and self.unique.get(task.unique) is task:
            del self.unique[task.unique]

    def take_unique(self, task: Task) -> None:
        if task.unique and self.unique.setdefault(task.unique, task) is not task:
            raise Refused("TL009")

    # -- the end of an attempt

    def hold(self, lease: Lease, outcome: str) -> Task:
        """Return the task that a lease holds."""
        self.registration(lease.worker)
        status = self.status(lease, outcome)
        if status != "ok":
            raise Refused(LOST[status])
        return self.tasks[lease.task]

    def status(self, lease: Lease, outcome: str) -> str:
        """Say whether a lease is held, and why not."""
        task = self.tasks.get(lease.task)
        if task is None:
            return "gone"
        is_last = task.attempt == lease.attempt
        mine = is_last and task.worker == lease.worker
        if mine and task.place == "running":
            return "ok"
        failure = task.failures.get(lease.attempt)
        failed = failure is not None and failure.worker == lease.worker
        if (
            (outcome == "failed" and failed)
            or (mine and task.place == "done" and outcome == task.state and outcome != "failed")
            or (outcome == "released" and is_last and task.place == "ready" and not failed)
            or (outcome == "snoozed" and is_last and task.place == "delayed" and task.reason == "s")
        ):
            return "already"
        return "cancelled" if task.place == "done" and task.state == "cancelled" else "stale"

    def complete(self, lease: Lease, result: Any) -> None:
        self.complete_runs([(self.hold(lease, "completed"), result)])

    def complete_runs(self, runs: list[tuple[Task, Any]]) -> None:
        for task, result in runs:
            task.place, task.state, task.asked = "done", "completed", False
            task.result, task.error = result, None
            if task.given.get("unique_until") != "started":
                self.free_unique(task)
        self.leave_gates(task.gate for task, _ in runs)

    def fail(
        self, lease: Lease, error: str | None, retry: bool, retry_in: float | None, cause: str
    ) -> tuple[str, float | None]:
        """Return the state, and the seconds until the next attempt."""
        task = self.hold(lease, "failed")
        self.fail_run(task, error, retry, retry_in, cause)
        if task.place == "done":
            return task.state, None
        return "failed", task.run_at - self.now

    def fail_run(
        self,
        task: Task,
        error: str | None,
        retry: bool = True,
        retry_in: float | None = None,
        cause: str = "error",
    ) -> None:
        crashes = 0
        if cause in ("crashed", "lost"):
            task.crashes += 1
            crashes = task.crashes
        charged = 1 + task.retry_count
        wait = None
        if (
            retry
            and not task.asked
            and charged <= self.option(task, "max_retries", 3)
            and crashes < self.max_crashes(task)
        ):
            wait = self.backoff(task, charged) if retry_in is None else retry_in
            wait = min(max(wait, 0.0), FIVE_YEARS)
        assert task.worker
        task.failures[task.attempt] = Failure(task.worker, cause, error, wait)
        if wait is None:
            self.close(task, "cancelled" if task.asked else "failed", error)
        else:
            self.delay(task, self.now + wait, "r")
        self.leave_gates([task.gate])

    def backoff(self, task: Task, charged: int) -> float:
        rule = self.option(task, "backoff", {})
        grown = rule.get("base_seconds", 5.0) * rule.get("multiplier", 2.0) ** (charged - 1)
        return min(rule.get("cap_seconds", 3600.0), grown)

    def close(self, task: Task, state: str, error: str | None) -> None:
        task.place, task.state, task.error, task.result = "done", state, error, None
        task.asked = False
        self.free_unique(task)

    def release_run(self, task: Task, counted: bool = True) -> None:
        if task.asked:
            self.close(task, "cancelled", None)
            self.leave_gates([task.gate])
            return
        task.releases += counted
        if counted and task.releases > 10:
            self.fail_run(task, "released more than 10 times")
            return
        task.excused += 1
        self.make_ready(task)
        self.leave_gates([task.gate])

    def snooze(self, lease: Lease, seconds: float) -> float | None:
        """Return the seconds until it runs again; None when it was asked to cancel."""
        task = self.hold(lease, "snoozed")
        self.snooze_run(task, seconds)
        return None if task.place == "done" else seconds

    def snooze_run(self, task: Task, seconds: float) -> None:
        if task.asked:
            self.close(task, "cancelled", None)
        else:
            task.excused += 1
            self.delay(task, self.now + seconds, "s")
        self.leave_gates([task.gate])

    def finish(
        self, worker_id: UUID, leases: Sequence[Lease], outcomes: Sequence[dict[str, Any]]
    ) -> list[str]:
        """End a batch: what completed first, and the others in the order of their ids."""
        self.registration(worker_id)
        if len({lease.task for lease in leases}) < len(leases):
            raise Refused("TL001")
        rows = list(zip(leases, outcomes, strict=True))
        held = {lease for lease, out in rows if self.status(lease, out["state"]) == "ok"}
        ended = [(self.tasks[lease.task], out) for lease, out in rows if lease in held]
        self.complete_runs([(t, out.get("result")) for t, out in ended if is_completed(out)])
        others = [(task, out) for task, out in ended if not is_completed(out)]
        for task, out in sorted(others, key=lambda row: row[0].id):
            self.end(task, out)
        return ["ok" if ls in held else self.status(ls, out["state"]) for ls, out in rows]

    def end(self, task: Task, outcome: dict[str, Any]) -> None:
        match outcome["state"]:
            case "failed":
                self.fail_run(
                    task,
                    outcome.get("error"),
                    outcome.get("retry", True),
                    outcome.get("retry_in"),
                    outcome.get("cause", "error"),
                )
            case "released":
                self.release_run(task)
            case "snoozed":
                self.snooze_run(task, outcome["seconds"])
            case _:
                self.close(task, "cancelled", outcome.get("error"))
                self.leave_gates([task.gate])

    def set_progress(self, lease: Lease, fraction: float | None, message: str | None) -> None:
        task = self.hold(lease, "reported")
        if fraction is not None and not 0 <= fraction <= 1:
            raise Refused("TL001")
        task.progress = (fraction, message)

    # -- from outside

    def own(self, task_id: UUID) -> Task:
        if task_id not in self.tasks:
            raise Refused("TL003")
        return self.tasks[task_id]

    def cancel(self, task_id: UUID) -> str:
        task = self.own(task_id)
        if task.place == "done":
            return "finished"
        if task.place == "running":
            task.asked = True
            return "requested"
        self.withdraw(task)
        self.close(task, "cancelled", None)
        task.worker = None
        return "cancelled"

    def withdraw(self, task: Task) -> None:
        held = task.place == "ready" and task.holds_key
        task.place, task.holds_key = "out", False
        if held:
            self.leave_gates([task.gate])

    def retry(self, task_id: UUID) -> str:
        task = self.own(task_id)
        if task.place == "running" or (task.place == "done" and task.state == "completed"):
            raise Refused("TL008")
        if task.place == "done":
            self.take_unique(task)
            task.excused, task.releases, task.crashes = task.attempt, 0, 0
            task.worker = None
            self.place(task)
        elif task.place == "delayed" and task.reason == "r":
            self.place(task)
        return "pending"

    def reschedule(self, task_id: UUID, change: dict[str, Any]) -> str:
        task = self.own(task_id)
        if task.place not in PLACES_OF_PENDING:
            raise Refused("TL008")
        queue = change.get("queue") or task.queue
        later = change.get("scheduled_at", change.get("delay"))
        if queue != task.queue and self.unique.get(task.unique or ("", "")) is task:
            assert task.unique
            if (queue, task.unique[1]) in self.unique:
                raise Refused("TL009")
        run_at = self.now
        if later is not None:
            run_at += later
        elif task.place == "delayed":
            run_at = task.run_at
        reason = "d" if later is not None else task.reason
        self.withdraw(task)
        if self.note is task:
            self.note = None
        self.reroute(task, queue, change.get("priority", task.priority))
        task.given = {**task.given, **{k: v for k, v in change.items() if k in _ROUTES}}
        if run_at > self.now:
            known = self.known(task.name)
            turn = task.turn
            self.delay(task, run_at, reason)
            task.routed = known
            if (
                later is None
            ):  # its time is what it was, and so is its place among those of that time
                task.turn = turn
        else:
            self.place(task)
        return "pending"

    def reroute(self, task: Task, queue: str, priority: int) -> None:
        """Move a task; its unique key goes with it."""
        held = bool(task.unique) and self.unique.get(task.unique) is task
        if held:
            self.free_unique(task)
        task.queue, task.priority = queue, priority
        if held:
            self.take_unique(task)

    def purge(self, state: str | None, most: int) -> int:
        """Delete finished tasks of any age, oldest first."""
        old = sorted(t.id for t in self.at("done") if state in (None, t.state))[:most]
        for task_id in old:
            del self.tasks[task_id]
        return len(old)

    def set_queue(self, name: str, retention: float | None, max_crashes: int | None) -> None:
        setting = self.queues.setdefault(name, Settings())
        setting.retention, setting.max_crashes = retention, max_crashes
        setting.purge_from = None

    def pause(self, name: str) -> None:
        self.queues.setdefault(name, Settings()).paused = True

    def resume(self, name: str) -> None:
        if name in self.queues:
            self.queues[name].paused = False

    def list(self, state: str | None, name: str | None, queue: str | None) -> list[UUID]:
        """Return what matches, newest first."""
        return sorted(
            (
                task.id
                for task in self.tasks.values()
                if state in (None, self.state(task))
                and name in (None, task.name)
                and queue in (None, task.queue)
            ),
            reverse=True,
        )

    # -- housekeeping

    def tick(self) -> dict[str, int]:
        self.grant_grace()
        self.silence = 0.0
        return {
            "promoted": self.promote(),
            "reclaimed": self.reclaim(),
            "timed_out": self.time_out(),
            "parked": self.park(),
            "unparked": self.unpark(),
            "handed_over": self.check_gates(),
            "purged": self.retain(),
        }

    def keep_house(self, *, look_again: bool) -> bool:
        """Do what a claim does that found too little; say whether tasks may have become ready."""
        if self.silence > 2:
            did = self.tick()
            return any(did[kind] for kind in did if kind not in ("parked", "purged"))
        did = 0
        if look_again:
            did = self.promote()
            if did:
                self.unpark()
            did += self.check_gates()
        return did > 0

    def grant_grace(self) -> None:
        """Begin every lease anew, once for each heartbeat, when nobody ticked for long."""
        if self.silence > 30:
            for worker in self.live():
                # some time always passes
                if not worker.graced and worker.lease_until <= self.now + worker.lease:
                    worker.lease_until, worker.graced = self.now + worker.lease, True

    def promote(self) -> int:
        due = [task for task in self.at("delayed") if task.run_at <= self.now]
        for task in sorted(due, key=lambda task: (task.run_at, task.turn)):
            if task.routed:
                self.make_ready(task)
            else:
                task.place = "parked"
        return len(due)

    def reclaim(self) -> int:
        for worker in self.live():
            worker.lost = worker.lease_until <= self.now
        reclaimed = 0
        for worker in sorted(self.workers.values(), key=lambda worker: worker.id):
            if worker.lost and worker.cleared_at is None:
                error = f"worker {worker.id} went silent: no heartbeat within its lease"
                for task in self.held(worker.id):
                    self.fail_run(task, error, cause="lost")
                    reclaimed += 1
                worker.cleared_at = self.now
        for worker in list(self.workers.values()):
            if worker.cleared_at is not None and worker.cleared_at + DAY <= self.now:
                del self.workers[worker.id]
        return reclaimed

    def time_out(self) -> int:
        late = [t for t in self.at("running") if t.deadline and t.deadline + 10 <= self.now]
        for task in sorted(late, key=lambda task: task.spot):
            self.fail_run(task, "timed out", cause="timeout")
        return len(late)

    def park(self) -> int:
        """Put away what nobody alive knows, at the head of each lane."""
        if not self.live() or self.any_name():
            return 0
        parked = 0
        for lane in {(task.queue, task.priority) for task in self.at("ready")}:
            line = [t for t in self.at("ready") if (t.queue, t.priority) == lane]
            line.sort(key=lambda task: task.turn)
            look = 20
            while unknown := [t for t in line[:look] if not self.is_known_now(t.name)]:
                for task in unknown:
                    task.place, task.holds_key = "parked", False
                    line.remove(task)
                parked += len(unknown)
                look = 1000
        return parked

    def is_known_now(self, name: str) -> bool:
        return any(worker.knows(name) for worker in self.live())

    def unpark(self, names: frozenset[str] | None = None) -> int:
        """Bring back, in the order in which they were enqueued, what is known now."""
        back = [
            task
            for task in self.at("parked")
            if self.any_name()
            or (self.is_known_now(task.name) if names is None else task.name in names)
        ]
        for task in sorted(back, key=lambda task: task.id):
            self.route(task)
        return len(back)

    def route(self, task: Task) -> None:
        """Let the defaults of its name decide what the producer left open."""
        defaults = self.types.get(task.name, {})
        queue, priority = task.queue, task.priority
        if task.given.get("queue") is None:
            queue = defaults.get("queue") or queue
        if task.given.get("priority") is None and defaults.get("priority") is not None:
            priority = defaults["priority"]
        if queue != task.queue and task.unique and (queue, task.unique[1]) in self.unique:
            queue = task.queue
        self.reroute(task, queue, priority)
        self.make_ready(task)

    def retain(self) -> int:
        """Delete what is past the retention of its queue, which is none at all or no time here."""
        purged = 0
        for name, setting in sorted(self.queues.items()):
            if setting.retention is None:
                continue
            seen = sorted(
                task.id
                for task in self.at("done")
                if setting.purge_from is None or task.id > setting.purge_from
            )
            for task_id in seen:
                if self.tasks[task_id].queue == name:
                    del self.tasks[task_id]
                    purged += 1
            setting.purge_from = seen[-1] if seen else None
        return purged


_ROUTES = ("queue", "priority")
_MORE = {"delay", "scheduled_at", "tags", "unique_key"}  # with which a task is no lone one


def is_completed(outcome: dict[str, Any]) -> bool:
    return outcome["state"] == "completed"


def _hash(gate: tuple[str, str] | None) -> int:
    """Return the number of a key, in whose order gates are visited."""
    queue, key = gate or ("", "")
    digest = hashlib.sha256(f"{len(queue)}:{queue}{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
