"""What must hold: the ledger against the database, at any moment and in the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from kinds import KINDS
from ledger import Event
from psycopg.rows import namedtuple_row

# Two clocks of one machine, read one after the other.
SAME_MOMENT = 0.05
STATES = {"1": "completed", "2": "failed", "3": "cancelled"}
# A run may go on after these: nobody can stop a thread, or a process that does not hear.
OUTLIVED = {"timeout", "lost", "crashed", "released", "cancelled"}

PLACES = """
select task_id, array_agg(place) from (
  select task_id, 'ready' as place from tasklib.ready
  union all select task_id, 'delayed' from tasklib.delayed
  union all select task_id, 'waiting' from tasklib.waiting
  union all select task_id, 'parked' from tasklib.parked
  union all select task_id, 'running' from tasklib.running
  union all select task_id, 'done' from tasklib.done) as place
group by task_id having count(*) > 1"""
NOWHERE = """
select id, name from tasklib.task where not exists (
  select from tasklib.ready where task_id = id union all
  select from tasklib.delayed where task_id = id union all
  select from tasklib.waiting where task_id = id union all
  select from tasklib.parked where task_id = id union all
  select from tasklib.running where task_id = id union all
  select from tasklib.done where task_id = id)"""
HIDDEN = """
select task_id, 'ready' from tasklib.ready
  join (select lane, max(low_pos) as low from tasklib.mark group by lane) as mark using (lane)
where ready.pos < mark.low
union all
select task_id, 'delayed' from tasklib.delayed
where run_at < (select max(low) from tasklib.time_mark where kind = 'delayed')
union all
select task_id, 'running' from tasklib.running
where deadline < (select max(low) from tasklib.time_mark where kind = 'deadline')"""
TASKS = """
select task.id::text, task.name, task.kwargs ->> 'mark' as mark, task.unique_key, task.queue,
  task.unique_until, extract(epoch from task.created_at)::float8 as created_at,
  done.state::text as state, done.attempt, done.worker_id::text, done.result ->> 'value' as token
from tasklib.task left join tasklib.done on done.task_id = task.id"""
EVENTS = """
select seq, kind, task_id::text, worker_id::text, attempt, detail,
  extract(epoch from at)::float8 as at
from torture.event order by seq"""

EFFECTS = "select task_id::text, attempt, mark from torture.effect"


class Lease(NamedTuple):
    """An attempt: from when it was handed out to when it ended, by the numbers of events."""

    task: str
    worker: str
    attempt: int


@dataclass
class Story:
    """What the database noted of one task."""

    granted: dict[Lease, Any] = field(default_factory=dict)
    ended: dict[Lease, Any] = field(default_factory=dict)
    causes: dict[Lease, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    done: list[Any] = field(default_factory=list)
    undone: list[Any] = field(default_factory=list)
    held: Lease | None = None
    last: Lease | None = None


class Violations:
    """What did not hold, by check."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def check(self, name: str) -> list[str]:
        """Return the list of a check; naming it says that it was made."""
        return self.found.setdefault(name, [])

    @property
    def names(self) -> list[str]:
        """The checks that failed."""
        return [name for name, found in self.found.items() if found]


class Book:
    """What the ledger says, sorted."""

    def __init__(self) -> None:
        self.asked: dict[str, list[Any]] = {}
        self.told: dict[str, Event] = {}
        self.runs: dict[str, Event] = {}
        self.ends: dict[str, Event] = {}
        self.cancels: set[str] = set()
        self.retries: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.accepted: list[Event] = []
        self.codes: Counter[str] = Counter()

    def add(self, events: list[Event]) -> None:
        """Take in news."""
        for event in events:
            match event["what"]:
                case "asked":
                    self.asked[event["ask"]] = event["tasks"]
                case "told":
                    self.told[event["ask"]] = event
                    if event.get("sqlstate"):
                        self.codes[event["sqlstate"]] += 1
                case "began":
                    self.runs[event["token"]] = event
                case "ended":
                    self.ends[event["token"]] = event
                case "cancel":
                    self.cancels.add(event["task"])
                case "retry":
                    self.retries[event["task"]] += 1
                case "refused":
                    self.refused.update(event["counts"])
                case _:
                    self.accepted.append(event)

    @property
    def outcomes(self) -> Counter[str]:
        """How many tasks were asked for, by the outcome of their transaction."""
        counts: Counter[str] = Counter()
        for ask, tasks in self.asked.items():
            told = self.told.get(ask)
            counts[told["how"] if told else "unknown"] += len(tasks)
        return counts


