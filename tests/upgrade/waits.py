"""Who waits for locks of DDL, and for how long: a session that looks many times a second."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from types import TracebackType

import psycopg

LOOK_SECONDS = 0.02
MIGRATING = "tasklib migrate"

# Clients of the queue never lock a relation against each other: who waits for one waits for DDL, or
# behind it in the queue.
_WAITING = """
select waiter.pid, session.query_start::text, waiter.waitstart::text,
  extract(epoch from clock_timestamp() - waiter.waitstart)::float8, left(session.query, 200)
from pg_locks as waiter join pg_stat_activity as session on session.pid = waiter.pid
where not waiter.granted and waiter.locktype = 'relation' and waiter.waitstart is not null
  and waiter.database = (select oid from pg_database where datname = current_database())
  and session.application_name <> %(migrating)s
"""
_HELD = """
select held.virtualtransaction, extract(epoch from clock_timestamp())::float8
from pg_locks as held
where held.granted and held.locktype = 'relation' and held.mode = 'AccessExclusiveLock'
  and held.relation in (select oid from pg_class where relnamespace = to_regnamespace('tasklib'))
group by held.virtualtransaction
"""


@dataclass
class Waits:
    """What was seen. A statement that had to wait several times counts the sum.

    Attributes:
        statements: Seconds that each statement waited, and its text.
        held: Since when each transaction is seen to hold a table exclusively.
        longest_held: Seconds for which the unluckiest table was held exclusively.
    """

    conninfo: str
    statements: dict[tuple[int, str], dict[str, float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    longest_held: float = 0.0
    looks: int = 0

    def __enter__(self) -> Waits:
        """Begin to look."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_again)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop looking."""
        self._stopped.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        """Seconds that the unluckiest statement waited."""
        return max((sum(waits.values()) for waits in self.statements.values()), default=0.0)

    @property
    def longest_text(self) -> str:
        """That statement."""
        if not self.statements:
            return ""
        return self.texts[max(self.statements, key=lambda it: sum(self.statements[it].values()))]

    def _look_again(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True, application_name="waits") as conn:
            while not self._stopped.wait(LOOK_SECONDS):
                self.looks += 1
                for pid, statement, start, seconds, text in conn.execute(
                    _WAITING, {"migrating": MIGRATING}
                ):
                    self.statements[pid, statement][start] = seconds
                    self.texts[pid, statement] = text
                held: dict[str, float] = dict(conn.execute(_HELD).fetchall())
                self.held = {name: self.held.get(name, now) for name, now in held.items()}
                for name, now in held.items():
                    self.longest_held = max(self.longest_held, now - self.held[name])
