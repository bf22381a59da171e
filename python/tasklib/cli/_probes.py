"""What `tasklib doctor --live` and `--ready` look at."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasklib import _worker_calls
from tasklib.config import Config
from tasklib.errors import DatabaseUnavailable, TaskLibError, WorkerNotRegistered

from ._checks import Finding, examine
from ._output import format_duration
from ._pulse import Pulse, folder, pulses
from ._session import Session, Settings, connect

# A probe that waits for longer is ended by who asked.
CONNECT_SECONDS = 3


def examine_liveness(within: float) -> Iterator[Finding]:
    """Look whether every worker process here has moved within so many seconds."""
    found = pulses()
    if not found:
        yield _nobody("live")
    for pulse in found:
        if pulse.age <= within:
            yield Finding("live", "ok", f"process {pulse.pid} is at work")
        else:
            yield Finding(
                "live",
                "act",
                f"the event loop of process {pulse.pid} has not moved for "
                f"{format_duration(pulse.age)}",
                "End it: its keeper gives its tasks to other workers.",
            )


def examine_readiness(settings: Settings) -> Iterator[Finding]:
    """Look whether the database can be worked with, and knows a worker of here."""
    found = pulses()
    if not found:
        yield _nobody("ready")
    try:
        with connect(_in_a_hurry(settings.config)) as session:
            yield from examine(session, {"schema"})
            if found:
                yield _registered(session, found)
    except DatabaseUnavailable as error:
        yield Finding(
            "ready",
            "act",
            f"the database cannot be reached: {error.args[0]}",
            "The workers wait for it, and go on by themselves.",
        )


def _registered(session: Session, found: list[Pulse]) -> Finding:
    """Ask the database for a registration of one of them; the others may be on their way."""
    why = "no worker process is registered"
    for worker_id in [pulse.worker_id for pulse in found if pulse.worker_id]:
        try:
            session.run(_worker_calls.check_registration(worker_id))
        except WorkerNotRegistered:
            why = f"the registration {worker_id} has ended"
        except TaskLibError as error:
            why = str(error.args[0])
        else:
            return Finding("ready", "ok", f"registered as {worker_id}")
    return Finding("ready", "act", why, "A worker registers by itself; its log says what keeps it.")


def _nobody(check: str) -> Finding:
    return Finding(
        check,
        "act",
        "no worker process of this user runs on this machine",
        f"Start one: tasklib worker MODULE. It is to be seen in {folder()}, "
        "which TASKLIB_STATE_DIR changes.",
    )


def _in_a_hurry(config: Config) -> Config:
    """Wait for a connection for a moment only, unless the URL says how long."""
    if config.is_embedded or "connect_timeout" in conninfo_to_dict(config.database_url or ""):
        return config
    url = make_conninfo(config.database_url or "", connect_timeout=CONNECT_SECONDS)
    return config.model_copy(update={"database_url": url})
