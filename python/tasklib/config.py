"""Where the database is, and the defaults that tasks and workers start from."""

from __future__ import annotations

import atexit
import os
import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg.conninfo
from psycopg import ProgrammingError
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasklib.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasklib.embedded import Embedded

MEMORY = "memory://"


class Config(BaseSettings):
    """Where tasks are stored, and the defaults of tasks that say nothing themselves.

    Each field is also read from the environment, as ``TASKLIB_`` and its name in capitals. The
    database is, in this order: ``database_url``, ``TASKLIB_DATABASE_URL``, ``DATABASE_URL``,
    libpq's own ``PG*`` variables when ``PGHOST`` or ``PGSERVICE`` is set, and else a private
    server in the project's folder (``TASKLIB_EMBEDDED=never`` refuses that).

    Raises:
        ConfigurationError: A value is missing, wrong or out of range.
    """

    model_config = SettingsConfigDict(
        env_prefix="TASKLIB_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: str | None = Field(default=None, repr=False)
    """A libpq URL or ``key=value`` string; ``memory://`` is a server that forgets."""
    max_retries: int = Field(default=3, ge=0, le=1000)
    """Attempts after the first one."""
    base_retry_delay_seconds: float = Field(default=5.0, ge=0)
    """The pause before the first retry."""
    retry_backoff_multiplier: float = Field(default=2.0, ge=1)
    """How much longer each further pause is."""
    max_retry_delay_seconds: float = Field(default=3600.0, ge=0)
    """The longest pause."""
    retry_jitter: float = Field(default=0.0, ge=0, le=1)
    """The share of a pause that is left to chance."""
    lock_timeout_seconds: float = Field(default=60.0, ge=1, le=86400)
    """A worker that is silent for so long is given up, and its tasks go to others."""
    watchdog_seconds: float = Field(default=3600.0, ge=1)
    """A worker with tasks whose event loop has not moved for so long is killed by its keeper."""
    shutdown_timeout_seconds: float = Field(default=30.0, ge=0)
    """How long a worker that was told to stop lets its running tasks go on."""
    kill_grace_seconds: float = Field(default=5.0, ge=0, le=8)
    """What a child process that has to end gets between SIGTERM and SIGKILL.

    No more than 8: 10 s after its timeout, the database ends an attempt that still runs."""
    pool_size: int = Field(default=10, ge=1)
    """The most connections that one client opens at a time."""
    prepared_statements: bool = True
    """False prepares nothing; behind a pooler nothing is prepared in any case."""
    listen: bool = True
    """False keeps workers from listening for notifications; they poll."""

    @model_validator(mode="wrap")
    @classmethod
    def _fail_clearly(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        try:
            return handler(_with_database_url(data))
        except ValidationError as error:
            faults = "; ".join(map(_explained, error.errors(include_url=False)))
            names = ", ".join(cls.model_fields)
            hint = f"The settings are {names}." if "extra_forbidden" in _kinds(error) else None
            raise ConfigurationError(f"Config: {faults}", hint=hint) from None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show the database without its password."""
        yield "database_url", redacted(self.database_url)
        yield from super().__repr_args__()

    @property
    def is_embedded(self) -> bool:
        """Whether TaskLib runs the server itself."""
        return self.is_memory or (self.database_url is None and not _libpq_knows_a_server())

    @property
    def is_memory(self) -> bool:
        """Whether the server forgets everything when this process ends."""
        return (self.database_url or "").startswith(MEMORY)


class Resolved:
    """A database that can be connected to.

    Attributes:
        conninfo: What psycopg connects with; empty when libpq's ``PG*`` variables say it all.
        is_embedded: Whether TaskLib runs this server, and so migrates it unasked.
    """

    def __init__(self, conninfo: str, *, is_embedded: bool) -> None:
        self.conninfo = conninfo
        self.is_embedded = is_embedded

    def __repr__(self) -> str:
        return f"Resolved({redacted(self.conninfo)!r}, is_embedded={self.is_embedded})"


def resolve(config: Config | None = None) -> Resolved:
    """Find the database of a configuration, and start the embedded server when that is it.

    A process starts each embedded server once and leaves it when the process ends; the last
    process to leave stops it.

    Args:
        config: None means ``Config()``, which reads the environment.

    Raises:
        ConfigurationError: No database is configured and ``TASKLIB_EMBEDDED=never`` is set, or
            there are no server programs on this machine.
    """
    config = config or Config()
    if not config.is_embedded:
        return Resolved(config.database_url or "", is_embedded=False)
    from tasklib import embedded

    if not config.is_memory and embedded.is_refused():
        raise ConfigurationError(
            "no database is configured, and TASKLIB_EMBEDDED=never refuses the embedded one",
            hint="Set TASKLIB_DATABASE_URL or DATABASE_URL to postgresql://user@host/database.",
        )
    return Resolved(_started(config.database_url or ""), is_embedded=True)


def redacted(conninfo: str | None) -> str | None:
    """Return a connection string for people: everything but the password."""
    if not conninfo or conninfo.startswith(MEMORY):
        return conninfo
    try:
        parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    except ProgrammingError:
        return "***"
    if "password" in parts:
        parts["password"] = "***"  # noqa: S105
    return psycopg.conninfo.make_conninfo("", **parts)


_servers: dict[str, Embedded] = {}
_servers_lock = threading.Lock()


def _started(key: str) -> str:
    """Return the conninfo of this process's server for ``key``: a memory URL, or empty."""
    from tasklib import embedded

    with _servers_lock:
        if key not in _servers:
            project = embedded.project_root()
            server = embedded.temporary() if key else embedded.Embedded(project, announce=True)
            _servers[key] = server
            atexit.register(server.stop)
        # Asked for each connection: a server that was killed meanwhile starts again.
        return _servers[key].start()


def _kinds(error: ValidationError) -> set[str]:
    return {fault["type"] for fault in error.errors(include_url=False)}


def _explained(fault: ErrorDetails) -> str:
    """Quote a bad value with the name that it was given under; never one that may be a secret."""
    name = ".".join(map(str, fault["loc"])) or "config"
    if name not in Config.model_fields or name == "database_url":
        return f"{name}: {fault['msg']}"
    variable = f"TASKLIB_{name.upper()}"
    source = variable if os.environ.get(variable) == fault["input"] else name
    return f"{source}={fault['input']!r}: {fault['msg']}"


def _with_database_url(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    values: dict[str, Any] = dict(data)  # pyright: ignore[reportUnknownArgumentType]
    url = values.get("database_url") or os.environ.get("DATABASE_URL") or None
    # An empty one counts as none: to libpq it would be whatever server this machine has.
    values["database_url"] = _checked_url(url) if isinstance(url, str) else url
    return values


def _checked_url(url: str) -> str:
    if url.startswith(MEMORY):
        return url
    # SQLAlchemy and Django name the driver in the scheme; libpq does not know such schemes.
    url = re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url)
    try:
        hosts = str(psycopg.conninfo.conninfo_to_dict(url).get("host") or "")
    except ProgrammingError:
        scheme = urlsplit(url).scheme if "://" in url else "no scheme"
        raise ConfigurationError(
            f"database_url is not a PostgreSQL URL ({scheme})",
            hint="Write it as postgresql://user:password@host:5432/database.",
        ) from None
    # Every message about a host that cannot be found would quote the rest of the password.
    if any("@" in host[1:] and not host.startswith("/") for host in hosts.split(",")):
        raise ConfigurationError(
            "database_url has an @ in the name of its host",
            hint="Write an @ in a password as %40, a / as %2F, a # as %23.",
        )
    return url


def _libpq_knows_a_server() -> bool:
    return bool(os.environ.get("PGHOST") or os.environ.get("PGSERVICE"))
