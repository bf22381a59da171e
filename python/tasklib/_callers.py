"""Find the driver's connection inside what the caller passed as ``connection=``.

Nothing here begins, commits or rolls back: a task enqueued through it exists exactly when the
caller's transaction commits. SQLAlchemy and Django are recognised by shape and never imported.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import psycopg

from tasklib import _connections
from tasklib._calls import Call
from tasklib.errors import InvalidArguments

T = TypeVar("T")


def run(connection: object, call: Call[T]) -> T:
    """Run a call in the caller's transaction, blocking.

    Args:
        connection: A psycopg connection, a SQLAlchemy connection or session, Django's
            ``django.db.connection``, or any DB-API connection that takes ``%(name)s``.
        call: What to run.

    Raises:
        InvalidArguments: It is none of these, or it is an async one.
    """
    driver = _driver_of(connection)
    if isinstance(driver, psycopg.Connection):
        return _connections.run(driver, call)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(driver, psycopg.AsyncConnection) or _is_async_sqlalchemy(connection):
        raise InvalidArguments(
            f"connection={_shown(connection)} is async, and this is a blocking call",
            hint="Use `await task.adelay(...)` or `await submit_task(...)`.",
        )
    if not callable(getattr(driver, "cursor", None)):
        raise _unknown(connection)
    with _connections.translated(), driver.cursor() as cursor:
        cursor.execute(call.sql, call.params)
        return call.read(cursor.fetchall())


async def arun(connection: object, call: Call[T]) -> T:
    """Run a call in the caller's transaction; a sync connection blocks the loop for the call.

    Args:
        connection: What `run` takes, a psycopg async connection, or SQLAlchemy's async ones.
        call: What to run.
    """
    if _is_async_sqlalchemy(connection):
        connection = await _async_driver_of(connection)
    if isinstance(connection, psycopg.AsyncConnection):
        return await _connections.arun(connection, call)  # pyright: ignore[reportUnknownArgumentType]
    return run(connection, call)


def _driver_of(connection: Any) -> Any:
    if isinstance(connection, (psycopg.Connection, psycopg.AsyncConnection)):
        return connection  # pyright: ignore[reportUnknownVariableType]
    module = type(connection).__module__
    if module.startswith("sqlalchemy") or hasattr(connection, "get_bind"):
        if _is_async_sqlalchemy(connection):
            return connection
        return _sqlalchemy_driver_of(connection)
    if hasattr(connection, "ensure_connection"):  # Django's wrapper, or its proxy of this thread's
        connection.ensure_connection()
        raw = connection.connection
        return raw if isinstance(raw, psycopg.Connection) else connection  # pyright: ignore
    return connection


def _sqlalchemy_driver_of(connection: Any) -> Any:
    if hasattr(connection, "get_bind"):  # a session, or a scoped one: begins its transaction
        connection = connection.connection()
    if not hasattr(connection, "connection"):
        raise _unknown(connection)
    if not connection.in_transaction():
        # SQLAlchemy commits only what it knows it began; this is its own autobegin.
        connection.begin()
    return connection.connection.driver_connection


def _is_async_sqlalchemy(connection: Any) -> bool:
    return hasattr(connection, "run_sync") and type(connection).__module__ != "psycopg"


async def _async_driver_of(connection: Any) -> Any:
    if hasattr(connection, "get_bind"):
        connection = await connection.connection()
    if not connection.in_transaction():
        await connection.begin()
    raw = connection.get_raw_connection()
    driver = (await raw if inspect.isawaitable(raw) else raw).driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise InvalidArguments(
            f"connection= talks through {type(driver).__module__}, which is not psycopg",
            hint="Use an engine with the URL postgresql+psycopg://...",
        )
    return driver  # pyright: ignore[reportUnknownVariableType]


def _unknown(connection: object) -> InvalidArguments:
    return InvalidArguments(
        f"connection={_shown(connection)} is no connection that TaskLib knows",
        hint="Pass a psycopg connection, a SQLAlchemy connection or session, or Django's.",
    )


def _shown(connection: object) -> str:
    return f"{type(connection).__module__}.{type(connection).__qualname__}"