class Court:
    """One look at the database, in one snapshot, and the ledger as it is then."""

    def __init__(self, connection: psycopg.Connection[Any], book: Book, calm: set[str]) -> None:
        self.violations = Violations()
        self.book = book
        self.calm = calm
        self.connection = connection
        connection.execute("set default_transaction_isolation to 'repeatable read'")
        with connection.transaction(), connection.cursor(row_factory=namedtuple_row) as cursor:

            def rows(statement: str) -> list[Any]:
                return cursor.execute(statement.encode()).fetchall()

            self.tasks: dict[str, Any] = {task.id: task for task in rows(TASKS)}
            self.events = rows(EVENTS)
            self.hidden = rows(HIDDEN)
            self.twice = rows(PLACES)
            self.nowhere = rows(NOWHERE)
            self.effects = rows(EFFECTS)
        connection.execute("reset default_transaction_isolation")
        self.stories: defaultdict[str, Story] = defaultdict(Story)

    # ---- at any moment ---------------------------------------------------------------------------

    def judge(self) -> Violations:
        """Check what holds at any moment."""
        self._read_events()
        self._check_zombies()
        self._check_places()
        self._check_keys()
        return self.violations

    def _read_events(self) -> None:
        leases = self.violations.check("a lease is one attempt's, and attempts count hand-outs")
        finals = self.violations.check("final states never change")
        early = self.violations.check("no worker is declared dead before its lease ran out")
        calm = self.violations.check("no worker loses a lease that nobody harmed")
        done = self.violations.check("results are those of the last lease")
        given = self.violations.check("no task pays for being given back")
        for event in self.events:
            story = self.stories[event.task_id]
            lease = Lease(event.task_id, event.worker_id, event.attempt)
            match event.kind:
                case "granted":
                    if story.held or event.attempt != (story.last.attempt if story.last else 0) + 1:
                        leases.append(f"{lease} was granted after {story.last}, held {story.held}")
                    story.granted[lease] = event
                    story.held = story.last = lease
                case "ended":
                    if story.held != lease:
                        leases.append(f"{lease} ended while {story.held} was held")
                    story.ended[lease] = event
                    story.causes.setdefault(lease, "released")
                    story.held = None
                case "failed":
                    story.causes[lease] = event.detail
                    story.failures.append(event.detail)
                    if event.detail == "given back":
                        given.append(f"{lease} was one time too many")
                    # A registration may run out: of a worker that left while the server was away.
                    if event.worker_id in self.calm and event.detail in ("lost", "crashed"):
                        calm.append(f"{lease} was {event.detail}")
                case "done":
                    state = STATES[event.detail]
                    if len(story.done) > len(story.undone):
                        finals.append(f"{event.task_id} ended again, as {state}")
                    if event.worker_id and lease != story.last:
                        done.append(f"{lease} ended the task, the last lease was {story.last}")
                    story.causes[lease] = story.causes.get(lease, state)
                    if story.causes[lease] == "released":
                        story.causes[lease] = state
                    story.done.append(event)
                case "undone":
                    story.undone.append(event)
                    story.failures.clear()
                    if len(story.undone) > self.book.retries[event.task_id]:
                        finals.append(f"{event.task_id} lost its end: {event.detail}")
                case "changed":
                    finals.append(f"{event.task_id} was changed in place: {event.detail}")
                case "lost":
                    if event.detail.startswith("early"):
                        early.append(f"worker {event.worker_id}: {event.detail}")
                case _:
                    pass  # keys: see _check_keys
        for task in self.tasks.values():
            if task.state is not None and not self.stories[task.id].done:
                finals.append(f"{task.id} is {task.state}, which nobody saw happen")

    def _check_zombies(self) -> None:
        accepted = self.violations.check("no call is accepted from a lease that has ended")
        for event in self.book.accepted:
            words = {key: event[key] for key in event if key not in ("what", "at", "file")}
            accepted.append(f"{words}")
        effects = self.violations.check("effects of completed transactional tasks are exactly 1")
        effects += [
            f"{row.task_id} has an effect of a zombie"
            for row in self.effects
            if row.mark == "zombie"
        ]
        results = self.violations.check("results are those of the last lease")
        for task in self.tasks.values():
            if task.state != "1":
                continue
            run = self.book.runs.get(task.token)
            if run is None or (run["task"], run["worker"], run["attempt"]) != (
                task.id,
                task.worker_id,
                task.attempt,
            ):
                results.append(
                    f"{task.id} {task.name}: the result {task.token} of attempt {task.attempt} by "
                    f"{task.worker_id} is from {run}"
                )

    def _check_places(self) -> None:
        places = self.violations.check("every task is in exactly one place")
        places += [f"{row[0]} is in {row[1]}" for row in self.twice]
        places += [f"{row[0]} {row[1]} is nowhere" for row in self.nowhere]
        hidden = self.violations.check("no task is below a low-water mark")
        hidden += [f"{row[0]} in {row[1]}" for row in self.hidden]

    def _check_keys(self) -> None:
        """Who has a concurrency key has it alone; a unique key is free before it is taken."""
        overlaps = self.violations.check("concurrency keys never overlap")
        twins = self.violations.check("unique keys hold")
        holders: dict[str, Lease] = {}
        keyed: dict[Lease, str] = {}
        owners: dict[str, str] = {}
        for event in self.events:
            lease = Lease(event.task_id, event.worker_id, event.attempt)
            if event.kind == "granted" and event.detail:
                if event.detail in holders:
                    overlaps.append(f"{lease} got the key of {holders[event.detail]}")
                holders[event.detail] = lease
                keyed[lease] = event.detail
            elif event.kind == "ended" and lease in keyed:
                holders.pop(keyed.pop(lease), None)
            elif event.kind == "key":
                owner = owners.get(event.detail)
                if owner is not None and owner != event.task_id:
                    twins.append(f"{event.task_id} has {event.detail} beside {owner}")
                owners[event.detail] = event.task_id
            if event.kind == "done" or (event.kind == "granted" and self._until(event) == "s"):
                for key in [key for key, owner in owners.items() if owner == event.task_id]:
                    del owners[key]

    def _until(self, event: Any) -> str | None:
        task = self.tasks.get(event.task_id)
        return task and task.unique_until

    # ---- in the end ------------------------------------------------------------------------------

    def judge_the_end(self) -> Violations:
        """Check what holds when everything is over."""
        self.judge()
        self._check_enqueues()
        self._check_ends()
        self._check_effects()
        self._check_runs()
        return self.violations

    def _check_enqueues(self) -> None:
        lost = self.violations.check("committed enqueues lost: 0")
        ghosts = self.violations.check("rolled-back enqueues present: 0")
        unknown = self.violations.check("unknown outcomes are 0 or 1 task")
        by_mark: defaultdict[str, list[str]] = defaultdict(list)
        for task in self.tasks.values():
            by_mark[task.mark].append(task.id)
        refused = self.violations.check("no sound enqueue is refused")
        for ask, tasks in self.book.asked.items():
            told = self.book.told.get(ask)
            if told and (told.get("sqlstate") or "").startswith("TL"):
                refused.append(f"{ask}: {told['error']}")
            how = told["how"] if told else "unknown"
            # What one transaction made is there as a whole, or not at all; those that found their
            # unique key taken are never there.
            there = {bool(by_mark.get(mark)) for mark, _, key in tasks if key is None}
            if len(there) > 1:
                unknown.append(f"{ask} ({how}) is there in part")
            for mark, name, key in tasks:
                ids = by_mark.pop(mark, [])
                if how == "rolled back" and ids:
                    ghosts.append(f"{mark} {name}: {ids}")
                if len(ids) > 1:
                    unknown.append(f"{mark} {name} ({how}): {ids}")
                if how != "committed" or told is None:
                    continue
                task_id, created = told["made"][mark]
                if (created and ids != [task_id]) or task_id not in self.tasks:
                    lost.append(f"{mark} {name}: told {task_id}, there is {ids}")
                elif key is not None and self.tasks[task_id].unique_key != key:
                    lost.append(f"{mark} {name}: {task_id} does not have its unique key {key}")
                elif created is False and ids:
                    ghosts.append(f"{mark} {name}: was not to be created, there is {ids}")
        ghosts += [f"{mark}: {ids}, which nobody asked for" for mark, ids in by_mark.items()]

    def _check_ends(self) -> None:
        open_ = self.violations.check("every task is in exactly one final state")
        wrong = self.violations.check("it is the state that the task has earned")
        for task in self.tasks.values():
            if task.state is None:
                open_.append(f"{task.id} {task.name} {self._told(task.id)}")
                continue
            kind, state = KINDS[task.name], STATES[task.state]
            allowed = {*kind.states, *(["cancelled"] if task.id in self.book.cancels else [])}
            if state not in allowed:
                wrong.append(f"{task.id} {task.name} is {state} {self._told(task.id)}")
            elif state == "failed" and not self._is_spent(task, kind):
                wrong.append(f"{task.id} {task.name} failed too soon or late {self._told(task.id)}")

    def _is_spent(self, task: Any, kind: Any) -> bool:
        failures = self.stories[task.id].failures
        if self.book.retries[task.id]:
            return True
        crashes = sum(cause in ("crashed", "lost") for cause in failures)
        is_bad = task.name == "typed" and failures[-1:] == ["error"]
        is_last = len(failures) == kind.max_retries + 1 or crashes == kind.max_crashes
        return (is_last or is_bad) and len(failures) <= kind.max_retries + 1

    def _check_effects(self) -> None:
        effects = self.violations.check("effects of completed transactional tasks are exactly 1")
        made: defaultdict[str, list[int]] = defaultdict(list)
        for row in self.effects:
            made[row.task_id].append(row.attempt)
        for task in self.tasks.values():
            if not KINDS[task.name].is_transactional:
                continue
            expected = [task.attempt] if task.state == "1" else []
            if made[task.id] != expected:
                effects.append(f"{task.id}: effects of attempts {made[task.id]}, not {expected}")

    def _check_runs(self) -> None:
        runs = self.violations.check(
            "code runs under a lease, and not after it has said that it ended"
        )
        for token, run in self.book.runs.items():
            lease = Lease(run["task"], run["worker"], run["attempt"])
            story = self.stories.get(lease.task)
            if story is None or lease not in story.granted:
                runs.append(f"{run['kind']} {lease} ran without having been handed out")
                continue
            end, ended = self.book.ends.get(token), story.ended.get(lease)
            if end is None or ended is None or story.causes[lease] in OUTLIVED:
                continue
            if end["at"] > ended.at + SAME_MOMENT:
                runs.append(f"{run['kind']} {lease} ended after it was {story.causes[lease]}")

    def _told(self, task_id: str) -> str:
        """Return a task's last events, for people."""
        told = [event for event in self.events if event.task_id == task_id][-8:]
        return "; ".join(
            f"{event.kind} {event.detail or ''} attempt {event.attempt}".replace("  ", " ")
            for event in told
        )
