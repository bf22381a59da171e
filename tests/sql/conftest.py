"""Roles of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection

from sql.support import run


@pytest.fixture
def person(conn: Connection[Any]) -> Generator[Callable[..., str]]:
    """Make roles that disappear after the test, in some groups."""
    made: list[str] = []

    def make(*groups: str, options: str = "") -> str:
        name = f"person_{uuid4().hex[:12]}"
        made.append(name)
        run(conn, f"create role {name} {options}")
        for group in groups:
            run(conn, f"grant {group} to {name}")
        return name

    yield make
    run(conn, "reset session authorization")
    run(conn, "reset role")
    for name in reversed(made):
        run(conn, f"drop owned by {name} cascade")
        run(conn, f"drop role {name}")
