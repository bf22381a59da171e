"""Faults made by hand, which the torture has to notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        what: What is wrong with it.
        function: The SQL function that it is in; None: it is in the driver.
        before: Text of the function.
        after: What stands there instead.
        patch: What does it to the driver, in each worker process.
    """

    what: str
    function: str | None = None
    before: str = ""
    after: str = ""
    patch: Callable[[], None] | None = None


def _stop_heartbeats() -> None:
    from tasklib.worker.shift import Shift

    stop = Shift.stop

    def stop_with_heartbeats(self: Any) -> None:
        stop(self)
        for worker_id in self._board.registrations:
            self._keeper.drop(worker_id)

    Shift.stop = stop_with_heartbeats


MUTANTS: dict[str, Mutant] = {
    "complete-any": Mutant(
        "complete (and fail, snooze) look at the task only, not at the lease",
        "_take_run",
        """
    and running.worker_id = _take_run.worker_id
    and running.attempt = _take_run.attempt""",
    ),
    "reap-all": Mutant(
        "tick ends registrations without looking at their leases",
        "_reclaim",
        " and late.lease_until < clock_timestamp()",
    ),
    "no-attempt": Mutant(
        "claim does not count the attempt",
        "claim",
        "pick.attempt + 1 as attempt",
        "pick.attempt as attempt",
    ),
    "open-mark": Mutant(
        "marks move past transactions that are open",
        "_safe",
        "  delete from tasklib.horizon as note",
        "  _safe.pos := v_pos;\n  _safe.at := v_at;\n  delete from tasklib.horizon as note",
    ),
    "early-silence": Mutant(
        "heartbeats stop when a worker is told to stop", patch=_stop_heartbeats
    ),
    # More of the first, which `make torture` need not try each time.
    "complete-attempt": Mutant(
        "complete looks at the worker, not at the attempt",
        "_take_run",
        "\n    and running.attempt = _take_run.attempt",
    ),
    "finish-any": Mutant(
        "finish completes without looking at the lease",
        "_complete_many",
        """
            and candidate.attempt = given.attempt
            and candidate.worker_id = _complete_many.worker_id""",
    ),
    "keep-gate": Mutant(
        "a second task takes a concurrency key that is held",
        "_open_gate",
        "  if found then\n    return false;",
        "  if found then\n    return true;",
    ),
}
REQUIRED = ("complete-any", "reap-all", "no-attempt", "open-mark", "early-silence")


def apply_to_database(name: str | None, connection: psycopg.Connection[Any]) -> None:
    """Make the fault in the installed function, if it is one of those."""
    if name is None or (mutant := MUTANTS[name]).function is None:
        return
    row = connection.execute(
        "select pg_get_functiondef(oid) from pg_proc where pronamespace = 'tasklib'::regnamespace"
        " and proname = %s",
        [mutant.function],
    ).fetchone()
    if row is None or row[0].count(mutant.before) != 1:
        raise SystemExit(f"mutant {name}: {mutant.function} does not say {mutant.before!r} once")
    connection.execute(row[0].replace(mutant.before, mutant.after))


def apply_to_driver(name: str | None) -> None:
    """Make the fault in this process, if it is one of the driver."""
    if name and (patch := MUTANTS[name].patch):
        patch()
