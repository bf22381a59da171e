"""Databases without anything in them."""

from __future__ import annotations

from collections.abc import Generator
from uuid import uuid4

import psycopg
import pytest

from servers import Server


@pytest.fixture
def empty(server: Server) -> Generator[str]:
    """The connection string of an empty database."""
    name = f"tasklib_upgrade_{uuid4().hex}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f'create database "{name}" template template0')
        yield server.conninfo(name)
        conn.execute(f'drop database "{name}" with (force)')
